"""Opening connections: growth, backoff, recovery.

Owns: which of the slots that are CONNECTING is attempted when. While the server can't be reached
one slot probes it, with backoff; the others are owed, and all start at the probe's first success.
An attempt without an answer is left to itself after a second, and its slot goes on without it.
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

from . import dialing, guard, housekeeper, leases, roles
from ._core import (
    COUNT_CONNECT,
    COUNT_CONNECT_ERROR,
    COUNT_CONNECT_NS,
    LIMIT,
    Debt,
    Gauge,
    coarse_ns,
    skip_frames_of,
)
from .base import AttemptWithBackoff, BasePool, Timer, logger, now, one_line
from .lending import close_idle
from .notices import Watch, is_no_socket
from .redaction import mask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

skip_frames_of(globals())

# After giving up the pool still tries, this often (seconds), to have min_size connections again.
REVIVAL_PERIOD = 30.0
# What the server's C library takes for a number.
_LIBPQ_INT = 2.0**31
# An attempt that takes longer (s) is left to itself: another one begins beside it, and whichever
# gets through first has the slot. A packet that a network drops is sent again after 1, 3, 7, 15 s:
# after a long outage the attempts that wait for that are the last to hear of its end.
PATIENCE = 1.0
# The driver's connect_timeout (s) for attempts while there is no answer, unless the user set one;
# and how many may go on at most after they were left.
PROBE_TIMEOUT = 10.0
MOST_LATE = 16
# While connects fail: how often (s) a borrower of a null pool may make one.
TURN_PERIOD = 0.5
# How long after a connect that was interrupted (seconds) the pool makes up for it.
INTERRUPTED_DELAY = 1.0


class _Flight:
    """One attempt, queued or under way, and the slot that it is for, until somebody takes that."""

    def __init__(self, connector: Connector, debt: Debt) -> None:
        self._connector = connector
        self._taken = Gauge()
        self.debt = debt
        self.who = 0  # makes the attempt

    @property
    def is_late(self) -> bool:
        """Whether the slot is somebody else's by now."""
        return bool(self._taken.inside)

    def take(self) -> Debt | None:
        """Take the slot. For one caller only: its own attempt, or who goes on without that."""
        return self.debt if self._taken.enter() else None

    def be_overdue(self) -> None:
        """Its time is up."""
        debt = self.take()
        if debt is not None:
            self._connector.be_overdue(debt, self.who)


