"""Opening connections: growth, backoff, recovery.

Owns: which of the slots that are CONNECTING is attempted when. While the server can't be reached
one slot probes it, with backoff; the others are owed, and all start at the probe's first success.
Refuses: to decide how many there should be. That is the slot table's.
"""

from __future__ import annotations

import traceback
import weakref
from collections import deque
from functools import partial
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from psycopg.errors import ProgrammingError
from psycopg.pq import TransactionStatus

from . import leases
from ._core import (
    COUNT_CONNECT,
    COUNT_CONNECT_ERROR,
    COUNT_CONNECT_NS,
    Gauge,
    coarse_ns,
)
from .base import AttemptWithBackoff, BasePool, Timer, logger, now, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

# After giving up the pool still tries, this often (seconds), to have min_size connections again.
REVIVAL_PERIOD = 30.0


class Connector:
    """A pool's connects. Thread-safe without locks: a finalizer may come in at any point."""

    def __init__(self, pool: BasePool) -> None:
        self._pool_ref = weakref.ref(pool)
        self._probing = Gauge()
        self._owed: deque[int] = deque()
        self._retry: tuple[Timer, int] | None = None
        self._backoff: AttemptWithBackoff | None = None
        self._probe = -1
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
        index = pool._table.grow()
        while index >= 0:
            logger.info("growing pool %r to %s", pool.name, pool._nconns)
            self.start(index)
            index = pool._table.grow()

    def fill(self) -> None:
        """Start the connects that are missing to min_size."""
        table = self._pool._table
        index = table.enter(table.min_size)
        while index >= 0:
            self.start(index)
            index = table.enter(table.min_size)

    def start(self, index: int) -> None:
        """Have a slot that is CONNECTING connected, or keep it owed while the server is down."""
        if self._pool_ref() is None:
            return
        if self._probing.inside:
            self._owe(index)
        else:
            self._submit(index)

    def _owe(self, index: int) -> None:
        """Keep a slot until the probe has succeeded, or the pool is closed."""
        self._owed.append(index)
        if not self._probing.inside:  # the probe ended before it could see this one
            self._release_owed()
        self._close_if_closed()

    def _submit(self, index: int) -> None:
        self._pool._submit(partial(self.attempt, index))

    def _release_owed(self) -> None:
        for index in self._take_owed():
            self._submit(index)

    def _take_owed(self) -> Iterator[int]:
        """Take the owed slots, each for one caller only."""
        while True:
            try:
                yield self._owed.popleft()
            except IndexError:
                return

    # --- one attempt ------------------------------------------------------------------------

    async def attempt(self, index: int) -> None:
        """Try to connect a slot once; go on by what came of it."""
        pool = self._pool
        if pool._closed:
            pool._table.vacate(index)
            return
        try:
            conn = await pool._call(pool._connect)
            await self._install(index, conn)
        except Exception as error:
            _forget_frames(error)
            await self._failed(index, error)
        except BaseException:
            pool._table.vacate(index)
            self.grow()
            raise
        else:
            self._succeeded(index)
            self.grow()

    async def _install(self, index: int, conn: Any) -> None:
        pool = self._pool
        table = pool._table
        now_ns = coarse_ns()
        conn._created_at = now()
        expires = pool._expiry_ns(now_ns)
        conn._expire_at = conn._created_at + (expires - now_ns) * 1e-9
        if pool.close_returns:
            leases.return_on_close(conn)
        conn._pool = None
        if not pool._closed:
            logger.info("adding new connection to the pool")
        if not table.install(index, conn, conn.pgconn, conn.pgconn.backend_pid, expires):
            await pool._call(conn.close)
            table.vacate(index)

    def _succeeded(self, index: int) -> None:
        pool = self._pool
        pool._last_error = None
        if self._probing.inside:
            retry = self._retry
            if index == self._probe:
                self._end_probe()
            elif retry is not None and retry[0].cancel():
                # Another connect got through: no need for the probe to wait any longer.
                self._submit(retry[1])

    def _end_probe(self) -> None:
        self._backoff = None
        self._retry = None
        self._probe = -1
        self._probing.leave()
        self._release_owed()

    async def _failed(self, index: int, error: Exception) -> None:
        pool = self._pool
        if pool._closed:
            pool._table.vacate(index)
            return
        pool._last_error = one_line(error)
        # The text: log records live on, and an exception holds its frames, which hold the pool.
        logger.warning("error connecting in %r: %s", pool.name, str(error))
        if index != self._probe:
            if not self._probing.enter():
                self._owe(index)
                return
            self._probe = index
            self._backoff = AttemptWithBackoff(timeout=pool.reconnect_timeout)
        assert self._backoff is not None
        delay = self._backoff.next_delay(now())
        if delay is None:
            await self._give_up()
        else:
            self._retry = (pool._later(delay, pool._retry_connect), index)
            self._close_if_closed()  # ... before the plan was there to be cancelled

    def retry(self) -> None:
        """The backoff is over: attempt the probe's slot again."""
        if self._probe >= 0:
            self._submit(self._probe)

    # --- giving up --------------------------------------------------------------------------

    async def _give_up(self) -> None:
        pool = self._pool
        logger.warning(
            "reconnection attempt in pool %r failed after %s sec",
            pool.name,
            pool.reconnect_timeout,
        )
        for index in [self._probe, *self._take_owed()]:
            pool._table.vacate(index)
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
        for index in self._take_owed():
            self._pool._table.vacate(index)


def _forget_frames(error: BaseException | None) -> None:
    """Empty the frames that *error* went through: the driver's hold the error, and ours the pool,
    in a cycle that would keep a dropped pool until the collector runs."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


async def open_connection(pool: BasePool, timeout: float | None = None) -> Any:
    """Connect, and have the user's configure prepare the connection: the whole of `_connect()`.

    *timeout*: seconds, passed to the driver as connect_timeout; None for the user's own.
    """
    table = pool._table
    table.count(COUNT_CONNECT)
    conninfo = await pool._call(pool._resolve_conninfo)
    kwargs = await pool._call(pool._resolve_kwargs)
    if timeout is not None:
        kwargs = {**kwargs, "connect_timeout": max(round(timeout), 1)}
    began = perf_counter_ns()
    try:
        # Looked up anew each time: instrumentation patches `connect` at any moment.
        conn = await pool._call(partial(pool.connection_class.connect, conninfo, **kwargs))
    except Exception:
        table.count(COUNT_CONNECT_ERROR)
        raise
    table.count(COUNT_CONNECT_NS, perf_counter_ns() - began)
    conn._pool = pool  # so that `with conn:` in configure does not close it
    if pool._configure is not None:
        try:
            await pool._call(pool._configure, conn)
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
