"""What the async contract tests share: two implementations, and ways to put a pool into a state.

The twin of tests/contract: every test runs once on psycopg_pool and once on fastpool. What is the
same for both kinds of pool is said here about tasks instead of threads. Owns no assertion about
a pool. All of it is fixtures, for in importlib mode a test cannot import its neighbours.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import psycopg
import pytest

IMPLEMENTATIONS = ("psycopg_pool", "fastpool")
POLL = 0.005


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Run the tests in asyncio's own event loop, a new one for each test."""
    return ("asyncio", {})


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request: pytest.FixtureRequest) -> ModuleType:
    """The package under test. psycopg_pool may be missing, fastpool may not."""
    if request.param == "psycopg_pool":
        reason = "psycopg_pool, the yardstick, is not installed"
        module: ModuleType = pytest.importorskip("psycopg_pool", reason=reason)
        return module
    return importlib.import_module(request.param)


@pytest.fixture
def base(impl: ModuleType) -> ModuleType:
    """The package's module `base`."""
    return importlib.import_module(f"{impl.__name__}.base")


@pytest.fixture
def quick_backoff(base: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the first delay between two attempts to connect 20 ms instead of a second."""
    monkeypatch.setattr(base.AttemptWithBackoff, "INITIAL_DELAY", 0.02)


async def wait_until(predicate: Callable[[], Any], timeout: float = 5.0, what: str = "") -> Any:
    """Let the loop run until *predicate* returns something true, and return it."""
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() > deadline
        value = predicate()
        if value:
            return value
        if late:
            name = what or getattr(predicate, "__name__", repr(predicate))
            raise AssertionError(f"not within {timeout:g} s: {name} (last: {value!r})")
        await asyncio.sleep(POLL)


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Awaitable[Any]]:
    """Poll a condition with a deadline: `await eventually(lambda: pool.closed, timeout=5)`."""
    return wait_until


def others() -> set[asyncio.Task[Any]]:
    """The tasks that are not the test runner's, which has new ones for each fixture and test."""
    return {
        task
        for task in asyncio.all_tasks()
        if not getattr(task.get_coro(), "__qualname__", "").startswith("TestRunner.")
    }


@pytest.fixture
async def new_pool(
    anyio_backend: object, impl: ModuleType, dsn: str
) -> AsyncIterator[Callable[..., Any]]:
    """Build pools that are not open, of one connection unless told; close them at the end.

    Their tasks have ended too when the test has, for one that lingers would log into the next.
    """
    pools: list[Any] = []
    before = others()

    def build(conninfo: Any = dsn, *, cls: Any = None, **options: Any) -> Any:
        options = {"min_size": 1, "open": False, "name": "p", **options}
        pool = (cls or impl.AsyncConnectionPool)(conninfo, **options)
        pools.append(pool)
        return pool

    yield build
    for pool in pools:
        await pool.close(timeout=1.0)
    with suppress(AssertionError):
        await wait_until(lambda: others() <= before, timeout=2.0)


@pytest.fixture
def open_pool(new_pool: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Build pools that are open and full."""

    async def build(*args: Any, **options: Any) -> Any:
        pool = new_pool(*args, **options)
        await pool.open(wait=True, timeout=5.0)
        return pool

    return build


@pytest.fixture
def full_pool(open_pool: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Build pools that have grown to max_size, every connection idle."""

    async def build(*args: Any, **options: Any) -> Any:
        pool = await open_pool(*args, **options)
        lent = [await pool.getconn(timeout=5.0) for _ in range(pool.max_size)]
        for conn in lent:
            await pool.putconn(conn)
        return pool

    return build


@pytest.fixture
def waiting() -> Callable[..., Awaitable[None]]:
    """`await waiting(pool, n)` goes on when *n* requests are queued in *pool*."""

    async def wait(pool: Any, count: int) -> None:
        await wait_until(
            lambda: pool.get_stats()["requests_waiting"] == count, what=f"{count} waiting"
        )

    return wait


class Call:
    """A coroutine running in a task of its own."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], name: str | None) -> None:
        self.task = asyncio.get_running_loop().create_task(coroutine, name=name)

    @property
    def done(self) -> bool:
        return self.task.done()

    async def result(self, timeout: float = 5.0) -> Any:
        """Return what the call returned, or raise what it raised, CancelledError included.

        Raises TimeoutError when that takes more than *timeout* seconds; the call goes on then.
        """
        await asyncio.wait({self.task}, timeout=timeout)
        if not self.done:
            raise TimeoutError(f"still running after {timeout} s")
        return self.task.result()

    async def cancel(self, timeout: float = 5.0) -> None:
        """Cancel the call and see it end so. One that ends otherwise has swallowed it."""
        self.task.cancel()
        try:
            await self.result(timeout)
        except asyncio.CancelledError:
            return
        raise AssertionError(f"the cancellation was swallowed: {self.task}")


@pytest.fixture
async def spawn(anyio_backend: object) -> AsyncIterator[Callable[..., Call]]:
    """`spawn(pool.getconn(), task_name=None)` runs a coroutine in a task."""
    calls: list[Call] = []

    def start(coroutine: Coroutine[Any, Any, Any], task_name: str | None = None) -> Call:
        call = Call(coroutine, task_name)
        calls.append(call)
        return call

    yield start
    for call in calls:
        call.task.cancel()
    if calls:
        await asyncio.wait([call.task for call in calls], timeout=5.0)


class Network:
    """What happens between a pool and its server: connects pass, fail, or wait at a gate."""

    def __init__(self) -> None:
        self._gate = asyncio.Event()
        self._gate.set()
        self.error: BaseException | None = None
        self.attempts: list[tuple[float, tuple[Any, ...], dict[str, Any]]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        network = self

        class Connection(psycopg.AsyncConnection[Any]):
            @classmethod
            async def connect(cls, *args: Any, **kwargs: Any) -> Any:
                network.attempts.append((time.monotonic(), args, kwargs))
                network.in_flight += 1
                network.most_in_flight = max(network.most_in_flight, network.in_flight)
                try:
                    await network._gate.wait()
                    if network.error is not None:
                        raise network.error
                    return await super().connect(*args, **kwargs)
                finally:
                    network.in_flight -= 1

        self.connection_class = Connection

    def down(self, error: BaseException | None = None) -> None:
        """Let every connect fail from now on."""
        self.error = error or psycopg.OperationalError("the network is down")

    def up(self) -> None:
        """Let connects pass."""
        self.error = None

    def hold(self) -> None:
        """Let every connect wait until release()."""
        self._gate.clear()

    def release(self) -> None:
        """Open the gate."""
        self._gate.set()


@pytest.fixture
async def network(anyio_backend: object) -> AsyncIterator[Network]:
    """A Network; pass its `connection_class` to a pool. Open again before the pools close."""
    network = Network()
    yield network
    network.release()


@pytest.fixture
def admin(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection that belongs to no pool, in autocommit mode. Its calls block the loop."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def pid() -> Callable[[Any], int]:
    """`pid(conn)` names the session behind a connection, known without a query."""
    return lambda conn: int(conn.pgconn.backend_pid)


@pytest.fixture
def end_session(admin: psycopg.Connection[Any]) -> Callable[[Any], None]:
    """`end_session(conn)` ends the server's side; the client has yet to notice."""

    def end(conn: Any) -> None:
        # Unnoticed: what is tested is what becomes of a broken connection when it is used, checked
        # or given back. That fastpool learns of its end before that, test_notices.py tests.
        if (slot := getattr(conn, "_slot", None)) is not None:
            slot.unwatch()
        gone = admin.execute(
            "select pg_terminate_backend(%s, 5000)", [conn.pgconn.backend_pid]
        ).fetchone()
        assert gone == (True,)

    return end


@pytest.fixture
def break_connection(end_session: Callable[[Any], None]) -> Callable[[Any], Awaitable[None]]:
    """`await break_connection(conn)` ends the session and lets the client notice."""

    async def break_(conn: Any) -> None:
        end_session(conn)
        with suppress(psycopg.OperationalError):
            await conn.execute("select 1")
        assert conn.broken

    return break_


@pytest.fixture
def works() -> Callable[[Any], Awaitable[bool]]:
    """`await works(conn)` tells whether a query on the connection is answered; ends no block."""

    async def ask(conn: Any) -> bool:
        cursor = await conn.execute("select 1")
        return bool(await cursor.fetchone() == (1,))

    return ask


class Log(logging.Handler):
    """The lines that pools log, each put into words when it's logged.

    A connection shown in a line would look different afterwards.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self._lines: list[tuple[int, str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append((record.levelno, record.levelname, record.getMessage()))

    def lines(self, level: int = logging.DEBUG) -> list[tuple[str, str]]:
        """Level and text of each line of at least *level*, oldest first."""
        return [(name, text) for number, name, text in list(self._lines) if number >= level]

    def texts(self, level: int = logging.DEBUG) -> list[str]:
        """The texts alone."""
        return [text for _, text in self.lines(level)]

    def warnings(self) -> list[str]:
        """The texts of WARNING and above."""
        return self.texts(logging.WARNING)

    def has(self, level: str, start: str) -> bool:
        """Whether a line of that level starts so."""
        return any(name == level and text.startswith(start) for name, text in self.lines())

    def clear(self) -> None:
        """Forget the lines so far."""
        self._lines.clear()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Log]:
    """What is logged on "psycopg.pool", at every level."""
    caplog.set_level(logging.DEBUG, logger="psycopg.pool")
    handler = Log()
    logging.getLogger("psycopg.pool").addHandler(handler)
    yield handler
    logging.getLogger("psycopg.pool").removeHandler(handler)
