"""Each call of an async pool, cancelled at each of its await points in turn: nothing may be lost.

A call runs step by step: it is cancelled after 0, 1, 2 … turns of the loop, each time on a new
pool, until it ends before its cancellation comes. What psycopg_pool loses is in test_defects.
"""

import asyncio

import psycopg
import pytest
from driver import SWALLOWS_CANCELLATIONS, needs_cancellations_of_the_dead
from psycopg.pq import TransactionStatus

MOST_STEPS = 40
SIZE = 2

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("quick_backoff"),
    pytest.mark.parametrize("impl", ["fastpool"], indirect=True),
]


async def pause(conn):
    await asyncio.sleep(0)


class Paused(psycopg.AsyncConnection):
    """A connection of which everything that may suspend does so."""

    @classmethod
    async def connect(cls, *args, **kwargs):
        await asyncio.sleep(0)
        return await super().connect(*args, **kwargs)

    async def rollback(self):
        await asyncio.sleep(0)
        await super().rollback()
        await asyncio.sleep(0)

    async def close(self):
        await asyncio.sleep(0)
        await super().close()
        await asyncio.sleep(0)


async def block(pool):
    async with pool.connection(timeout=5.0):
        await asyncio.sleep(0)


async def transaction(pool):
    async with pool.connection(timeout=5.0) as conn:
        await conn.execute("select 1")


async def lease(pool):
    async with pool.connect(timeout=5.0) as conn:
        await conn.execute("select 1")


async def open_transaction(pool):
    conn = await pool.getconn(timeout=5.0)
    try:
        await conn.execute("select 1")
    finally:
        await pool.putconn(conn)


async def broken(pool):
    conn = await pool.getconn(timeout=5.0)
    try:
        await psycopg.AsyncConnection.close(conn)
    finally:
        await pool.putconn(conn)


async def running_query(pool):
    conn = await pool.getconn(timeout=5.0)
    conn.pgconn.send_query(b"select pg_sleep(10)")
    await pool.putconn(conn)


async def both(pool):
    async with pool.connection(timeout=5.0):
        await transaction(pool)


USES = [block, transaction, lease, open_transaction, broken, both]
UPKEEP = {
    "check": lambda pool: pool.check(),
    "drain": lambda pool: pool.drain(),
    "grow": lambda pool: pool.resize(SIZE, SIZE),
    "wait": lambda pool: pool.wait(timeout=5.0),
    "open": lambda pool: pool.open(wait=True, timeout=5.0),
}
CALLBACKS = [{}, {"check": pause, "reset": pause, "configure": pause}]


async def cancel_after(steps, coroutine):
    """Run a coroutine, cancel it after *steps* turns of the loop, tell if it was cancelled."""
    task = asyncio.ensure_future(coroutine)
    for _ in range(steps):
        if task.done():
            break
        await asyncio.sleep(0)
    late = task.done()
    task.cancel()
    await asyncio.wait({task}, timeout=5.0)
    if late:
        task.result()
        return False
    swallowed = f"the cancellation after {steps} steps was swallowed: {task}"
    assert task.cancelled() or SWALLOWS_CANCELLATIONS, swallowed
    return True


@pytest.fixture
def check_each_step(open_pool, eventually, works):
    """Cancel *call*(pool) at each of its await points; every slot must work afterwards.

    *heal*: after a check() that comes to its end.
    """

    async def check(call, heal=False, **options):
        for steps in range(MOST_STEPS):
            pool = await open_pool(min_size=SIZE, connection_class=Paused, **options)
            was_cancelled = await cancel_after(steps, call(pool))
            if heal:
                await pool.check()
            lent = []
            for _ in range(SIZE):
                lent.append(await pool.getconn(timeout=5.0))
            for conn in lent:
                assert conn.info.transaction_status == TransactionStatus.IDLE, steps
                assert await works(conn)
                await conn.rollback()
                await pool.putconn(conn)
            await eventually(lambda: pool.get_stats()["pool_available"] == SIZE)  # noqa: B023
            stats = pool.get_stats()
            assert (stats["pool_size"], stats["requests_waiting"]) == (SIZE, 0), steps
            idle = list(pool._pool)
            await pool.close(timeout=5.0)
            assert [conn.closed for conn in idle] == [True] * SIZE
            if not was_cancelled:
                return
        # I/O takes as many turns as it likes; the first ones are what matters.

    return check


@pytest.mark.parametrize("options", CALLBACKS, ids=["plain", "callbacks"])
@pytest.mark.parametrize("use", USES)
async def test_a_cancelled_use_loses_nothing(check_each_step, use, options):
    await check_each_step(use, **options)


@pytest.mark.parametrize("options", CALLBACKS, ids=["plain", "callbacks"])
@pytest.mark.parametrize("use", [block, open_transaction, broken])
async def test_a_cancelled_use_of_expired_connections_loses_nothing(check_each_step, use, options):
    await check_each_step(use, max_lifetime=0.0, **options)


@pytest.mark.parametrize("use", [block, open_transaction, lease])
async def test_a_cancelled_use_that_waits_loses_nothing(check_each_step, use):
    async def wait_and_use(pool):
        conns = [await pool.getconn() for _ in range(SIZE)]
        loop = asyncio.get_running_loop()
        # Somebody else's return, in the middle of the wait.
        returns = [loop.create_task(pool.putconn(conn)) for conn in conns]
        try:
            await use(pool)
        finally:
            await asyncio.shield(asyncio.gather(*returns))

    await check_each_step(wait_and_use)


@pytest.mark.parametrize("upkeep", UPKEEP)
async def test_cancelled_upkeep_loses_nothing(check_each_step, upkeep):
    await check_each_step(UPKEEP[upkeep], reset=pause)


@needs_cancellations_of_the_dead
async def test_cancelled_upkeep_of_dead_connections_loses_nothing(check_each_step, end_session):
    async def check_dead_ones(pool):
        for conn in list(pool._pool):
            end_session(conn)
        await pool.check()

    await check_each_step(check_dead_ones, heal=True)


@pytest.mark.parametrize("steps", range(12))
async def test_a_cancelled_close_leaves_nothing_open(open_pool, eventually, steps):
    pool = await open_pool(min_size=3, connection_class=Paused)
    idle = list(pool._pool)
    await cancel_after(steps, pool.close(timeout=5.0))
    if steps:
        assert pool.closed is True
    await pool.close(timeout=5.0)
    await eventually(lambda: all(conn.closed for conn in idle))


async def test_a_close_cancelled_while_a_connect_is_stuck_has_closed_what_is_idle(
    open_pool, network, spawn, eventually
):
    pool = await open_pool(max_size=2, connection_class=network.connection_class)
    (idle,) = pool._pool
    network.hold()
    await pool.resize(2, 2)
    await eventually(lambda: network.in_flight == 1)
    call = spawn(pool.close(timeout=5.0))
    await eventually(lambda: pool.closed)
    call.task.cancel()
    await eventually(lambda: call.done)
    await eventually(lambda: idle.closed, timeout=1.0)
