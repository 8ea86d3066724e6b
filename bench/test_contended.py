"""What 64 threads get from 4 connections: throughput, how long each waits, and who is served."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache, partial
from statistics import median
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from interleave import Depth, interleave, record, replayed_clock
from peers import MODULES, open_pool, peer_version

SIZE = 4
THREADS = 64


def hold_nothing(conn: Any) -> None:
    """Give it back at once."""


def hold_select(conn: Any) -> None:
    """Ask the server for one row; autocommit, so that is one round trip."""
    assert conn.execute("SELECT 1").fetchone() == (1,)


def hold_millisecond(conn: Any) -> None:
    """Keep the connection for 1 ms without using a processor."""
    time.sleep(0.001)


HOLDS = {"nothing": hold_nothing, "SELECT 1": hold_select, "1 ms": hold_millisecond}


@dataclass(frozen=True)
class Round:
    """What one round gave; waits are in seconds."""

    rate: float
    """Requests a second."""
    share: float
    """The least served thread's requests, as a part of the most served one's."""
    wait_p50: float
    wait_p99: float
    wait_p999: float
    wait_max: float


def summary(elapsed: float, served: list[int], waits: list[float]) -> Round:
    """Sum up what *served* tells by thread, and *waits* by request."""
    waits = sorted(waits)

    def quantile(part: float) -> float:
        return waits[min(len(waits) - 1, int(part * len(waits)))]

    return Round(
        rate=sum(served) / elapsed,
        share=min(served) / max(served),
        wait_p50=quantile(0.5),
        wait_p99=quantile(0.99),
        wait_p999=quantile(0.999),
        wait_max=waits[-1],
    )


def play_round(pool: Any, hold: Callable[[Any], None], seconds: float) -> Round:
    """Let 64 threads take, hold and give back for *seconds*, and see that none shares one."""
    gate = threading.Barrier(THREADS + 1)
    served = [0] * THREADS
    waits: list[list[float]] = [[] for _ in range(THREADS)]
    failures: list[BaseException] = []
    deadline = 0.0

    def client(index: int) -> None:
        clock, mine, n = time.perf_counter, waits[index], 0
        try:
            gate.wait()
            gate.wait()
            while (asked := clock()) < deadline:
                conn = pool.getconn()
                mine.append(clock() - asked)
                conn.bench_holder = index
                hold(conn)
                assert conn.bench_holder == index, "one connection was lent to two threads at once"
                pool.putconn(conn)
                n += 1
        except BaseException as error:
            failures.append(error)
        served[index] = n

    threads = [threading.Thread(target=client, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    gate.wait()
    start = time.perf_counter()
    deadline = start + seconds
    gate.wait()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - start
    if failures:
        raise failures[0]
    stats = pool.pop_stats()
    assert stats["requests_num"] == sum(served)
    assert stats.get("requests_errors", 0) == 0
    assert stats["pool_size"] == stats["pool_available"] == SIZE
    return summary(elapsed, served, [wait for mine in waits for wait in mine])


def figures(rounds: Sequence[Round]) -> dict[str, float]:
    """Sum up *rounds*: the median of each figure, but the longest wait of all."""
    medians = {
        field.name: median(getattr(each, field.name) for each in rounds) for field in fields(Round)
    }
    return medians | {"wait_max": max(each.wait_max for each in rounds)}


@pytest.fixture(scope="session")
def contended_rounds(dsn: str, depth: Depth) -> Callable[[str], dict[str, list[Round]]]:
    """Measure one way of holding on all peers at once, when the first of them is asked for."""

    @cache
    def measure(hold: str) -> dict[str, list[Round]]:
        pools = {peer: open_pool(peer, dsn, SIZE, autocommit=True) for peer in MODULES}
        try:
            batches = {}
            for peer, pool in pools.items():
                pool.pop_stats()
                batches[peer] = partial(play_round, pool, HOLDS[hold], depth.contended_seconds)
            return interleave(batches, depth.contended_rounds)
        finally:
            for pool in pools.values():
                pool.close()

    return measure


@pytest.mark.timeout(300)
@pytest.mark.parametrize("peer", list(MODULES))
@pytest.mark.parametrize("hold", list(HOLDS))
@pytest.mark.benchmark(timer=replayed_clock)
def test_contended(
    benchmark: BenchmarkFixture,
    contended_rounds: Callable[[str], dict[str, list[Round]]],
    facts: dict[str, Any],
    hold: str,
    peer: str,
) -> None:
    """The sample of a round is its seconds for one request, of all threads together."""
    benchmark.group = f"contended: 64 threads, 4 connections, hold {hold}"
    rounds = contended_rounds(hold)[peer]
    samples = [1 / each.rate for each in rounds]
    about = {"hold": hold, "peer": peer, "version": peer_version(peer), "threads": THREADS}
    record(benchmark, samples, **about, **figures(rounds), **facts)
