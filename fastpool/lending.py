"""Lending and taking back: every case that the fast path leaves.

Owns: the order of events of a checkout (queue, grow, wait, check, retry) and of a return (roll
back, reset, discard or keep). Sync and async pools run these same coroutines. Refuses: to know
how a wait is done, and who connects.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from psycopg.errors import ConnectionTimeout, OperationalError, ProgrammingError
from psycopg.pq import ConnStatus, TransactionStatus

from . import guard, parameters, roles, stacks
from ._blocks import Lease
from ._core import (
    COUNT_LOST,
    COUNT_REQUEST,
    COUNT_REQUEST_ERROR,
    COUNT_RETURN_BAD,
    RETURN_CONDEMNED,
    RETURN_LATE,
    RETURN_TAKEN,
    Waiter,
    skip_frames_of,
)
from ._fastpath import lock_is_lost
from ._peek import DATA, ENDED, HIDES_END, look
from .base import AttemptWithBackoff, BasePool, logger, now, one_line
from .errors import PoolClosed, PoolDeadlock, PoolTimeout, TooManyRequests

if TYPE_CHECKING:
    from .notices import Watch
    from .snapshot import SlotInfo

skip_frames_of(globals())

IDLE = TransactionStatus.IDLE
ACTIVE = TransactionStatus.ACTIVE
UNKNOWN = TransactionStatus.UNKNOWN

# What begin_return() says to whom the connection is left: it goes back to the table, or has been
# taken out of that and is only to be closed.
_OURS = (RETURN_TAKEN, RETURN_CONDEMNED)

# How many of the longest lendings a PoolTimeout names.
_HOLDERS_NAMED = 3
# As many as nobody has waiting; a larger max_waiting says no more.
_NO_LIMIT = 2**31 - 1


# --- checkout ---------------------------------------------------------------------------------


async def checkout(pool: BasePool, timeout: float | None) -> Any:
    """Lend a connection, waiting for one if need be: the whole of `getconn()`."""
    logger.info("connection requested from %r", pool.name)
    pool._table.count(COUNT_REQUEST)
    pool._warn_once()
    pool._require_open()
    timeout = parameters.number("timeout", pool.timeout if timeout is None else timeout)
    deadline = now() + timeout
    failed: set[Any] = set()
    others = 0
    backoff: AttemptWithBackoff | None = None
    error: BaseException | None = None

    while True:
        conn = await _acquire(pool, timeout, deadline, error)
        if pool._check is None:
            break
        error = await _failed_check(pool, conn, deadline)
        if error is None:
            break
        # There are two cases. Another of those that there were may pass: try it at once. Or all of
        # them have failed, this one came round again, or is new: wait for things to change.
        others = others or (pool._nconns if pool._table.keeps_idle else 1)
        if conn._slot not in failed and len(failed) < others and now() < deadline:
            failed.add(conn._slot)
            continue
        backoff = backoff or AttemptWithBackoff(timeout=max(0.0, deadline - now()))
        delay = backoff.next_delay(now())
        if delay is None or now() + delay >= deadline:
            await pool._sleep(max(0.0, deadline - now()))
            raise _timeout_error(pool, timeout, error) from None
        await pool._sleep(delay)

    logger.info("connection given by %r", pool.name)
    return conn


async def _failed_check(pool: BasePool, conn: Any, deadline: float) -> BaseException | None:
    """Run the user's check. On failure put the connection back, or in its place a new one."""
    # Half of the time that is left, so that there is some for another connection.
    seconds = min((deadline - now()) / 2, guard.ROUND_TRIP)
    try:
        await guard.call(pool, conn, seconds, pool._check, conn)
        if conn.closed:
            raise OperationalError("the check function closed the connection")
        roles.verify(pool, conn)
    except BaseException as error:
        fails = isinstance(error, Exception)
        if fails:
            logger.info("connection failed check: %s", pool._hide(str(error)))
        if pool._table.begin_return(conn) in _OURS:
            await finish_return(pool, conn, served=False, deadline=deadline)
        if not fails:
            raise
        return error
    return None