class _Setback:
    """A failed attempt that no success has followed."""

    def __init__(self, began: float, error: OperationalError) -> None:
        self.began = began
        self._args = error.args  # without the frames
        self._turns = Gauge()

    def raise_to_who_came(self, came: float) -> None:
        """Raise the error to who waits since *came*, if the attempt began after that."""
        if came <= self.began:
            raise OperationalError(*self._args)

    def take_turn(self) -> float:
        """Take a turn to try again. Return 0.0, or how long until there may be one (s).

        There is one for each period since the failure: whatever becomes of who took the last, the
        next one comes.
        """
        due, rest = divmod(now() - self.began, TURN_PERIOD)
        return 0.0 if self._turns.enter(int(due)) else TURN_PERIOD - rest


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
        # The attempts that are queued: weak, for a chore that is dropped is to take its debt along.
        self._queued: list[weakref.ref[_Flight]] = []
        # The attempts under way, and when the last two began. A dictionary: it keeps the order,
        # and each of its operations is one step.
        self._flights: dict[_Flight, None] = {}
        self._started = (0.0, 0.0)
        self._not_before = 0.0
        # Whether an attempt has had no answer since the last success.
        self._silent = False
        # Of a null pool, whose borrowers connect themselves.
        self._setback: _Setback | None = None
        self._succeeded_at = -math.inf

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
            if pool._table.keeps_idle:
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
        wait = self._not_before - now()
        if self._probing.inside:
            self._owe(debt)
        elif wait > 0.0:
            self._owed.append(debt)
            self._pool._later(wait, self._pool._resume_connects)
            self._close_if_closed()
        else:
            self._submit(debt)

    def resume(self) -> None:
        """The time after giving up has passed: start what was owed since."""
        if not self._probing.inside:
            self._release_owed()

    def _owe(self, debt: Debt) -> None:
        """Keep a slot until the probe has succeeded, or the pool is closed."""
        self._owed.append(debt)
        if not self._probing.inside:  # the probe ended before it could see this one
            self._release_owed()
        self._close_if_closed()

    def _submit(self, debt: Debt) -> None:
        flight = _Flight(self, debt)
        self._queued.append(weakref.ref(flight, self._queued.remove))
        self._pool._submit(partial(self.attempt, flight))

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

    async def attempt(self, flight: _Flight) -> None:
        """Try to connect a slot once; go on by what came of it."""
        pool = self._pool
        if not self._may_fly(flight):
            return
        flight.who = pool._owner()
        self._flights[flight] = None
        began = now()
        self._started = (self._started[1], began)
        timer = pool._later(PATIENCE, flight.be_overdue)
        mine: Debt | None = None
        try:
            conn = await pool._call(pool._connect, *self._limit())
            timer.cancel()
            # One that comes late has lost its own slot, and finds another, or is too many.
            mine = flight.take() or self._take_any()
            if mine is None:
                await pool._call(conn.close)
                return
            await self._install(mine, conn)
        except Exception as error:
            _forget_frames(error)
            timer.cancel()
            await self._failed(mine or flight.take(), error, began)
        except BaseException:
            # Cancelled, by a loop that is about to end, most likely: go on if it does not.
            timer.cancel()
            mine = mine or flight.take()
            if mine is not None:
                pool._table.vacate_unpaid(mine)
                if mine == self._probe:
                    self._end_probe()
                pool._later(INTERRUPTED_DELAY, pool._revive)
            raise
        else:
            self._succeeded(mine)
            self.grow()
            if not pool._table.keeps_returned:
                await close_idle(pool)
        finally:
            self._flights.pop(flight, None)

    def _may_fly(self, flight: _Flight) -> bool:
        """Whether an attempt may start now; if not, it is seen to that one will, if there is to be
        one: the pool may be closed, or the slot have been given to a connection that came late."""
        is_probe = flight.debt == self._probe
        go_on: Callable[[Debt], object]
        if self._pool._closed:
            go_on = self._pool._table.vacate
        elif is_probe and sum(each.is_late for each in list(self._flights)) >= MOST_LATE:
            go_on = partial(self._plan_retry, delay=PATIENCE)
        elif self._probing.inside and not is_probe:
            go_on = self._owe
        else:
            return not flight.is_late
        if (debt := flight.take()) is not None:
            go_on(debt)
        return False

    def _limit(self) -> tuple[float, ...]:
        """What `_connect()` is called with: a timeout while the server does not answer."""
        return (PROBE_TIMEOUT,) if self._silent else ()

    def be_overdue(self, debt: Debt, who: int) -> None:
        """An attempt, made by *who*, is left to itself; go on with its slot without it."""
        pool = self._pool_ref()
        if pool is None:
            return
        pool._replace_worker(who)
        if pool._closed:
            pool._table.vacate(debt)
            return
        pool._last_error = f"ConnectionTimeout: no answer within {PATIENCE:g} sec"
        self._silent = True
        if not self._go_on_after_failure(debt, PATIENCE):
            pool._submit(self._give_up)

    def _take_any(self) -> Debt | None:
        """Take a slot to connect from whoever has one: for a connection that came late."""
        retry = self._retry
        if retry is not None and retry[0].cancel():
            return retry[1]
        queued = [flight for ref in list(self._queued) if (flight := ref()) is not None]
        flights = [*queued, *self._flights]
        for flight in flights:
            if flight.debt == self._probe and (debt := flight.take()) is not None:
                return debt
        for debt in self._take_owed():
            return debt
        for flight in flights:
            if (debt := flight.take()) is not None:
                return debt
        table = self._pool._table
        for found in (table.grow(), table.enter(table.min_size)):
            if isinstance(found, Debt):
                return found
        return None

    async def take_turn(self, deadline: float) -> bool:
        """Let a borrower connect; while that fails, two a second. Who comes between these waits for
        the next, and is told its error: raises that. False at the deadline."""
        pool = self._pool
        came = now()
        while (setback := self._setback) is not None and not self._is_let_in():
            setback.raise_to_who_came(came)
            wait = TURN_PERIOD if self._probing.inside else setback.take_turn()
            left = deadline - now()
            if wait <= 0.0:
                break
            if left <= 0.0:
                return False
            await _pause(pool, min(wait, left))
            pool._require_open()
        return True

    async def lend(self, debt: Debt, timeout: float) -> Any:
        """Connect a slot for the caller, who is lent the connection, within *timeout* seconds.
        Raises what connecting raises, ConnectionTimeout when it takes longer. A connect that is
        late keeps its slot until it ends, and goes to who waits then, or is closed."""
        pool = self._pool
        began = now()
        try:
            conn = await pool._call(pool._connect, timeout)
            await self._install(debt, conn, lend=True)
        except dialing.LeftBehind as error:
            error.name_heir(partial(self._come_late, debt))
            raise
        except BaseException as error:
            mask(error, pool._hide)
            self._note_failure(began, error)
            pool._table.vacate_unpaid(debt)
            self.grow()
            raise
        self._note_success()
        return conn

    def _come_late(self, debt: Debt, conn: Any, error: BaseException | None) -> None:
        """A connect has ended after its borrower had left. In any thread."""
        pool = self._pool_ref()
        if pool is not None and conn is not None and pool._table.keeps_returned:
            pool._submit(partial(self._bring_in, debt, conn))
            return
        dialing.drop(conn, error)
        if pool is not None:
            pool._table.vacate(debt)
            self.grow()

    async def _bring_in(self, debt: Debt, conn: Any) -> None:
        """Make a connection that came late available to who waits."""
        pool = self._pool
        try:
            await _prepare(pool, conn, guard.callback_limit(pool))
            await self._install(debt, conn)
        except BaseException:
            pool._table.vacate_unpaid(debt)
            raise
        finally:
            self.grow()
            if not pool._table.keeps_returned:
                await close_idle(pool)

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
        watch = _watch(pool, conn, debt.index)
        try:
            installed = table.install(
                debt, conn, conn.pgconn, conn.pgconn.backend_pid, expires, owner, watch
            )
        except BaseException:
            if watch is not None:
                watch.close()
            raise
        if not installed:
            conn._slot.unwatch()
            await pool._call(conn.close)
            table.vacate(debt)

    def _succeeded(self, debt: Debt) -> None:
        self._note_success()
        self._silent = False
        self._not_before = 0.0
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

    def _is_let_in(self) -> bool:
        """Whether others of a null pool got in lately: what fails then wants room, and soon."""
        recent = now() - self._succeeded_at < 2.0 * TURN_PERIOD
        return recent and self._pool.snapshot().counts["in_use"] > 0

    def _note_success(self) -> None:
        self._pool._last_error = None
        self._setback = None
        self._succeeded_at = now()

    def _note_failure(self, began: float, error: BaseException) -> None:
        """Remember what came of an attempt, unless a later one has succeeded, or failed. Only what
        the driver says of the server: other errors are the program's, a timeout its borrower's."""
        if type(error) is not OperationalError or began <= self._succeeded_at:
            return
        self._pool._last_error = self._pool._hide(one_line(error))
        if self._setback is None or began > self._setback.began:
            self._setback = _Setback(began, error)

    async def _failed(self, debt: Debt | None, error: Exception, began: float) -> None:
        """An attempt has failed. *debt*: its slot, None when it had been left to itself."""
        pool = self._pool
        if pool._closed:
            if debt is not None:
                pool._table.vacate(debt)
            return
        pool._last_error = pool._hide(one_line(error))
        self._note_failure(began, error)
        # The text: log records live on, and an exception holds its frames, which hold the pool.
        logger.warning("error connecting in %r: %s", pool.name, pool._hide(str(error)))
        if debt is not None and not self._go_on_after_failure(debt, 0.0):
            await self._give_up()

    def _go_on_after_failure(self, debt: Debt, gone: float) -> bool:
        """Plan the next attempt of the probe; any other slot is owed until that gets through.
        *gone*: how much of the delay has passed already (s). False when it is time to give up."""
        if debt != self._probe:
            if not self._probing.enter():
                self._owe(debt)
                return True
            self._probe = debt
            self._backoff = AttemptWithBackoff(timeout=self._pool.reconnect_timeout)
        assert self._backoff is not None
        delay = self._backoff.next_delay(now())
        if delay is None:
            return False
        self._plan_retry(debt, max(0.0, delay - gone))
        return True

    def _plan_retry(self, debt: Debt, delay: float) -> None:
        pool = self._pool
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
        # Two attempts a second at most, also for who gives up at once and is asked again.
        self._not_before = self._started[0] + AttemptWithBackoff.INITIAL_DELAY
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


