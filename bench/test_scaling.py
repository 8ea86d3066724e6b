"""How a pool's throughput grows with threads that run at once: on free-threaded Python.

Every thread has a connection to take, so that they meet in the pool and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial

import pytest

from .conftest import Measured, Publish
from .depth import Depth, Point
from .interleave import interleave, replayed_clock
from .peers import POOLS, Pool, Settings
from .rounds import Round, figures

THREADS = tuple(n for n in (1, 2, 4, 8, 16, 32, 64) if n <= max(4, 2 * (os.cpu_count() or 1)))
SIZE = max(THREADS)
PEERS = [peer for peer in POOLS if peer != "bare"]

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.benchmark(timer=replayed_clock),
]


def measure(dsn: str, depth: Depth) -> dict[tuple[int, str], list[Round]]:
    """All peers at all numbers of threads, in turns."""
    with contextlib.ExitStack() as stack:
        batches: dict[tuple[int, str], Callable[[], Round]] = {}
        for peer in PEERS:
            pool: Pool = POOLS[peer](Settings(dsn, SIZE, SIZE, autocommit=True))
            stack.callback(pool.close)
            for threads in THREADS:
                point = Point(threads, SIZE, "nothing")
                batches[threads, peer] = partial(pool.contend, point, depth.scaling.seconds)
        return interleave(batches, depth.scaling.rounds)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("threads", THREADS)
def test_scaling(
    measured: Measured,
    dsn: str,
    depth: Depth,
    publish: Publish,
    threads: int,
    peer: str,
) -> None:
    """The sample of a round is its seconds for one request, of all threads together."""
    rounds = measured("scaling", partial(measure, dsn, depth))[threads, peer]
    publish(
        POOLS[peer],
        f"scaling: {threads} threads",
        [1 / each.rate for each in rounds],
        workload="scaling",
        threads=threads,
        connections=SIZE,
        hold="nothing",
        **figures(rounds),
    )
