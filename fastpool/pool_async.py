"""The connection pool for asyncio.

Owns: the public surface of AsyncConnectionPool, and how a task waits, awaits, and has chores done.
Refuses: policies, which it shares with the other pools (lending, connector, upkeep).

All of it happens in the thread of the event loop that the pool was opened in; only what a
finalizer starts may come from another one, and goes through the loop. No task lives longer than a
chore, so a loop that ends finds nothing of an idle pool.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from contextvars import Context
from functools import partial
from types import FrameType, TracebackType
from typing import Any, Generic, cast

from psycopg import AsyncConnection

from . import _calls, dialing, leases, lending, stacks, upkeep
from ._core import Gauge, Waiter, skip_frames_of
from ._fastpath import current_task
from .annotations import (
    ACT,
    AsyncConnectionCB,
    AsyncConnectionContext,
    AsyncConninfoParam,
    AsyncKwargsParam,
    NotGiven,
    Role,
)
from .base import BasePool, Job, Timer
from .connector import open_connection
from .guard import Guard, TaskGuard
from .notices import Watch
from .tasks import FOREVER, Tasks

if sys.version_info >= (3, 11):
    from typing import Self
else:
    from typing_extensions import Self


skip_frames_of(globals())

AsyncConnectFailedCB = (
    Callable[["AsyncConnectionPool[Any]"], None]
    | Callable[["AsyncConnectionPool[Any]"], Awaitable[None]]
)

# It begins as psycopg_pool's does: programs filter it by that.
_OPEN_IN_CONSTRUCTOR = (
    "opening the async pool {0} in the constructor is deprecated. Please say open=False and"
    " `await pool.open()`, or use the pool as a context manager: `async with {0}(...)`"
)

_running_loop = asyncio._get_running_loop  # None where there is none; documented for loops' authors


class AsyncConnectionPool(Generic[ACT], BasePool):
    """A pool of connections to one PostgreSQL, for the tasks of one asyncio event loop.

    The parameters are ConnectionPool's, with these differences. *configure*, *check* and *reset*
    are coroutine functions; *conninfo* and *kwargs*, where they are callables, and
    *reconnect_failed* may be. *reset* is run by a task. *num_workers*: how many tasks connect and
    reset at a time. *reclaim_dead* is about tasks: asyncio.wait_for() before Python 3.12 is one of
    those that borrow for another.

    Open it with `async with AsyncConnectionPool(...)`, or `await pool.open()`. It belongs to the
    loop that it is opened in: used in another one, or in a forked child, its methods raise
    RuntimeError. A task that is cancelled at any await loses nothing. Not thread-safe, as asyncio
    is not; only `get_stats()`, `pop_stats()` and `snapshot()` may be called in any thread.
    """

    conninfo: AsyncConninfoParam
    connection_class: type[ACT]
    kwargs: AsyncKwargsParam | None

    _DRIVER_CLASS = AsyncConnection
    _OWNERS_ARE = "task"
    # Hand-off: waking a task costs no context switch, and no other runs meanwhile.
    _TAU_NS = 0
    _PACES = False

    def __init__(
        self,
        conninfo: AsyncConninfoParam = "",
        *,
        connection_class: type[ACT] | NotGiven = cast("NotGiven", AsyncConnection),
        kwargs: AsyncKwargsParam | None = None,
        min_size: int = 4,
        max_size: int | None = None,
        open: bool | None = None,
        configure: AsyncConnectionCB[ACT] | None = None,
        check: AsyncConnectionCB[ACT] | None = None,
        reset: AsyncConnectionCB[ACT] | None = None,
        name: str | None = None,
        close_returns: bool = False,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 60 * 60.0,
        max_idle: float = 10 * 60.0,
        reconnect_timeout: float = 5 * 60.0,
        reconnect_failed: AsyncConnectFailedCB | None = None,
        num_workers: int = 3,
        order: str = "fifo",
        max_connecting: int = 1,
        role: Role | None = None,
        leak_timeout: float | None = None,
        reclaim_dead: bool = False,
    ) -> None:
        super().__init__(
            conninfo,
            connection_class=connection_class,
            kwargs=kwargs,
            min_size=min_size,
            max_size=max_size,
            configure=configure,
            check=check,
            reset=reset,
            name=name,
            close_returns=close_returns,
            timeout=timeout,
            max_waiting=max_waiting,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
            reconnect_timeout=reconnect_timeout,
            reconnect_failed=reconnect_failed,
            num_workers=num_workers,
            order=order,
            max_connecting=max_connecting,
            role=role,
            leak_timeout=leak_timeout,
            reclaim_dead=reclaim_dead,
            open=open,
        )
        self._tasks: Tasks
        if open or open is None:
            self._warns = RuntimeWarning(_OPEN_IN_CONSTRUCTOR.format(type(self).__name__))
            if open:
                self._warn_once()
            self._open()

    def _begin(self) -> None:
        super()._begin()
        upkeep.equip(self)

    def _reopen(self) -> None:
        """Nothing: where the pool was open already nobody comes that far."""

    def _after_fork(self) -> None:
        super()._after_fork()
        if self._loop is not None:
            self._set_loop(_ParentsLoop())

    # --- life cycle ---------------------------------------------------------------------------

    async def open(self, wait: bool = False, timeout: float | None = 30.0) -> None:
        """Open the pool: start connecting `min_size` connections, in the background.

        *wait*: until they are there, *timeout* seconds at most (see `wait()`).

        Raises PoolClosed when the pool has been closed: it can't be opened again. Harmless when
        it is open.
        """
        self._open()
        if wait:
            await self.wait(timeout=timeout)

    def _open(self) -> None:
        if self._loop is None and not self._table.closed:
            loop = _running_loop()
            if loop is None:
                raise RuntimeError(f"{type(self).__name__} open with no running loop")
            self._set_loop(loop)
            self._tasks = Tasks(self.name, loop)
        self._require_loop()
        upkeep.start(self)

    def _require_loop(self) -> None:
        """Refuse to work in another loop than the pool's. One that is not open has none yet."""
        if self._loop is not _running_loop() and self._loop is not None:
            self._refuse_loop()

    def _refuse_loop(self) -> None:
        if self._table.closed:
            return  # the loop may have ended, and does not matter
        if isinstance(self._loop, _ParentsLoop):
            raise RuntimeError(
                f"the pool {self.name!r} was opened in the parent process, and its connections"
                " belong to that: make a pool after the fork"
            )
        raise RuntimeError(
            f"the pool {self.name!r} was opened in another event loop, and its connections"
            " belong to that one: use it there, or open one pool for each loop"
        )

    async def close(self, timeout: float | None = 5.0) -> None:
        """Close the pool: whoever waits gets PoolClosed at once, idle connections are closed.

        Lent connections stay usable, and are closed when they are given back. Waits until the
        chores under way have ended, *timeout* seconds at most, and cancels the others. Harmless
        when closed already, or never opened; also in another loop if the pool's own has ended.
        """
        if self._loop is not None and not self._loop.is_closed():
            self._require_loop()
        await upkeep.shut(self, timeout)

    async def __aenter__(self) -> Self:
        self._warns = None
        await self.open()
        self._lend_directly()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()

    async def wait(self, timeout: float | None = 30.0) -> None:
        """Wait until `min_size` connections stand available.

        Raises PoolTimeout, and closes the pool, when they don't within *timeout* seconds: the
        message names the server's error. Raises PoolClosed when the pool is not open.
        """
        self._require_loop()
        await upkeep.wait(self, timeout)

    # --- lending ------------------------------------------------------------------------------

    @_calls.runs(_calls.getconn_async)
    async def getconn(self, timeout: float | None = None) -> ACT:
        """Lend a connection.

        Return an available one without suspending. Else open one if the pool may grow, or wait
        until one is given back, first come first served. Give it back with `putconn()`; better,
        use `connection()` or `connect()`.

        *timeout*: seconds to wait at most, None for the pool's `timeout`. With 0 or less it never
        waits.

        Raises PoolTimeout when there was none in time, PoolClosed when the pool is not open,
        TooManyRequests when `max_waiting` others wait already.
        """
        return cast(ACT, await _calls.getconn_async(self, timeout))

    @_calls.runs(_calls.putconn_async)
    async def putconn(self, conn: ACT) -> None:
        """Give back a connection that `getconn()` lent. Does not suspend if it is healthy.

        An open transaction is rolled back, with a warning; a broken, busy or expired connection
        is closed, and replaced. With a `reset` callback all of that is done by a task.

        Raises ValueError when the connection is not lent by this pool. Cancelled while it rolls
        back, it closes the connection.
        """
        await _calls.putconn_async(self, conn)

    def _overrides_nothing(self) -> bool:
        cls = type(self)
        return (cls.getconn, cls.putconn) == _OWN_METHODS

    @_calls.runs(_calls.connection_async)
    def connection(self, timeout: float | None = None) -> AsyncConnectionContext[ACT]:
        """Lend a connection for an `async with` block: committed at its end, rolled back if it
        raises.

        *timeout* and what it raises: as `getconn()`. Nothing happens before the block is entered.
        """
        block = _calls.connection_async(self, timeout)
        return cast("AsyncConnectionContext[ACT]", block)

    @_calls.runs(_calls.connect_async)
    def connect(self, timeout: float | None = None) -> _calls.Checkout[ACT]:
        """Lend a connection whose `close()` gives it back: `conn = await pool.connect()`.

        Or for a block: `async with pool.connect() as conn`, committed or rolled back at its end.
        The lease is an instance of the connection class. When it has been given back it is a
        closed connection for its borrower, whatever becomes of the session; closing it again is
        harmless.

        *timeout* and what it raises: as `getconn()`.
        """
        return cast("_calls.Checkout[ACT]", _calls.connect_async(self, timeout))

    async def _get_lease(self, timeout: float | None) -> ACT:
        return await self._lease(await self.getconn(timeout=timeout))

    async def _lease(self, conn: Any) -> ACT:
        try:
            return cast(ACT, leases.lease(self, conn))
        except Exception:  # of a class that can't be derived from
            await self.putconn(conn)
            raise

    def _getconn(self, timeout: float | None) -> Coroutine[Any, Any, Any]:
        return lending.checkout(self, timeout)

    def _putconn(self, conn: Any) -> Coroutine[Any, Any, None]:
        return lending.give_back(self, conn)

    async def _accept(self, conn: Any) -> None:
        await lending.accept(self, conn)

    async def _accept_late(self, conn: Any) -> None:
        await lending.accept_late(self, conn)

    async def _close_lent(self, conn: Any) -> None:
        await lending.close_lent(self, conn)

    async def _take_back(self, conn: Any) -> None:
        await lending.take_back(self, conn)

    def _refuse(self, conn: Any) -> None:
        lending.refuse(self, conn)

    def _retire(self, conn: Any) -> None:
        self._submit(partial(lending.retire, self, conn))

    def _sweep(self) -> None:
        self._submit(partial(lending.close_idle, self))

    def _condemn(self, watch: Watch) -> bool:
        return lending.condemn(self, watch)

    def _bury(self) -> None:
        self._submit(partial(lending.bury, self))

    def _put_back_dropped(self, conn: Any) -> None:
        # From a finalizer, in any thread.
        self._call_soon(self._submit, partial(lending.give_back, self, conn))

    # --- connecting ---------------------------------------------------------------------------

    async def _connect(self, timeout: float | None = None) -> ACT:
        """Open one connection. To be overridden by subclasses that connect in their own way."""
        return cast(ACT, await open_connection(self, timeout))

    async def _resolve_conninfo(self) -> str:
        return cast(str, await _resolve(self.conninfo)) or ""

    async def _resolve_kwargs(self) -> dict[str, Any]:
        return cast("dict[str, Any]", await _resolve(self.kwargs)) or {}

    async def reconnect_failed(self) -> None:
        """Call the user's `reconnect_failed` callback."""
        if self._reconnect_failed is not None:
            result = self._reconnect_failed(self)
            if inspect.isawaitable(result):
                await result

    # --- upkeep -------------------------------------------------------------------------------

    async def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change the sizes; opens what is missing to the new minimum, in the background.

        Shrinking closes nothing at once: connections beyond *max_size* are closed when they come
        back, those beyond *min_size* as they grow idle. Raises ValueError.
        """
        self._require_loop()
        upkeep.resize(self, min_size, max_size)

    async def drain(self) -> None:
        """Replace every connection: those idle now, those lent when they come back."""
        self._require_loop()
        if not self._closed:
            await upkeep.drain(self)

    async def check(self) -> None:
        """Check each idle connection where it stands, and replace those that are broken.

        Takes a round trip each. The others are lent meanwhile.
        """
        self._require_loop()
        if not self._closed:
            await upkeep.check(self)

    # Any: taken from the class alone, it is to fit a pool of any connection class.
    @staticmethod
    async def check_connection(conn: Any) -> None:
        """Make a round trip to the server; raise if the connection is broken.

        For `check=AsyncConnectionPool.check_connection`. Leaves the connection IDLE.
        """
        if conn.autocommit:
            await conn.execute("")
            return
        await conn.set_autocommit(True)
        try:
            await conn.execute("")
        except BaseException:
            with suppress(Exception):  # what matters is on its way
                await conn.set_autocommit(False)
            raise
        await conn.set_autocommit(False)

    def _shrink_job(self) -> Coroutine[Any, Any, None]:
        return upkeep.shrink(self)

    def _renewal_job(self) -> Coroutine[Any, Any, None]:
        return upkeep.renew(self)

    # --- primitives ---------------------------------------------------------------------------

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        return await function(*args)

    async def _dial(self, connect: Callable[[], Any], seconds: float) -> Any:
        return await dialing.dial_in_task(connect, min(seconds, FOREVER), f"{self.name}-connect")

    def _replace_worker(self, who: int) -> None:
        self._tasks.replace(who)

    def _guard(self, conn: Any, seconds: float) -> Guard:
        assert self._loop is not None
        return TaskGuard(
            conn, min(seconds, FOREVER), self._owner(), self._tasks.replace, self._loop
        )

    def _new_waiter(self) -> Waiter:
        assert self._loop is not None
        gate: asyncio.Future[None] = self._loop.create_future()
        return Waiter(gate, partial(_release, gate), self._owner())

    def _owner(self) -> int:
        task = current_task(self._loop)
        return id(task) if task is not None else threading.get_ident()

    def _owner_names(self) -> Mapping[int, str]:
        if self._loop is None or self._loop.is_closed():
            return {}
        return {id(task): task.get_name() for task in asyncio.all_tasks(self._loop)}

    def _stacks(
        self, idents: Collection[int] | None = None, limit: int = sys.maxsize
    ) -> Mapping[int, list[FrameType]]:
        loop: asyncio.AbstractEventLoop | None = self._loop
        if loop is None or _running_loop() is not loop:
            return {}
        return stacks.of_tasks(loop, idents, limit)

    def _borrowers(self) -> Mapping[int, Any]:
        threads = dict.fromkeys(super()._borrowers())
        if self._loop is None or self._loop.is_closed():
            return threads
        return {**threads, **{id(task): task for task in asyncio.all_tasks(self._loop)}}

    async def _wait(self, waiter: Waiter, timeout: float) -> Any:
        await self._watch(waiter, timeout)
        return self._table.abandon(waiter)

    async def _watch(self, waiter: Waiter, timeout: float) -> None:
        if waiter.is_settled:
            return
        assert self._loop is not None
        # Not in the caller's context: what is in that would be kept until the timer is due.
        delay = min(max(0.0, timeout), FOREVER)
        timer = self._loop.call_later(delay, _release, waiter.gate, context=Context())
        try:
            await waiter.gate
        finally:
            timer.cancel()

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, FOREVER))

    def _submit(self, job: Job) -> None:
        self._tasks.submit(job, self.num_workers)

    async def _end_chores(self, timeout: float) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            await self._tasks.drain()
            await self._tasks.join(timeout)

    def _later(self, delay: float, method: Callable[[], object]) -> Timer:
        timer = _LoopTimer(method)
        self._call_soon(timer.arm, self._loop, delay)
        return timer

    def _call_soon(self, function: Callable[..., Any], *args: Any) -> None:
        """Have *function* called by the loop. In any thread, and in a finalizer."""
        with suppress(RuntimeError):  # the loop has ended: nothing happens any more
            if self._loop is not None:
                self._loop.call_soon_threadsafe(partial(function, *args), context=Context())


class _ParentsLoop:
    """The event loop of a pool that was opened before this process was forked: it has ended."""

    def is_closed(self) -> bool:
        return True

    def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("the event loop is the parent process's")


# What they are while nobody has patched the class.
_OWN_METHODS = (AsyncConnectionPool.getconn, AsyncConnectionPool.putconn)


class _LoopTimer:
    """One method of one object, called once, later; not at all when the object is gone."""

    def __init__(self, method: Callable[[], object]) -> None:
        self._method = weakref.WeakMethod(method)
        self._taken = Gauge()
        self._handle: asyncio.TimerHandle | None = None

    def arm(self, loop: asyncio.AbstractEventLoop, delay: float) -> None:
        """Start the clock, in the loop's thread."""
        if delay <= 0.0:
            self._fire()
        elif not self._taken.inside:
            self._handle = loop.call_later(min(delay, FOREVER), self._fire)

    def cancel(self) -> bool:
        """Keep it from happening. False when it is too late for that."""
        won = self._taken.enter()
        if won and self._handle is not None:
            self._handle.cancel()
        return won

    def _fire(self) -> None:
        method = self._method()
        if method is not None and self._taken.enter():
            method()


def _release(gate: asyncio.Future[None]) -> None:
    """Let the task go on that waits, unless it has been cancelled, or released before."""
    with suppress(RuntimeError):  # the loop has ended, and the task with it
        if not gate.done():
            gate.set_result(None)


async def _resolve(param: Any) -> Any:
    """Return a parameter's value: itself, or what the callable says, awaited if need be."""
    value = param() if callable(param) else param
    return await value if inspect.isawaitable(value) else value
