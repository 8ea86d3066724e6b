"""Opening connections: growth, backoff, recovery.

Owns: which of the slots that are CONNECTING is attempted when. While the server can't be reached
one slot probes it, with backoff; the others are owed, and all start at the probe's first success.
Refuses: to decide how many there should be. That is the slot table's.
"""

from __future__ import annotations

import math
import weakref
from functools import partial
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from psycopg.errors import OperationalError, ProgrammingError
from psycopg.pq import TransactionStatus

from . import guard, leases, roles
from ._core import (
    COUNT_CONNECT,
    COUNT_CONNECT_ERROR,
    COUNT_CONNECT_NS,
    LIMIT,
    Debt,
    Gauge,
    coarse_ns,
)
from .base import AttemptWithBackoff, BasePool, Timer, logger, now, one_line
from .lending import close_idle

if TYPE_CHECKING:
    from collections.abc import Iterator

# After giving up the pool still tries, this often (seconds), to have min_size connections again.
REVIVAL_PERIOD = 30.0
# What the server's C library takes for a number.
_LIBPQ_INT = 2.0**31
# How long after a connect that was interrupted (seconds) the pool makes up for it.
INTERRUPTED_DELAY = 1.0


class Connector:
    """A pool's connects. Thread-safe without locks: a finalizer may come in at any point."""

    def __init__(self, pool: BasePool) -> None:
        self._pool_ref = weakref.ref(pool)
        self._probing = Gauge()
        self._owed: list[Debt] = []  # not a deque, which takes 600 bytes when empty
        self._retry: tuple[Timer, Debt] | None = None
        self._backoff: AttemptWithBackoff | None = None
        self._probe: Debt | None = None
        self._revival: Timer | None = None

    @property
    def _pool(self) -> BasePool:
        # Weak, so that a pool that nobody holds goes at once, in the middle of a backoff too.
        pool = self._pool_ref()
        if pool is None:
            raise ReferenceError("the pool is gone")
        return pool

    # --- starting ---------------------------------------------------------------------------

    def grow(self) -> None:
        """Start the connects that those who wait call for."""
        pool = self._pool_ref()
        if pool is None:  # a finalizer that is collected with its pool
            return
        while isinstance(debt := pool._table.grow(), Debt):
            logger.info("growing pool %r to %s", pool.name, pool._nconns)
            self.start(debt)

    def fill(self) -> None:
        """Start the connects that are missing to min_size."""
        table = self._pool._table
        while isinstance(debt := table.enter(table.min_size), Debt):
            self.start(debt)

    def take_room(self) -> Debt | None:
        """Take an empty slot to connect, None at the maximum."""
        table = self._pool._table
        debt = table.enter(table.max_size or LIMIT)
        return debt if isinstance(debt, Debt) else None

    def start(self, debt: Debt) -> None:
        """Have a slot that is CONNECTING connected, or keep it owed while the server is down."""
        if self._pool_ref() is None:
            return
        if self._probing.inside:
            self._owe(debt)
        else:
            self._submit(debt)

    def _owe(self, debt: Debt) -> None:
        """Keep a slot until the probe has succeeded, or the pool is closed."""
        self._owed.append(debt)
        if not self._probing.inside:  # the probe ended before it could see this one
            self._release_owed()
        self._close_if_closed()

    def _submit(self, debt: Debt) -> None:
        self._pool._submit(partial(self.attempt, debt))

    def _release_owed(self) -> None:
        for debt in self._take_owed():
            self._submit(debt)

    def _take_owed(self) -> Iterator[Debt]:
        """Take the owed slots, each for one caller only."""
        while True:
            try:
                yield self._owed.pop(0)
            except IndexError:
                return

    # --- one attempt ------------------------------------------------------------------------

    async def attempt(self, debt: Debt) -> None:
        """Try to connect a slot once; go on by what came of it."""
        pool = self._pool
        if pool._closed:
            pool._table.vacate(debt)
            return
        try:
            conn = await pool._call(pool._connect)
            await self._install(debt, conn)
        except Exception as error:
            _forget_frames(error)
            await self._failed(debt, error)
        except BaseException:
            # Cancelled, by a loop that is about to end, most likely: go on if it does not.
            pool._table.vacate_unpaid(debt)
            if debt == self._probe:
                self._end_probe()
            pool._later(INTERRUPTED_DELAY, pool._revive)
            raise
        else:
            self._succeeded(debt)
            self.grow()
            if not pool._table.keeps_returned:
                await close_idle(pool)

    async def lend(self, debt: Debt, timeout: float) -> Any:
        """Connect a slot for the caller, who is lent the connection. *timeout*: for the driver, in
        seconds; the user's own goes first. Raises what connecting raises."""
        pool = self._pool
        try:
            conn = await pool._call(pool._connect, timeout)
            await self._install(debt, conn, lend=True)
        except BaseException:
            pool._table.vacate_unpaid(debt)
            self.grow()
            raise
        pool._last_error = None
        return conn

    async def _install(self, debt: Debt, conn: Any, lend: bool = False) -> None:
        pool = self._pool
        table = pool._table
        now_ns = coarse_ns()
        conn._created_at = now()
        expires = pool._expiry_ns(now_ns)
        conn._expire_at = conn._created_at + (expires - now_ns) * 1e-9
        if pool.close_returns or not table.keeps_idle:
            leases.return_on_close(conn)
        conn._pool = None
        if not pool._closed and not lend:
            logger.info("adding new connection to the pool")
        owner = pool._owner() if lend else 0
        if not table.install(debt, conn, conn.pgconn, conn.pgconn.backend_pid, expires, owner):
            await pool._call(conn.close)
            table.vacate(debt)

    def _succeeded(self, debt: Debt) -> None:
        pool = self._pool
        pool._last_error = None
        if self._probing.inside:
            retry = self._retry
            if debt == self._probe:
                self._end_probe()
            elif retry is not None and retry[0].cancel():
                # Another connect got through: no need for the probe to wait any longer.
                self._submit(retry[1])

    def _end_probe(self) -> None:
        self._backoff = None
        self._retry = None
        self._probe = None
        self._probing.leave()
        self._release_owed()

    async def _failed(self, debt: Debt, error: Exception) -> None:
        pool = self._pool
        if pool._closed:
            pool._table.vacate(debt)
            return
        pool._last_error = pool._hide(one_line(error))
        # The text: log records live on, and an exception holds its frames, which hold the pool.
        logger.warning("error connecting in %r: %s", pool.name, pool._hide(str(error)))
        if debt != self._probe:
            if not self._probing.enter():
                self._owe(debt)
                return
            self._probe = debt
            self._backoff = AttemptWithBackoff(timeout=pool.reconnect_timeout)
        assert self._backoff is not None
        delay = self._backoff.next_delay(now())
        if delay is None:
            await self._give_up()
        else:
            self._retry = (pool._later(delay, pool._retry_connect), debt)
            self._close_if_closed()  # ... before the plan was there to be cancelled

    def retry(self) -> None:
        """The backoff is over: attempt the probe's slot again."""
        if self._probe is not None:
            self._submit(self._probe)

    # --- giving up --------------------------------------------------------------------------

    async def _give_up(self) -> None:
        pool = self._pool
        logger.warning(
            "reconnection attempt in pool %r failed after %s sec",
            pool.name,
            pool.reconnect_timeout,
        )
        probe = [] if self._probe is None else [self._probe]
        for debt in [*probe, *self._take_owed()]:
            pool._table.vacate(debt)
        self._end_probe()
        if pool._closed:
            return
        if self._revival is not None:
            self._revival.cancel()
        self._revival = pool._later(REVIVAL_PERIOD, pool._revive)
        await pool._call(pool.reconnect_failed)
        if pool._table.counts()[2]:
            self.grow()  # room was made: those who wait go on trying

    def _close_if_closed(self) -> None:
        if self._pool._closed:
            self.close()

    def close(self) -> None:
        """Cancel what is planned; the slots that were owed are nobody's."""
        if self._revival is not None:
            self._revival.cancel()
        retry = self._retry
        if retry is not None and retry[0].cancel():
            self._pool._table.vacate(retry[1])
        for debt in self._take_owed():
            self._pool._table.vacate(debt)


