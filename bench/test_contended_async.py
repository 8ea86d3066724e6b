"""What the tasks of one event loop get from fewer connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial

import pytest

from .conftest import Measured, Publish
from .depth import Depth, Point, chosen
from .interleave import interleave, replayed_clock
from .peers import ASYNC_POOLS, AsyncPool, Settings
from .rounds import Round, figures

pytestmark = [pytest.mark.timeout(300), pytest.mark.benchmark(timer=replayed_clock)]


def takes_part(point: Point) -> list[str]:
    """Return the peers at *point*: without a pool only the query can be measured."""
    return [peer for peer in ASYNC_POOLS if peer != "bare" or point.hold == "SELECT 1"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    points = chosen(metafunc.config).task_points
    pairs = [(point, peer) for point in points for peer in takes_part(point)]
    ids = [f"{point}-{peer}" for point, peer in pairs]
    metafunc.parametrize(("point", "peer"), pairs, ids=ids)


def measure(
    loop: asyncio.AbstractEventLoop, dsn: str, depth: Depth, point: Point
) -> dict[str, list[Round]]:
    """Play rounds of one point on all its peers, in turns."""
    run = loop.run_until_complete
    seconds = point.seconds(depth.tasks.seconds)
    settings = Settings(dsn, point.connections, point.connections, autocommit=True)

    def play(pool: AsyncPool) -> Round:
        return run(pool.contend(point, seconds))

    def close(pool: AsyncPool) -> None:
        run(pool.close())

    with contextlib.ExitStack() as stack:
        batches: dict[str, Callable[[], Round]] = {}
        for name in takes_part(point):
            pool: AsyncPool = ASYNC_POOLS[name](settings)
            run(pool.open())
            stack.callback(close, pool)
            batches[name] = partial(play, pool)
        return interleave(batches, depth.tasks.rounds)


def test_contended_async(
    measured: Measured,
    loop: asyncio.AbstractEventLoop,
    dsn: str,
    depth: Depth,
    publish: Publish,
    point: Point,
    peer: str,
) -> None:
    """The sample of a round is its seconds for one request, of all tasks together."""
    rounds = measured(("async", point), partial(measure, loop, dsn, depth, point))[peer]
    publish(
        ASYNC_POOLS[peer],
        f"contended, async: {point.clients} tasks, {point.connections} connections, {point.hold}",
        [1 / each.rate for each in rounds],
        workload="contended_async",
        tasks=point.clients,
        clients=ASYNC_POOLS[peer].clients(point),
        connections=point.connections,
        hold=point.hold,
        **figures(rounds),
    )
