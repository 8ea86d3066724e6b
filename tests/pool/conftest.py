"""What these tests share: pools, threads with a result, connects behind a gate, sessions that end.

The tests here are of what fastpool adds and of what faults do; what it has in common with
psycopg_pool is tested beside it. Every pool made by `new_pool` is verified when its test is over:
its slot table must be consistent, and no slot may be left in a passing state.
"""

from __future__ import annotations

import collections
import gc
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from shared.sessions import admin as admin
from shared.sessions import end_session as end_session
from shared.sessions import pid as pid
from shared.sessions import sessions as sessions
from shared.threads import ThreadCall
from shared.threads import break_connection as break_connection

import fastpool
import fastpool.base

PASSING_STATES = ("connecting", "returning", "reserved", "closing")


@pytest.fixture
def no_pool_threads(eventually: Callable[..., Any]) -> None:
    """Let the threads of earlier tests' pools end, also of those that only the collector frees."""
    gc.collect()
    names = ("fastpool-", "p-worker")
    eventually(
        lambda: not any(thread.name.startswith(names) for thread in threading.enumerate()),
        what="no pool's threads",
    )


# --- pools ------------------------------------------------------------------------------------


@pytest.fixture
def at_rest(eventually: Callable[..., Any]) -> Callable[[Any], fastpool.Snapshot]:
    """`at_rest(pool)` waits until no slot is in a passing state, verifies the table, and returns
    a snapshot."""

    def wait(pool: Any) -> fastpool.Snapshot:
        def resting() -> bool:
            counts = pool.snapshot().counts
            return not any(counts[state] for state in PASSING_STATES)

        eventually(resting, timeout=10.0, what=f"{pool} at rest")
        pool._table.verify()
        snapshot: fastpool.Snapshot = pool.snapshot()
        return snapshot

    return wait


@pytest.fixture
def new_pool(
    dsn: str, at_rest: Callable[[Any], Any], makers_gone: Callable[[], None]
) -> Iterator[Callable[..., Any]]:
    """Build pools of one connection unless told, open and full unless `open=False`."""
    pools: list[Any] = []

    def build(conninfo: Any = dsn, *, open: bool = True, **options: Any) -> Any:
        options = {"min_size": 1, "name": "p", **options}
        pool = fastpool.ConnectionPool(conninfo, open=False, **options)
        pools.append(pool)
        if open:
            pool.open(wait=True, timeout=10.0)
            makers_gone()
        return pool

    yield build
    for pool in pools:
        pool.close(timeout=2.0)
        if pool._opened:
            at_rest(pool)


@pytest.fixture
def waiting(eventually: Callable[..., Any]) -> Callable[[Any, int], None]:
    """`waiting(pool, n)` blocks until *n* requests wait in *pool*."""

    def wait(pool: Any, count: int) -> None:
        eventually(lambda: pool.snapshot().waiting == count, what=f"{count} waiting")

    return wait


@pytest.fixture
def available(eventually: Callable[..., Any]) -> Callable[..., None]:
    """`available(pool, n)` blocks until *n* connections of *pool* are idle."""

    def wait(pool: Any, count: int, timeout: float = 5.0) -> None:
        def reached() -> bool:
            return bool(pool.snapshot().counts["available"] == count)

        eventually(reached, timeout=timeout, what=f"{count} available")

    return wait


