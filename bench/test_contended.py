"""What threads get from fewer connections: throughput, how long each waits, and who is served."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from .conftest import Measured, Publish
from .depth import COMPARED, Depth, Point, Sampling, chosen
from .interleave import interleave, replayed_clock
from .peers import POOLS, Pool, Settings, present
from .rounds import Round, figures

# CPU-bound threads beside them say more of the language than of the pool: one of each kind.
BURDENED = (*COMPARED, "simplequeue", "hikaricp", "bare")

pytestmark = [pytest.mark.timeout(300), pytest.mark.benchmark(timer=replayed_clock)]


def plan(depth: Depth) -> dict[Point, tuple[Sequence[str], Sampling]]:
    """Tell which peers are measured at which points, and how often."""
    points: dict[Point, tuple[Sequence[str], Sampling]] = {}
    for point in (*depth.matrix_points, *depth.diagonal_points):
        points[point] = (COMPARED, depth.matrix)
    for point in depth.diagonal_points:
        points[point] = (tuple(POOLS), depth.matrix)
    for point in depth.headline_points:
        points[point] = (tuple(POOLS), depth.headline)
    for point in depth.burdened_points:
        points[point] = (BURDENED, depth.burdened)

    def takes_part(peer: str, point: Point) -> bool:
        # Without a pool only the query can be measured.
        return peer != "bare" or point.hold == "SELECT 1"

    return {
        point: ([peer for peer in present(*peers) if takes_part(peer, point)], sampling)
        for point, (peers, sampling) in points.items()
    }


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    points = plan(chosen(metafunc.config))
    pairs = [(point, peer) for point, (peers, _) in points.items() for peer in peers]
    ids = [f"{point}-{peer}" for point, peer in pairs]
    metafunc.parametrize(("point", "peer"), pairs, ids=ids)


def measure(dsn: str, depth: Depth, point: Point) -> dict[str, list[Round]]:
    """Play rounds of one point on all its peers, in turns."""
    peers, sampling = plan(depth)[point]
    seconds = point.seconds(sampling.seconds)
    settings = Settings(dsn, point.connections, point.connections, autocommit=True)
    with contextlib.ExitStack() as stack:
        batches: dict[str, Callable[[], Round]] = {}
        for peer in peers:
            pool: Pool = POOLS[peer](settings)
            stack.callback(pool.close)
            batches[peer] = partial(pool.contend, point, seconds)
        return interleave(batches, sampling.rounds)


def test_contended(
    measured: Measured, dsn: str, depth: Depth, publish: Publish, point: Point, peer: str
) -> None:
    """The sample of a round is its seconds for one request, of all threads together."""
    rounds = measured(point, partial(measure, dsn, depth, point))[peer]
    group = f"contended: {point.clients} threads, {point.connections} connections, {point.hold}"
    if point.burners:
        group += f", {point.burners} CPU-bound threads beside"
    publish(
        POOLS[peer],
        group,
        [1 / each.rate for each in rounds],
        workload="contended",
        threads=point.clients,
        clients=POOLS[peer].clients(point),
        connections=point.connections,
        hold=point.hold,
        burners=point.burners,
        **figures(rounds),
    )
