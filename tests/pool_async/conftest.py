"""What the async tests share: pools, connects behind a gate, sessions that end, complaints.

The twin of tests/pool: tests of what fastpool adds and of what faults do. All async tests run in
asyncio's event loop and in uvloop's, where it is installed. A test fails when its loop had to
complain: of a task that was destroyed, or of an exception that nobody saw.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import psycopg
import pytest
from shared.sessions import admin as admin
from shared.sessions import end_session as end_session
from shared.sessions import sessions as sessions
from shared.tasks import break_connection as break_connection
from shared.tasks import eventually as eventually
from shared.tasks import spawn as spawn
from shared.tasks import wait_until
from shared.tasks import works as works

import fastpool
import fastpool.base
import fastpool.connector
import fastpool.tasks

HAS_UVLOOP = importlib.util.find_spec("uvloop") is not None
PASSING_STATES = ("connecting", "returning", "reserved", "closing")


@pytest.fixture(
    scope="session",
    params=[
        "asyncio",
        pytest.param(
            "uvloop", marks=pytest.mark.skipif(not HAS_UVLOOP, reason="uvloop is not installed")
        ),
    ],
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run the tests in each kind of event loop, a new loop for each test."""
    return ("asyncio", {"use_uvloop": request.param == "uvloop"})


