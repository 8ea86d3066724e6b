"""What one lending and its return cost when nobody else wants a connection: one thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from interleave import Depth, calls_for, interleave, record, replayed_clock, seconds_per_call
from peers import MODULES, lender, open_pool, peer_version

SIZE = 4

Samples = dict[str, list[float]]


def getconn_putconn(peer: str, pool: Any, n: int) -> None:
    """Take and give back by the two methods."""
    getconn, putconn = pool.getconn, pool.putconn
    for _ in range(n):
        putconn(getconn())


def connect_close(peer: str, pool: Any, n: int) -> None:
    """Take a connection whose own close() gives it back."""
    lend = lender(peer, pool)
    for _ in range(n):
        lend().close()


def connection_block(peer: str, pool: Any, n: int) -> None:
    """Take for the length of a with block."""
    connection = pool.connection
    for _ in range(n):
        with connection():
            pass


SCENARIOS = {
    "getconn_putconn": getconn_putconn,
    "connect_close": connect_close,
    "connection_block": connection_block,
}


def batch(cycle: Callable[[int], None], pool: Any, n: int) -> float:
    """Time *n* cycles; what the pool counted must be what was asked of it."""
    pool.pop_stats()
    seconds = seconds_per_call(cycle, n)
    stats = pool.pop_stats()
    assert stats["requests_num"] == n
    assert stats.get("requests_errors", 0) == 0
    assert stats["pool_size"] == stats["pool_available"] == SIZE
    return seconds


@pytest.fixture(scope="session")
def cycle_samples(dsn: str, depth: Depth) -> Callable[[str], Samples]:
    """Measure a scenario on all peers at once, when the first of them is asked for."""

    @cache
    def measure(scenario: str) -> Samples:
        pools = {peer: open_pool(peer, dsn, SIZE) for peer in MODULES}
        try:
            batches = {}
            for peer, pool in pools.items():
                cycle = partial(SCENARIOS[scenario], peer, pool)
                calls = calls_for(cycle, depth.cycle_seconds)
                batches[peer] = partial(batch, cycle, pool, calls)
            return interleave(batches, depth.cycle_rounds)
        finally:
            for pool in pools.values():
                pool.close()

    return measure


@pytest.mark.timeout(300)
@pytest.mark.parametrize("peer", list(MODULES))
@pytest.mark.parametrize("scenario", list(SCENARIOS))
@pytest.mark.benchmark(timer=replayed_clock)
def test_cycle(
    benchmark: BenchmarkFixture,
    cycle_samples: Callable[[str], Samples],
    facts: dict[str, Any],
    scenario: str,
    peer: str,
) -> None:
    benchmark.group = f"cycle: {scenario}"
    samples = cycle_samples(scenario)[peer]
    record(benchmark, samples, scenario=scenario, peer=peer, version=peer_version(peer), **facts)