def _forget_frames(error: BaseException | None) -> None:
    """Cut *error* off the frames that it went through: the driver's hold the error, and ours the
    pool, in a cycle that would keep a dropped pool until the collector runs. The frames are not
    cleared: one instance may be raised twice, and the other time through a task that goes on."""
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


async def open_connection(pool: BasePool, timeout: float | None = None) -> Any:
    """Connect, and have the user's configure prepare the connection: the whole of `_connect()`.

    *timeout*: seconds, passed to the driver as connect_timeout unless the user set that.
    """
    table = pool._table
    deadline = math.inf if timeout is None else now() + timeout
    table.count(COUNT_CONNECT)
    conninfo = await pool._call(pool._resolve_conninfo)
    kwargs = await pool._call(pool._resolve_kwargs)
    if timeout is not None and timeout < _LIBPQ_INT:
        if not roles.is_set("connect_timeout", "PGCONNECT_TIMEOUT", conninfo, kwargs):
            kwargs = {**kwargs, "connect_timeout": max(round(timeout), 1)}
    kwargs = roles.ask(pool, conninfo, kwargs)
    began = perf_counter_ns()
    try:
        # Looked up anew each time: instrumentation patches `connect` at any moment.
        conn = await pool._call(partial(pool.connection_class.connect, conninfo, **kwargs))
    except Exception:
        pool._redactor.learn(conninfo, kwargs)
        table.count(COUNT_CONNECT_ERROR)
        raise
    table.count(COUNT_CONNECT_NS, perf_counter_ns() - began)
    if (fault := roles.fault(pool, conn)) is not None:
        table.count(COUNT_CONNECT_ERROR)
        await pool._call(conn.close)
        raise OperationalError(fault)
    conn._pool = pool  # so that `with conn:` in configure does not close it
    if pool._configure is not None:
        try:
            seconds = min(guard.callback_limit(pool), deadline - now())
            await guard.call(pool, conn, seconds, pool._configure, conn)
            status = conn.pgconn.transaction_status
            if status != TransactionStatus.IDLE:
                name = TransactionStatus(status).name
                raise ProgrammingError(
                    f"connection left in status {name} by configure function"
                    f" {pool._configure}: discarded"
                )
        except BaseException:
            conn._pool = None
            await pool._call(conn.close)
            raise
    return conn
