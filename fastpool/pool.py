"""The connection pool for threads.

Owns: the public surface of ConnectionPool, and how a thread waits, calls, and has chores done.
Refuses: policies, which it shares with the other pools (lending, connector, upkeep).
"""

from __future__ import annotations

import _thread
import sys
import threading
import time
import types
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Generic, cast

from psycopg import Connection

from . import _calls, dialing, housekeeper, leases, lending, upkeep
from ._core import Waiter, skip_frames_of
from .annotations import (
    CT,
    ConnectionCB,
    ConnectionContext,
    ConninfoParam,
    KwargsParam,
    NotGiven,
    Role,
)
from .base import BasePool, Job, Timer, now, run
from .connector import open_connection
from .guard import Guard, ThreadGuard
from .notices import Watch
from .workers import Workers

if sys.version_info >= (3, 11):
    from typing import Self
else:
    from typing_extensions import Self


skip_frames_of(globals())

ConnectFailedCB = Callable[["ConnectionPool[Any]"], None]

_IMPLICIT_OPEN = (
    "the default for the {} 'open' parameter will become 'False' in a future release. Please say"
    " open=True or open=False, or use the pool as a context manager"
)


# What it is while gevent has not patched it; fastpool may be imported after that.
_ALLOCATE_LOCK = type(_thread.allocate_lock) is types.BuiltinFunctionType and _thread.allocate_lock


def _lock_timeout(deadline: float) -> float:
    """Return a timeout that lock.acquire() takes: not negative, and -1 for one without end."""
    remaining = deadline - now()
    return -1 if remaining > threading.TIMEOUT_MAX else max(0.0, remaining)