async def _acquire(
    pool: BasePool, timeout: float, deadline: float, failed: BaseException | None = None
) -> Any:
    """Get a connection that is fit to be lent, with `_pool` set. *failed*: what the last check
    raised."""
    table = pool._table
    while True:
        conn = table.checkout(pool._owner())
        if conn is None:
            break
        if not table.is_expired(conn._slot) and not _has_broken(pool, conn):
            conn._pool = pool
            return conn
        await retire(pool, conn)

    if timeout <= 0.0:
        raise _timeout_error(pool, timeout, failed)
    if not table.keeps_idle:
        conn = await _connect_now(pool, timeout, deadline, failed)
        if conn is not None:
            return conn
    waiter = pool._new_waiter()
    waiter.patience = timeout
    try:
        # From here on an interrupt at any point must find its way to leave_queue().
        conn = _enqueue(pool, waiter)
        if conn is None:
            pool._connector.grow()
            pool._deadlocks.suspect(waiter)
            conn = await pool._wait(waiter, deadline - now())
            if conn is None:
                refuse_waiter(pool, waiter, timeout, failed)
    except BaseException:
        await leave_queue(pool, waiter)
        raise
    # Not one that has merely expired: with a short lifetime each would have, and none be lent.
    if table.is_drained(conn._slot) or _has_broken(pool, conn):
        return await acquire_another(pool, conn, timeout, deadline, failed)
    conn._pool = pool
    return conn


def _has_broken(pool: BasePool, conn: Any) -> bool:
    """Whether a connection is broken, where nobody would tell."""
    return pool._peeks and has_ended(conn)


async def acquire_another(
    pool: BasePool,
    conn: Any,
    timeout: float,
    deadline: float,
    failed: BaseException | None = None,
) -> Any:
    """Replace a connection that was granted, and get one that is fit: this one was on its way back
    while drain() looked for what is idle, or has broken."""
    await retire(pool, conn)
    return await _acquire(pool, timeout, deadline, failed)


async def _connect_now(
    pool: BasePool, timeout: float, deadline: float, failed: BaseException | None
) -> Any:
    """Open a connection for this caller. None when the pool is at its maximum."""
    if not await pool._connector.take_turn(deadline):
        raise _timeout_error(pool, timeout, failed)
    debt = pool._connector.take_room()
    if debt is None:
        return None
    try:
        conn = await pool._connector.lend(debt, deadline - now())
    except ConnectionTimeout as error:
        pool._last_error = pool._hide(one_line(error))
        raise _timeout_error(pool, timeout) from None
    pool._require_open()
    conn._pool = pool
    return conn


def _enqueue(pool: BasePool, waiter: Waiter) -> Any:
    try:
        return pool._table.enqueue(waiter, min(pool.max_waiting, _NO_LIMIT))
    except OverflowError:
        waiting = pool._table.counts()[2]
        raise TooManyRequests(
            f"the pool {pool.name!r} has already {waiting} requests waiting"
        ) from None


async def leave_queue(pool: BasePool, waiter: Waiter) -> None:
    """Interrupted, cancelled, refused: leave, and hand on a connection that came meanwhile."""
    table = pool._table
    table.count(COUNT_REQUEST_ERROR)
    conn = table.abandon(waiter)
    if conn is not None:
        outcome = table.begin_return(conn)
        if outcome == RETURN_TAKEN:
            await restore(pool, conn)
        elif outcome == RETURN_CONDEMNED:
            await close(pool, conn)


def refuse_waiter(
    pool: BasePool, waiter: Waiter, timeout: float, failed: BaseException | None = None
) -> NoReturn:
    if waiter.was_shut:
        raise PoolClosed(f"the pool {pool.name!r} is closed")
    if waiter.is_deadlocked:
        text, notes = pool._deadlocks.verdict
        error = PoolDeadlock(text)
        error.__notes__ = notes
        raise error
    raise _timeout_error(pool, timeout, failed)


