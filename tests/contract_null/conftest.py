"""What the tests of the null pools share: two packages, two kinds of pools, and ways to use them.

Every test in this directory runs on psycopg_pool and on fastpool, and on each with the null pool
for threads and with the one for tasks. The tests are coroutines: `do` calls either kind of pool,
`spawn` calls it in a thread or in a task. Owns no assertion about a pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
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
from shared.kinds import building
from shared.kinds import kind as kind
from shared.network import network as network
from shared.sessions import admin as admin
from shared.sessions import end_session as end_session
from shared.sessions import pid as pid
from shared.tasks import anyio_backend as anyio_backend
from shared.tasks import eventually as eventually
from shared.tasks import wait_until


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


@pytest.fixture
async def new_pool(spawn: object, pool_class: Any, dsn: str) -> AsyncIterator[Callable[..., Any]]:
    """Build null pools that are not open, of one connection at most unless told.

    All are closed at the end, which ends the calls that still wait.
    """
    async with building(pool_class, dsn, max_size=1) as build:
        yield build


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
