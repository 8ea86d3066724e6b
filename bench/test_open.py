"""How long it takes until a pool has all its connections."""

from __future__ import annotations

import time
from functools import partial

import pytest

from .conftest import Measured, Publish
from .depth import Depth, chosen
from .interleave import interleave, replayed_clock
from .peers import POOLS, Pool, Settings, present

# Those that open their connections before they are wanted; and one connect after the other.
PEERS = present("fastpool", "psycopg_pool", "dbutils", "psycopg2", "bare")

pytestmark = [pytest.mark.timeout(300), pytest.mark.benchmark(timer=replayed_clock)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("connections", chosen(metafunc.config).open_sizes)


def open_once(peer: type[Pool], settings: Settings) -> float:
    """Open a pool, see that all of it is there, close it; return the seconds it took to open."""
    start = time.perf_counter()
    pool = peer(settings)
    elapsed = time.perf_counter() - start
    try:
        pool.verify()
    finally:
        pool.close()
    return elapsed


@pytest.mark.parametrize("peer", PEERS)
def test_open(
    measured: Measured,
    dsn: str,
    depth: Depth,
    publish: Publish,
    connections: int,
    peer: str,
) -> None:
    """The sample of a round is the seconds until the pool was full."""
    settings = Settings(dsn, connections, connections)
    batches = {peer: partial(open_once, POOLS[peer], settings) for peer in PEERS}
    samples = measured(("open", connections), lambda: interleave(batches, depth.open.rounds))
    publish(
        POOLS[peer],
        f"open: {connections} connections",
        samples[peer],
        workload="open",
        connections=connections,
    )