async def _pause(pool: BasePool, seconds: float) -> None:
    """Let time pass, until the pool is closed, or has a connection to spare."""
    waiter = pool._new_waiter()
    try:
        if not pool._table.watch(waiter):
            await pool._watch(waiter, seconds)
    finally:
        pool._table.unwatch(waiter)


def _watch(pool: BasePool, conn: Any, index: int) -> Watch | None:
    """Have the housekeeper watch a new connection's socket. None where that can't be."""
    if pool._peeks:
        return None
    try:
        return housekeeper.watch(conn.pgconn.socket, index, pool._condemn)
    except (AttributeError, TypeError, OperationalError):
        return None  # a stand-in for a connection, or one that its configure has closed
    except OSError as error:
        if not is_no_socket(error):
            pool._look_first()
        return None


def _forget_frames(error: BaseException | None) -> None:
    """Cut *error* off the frames that it went through: the driver's hold the error, and ours the
    pool, in a cycle that would keep a dropped pool until the collector runs. The frames are not
    cleared: one instance may be raised twice, and the other time through a task that goes on."""
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


async def open_connection(pool: BasePool, timeout: float | None = None) -> Any:
    """Connect, and have the user's configure prepare the connection: the whole of `_connect()`.

    *timeout*: seconds, passed to the driver as connect_timeout unless the user set that. Where
    the caller is the borrower it is kept also when the driver does not: see the module dialing.
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
        connect = partial(pool.connection_class.connect, conninfo, **kwargs)
        if timeout is None or table.keeps_idle:
            conn = await pool._call(connect)
        else:
            conn = await pool._dial(connect, deadline - now())
    except Exception:
        pool._redactor.learn(conninfo, kwargs)
        table.count(COUNT_CONNECT_ERROR)
        raise
    table.count(COUNT_CONNECT_NS, perf_counter_ns() - began)
    await _prepare(pool, conn, min(guard.callback_limit(pool), deadline - now()))
    return conn


async def _prepare(pool: BasePool, conn: Any, seconds: float) -> None:
    """Look at a new connection's role, and have the user's configure prepare it. Closes what is
    not fit."""
    if (fault := roles.fault(pool, conn)) is not None:
        pool._table.count(COUNT_CONNECT_ERROR)
        await pool._call(conn.close)
        raise OperationalError(fault)
    conn._pool = pool  # so that `with conn:` in configure does not close it
    if pool._configure is None:
        return
    try:
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
