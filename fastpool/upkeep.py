"""Upkeep of a pool as a whole: shrink, check, drain, resize, wait until full.

Owns: the operations that look at all slots, one at a time, so that the pool goes on lending
meanwhile. Refuses: decisions about a single lending, which are lending's.
"""

from __future__ import annotations

from functools import partial

from . import guard, notices, parameters, roles
from ._core import COUNT_LOST
from .base import BasePool, logger
from .connector import Connector
from .deadlock import Detector
from .errors import PoolClosed, PoolTimeout
from .leaks import Watchman
from .lending import bury, close_idle, discard, restore


def equip(pool: BasePool) -> None:
    """Make the parts of a pool: of a new one, or in a forked child."""
    pool._connector = Connector(pool)
    pool._deadlocks = Detector(pool)
    pool._watchman = Watchman(pool)


def start(pool: BasePool) -> None:
    """Open the pool: have the connections made that it owes."""
    if pool._begin_open():
        if not notices.can_watch():
            pool._look_first()
        for debt in pool._table.owed():
            pool._connector.start(debt)
        if pool._table.keeps_idle:
            pool._plan_shrink()
            if pool._warns is None:
                pool._lend_directly()
        if pool.leak_timeout is not None or pool.reclaim_dead:
            pool._plan_look()


async def shut(pool: BasePool, timeout: float | None) -> None:
    """Close the pool: first fail those who wait, then close what is idle, then end the chores."""
    limit = parameters.patience(timeout)
    if not pool._opened:
        return
    first = pool._table.close()
    if first:
        pool._lends = False
        logger.debug("pool %r closed", pool.name)
        if pool._shrink_timer is not None:
            pool._shrink_timer.cancel()
        pool._connector.close()
    # Also the second time: what an interrupted close() left is for the next.
    await close_idle(pool)
    notices.unwatch(pool)
    await bury(pool)
    if first:  # two chores that both close the pool don't wait for each other
        await pool._end_chores(limit)
        await close_idle(pool)  # what a chore brought in at the last moment
    pool._replace_lost()  # an event loop that has ended does not


async def shrink(pool: BasePool) -> None:
    """Close one connection if, over the last `max_idle` seconds, it was one too many."""
    found = pool._table.reserve_surplus()
    if found is not None:
        conn, unused = found
        logger.info(
            "shrinking pool %r to %s because %s unused connections in the last %s sec",
            pool.name,
            pool._nconns - 1,
            unused,
            pool.max_idle,
        )
        await discard(pool, conn, replace=False)


async def check(pool: BasePool) -> None:
    """Check every idle connection where it stands; replace those that fail or have expired."""
    pool._reopen()
    table = pool._table
    for index in range(table.capacity()):
        conn = table.reserve(index)
        if conn is None:
            continue
        expired = table.is_expired(conn._slot)
        try:
            if not expired:
                await guard.call(pool, conn, guard.ROUND_TRIP, pool.check_connection, conn)
                roles.verify(pool, conn)
        except Exception:
            table.count(COUNT_LOST)
            logger.warning("discarding broken connection: %s", str(conn))
            await discard(pool, conn)
            continue
        except BaseException:
            await discard(pool, conn)
            raise
        if expired:
            logger.info("discarding expired connection %s", str(conn))
            await discard(pool, conn)
        else:
            await restore(pool, conn, False)
    if not pool._closed:
        pool._connector.fill()


async def drain(pool: BasePool) -> None:
    """Replace every connection of today: the idle ones now, the lent ones when they return."""
    pool._table.new_epoch()
    await renew(pool)


async def renew(pool: BasePool) -> None:
    """Replace the idle connections that are too old, or older than the last drain."""
    table = pool._table
    for index in range(table.capacity()):
        conn = table.reserve(index)
        if conn is None:
            continue
        if table.is_expired(conn._slot):
            await discard(pool, conn)
        else:
            await restore(pool, conn, False)


def resize(pool: BasePool, min_size: int, max_size: int | None) -> None:
    """Set the sizes. Opens what is missing to the minimum; closes nothing at once."""
    min_size, max_size = pool._check_size(min_size, max_size)
    logger.info("resizing %r to min_size=%s max_size=%s", pool.name, min_size, max_size)
    table = pool._table
    if not pool._closed:
        pool._reopen()
    table.resize(min_size, max_size)
    if pool._opened:
        if not pool._closed:
            pool._connector.fill()
            pool._connector.grow()
    elif not table.closed:
        # Not open yet: the connects owed at opening are as many as the new minimum.
        while table.enter(min_size) != -1:
            pass
        for debt in reversed(table.owed()[min_size:]):
            table.vacate(debt)


def _all_lent(pool: BasePool) -> bool:
    """Whether every connection that there may be is lent."""
    snapshot = pool.snapshot()
    return snapshot.counts["in_use"] >= snapshot.max_size > 0


async def wait(pool: BasePool, timeout: float | None) -> None:
    """Wait until `min_size` connections stand available; close the pool if they don't in time.

    Where none stand idle one is opened, to show that it can be, and closed. At the maximum those
    that are lent show it.
    """
    limit = parameters.patience(timeout)
    pool._warn_once()
    pool._require_open()
    waiter = pool._new_waiter()
    table = pool._table
    try:
        full = table.watch(waiter)
        if not full and not table.keeps_idle:
            full = _all_lent(pool)
        if not full:
            logger.info("waiting for pool %r initialization", pool.name)
            room = None if table.keeps_idle else pool._connector.take_room()
            if room is not None:
                pool._connector.start(room)
            await pool._watch(waiter, limit)
    finally:
        settled = table.unwatch(waiter)
    if not settled and not full:
        cause = pool._last_error
        await pool._call(partial(pool.close, timeout=0.0))  # that would be more time
        text = f"pool initialization incomplete after {timeout} sec"
        if cause is not None:
            text += f": the last connection attempt failed with {cause}"
        raise PoolTimeout(text)
    if waiter.was_shut:
        raise PoolClosed(f"the pool {pool.name!r} is closed")
    if not full:
        logger.info("pool %r is ready to use", pool.name)
