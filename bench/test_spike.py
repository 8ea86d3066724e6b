"""A spike: 50 clients at once come to a pool of 5 connections, which may grow to 50 but slowly.

Each wants a connection for 2 ms, and a connect takes 150 ms: serving all with the five takes 20 ms.
It is HikariCP's "Welcome to the Jungle": opening a connection for everyone who waits is the
slowest answer, and leaves the server with 50 of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import pytest

from .conftest import Measured, Publish
from .depth import Depth, chosen
from .interleave import interleave, replayed_clock
from .peers import POOLS, Pool, Settings, present

CLIENTS = 50
CONNECT_SECONDS = 0.15
WORK_SECONDS = 0.002
MIN_SIZE, MAX_SIZE = 5, 50
PEERS = present("fastpool", "psycopg_pool", "sqlalchemy", "dbutils", "psycopg2")

pytestmark = [pytest.mark.timeout(300), pytest.mark.benchmark(timer=replayed_clock)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("peer", chosen(metafunc.config).among(PEERS))


@dataclass(frozen=True)
class Spike:
    """How one spike went."""

    elapsed: float
    """Seconds until all were served."""
    opened: int
    """Connects that were begun meanwhile."""


def play(peer: type[Pool], dsn: str) -> Spike:
    """Let the clients come, and see that each was served by a connection that was its own."""
    connects: list[float] = []

    def connect_slowly(connect: Callable[[], Any]) -> Any:
        connects.append(time.perf_counter())
        time.sleep(CONNECT_SECONDS)
        return connect()

    settings = Settings(dsn, MIN_SIZE, MAX_SIZE, autocommit=True, connecting=connect_slowly)
    pool = peer(settings)
    session_of = peer.session_of or (lambda lent: lent)
    gate = threading.Barrier(CLIENTS + 1)
    ended: list[float] = []
    failures: list[BaseException] = []

    def client(index: int) -> None:
        try:
            gate.wait()
            lent = pool.getconn()
            session = session_of(lent)
            session.bench_holder = index
            time.sleep(WORK_SECONDS)
            assert session.bench_holder == index, "one connection was lent twice at a time"
            pool.putconn(lent)
            ended.append(time.perf_counter())
        except BaseException as error:
            failures.append(error)

    try:
        assert len(connects) == MIN_SIZE
        threads = [threading.Thread(target=client, args=(i,)) for i in range(CLIENTS)]
        for thread in threads:
            thread.start()
        gate.wait()
        start = time.perf_counter()
        for thread in threads:
            thread.join()
        opened = len(connects) - MIN_SIZE
    finally:
        pool.close()
    if failures:
        raise failures[0]
    assert len(ended) == CLIENTS
    return Spike(max(ended) - start, opened)


def measure(dsn: str, depth: Depth) -> dict[str, list[Spike]]:
    """Spikes on all peers in turns."""
    batches = {peer: partial(play, POOLS[peer], dsn) for peer in depth.among(PEERS)}
    return interleave(batches, depth.spike.rounds)


def test_spike(measured: Measured, dsn: str, depth: Depth, publish: Publish, peer: str) -> None:
    """The sample of a round is the seconds until all were served."""
    rounds = measured("spike", partial(measure, dsn, depth))[peer]
    publish(
        POOLS[peer],
        f"spike: {CLIENTS} clients, {MIN_SIZE} to {MAX_SIZE} connections",
        [each.elapsed for each in rounds],
        workload="spike",
        clients=CLIENTS,
        connect_ms=CONNECT_SECONDS * 1e3,
        work_ms=WORK_SECONDS * 1e3,
        min_size=MIN_SIZE,
        max_size=MAX_SIZE,
        elapsed=median(each.elapsed for each in rounds),
        opened=median(each.opened for each in rounds),
    )
