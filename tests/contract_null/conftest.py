"""What the tests of the null pools share: two packages, two kinds of pools, and ways to use them.

Every test in this directory runs on psycopg_pool and on fastpool, and on each with the null pool
for threads and with the one for tasks. The tests are coroutines: `do` calls either kind of pool,
`spawn` calls it in a thread or in a task. Owns no assertion about a pool.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any, Protocol

import psycopg
import pytest
from shared import both, threads
from shared.both import done
from shared.contract import base as base
from shared.contract import impl as impl
from shared.contract import log as log
from shared.contract import quick_backoff as quick_backoff
from shared.sessions import admin as admin
from shared.sessions import end_session as end_session
from shared.sessions import pid as pid
from shared.tasks import POLL, wait_until
from shared.tasks import eventually as eventually


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Run the tests in asyncio's own event loop, a new one for each test."""
    return ("asyncio", {})


@pytest.fixture(params=["threads", "tasks"])
def kind(request: pytest.FixtureRequest) -> str:
    """Who uses the pool: "threads" or "tasks"."""
    return str(request.param)


@pytest.fixture
def pool_class(impl: ModuleType, kind: str) -> Any:
    """The null pool of that package, for that kind."""
    return impl.NullConnectionPool if kind == "threads" else impl.AsyncNullConnectionPool


# --- calling ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def do() -> Callable[..., Awaitable[Any]]:
    """`await do(pool.getconn, timeout=1.0)` calls here, whatever the kind."""

    async def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await done(function(*args, **kwargs))

    return call


@pytest.fixture(scope="session")
def entered() -> Callable[..., Any]:
    """`async with entered(pool.connection()) as conn` enters either kind of block."""
    return both.entered


