"""Forked children of a process with an async pool: it refuses there, and the parent's goes on."""

from __future__ import annotations

import asyncio
import os

import psycopg
import pytest

import fastpool

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this platform"),
]

CLASSES = [fastpool.AsyncConnectionPool, fastpool.AsyncNullConnectionPool]


async def in_block(block):
    async with block:
        pass


USES = {
    "getconn": lambda pool, conn: pool.getconn(),
    "connection": lambda pool, conn: in_block(pool.connection()),
    "connect": lambda pool, conn: pool.connect(),
    "open": lambda pool, conn: pool.open(),
    "open and wait": lambda pool, conn: pool.open(wait=True),
    "wait": lambda pool, conn: pool.wait(),
    "resize": lambda pool, conn: pool.resize(0, 3),
    "check": lambda pool, conn: pool.check(),
    "drain": lambda pool, conn: pool.drain(),
    "block": lambda pool, conn: in_block(pool),
}


def drive(coroutine):
    """Run a coroutine in a child: in a loop of its own, for the parent's is not for it."""
    asyncio._set_running_loop(None)
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(asyncio.wait_for(coroutine, 10.0))
    finally:
        loop.close()


@pytest.fixture(params=CLASSES, ids=lambda cls: cls.__name__)
async def pool(request, dsn):
    sizes = {"max_size": 2} if "Null" in request.param.__name__ else {"min_size": 2}
    async with request.param(dsn, open=False, name="p", **sizes) as pool:
        await pool.wait(10.0)
        yield pool


@pytest.mark.parametrize("use", USES)
async def test_in_a_child_the_pool_refuses_and_says_why(pool, fork, use):
    async with pool.connection() as conn:

        async def refused():
            with pytest.raises(RuntimeError, match="'p' was opened in the parent process.*after"):
                await USES[use](pool, conn)

        assert fork(lambda: drive(refused())).result() is None
        assert await (await conn.execute("select 1")).fetchone() == (1,)


async def test_in_a_child_the_pool_refuses_outside_of_a_loop_too(pool, fork):
    def child():
        asyncio._set_running_loop(None)
        with pytest.raises(RuntimeError, match="opened in the parent process"):
            pool.getconn().send(None)
        return pool.get_stats()["requests_num"], pool.snapshot().counts["available"], pool.closed

    assert fork(child).result() == (0, 0, False)


async def test_in_a_child_the_pool_can_be_closed(pool, fork):
    async with pool.connection() as conn:

        async def child():
            await pool.close()
            await pool.close()
            with pytest.raises(fastpool.PoolClosed):
                await pool.getconn()
            return pool.closed

        assert fork(lambda: drive(child())).result()
        assert await (await conn.execute("select 1")).fetchone() == (1,)
    async with pool.connection() as conn:
        assert await (await conn.execute("select 1")).fetchone() == (1,)


async def test_what_was_lent_can_be_given_back_in_a_child(pool, fork):
    block, lease = pool.connection(), await pool.connect()
    conn = await block.__aenter__()

    async def child():
        await block.__aexit__(None, None, None)
        await lease.close()
        await pool.putconn(conn)
        return True

    assert fork(lambda: drive(child())).result()
    assert await (await conn.execute("select 1")).fetchone() == (1,)
    assert await (await lease.execute("select 1")).fetchone() == (1,)
    await lease.rollback()
    await lease.close()
    await block.__aexit__(None, None, None)


async def test_what_was_lent_is_of_no_use_in_a_child(pool, fork):
    async with pool.connection() as conn:

        async def child():
            with pytest.raises(psycopg.OperationalError):
                await conn.execute("select 1")
            await conn.close()
            return conn.closed

        assert fork(lambda: drive(child())).result()
        assert await (await conn.execute("select 1")).fetchone() == (1,)


async def test_a_child_may_exit_from_within_a_block(pool, fork):
    block = pool.connection()
    conn = await block.__aenter__()
    await conn.execute("select 1")

    async def child():
        return await block.__aexit__(SystemExit, SystemExit(3), None)

    assert not fork(lambda: drive(child())).result()
    assert await (await conn.execute("select 1")).fetchone() == (1,)
    await block.__aexit__(None, None, None)


async def test_a_pool_that_was_not_open_is_opened_in_a_child_as_usual(dsn, fork):
    pool = fastpool.AsyncConnectionPool(dsn, min_size=1, open=False)

    async def child():
        async with pool, pool.connection() as conn:
            return await (await conn.execute("select 1")).fetchone()

    assert fork(lambda: drive(child())).result() == (1,)


async def test_a_child_may_make_a_pool_of_its_own(pool, dsn, fork):
    async def child():
        async with fastpool.AsyncConnectionPool(dsn, min_size=1, open=False) as mine:
            async with mine.connection() as conn:
                return await (await conn.execute("select 1")).fetchone()

    assert fork(lambda: drive(child())).result() == (1,)
