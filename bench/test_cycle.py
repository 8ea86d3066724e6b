"""What one lending and its return cost when nobody else wants a connection: one thread or task."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from functools import partial

import pytest

from .conftest import Measured, Publish
from .cycles import SCENARIOS
from .depth import Depth
from .interleave import interleave, replayed_clock
from .peers import ASYNC_POOLS, POOLS, AsyncPool, Peer, Pool, Settings

SIZE = 4

Key = tuple[str, str]
Samples = dict[Key, list[float]]

pytestmark = [pytest.mark.timeout(300), pytest.mark.benchmark(timer=replayed_clock)]


def pairs(peers: Mapping[str, type[Peer]]) -> list[Key]:
    """Pair every scenario with the peers that have it."""
    return [(each, name) for each in SCENARIOS for name in peers if each in peers[name].scenarios]


def calls_for(cycle: Callable[[int], float], seconds: float) -> int:
    """Find how many calls take about *seconds*; warms up as it does so."""
    cycle(200)
    return max(50, int(seconds / cycle(200)))


def measure(dsn: str, depth: Depth) -> Samples:
    """Seconds for one cycle, of every scenario of every pool for threads, all in turns."""
    with contextlib.ExitStack() as stack:
        batches: dict[Key, Callable[[], float]] = {}
        for name, peer in POOLS.items():
            pool: Pool = peer(Settings(dsn, SIZE, SIZE))
            stack.callback(pool.close)
            for scenario in pool.scenarios:
                cycle = partial(pool.cycle, scenario)
                n = calls_for(cycle, depth.cycle.seconds)
                batches[scenario, name] = partial(cycle, n)
        return interleave(batches, depth.cycle.rounds)


def measure_async(loop: asyncio.AbstractEventLoop, dsn: str, depth: Depth) -> Samples:
    """The same of every pool for tasks."""
    run = loop.run_until_complete

    def cycle(pool: AsyncPool, scenario: str, n: int) -> float:
        return run(pool.cycle(scenario, n))

    def close(pool: AsyncPool) -> None:
        run(pool.close())

    with contextlib.ExitStack() as stack:
        batches: dict[Key, Callable[[], float]] = {}
        for name, peer in ASYNC_POOLS.items():
            pool: AsyncPool = peer(Settings(dsn, SIZE, SIZE))
            run(pool.open())
            stack.callback(close, pool)
            for scenario in pool.scenarios:
                one = partial(cycle, pool, scenario)
                n = calls_for(one, depth.cycle_async.seconds)
                batches[scenario, name] = partial(one, n)
        return interleave(batches, depth.cycle_async.rounds)


@pytest.mark.parametrize(("scenario", "peer"), pairs(POOLS))
def test_cycle(
    measured: Measured, dsn: str, depth: Depth, publish: Publish, scenario: str, peer: str
) -> None:
    """The sample of a round is its seconds for one cycle."""
    about = {"workload": "cycle", "scenario": scenario, "mode": "sync", "stub": False}
    samples = measured("cycle", partial(measure, dsn, depth))[scenario, peer]
    publish(POOLS[peer], f"cycle: {scenario}", samples, **about)


@pytest.mark.parametrize(("scenario", "peer"), pairs(ASYNC_POOLS))
def test_cycle_async(
    measured: Measured,
    loop: asyncio.AbstractEventLoop,
    dsn: str,
    depth: Depth,
    publish: Publish,
    scenario: str,
    peer: str,
) -> None:
    """The same for a task."""
    about = {"workload": "cycle", "scenario": scenario, "mode": "async", "stub": False}
    samples = measured("async cycle", partial(measure_async, loop, dsn, depth))[scenario, peer]
    publish(ASYNC_POOLS[peer], f"cycle, async: {scenario}", samples, **about)