class ConnectionPool(Generic[CT], BasePool):
    """A pool of connections to one PostgreSQL, for threads.

    *conninfo*, *kwargs*: what each connection is opened with; either may be a callable, which is
    asked at every attempt.
    *connection_class*: its `connect()` opens connections.
    *min_size*, *max_size*: how many connections stand open, and how many at most (None: min_size).
    *open*: whether the constructor opens the pool; use `with ConnectionPool(...)`, or `open()`.
    *configure(conn)*: prepares each new connection.
    *check(conn)*: looks at each connection before it is lent; what raises is not lent.
    *reset(conn)*: cleans each connection that comes back, in a worker thread.
    *name*: appears in logs and thread names.
    *close_returns*: `conn.close()` gives the connection back instead of closing it.
    *timeout*: how long `getconn()` waits by default, in seconds.
    *max_waiting*: how many requests may wait; 0 for any number.
    *max_lifetime*: a connection is replaced after so many seconds (less up to 5 %).
    *max_idle*: a connection beyond min_size that was not needed for so many seconds is closed.
    *reconnect_timeout*: for how many seconds failing connects are repeated.
    *reconnect_failed(pool)*: called when they have failed for so long.
    *num_workers*: how many threads connect and reset at a time; they end when idle.
    *order*: which idle connection is lent next: "fifo", the one idle longest, uses all alike;
    "lifo" keeps few busy and lets the others grow idle.
    *max_connecting*: how many connects may be under way at once for requests that wait; no more
    than num_workers are, whatever it says.
    *role*: "read-write" or "read-only", for servers that fail over: the pool connects to no other
    kind (of the hosts in conninfo, libpq's target_session_attrs unless you set that), and replaces
    its connections when one that comes back is seen to have become the other kind.
    *leak_timeout*: a connection that is lent for longer, in seconds, is warned of in the log, once:
    who borrowed it, where, how long ago. None: no look is taken.
    *reclaim_dead*: whether the connection of a thread that ended without giving it back is taken
    from whoever still refers to it: its session is ended, its slot is free again, within seconds.
    Not for a program in which one thread borrows for another.

    The connection of a thread that has ended is warned of in the log, once: with either of these
    two within a second, else when somebody has waited for a connection in vain.

    In a forked child an open pool opens connections of its own at its first use. What was lent then
    is the parent's: in the child it is of no use, and giving it back is harmless.

    Thread-safe. Raises TypeError for an argument of the wrong type, ValueError for one that is out
    of range; both name the argument.
    """

    conninfo: ConninfoParam
    connection_class: type[CT]
    kwargs: KwargsParam | None

    _DRIVER_CLASS = Connection

    def __init__(
        self,
        conninfo: ConninfoParam = "",
        *,
        connection_class: type[CT] | NotGiven = cast("NotGiven", Connection),
        kwargs: KwargsParam | None = None,
        min_size: int = 4,
        max_size: int | None = None,
        open: bool | None = None,
        configure: ConnectionCB[CT] | None = None,
        check: ConnectionCB[CT] | None = None,
        reset: ConnectionCB[CT] | None = None,
        name: str | None = None,
        close_returns: bool = False,
        timeout: float = 30.0,
        max_waiting: int = 0,
        max_lifetime: float = 60 * 60.0,
        max_idle: float = 10 * 60.0,
        reconnect_timeout: float = 5 * 60.0,
        reconnect_failed: ConnectFailedCB | None = None,
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
        if open is None:
            self._warns = DeprecationWarning(_IMPLICIT_OPEN.format(type(self).__name__))
        if open or open is None:
            upkeep.start(self)

    def _begin(self) -> None:
        super()._begin()
        upkeep.equip(self)
        self._workers = Workers(self.name)

    def _reopen(self) -> None:
        if self._was_open:
            upkeep.start(self)

    # --- life cycle ---------------------------------------------------------------------------

    def open(self, wait: bool = False, timeout: float | None = 30.0) -> None:
        """Open the pool: start connecting `min_size` connections, in the background.

        *wait*: block until they are there, *timeout* seconds at most (see `wait()`).

        Raises PoolClosed when the pool has been closed: it can't be opened again. Harmless when
        it is open. Thread-safe.
        """
        upkeep.start(self)
        if wait:
            self.wait(timeout=timeout)

    def close(self, timeout: float | None = 5.0) -> None:
        """Close the pool: whoever waits gets PoolClosed at once, idle connections are closed.

        Lent connections stay usable, and are closed when they are given back. Blocks until the
        worker threads have ended, *timeout* seconds at most. Harmless when closed already, or never
        opened. Thread-safe.
        """
        run(upkeep.shut(self, timeout))

    def __enter__(self) -> Self:
        self._warns = None
        self.open()
        self._lend_directly()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.close()

    def wait(self, timeout: float | None = 30.0) -> None:
        """Block until `min_size` connections stand available.

        Raises PoolTimeout, and closes the pool, when they don't within *timeout* seconds: the
        message names the server's error. Raises PoolClosed when the pool is not open.
        """
        run(upkeep.wait(self, timeout))

    # --- lending ------------------------------------------------------------------------------

    @_calls.runs(_calls.getconn)
    def getconn(self, timeout: float | None = None) -> CT:
        """Lend a connection.

        Return an available one at once. Else open one if the pool may grow, or wait until one
        is given back, first come first served. Give it back with `putconn()`; better, use
        `connection()` or `connect()`.

        *timeout*: seconds to wait at most, None for the pool's `timeout`. With 0 or less it never
        waits. Blocks while waiting, and while a `check` callback runs.

        Raises PoolTimeout when there was none in time, PoolClosed when the pool is not open,
        TooManyRequests when `max_waiting` others wait already. Thread-safe.
        """
        return cast(CT, _calls.getconn(self, timeout))

    @_calls.runs(_calls.putconn)
    def putconn(self, conn: CT) -> None:
        """Give back a connection that `getconn()` lent.

        An open transaction is rolled back, with a warning; a broken, busy or expired connection
        is closed, and replaced. Blocks only for the rollback; with a `reset` callback all of that
        is done by a worker thread.

        Raises ValueError when the connection is not lent by this pool. Thread-safe: of two calls
        for one lending, one is refused.
        """
        _calls.putconn(self, conn)

    def _overrides_nothing(self) -> bool:
        cls = type(self)
        return (cls.getconn, cls.putconn) == _OWN_METHODS

    def _getconn(self, timeout: float | None) -> Any:
        return run(lending.checkout(self, timeout))

    def _putconn(self, conn: Any) -> None:
        run(lending.give_back(self, conn))

    def _refuse_waiter(self, waiter: Waiter, timeout: float) -> None:
        lending.refuse_waiter(self, waiter, timeout)

    def _acquire_another(self, conn: Any, timeout: float, waited: float) -> Any:
        deadline = now() + timeout - waited
        return run(lending.acquire_another(self, conn, timeout, deadline))

    def _leave_queue(self, waiter: Waiter) -> None:
        run(lending.leave_queue(self, waiter))

    @_calls.runs(_calls.connection)
    def connection(self, timeout: float | None = None) -> ConnectionContext[CT]:
        """Lend a connection for a `with` block: committed at its end, rolled back if it raises.

        *timeout* and what it raises: as `getconn()`. Nothing happens before the block is entered.
        """
        return cast("ConnectionContext[CT]", _calls.connection(self, timeout))

    @_calls.runs(_calls.connect)
    def connect(self, timeout: float | None = None) -> CT:
        """Lend a connection whose `close()` gives it back; so does leaving `with pool.connect()`.

        The lease is an instance of the connection class. When it has been given back it is a
        closed connection for its borrower, whatever becomes of the session; closing it again is
        harmless.

        *timeout* and what it raises: as `getconn()`. Thread-safe.
        """
        return cast(CT, _calls.connect(self, timeout))

    def _lease(self, conn: Any) -> CT:
        try:
            return cast(CT, leases.lease(self, conn))
        except Exception:  # of a class that can't be derived from
            self.putconn(conn)
            raise

    def _accept(self, conn: Any) -> None:
        run(lending.accept(self, conn))

    def _accept_late(self, conn: Any) -> None:
        run(lending.accept_late(self, conn))

    def _close_lent(self, conn: Any) -> None:
        run(lending.close_lent(self, conn))

    def _take_back(self, conn: Any) -> None:
        run(lending.take_back(self, conn))

    def _refuse(self, conn: Any) -> None:
        lending.refuse(self, conn)

    def _retire(self, conn: Any) -> None:
        run(lending.retire(self, conn))

    def _sweep(self) -> None:
        run(lending.close_idle(self))

    def _condemn(self, watch: Watch) -> bool:
        return lending.condemn(self, watch)

    def _bury(self) -> None:
        self._submit(partial(lending.bury, self))

    # --- connecting ---------------------------------------------------------------------------

    def _connect(self, timeout: float | None = None) -> CT:
        """Open one connection. To be overridden by subclasses that connect in their own way."""
        return cast(CT, run(open_connection(self, timeout)))

    def _resolve_conninfo(self) -> str:
        conninfo = self.conninfo
        return (conninfo() if callable(conninfo) else conninfo) or ""

    def _resolve_kwargs(self) -> dict[str, Any]:
        kwargs = self.kwargs
        return (kwargs() if callable(kwargs) else kwargs) or {}

    def reconnect_failed(self) -> None:
        """Call the user's `reconnect_failed` callback."""
        if self._reconnect_failed is not None:
            self._reconnect_failed(self)

    # --- upkeep -------------------------------------------------------------------------------

    def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change the sizes; opens what is missing to the new minimum, in the background.

        Shrinking closes nothing at once: connections beyond *max_size* are closed when they come
        back, those beyond *min_size* as they grow idle. Raises ValueError. Thread-safe.
        """
        upkeep.resize(self, min_size, max_size)

    def drain(self) -> None:
        """Replace every connection: those idle now, those lent when they come back.

        Blocks while it closes the idle ones. Thread-safe.
        """
        if not self._closed:
            run(upkeep.drain(self))

    def check(self) -> None:
        """Check each idle connection where it stands, and replace those that are broken.

        Blocks for a round trip each. The others are lent meanwhile. Thread-safe.
        """
        if not self._closed:
            run(upkeep.check(self))

    # Any: taken from the class alone, it is to fit a pool of any connection class.
    @staticmethod
    def check_connection(conn: Any) -> None:
        """Make a round trip to the server; raise if the connection is broken.

        For `check=ConnectionPool.check_connection`. Leaves the connection IDLE.
        """
        if conn.autocommit:
            conn.execute("")
            return
        conn.autocommit = True
        try:
            conn.execute("")
        except BaseException:
            with suppress(Exception):  # what matters is on its way
                conn.autocommit = False
            raise
        conn.autocommit = False

    def _shrink_job(self) -> Coroutine[Any, Any, None]:
        return upkeep.shrink(self)

    def _renewal_job(self) -> Coroutine[Any, Any, None]:
        return upkeep.renew(self)

    # --- primitives ---------------------------------------------------------------------------

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    async def _dial(self, connect: Callable[[], Any], seconds: float) -> Any:
        return dialing.Dial(connect).result(seconds, f"{self.name}-connect")

    def _replace_worker(self, who: int) -> None:
        self._workers.replace(who)

    def _guard(self, conn: Any, seconds: float) -> Guard:
        return ThreadGuard(conn, seconds, threading.get_ident(), self._workers.replace)

    def _new_waiter(self) -> Waiter:
        if _thread.allocate_lock is _ALLOCATE_LOCK:
            return Waiter()
        # gevent has patched threading: park on its lock, which lets the other greenlets run.
        gate = _thread.allocate_lock()
        gate.acquire()
        return Waiter(gate, gate.release)

    async def _wait(self, waiter: Waiter, timeout: float) -> Any:
        if waiter.gate is None:
            return self._table.wait(waiter, timeout)
        deadline = now() + timeout
        while True:
            woken = not waiter.is_settled and waiter.gate.acquire(True, _lock_timeout(deadline))
            conn = self._table.resume(waiter, woken)
            if conn is not None or waiter.was_shut or waiter.is_deadlocked:
                return conn
            if now() >= deadline:
                return self._table.abandon(waiter)

    async def _watch(self, waiter: Waiter, timeout: float) -> None:
        if waiter.gate is None:
            self._table.park_until(waiter, timeout)
        else:
            waiter.gate.acquire(True, _lock_timeout(now() + timeout))

    async def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def _submit(self, job: Job) -> None:
        self._workers.submit(job, self.num_workers)

    async def _end_chores(self, timeout: float) -> None:
        self._workers.drain()
        self._workers.join(timeout)

    def _later(self, delay: float, method: Callable[[], object]) -> Timer:
        return housekeeper.later(delay, method)


# What they are while nobody has patched the class.
_OWN_METHODS = (ConnectionPool.getconn, ConnectionPool.putconn)