@pytest.fixture
def callback(kind: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`callback(function)` makes what the pool takes as configure, check or reset.

    The function may return an awaitable; for tasks that is awaited.
    """

    def make(function: Callable[..., Any]) -> Callable[..., Any]:
        async def coroutine_function(*args: Any) -> Any:
            return await done(function(*args))

        return function if kind == "threads" else coroutine_function

    return make


class Call(Protocol):
    """A call that goes on in a thread or a task of its own."""

    @property
    def done(self) -> bool: ...

    async def result(self, timeout: float = 5.0) -> Any:
        """Return what the call returned, or raise what it raised.

        Raises TimeoutError when that takes more than *timeout* seconds; the call goes on then.
        """
        ...

    def cancel(self) -> None:
        """Cancel the call. Tasks only."""
        ...


class ThreadCall(threads.ThreadCall):
    """A call in a daemon thread."""

    async def result(self, timeout: float = 5.0) -> Any:
        with suppress(AssertionError):
            await wait_until(lambda: self.done, timeout)
        return super().result(0.0)

    def cancel(self) -> None:
        raise AssertionError("a thread can't be cancelled")


class TaskCall:
    """A call in a task."""

    def __init__(self, function: Callable[[], Any], name: str | None) -> None:
        self.task = asyncio.get_running_loop().create_task(function(), name=name)

    @property
    def done(self) -> bool:
        return self.task.done()

    async def result(self, timeout: float = 5.0) -> Any:
        await asyncio.wait({self.task}, timeout=timeout)
        if not self.done:
            raise TimeoutError(f"still running after {timeout} s")
        return self.task.result()

    def cancel(self) -> None:
        self.task.cancel()


@pytest.fixture
async def spawn(anyio_backend: object, kind: str) -> AsyncIterator[Callable[..., Call]]:
    """`spawn(pool.getconn, timeout=5.0, caller="x")` starts a call in a thread or a task."""
    calls: list[Any] = []
    make: Any = ThreadCall if kind == "threads" else TaskCall

    def start(
        function: Callable[..., Any], *args: Any, caller: str | None = None, **kwargs: Any
    ) -> Call:
        call: Call = make(lambda: function(*args, **kwargs), caller)
        calls.append(call)
        return call

    yield start
    for call in calls:
        if kind == "tasks":
            call.cancel()
        with suppress(AssertionError):
            await wait_until(lambda call=call: call.done)


# --- pools ------------------------------------------------------------------------------------


def others() -> set[Any]:
    """The threads, and the tasks that are not the test runner's own."""
    return {
        *threading.enumerate(),
        *(
            task
            for task in asyncio.all_tasks()
            if not getattr(task.get_coro(), "__qualname__", "").startswith("TestRunner.")
        ),
    }


@pytest.fixture
async def new_pool(
    spawn: object, pool_class: Any, dsn: str
) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Build null pools that are not open, of one connection at most unless told.

    All are closed at the end, which ends the calls that still wait. Their threads and tasks have
    ended too by then, for one that lingers would log into the next test.
    """
    pools: list[Any] = []
    before = others()

    def ended() -> bool:
        left = others() - before
        return all(getattr(one, "name", "") == "fastpool-housekeeper" for one in left)

    def build(conninfo: Any = dsn, *, cls: Any = pool_class, **options: Any) -> Any:
        pool = cls(conninfo, **{"max_size": 1, "open": False, "name": "p", **options})
        pools.append(pool)
        return pool

    yield build
    for pool in pools:
        await done(pool.close(timeout=1.0))
    with suppress(AssertionError):
        await wait_until(ended, timeout=2.0)


@pytest.fixture
def open_pool(new_pool: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Build null pools that are open."""

    async def build(*args: Any, **options: Any) -> Any:
        pool = new_pool(*args, **options)
        await done(pool.open())
        return pool

    return build


@pytest.fixture
def waiter(
    spawn: Callable[..., Call],
) -> Callable[..., Awaitable[Call]]:
    """`call = await waiter(pool, timeout=5.0)`: a getconn that waits, when it does."""

    async def start(pool: Any, timeout: float = 5.0, caller: str | None = None) -> Call:
        before = pool.get_stats()["requests_waiting"]
        call = spawn(pool.getconn, timeout=timeout, caller=caller)
        await wait_until(
            lambda: pool.get_stats()["requests_waiting"] == before + 1, what="one more waiting"
        )
        return call

    return start


# --- connections ------------------------------------------------------------------------------


class Network:
    """What happens between a pool and its server: connects pass, fail, or wait at a gate."""

    def __init__(self, kind: str) -> None:
        self._lock = threading.Lock()
        self._gate = threading.Event()
        self._gate.set()
        self.error: BaseException | None = None
        self.attempts: list[dict[str, Any]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.connection_class = self._for_threads() if kind == "threads" else self._for_tasks()

    def _for_threads(self) -> Any:
        network = self

        class Connection(psycopg.Connection[Any]):
            @classmethod
            def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
                network._enter(kwargs)
                try:
                    network._gate.wait(20.0)
                    network._pass()
                    return super().connect(conninfo, **kwargs)
                finally:
                    network._leave()

        return Connection

    def _for_tasks(self) -> Any:
        network = self

        class Connection(psycopg.AsyncConnection[Any]):
            @classmethod
            async def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
                network._enter(kwargs)
                try:
                    while not network._gate.is_set():
                        await asyncio.sleep(POLL)
                    network._pass()
                    return await super().connect(conninfo, **kwargs)
                finally:
                    network._leave()

        return Connection

    def _enter(self, kwargs: dict[str, Any]) -> None:
        with self._lock:
            self.attempts.append(kwargs)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def _pass(self) -> None:
        if self.error is not None:
            raise self.error

    def _leave(self) -> None:
        with self._lock:
            self.in_flight -= 1

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
def network(new_pool: object, kind: str) -> Iterator[Network]:
    """A Network; pass its `connection_class` to a pool. Open again before the pools close."""
    network = Network(kind)
    yield network
    network.release()


@pytest.fixture
def break_connection(end_session: Callable[[Any], None]) -> Callable[[Any], Awaitable[None]]:
    """`await break_connection(conn)` ends the session and lets the client notice."""

    async def break_(conn: Any) -> None:
        end_session(conn)
        with suppress(psycopg.OperationalError):
            await done(conn.execute("select 1"))
        assert conn.broken

    return break_


@pytest.fixture(scope="session")
def works() -> Callable[[Any], Awaitable[bool]]:
    """`await works(conn)` tells whether a query is answered; it ends the transaction."""

    async def ask(conn: Any) -> bool:
        cursor = await done(conn.execute("select 1"))
        row = await done(cursor.fetchone())
        await done(conn.rollback())
        return bool(row == (1,))

    return ask