@pytest.fixture
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the delay between two attempts to connect 20 to 50 ms instead of a second."""
    monkeypatch.setattr(fastpool.base.AttemptWithBackoff, "INITIAL_DELAY", 0.02)
    monkeypatch.setattr(fastpool.base.AttemptWithBackoff, "MAX_DELAY", 0.05)


@pytest.fixture
def unreachable(tmp_path: Any) -> str:
    """A connection string of which every attempt fails at once."""
    return f"host={tmp_path} port=1 dbname=nowhere"


# --- threads ----------------------------------------------------------------------------------


class Call(ThreadCall):
    """A call in a thread, which keeps nothing of what it came to once that has been told."""

    def result(self, timeout: float = 10.0) -> Any:
        """Return what the call returned, or raise what it raised. Blocks up to *timeout* s."""
        try:
            return super().result(timeout)
        finally:
            if self.done:
                self._value = self._error = None


@pytest.fixture
def spawn() -> Iterator[Callable[..., Call]]:
    """`spawn(function, *args, thread_name=None, **kwargs)` starts a call in a thread."""
    threads: list[threading.Thread] = []

    def start(
        function: Callable[..., Any], *args: Any, thread_name: str | None = None, **kwargs: Any
    ) -> Call:
        call = Call(lambda: function(*args, **kwargs), thread_name)
        threads.append(call.thread)
        return call

    yield start
    for thread in threads:
        thread.join(10.0)


@pytest.fixture
def at_once(spawn: Callable[..., Call]) -> Callable[..., list[Any]]:
    """`at_once(n, function)` calls *function* in *n* threads that start together; returns what
    each call returned, or the exception it raised."""

    def run(count: int, function: Callable[[], Any]) -> list[Any]:
        barrier = threading.Barrier(count)

        def meet() -> Any:
            barrier.wait(10.0)
            try:
                return function()
            except Exception as error:
                return error

        calls = [spawn(meet) for _ in range(count)]
        return [call.result() for call in calls]

    return run


@pytest.fixture
def script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`script(source, *args)` runs a program in an interpreter of its own; warnings are errors
    there too. Blocks 30 s at most."""

    def run(source: str, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", source, *args],
            capture_output=True,
            text=True,
            timeout=30.0,
            check=False,
            env={**os.environ, "PYTHONFAULTHANDLER": "1"},
        )

    return run


# --- the network ------------------------------------------------------------------------------


class Network:
    """What lies between a pool and its server: connects pass, fail, or wait at a gate."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gate = threading.Semaphore(0)
        self._held = False
        self.error: Exception | None = None
        self.attempts: list[float] = []
        self.successes: list[float] = []
        self.in_flight = 0
        self.most_in_flight = 0
        network = self

        class Connection(psycopg.Connection[Any]):
            @classmethod
            def connect(cls, *args: Any, **kwargs: Any) -> Any:
                return network._pass(
                    lambda: psycopg.Connection.connect.__func__(cls, *args, **kwargs)
                )

        self.connection_class = Connection

    def _pass(self, connect: Callable[[], Any]) -> Any:
        with self._lock:
            self.attempts.append(time.monotonic())
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self._held and not self._gate.acquire(timeout=20.0):
                raise TimeoutError("nobody opened the gate")
            if self.error is not None:
                raise self.error
            conn = connect()
            self.successes.append(time.monotonic())
            return conn
        finally:
            with self._lock:
                self.in_flight -= 1

    def down(self, error: Exception | None = None) -> None:
        """Let every connect fail from now on."""
        self.error = error or psycopg.OperationalError("the network is down")

    def up(self) -> None:
        """Let connects succeed."""
        self.error = None

    def hold(self) -> None:
        """Let every connect wait until it is let through."""
        self._held = True

    def let(self, count: int) -> None:
        """Let that many of the connects that wait, or will, through the gate."""
        self._gate.release(count)

    def release(self) -> None:
        """Open the gate for good."""
        self._held = False
        self._gate.release(1000)


@pytest.fixture
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    """A Network; pass its `connection_class` to a pool. Its gate opens at the test's end, before
    the pools are closed."""
    request.getfixturevalue("new_pool")  # made first, torn down last
    network = Network()
    yield network
    network.release()


# --- what is logged ---------------------------------------------------------------------------


class Log:
    """The lines that pools logged."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def texts(self, level: int = logging.DEBUG) -> list[str]:
        """The texts of the lines of at least *level*, oldest first."""
        return [
            record.getMessage()
            for record in list(self._caplog.records)
            if record.name == "psycopg.pool" and record.levelno >= level
        ]

    def warnings(self) -> list[str]:
        """The texts of WARNING and above."""
        return self.texts(logging.WARNING)

    def kinds(self) -> collections.Counter[str]:
        """How many warnings begin with the same two words."""
        return collections.Counter(" ".join(text.split()[:2]) for text in self.warnings())


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    """What is logged as a WARNING or worse on "psycopg.pool"."""
    caplog.set_level(logging.WARNING, logger="psycopg.pool")
    return Log(caplog)