@pytest.fixture(autouse=True)
def nothing_to_complain_of(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test of which asyncio logged something: a task destroyed, an exception lost."""
    yield
    complaints = [
        record.getMessage()
        for record in caplog.get_records("call")
        if record.name == "asyncio" and record.levelno >= logging.WARNING
    ]
    if complaints:
        pytest.fail(f"asyncio complained: {complaints}")


# --- pools ----------------------------------------------------------------------------------------


@pytest.fixture
def at_rest() -> Callable[..., Awaitable[fastpool.Snapshot]]:
    """`await at_rest(pool)` waits until no slot is in a passing state and nobody waits, verifies
    the table, and returns a snapshot."""

    async def wait(pool: Any, timeout: float = 5.0) -> fastpool.Snapshot:
        def resting() -> bool:
            snapshot = pool.snapshot()
            busy = any(snapshot.counts[state] for state in PASSING_STATES)
            return not busy and not snapshot.waiting

        await wait_until(resting, timeout, what=f"{pool} at rest, not {pool.snapshot()}")
        pool._table.verify()
        snapshot: fastpool.Snapshot = pool.snapshot()
        return snapshot

    return wait


@pytest.fixture
def whole(at_rest: Callable[..., Awaitable[Any]]) -> Callable[[Any], Awaitable[None]]:
    """`await whole(pool)` sees that an open pool has all that it should: nothing lent, min_size
    connections idle or none in a null pool, and each of its slots can be lent."""

    async def see(pool: Any) -> None:
        least = pool.min_size

        def full() -> bool:
            counts = pool.snapshot().counts
            return bool(
                counts["available"] >= least
                and sum(counts.values()) == counts["available"] + counts["empty"]
            )

        await wait_until(full, what=f"{pool} whole, not {pool.snapshot()}")
        await at_rest(pool)
        conns = await asyncio.gather(*[pool.getconn(5.0) for _ in range(pool.max_size)])
        assert len(set(conns)) == pool.max_size
        with pytest.raises(fastpool.PoolTimeout):
            await pool.getconn(timeout=0)
        assert pool.snapshot().counts["in_use"] == pool.max_size
        for conn in conns:
            cursor = await conn.execute("select pg_backend_pid()")
            assert await cursor.fetchone() == (conn.pgconn.backend_pid,)
            await conn.rollback()
            await pool.putconn(conn)
        assert (await at_rest(pool)).counts["in_use"] == 0

    return see


@pytest.fixture
async def new_pool(
    anyio_backend: object, dsn: str, at_rest: Callable[..., Awaitable[Any]]
) -> AsyncIterator[Callable[..., Any]]:
    """Build pools of one connection unless told, not open; close and verify them at the end."""
    pools: list[Any] = []

    def build(conninfo: Any = dsn, *, cls: Any = None, **options: Any) -> Any:
        cls = cls or fastpool.AsyncConnectionPool
        least = 0 if issubclass(cls, fastpool.AsyncNullConnectionPool) else 1
        options = {"min_size": least, "open": False, "name": "p", **options}
        pool = cls(conninfo, **options)
        pools.append(pool)
        return pool

    yield build
    for pool in pools:
        await pool.close(timeout=2.0)
        if pool._opened:
            await at_rest(pool)
    pools.clear()


@pytest.fixture
def open_pool(new_pool: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Build pools that are open and full to min_size; their workers have ended."""

    async def build(*args: Any, **options: Any) -> Any:
        pool = new_pool(*args, **options)
        await pool.open(wait=True, timeout=5.0)
        await wait_until(lambda: not pool._tasks._tasks)
        return pool

    return build


@pytest.fixture
def null_pool(new_pool: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Build null pools that are open, of one connection at most unless told."""

    async def build(*args: Any, **options: Any) -> Any:
        options = {"max_size": 1, **options}
        pool = new_pool(*args, cls=fastpool.AsyncNullConnectionPool, **options)
        await pool.open()
        return pool

    return build


@pytest.fixture
def waiting() -> Callable[..., Awaitable[None]]:
    """`await waiting(pool, n)` goes on when *n* requests wait in *pool*."""

    async def wait(pool: Any, count: int) -> None:
        await wait_until(lambda: pool.snapshot().waiting == count, what=f"{count} waiting")

    return wait


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all that the pool puts off for a second come after 10 or 20 ms."""
    monkeypatch.setattr(fastpool.base.AttemptWithBackoff, "INITIAL_DELAY", 0.02)
    monkeypatch.setattr(fastpool.base.AttemptWithBackoff, "MAX_DELAY", 0.05)
    monkeypatch.setattr(fastpool.connector, "INTERRUPTED_DELAY", 0.01)
    monkeypatch.setattr(fastpool.tasks, "CANCELLED_DELAY", 0.01)


# --- the network ----------------------------------------------------------------------------------


class Network:
    """What lies between a pool and its server: connects pass, fail, or wait at a gate."""

    def __init__(self) -> None:
        self._gate = asyncio.Semaphore(0)
        self._held = False
        self.error: BaseException | None = None
        self.attempts = 0
        self.in_flight = 0
        self.most_in_flight = 0
        network = self

        class Connection(psycopg.AsyncConnection[Any]):
            @classmethod
            async def connect(cls, *args: Any, **kwargs: Any) -> Any:
                network.attempts += 1
                network.in_flight += 1
                network.most_in_flight = max(network.most_in_flight, network.in_flight)
                try:
                    if network._held:
                        await network._gate.acquire()
                    if network.error is not None:
                        # A new one each time, for it keeps the frames that it goes through.
                        raise type(network.error)(*network.error.args)
                    return await super().connect(*args, **kwargs)
                finally:
                    network.in_flight -= 1

        self.connection_class = Connection

    def down(self, error: BaseException | None = None) -> None:
        """Let every connect fail from now on."""
        self.error = error or psycopg.OperationalError("the network is down")

    def up(self) -> None:
        """Let connects succeed."""
        self.error = None

    def hold(self) -> None:
        """Let every connect wait until it is let through."""
        self._held = True
        self._gate = asyncio.Semaphore(0)  # nothing is left of what the last one let through

    def let(self, count: int) -> None:
        """Let that many of the connects that wait, or will, through the gate."""
        for _ in range(count):
            self._gate.release()

    def release(self) -> None:
        """Open the gate for good."""
        self._held = False
        self.let(100)


@pytest.fixture
async def network(new_pool: object) -> AsyncIterator[Network]:
    """A Network; pass its `connection_class` to a pool. Open again before the pools close."""
    network = Network()
    yield network
    network.release()


class SlowToClose(psycopg.AsyncConnection[Any]):
    """A connection whose close() suspends, as those of programs may; the driver's own does not."""

    async def close(self) -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await super().close()


@pytest.fixture(scope="session")
def slow_to_close() -> type[SlowToClose]:
    """A connection class whose close() suspends twice."""
    return SlowToClose


# --- programs -------------------------------------------------------------------------------------


@pytest.fixture
def script(dsn: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`script(source, *args)` runs a program in an interpreter of its own, in development mode and
    with warnings as errors; the server's connection string is its first argument. Blocks 30 s at
    most, and fails the test then."""

    def run(source: str, *args: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [sys.executable, "-X", "dev", "-W", "error", "-c", source, dsn, *args],
                capture_output=True,
                text=True,
                timeout=30.0,
                check=False,
                env={**os.environ, "PYTHONFAULTHANDLER": "1"},
            )
        except subprocess.TimeoutExpired as late:
            return pytest.fail(f"the program does not end; it said {late.stderr!r}")

    return run