def _timeout_error(
    pool: BasePool, timeout: float, error: BaseException | None = None
) -> PoolTimeout:
    """Say how long it took, in what state the pool is, who holds it, and what stops it growing."""
    snapshot = pool.snapshot()
    limit = f"of at most {snapshot.max_size} " if snapshot.max_size else ""
    parts = [
        f"{snapshot.size} {limit}connections open, {snapshot.counts['in_use']} in use, "
        f"{snapshot.waiting} requests waiting"
    ]
    held = sorted(
        (slot for slot in snapshot.slots if slot.state == "in_use"),
        key=lambda slot: -slot.time_in_state,
    )
    if any(slot.owner_has_ended for slot in held):
        pool._watchman.look()
    if held:
        kind = pool._OWNERS_ARE
        names = ", ".join(_holder(slot, kind) for slot in held[:_HOLDERS_NAMED])
        parts.append(f"held longest by {names}")
    attempts = [slot.time_in_state for slot in snapshot.slots if slot.state == "connecting"]
    if attempts:
        parts.append(f"{len(attempts)} being connected for up to {max(attempts):.2f} sec")
    if isinstance(error, guard.Overdue):
        parts.append("the last check did not end in time")
    elif error is not None:
        parts.append(f"the last check failed with {pool._hide(one_line(error))}")
    if pool._last_error is not None:
        parts.append(f"the last connection attempt failed with {pool._last_error}")
    made = PoolTimeout(f"couldn't get a connection after {timeout:.2f} sec: " + "; ".join(parts))
    _note_stacks(pool, made, held[:_HOLDERS_NAMED])
    return made


def _note_stacks(pool: BasePool, error: PoolTimeout, held: list[SlotInfo]) -> None:
    """Note on the exception what the holders are doing: a traceback shows it, from Python 3.11 on,
    its text does not. Not what the caller does, which the traceback shows anyway."""
    held = [slot for slot in held if not slot.owner_has_ended]
    others = {slot.owner_ident or 0 for slot in held} - {pool._owner()}
    running = pool._stacks(others, stacks.TOLD)
    notes = [
        f"{pool._OWNERS_ARE} {slot.owner_name!r}, which holds backend {slot.backend_pid}, is at\n"
        f"{stacks.text(running[slot.owner_ident or 0])}"
        for slot in held
        if slot.owner_ident in running
    ]
    stacks.forget(running)
    if notes:
        error.__notes__ = [*getattr(error, "__notes__", ()), *notes]


def _holder(slot: SlotInfo, kind: str) -> str:
    who = f"a {kind} that has ended" if slot.owner_has_ended else f"{kind} {slot.owner_name!r}"
    where = f" at {slot.call_site}" if slot.call_site else ""
    return f"{who} for {slot.time_in_state:.2f} sec (backend {slot.backend_pid}){where}"


# --- return -----------------------------------------------------------------------------------


async def give_back(pool: BasePool, conn: Any) -> None:
    """Take back a connection: the whole of `putconn()`."""
    if isinstance(conn, Lease):
        if conn._lent is None or conn._lent[0] is not pool:
            refuse(pool, conn)
        await pool._call(conn.close)
    elif _begin_return(pool, conn):
        await accept(pool, conn)


async def accept(pool: BasePool, conn: Any) -> None:
    """Go on with a return that is this caller's: here, or in a worker if there is a reset."""
    logger.info("returning connection to %r", pool.name)
    if pool._reset is not None and not pool._closed and pool._table.keeps_returned:
        pool._submit(partial(finish_return, pool, conn))
    else:
        await finish_return(pool, conn)


def _begin_return(pool: BasePool, conn: Any) -> bool:
    """Claim the return. False: it was reclaimed before, and this is its late return."""
    entry = getattr(conn, "_slot", None)
    if entry is not None and entry.leased:
        refuse(pool, conn)  # lent by connect(): only the lease may give it back
    outcome = pool._table.begin_return(conn)
    if outcome not in _OURS and outcome != RETURN_LATE:
        refuse(pool, conn)
    return outcome in _OURS


def refuse(pool: BasePool, conn: Any) -> NoReturn:
    """Raise the ValueError for a connection that this pool has not lent."""
    other = getattr(conn, "_pool", None)
    name = None if other is pool else getattr(other, "name", None)
    origin = "it doesn't come from any pool" if name is None else f"it comes from pool {name!r}"
    try:
        which = str(conn)
    except Exception:  # the driver's raises when another thread closes the connection meanwhile
        which = object.__repr__(conn)
    which = pool._hide(which)
    raise ValueError(f"can't return connection to pool {pool.name!r}, {origin}: {which}")


async def accept_late(pool: BasePool, conn: Any) -> None:
    """A lease of a connection that has left the pool meanwhile has ended."""
    if pool._table.begin_return(conn) in _OURS:
        await accept(pool, conn)


async def close_lent(pool: BasePool, conn: Any) -> None:
    """The borrower closed a connection that is dead, or not to be lent again: free its slot, though
    it keeps the object."""
    if pool._table.begin_return(conn) in _OURS:
        logger.info("returning connection to %r", pool.name)
        if conn.closed:
            pool._table.count(COUNT_RETURN_BAD)
            logger.warning("discarding closed connection: %s", str(conn))
        await discard(pool, conn, late=True)


async def take_back(pool: BasePool, conn: Any) -> None:
    """The borrower closed a connection of a pool where that gives it back."""
    try:
        await pool._call(pool.putconn, conn)
    except ValueError:
        # Another thread gave it back at the same time: it is closed for its borrower anyway.
        if conn._pool is pool:
            raise


async def finish_return(
    pool: BasePool, conn: Any, served: bool = True, deadline: float = math.inf
) -> None:
    """Make a RETURNING connection fit to be lent, or replace it.

    *served* is False when a checkout puts back what failed its check: that a connection is
    found broken then is what checks are for, not worth a warning. *deadline*: that checkout's.
    """
    table = pool._table
    generation = table.generation(conn._slot)
    try:
        if pool._closed:
            await discard(pool, conn)
            return
        wanted = table.keeps_returned
        if wanted:
            await _clean(pool, conn, deadline)
        # There are six cases, in this order: broken; of no use; older than it may be, or than the
        # last drain; of a server that changed its role; more than a resize left room for; healthy.
        condemned = table.is_retired(conn._slot)
        if condemned or conn.pgconn.transaction_status == UNKNOWN or conn.closed:
            if condemned:
                await close(pool, conn)  # the driver may not know yet that it is broken
            if not served:
                table.count(COUNT_LOST)
                logger.info("not serving connection found broken")
            else:
                table.count(COUNT_RETURN_BAD)
                if wanted:
                    logger.warning("discarding closed connection: %s", str(conn))
            await discard(pool, conn)
            await look_at_idle(pool)
        elif not wanted:
            await discard(pool, conn)
        elif table.is_expired(conn._slot):
            logger.info("discarding expired connection")
            await discard(pool, conn)
        elif (fault := roles.fault(pool, conn)) is not None:
            roles.note_change(pool, conn, fault)
            await discard(pool, conn)
        elif table.surplus:
            logger.info("discarding connection beyond the pool's maximum")
            await discard(pool, conn)
        else:
            conn._pool = None
            await restore(pool, conn)
    except BaseException:
        # Cancelled, or interrupted: whatever state the session is in, its slot must not be lost.
        # Unless that came after restore(): then it may be its next borrower who returns it now.
        if table.is_returning(conn._slot, generation):
            await discard(pool, conn)
        raise


async def _clean(pool: BasePool, conn: Any, deadline: float) -> None:
    """Roll back what is open, then run the user's reset. What can't be cleaned is closed."""
    status = conn.pgconn.transaction_status
    if status == UNKNOWN:
        return
    if status == ACTIVE:
        logger.warning("closing returned connection: %s", str(conn))
        await close(pool, conn)
        return
    if lock_is_lost(conn):
        logger.warning("closing returned connection, which an interrupt left locked: %s", str(conn))
        await close(pool, conn)
        return
    if status != IDLE:
        logger.warning("rolling back returned connection: %s", str(conn))
        try:
            await guard.call(pool, conn, min(guard.ROUND_TRIP, deadline - now()), conn.rollback)
        except Exception as error:
            logger.warning(
                "rollback failed: %s: %s. Discarding connection %s",
                type(error).__name__,
                pool._hide(str(error)),
                str(conn),
            )
            await close(pool, conn)
            return
    if pool._reset is not None:
        try:
            seconds = min(guard.callback_limit(pool), deadline - now())
            await guard.call(pool, conn, seconds, pool._reset, conn)
            status = conn.pgconn.transaction_status
            if status != IDLE:
                name = TransactionStatus(status).name
                raise ProgrammingError(
                    f"connection left in status {name} by reset function {pool._reset}: discarded"
                )
        except Exception as error:
            logger.warning("error resetting connection: %s", pool._hide(str(error)))
            await close(pool, conn)


# --- taking out -------------------------------------------------------------------------------


async def retire(pool: BasePool, conn: Any) -> None:
    """Replace a connection that was found too old, or broken, when it was to be lent."""
    is_old = pool._table.is_expired(conn._slot)
    if is_old:
        logger.info("discarding expired connection %s", str(conn))
    if pool._table.begin_return(conn) in _OURS:
        await (discard(pool, conn) if is_old else discard_broken(pool, conn))


async def discard(pool: BasePool, conn: Any, *, late: bool = False, replace: bool = True) -> None:
    """Take a connection that the caller owns out of the table, close it, and owe a new one."""
    if pool._table.is_retired(conn._slot):  # condemned: its slot was freed then
        if late:
            pool._table.expect_late(conn._slot)
        await close(pool, conn)
        return
    debt = pool._table.evict(conn, late)
    try:
        await close(pool, conn)
    finally:
        if pool._table.recycle(debt, replace):
            pool._connector.start(debt)
        else:
            pool._connector.grow()
        conn._slot.unwatch()  # last: closing it lets other threads run, and they may want the slot


async def close(pool: BasePool, conn: Any) -> None:
    """Close a connection for real. A failure is logged: the session is given up anyway."""
    conn._pool = None  # else the driver's close() may give it back instead
    try:
        await pool._call(getattr(conn, "_close_session", conn.close))
    except Exception as error:
        logger.info("error closing connection: %s", pool._hide(str(error)))
    except BaseException:
        conn.pgconn.finish()  # it may have been interrupted before it did that
        raise


async def restore(pool: BasePool, conn: Any, new_turn: bool = True) -> None:
    """Make a connection that the caller owns available, and see to it that it may stand idle."""
    if pool._table.restore(conn, new_turn) or not pool._table.keeps_returned:
        await close_idle(pool)


async def close_idle(pool: BasePool) -> None:
    """Close every idle connection, of a pool that is closed or keeps none."""
    table = pool._table
    for index in range(table.capacity()):
        conn = table.reserve(index)
        if conn is not None:
            await discard(pool, conn, replace=False)


# --- sessions that have ended -----------------------------------------------------------------


def condemn(pool: BasePool, watch: Watch) -> bool:
    """The session with this watch has ended: free its slot and replace it, whoever has it. A
    borrower keeps the object, and may return it.

    Called by the housekeeper, in its thread. False when the slot is somebody's for a moment.
    """
    done, idle = pool._table.condemn(watch.index, watch)
    if done:
        watch.close()
        if idle is not None:
            pool._table.count(COUNT_LOST)
            pool._dead.append(idle)
            pool._later(0.0, pool._bury)
    return done


async def bury(pool: BasePool) -> None:
    """Close the connections that were condemned while idle, and say so."""
    while True:
        try:
            conn = pool._dead.pop(0)
        except IndexError:  # another worker took the last
            return
        await close(pool, conn)
        _tell_of_broken(pool, conn)


async def look_at_idle(pool: BasePool) -> None:
    """A session was found broken in use, and what ended it may have ended others: look at those
    that stand idle, a microsecond each, before anybody is lent one."""
    table = pool._table
    if not table.keeps_idle:
        return
    for index in range(table.capacity()):
        conn = table.reserve(index)
        if conn is None:
            continue
        if has_ended(conn):
            await discard_broken(pool, conn)
        else:
            await restore(pool, conn, False)


async def discard_broken(pool: BasePool, conn: Any) -> None:
    """Replace a connection that the caller owns, and that was found broken while it was idle."""
    pool._table.count(COUNT_LOST)
    await discard(pool, conn)
    _tell_of_broken(pool, conn)


def _tell_of_broken(pool: BasePool, conn: Any) -> None:
    # As loud as what else would have found it: with a check, that is nothing to warn of.
    if pool._check is None:
        logger.warning("discarding broken connection: %s", str(conn))
    else:
        logger.info("not serving connection found broken")


def has_ended(conn: Any) -> bool:
    """Whether the server has closed the session, as far as this side can know. Never blocks."""
    try:
        seen = look(conn.pgconn.socket)
        if seen == DATA and HIDES_END:  # a notification, or the reason for the end: libpq may tell
            conn.pgconn.consume_input()
            seen = look(conn.pgconn.socket)
        return bool(seen == ENDED or conn.pgconn.status == ConnStatus.BAD)
    except (OperationalError, OSError):
        return True
    except (AttributeError, TypeError):
        return False  # a stand-in for a connection, without a socket
