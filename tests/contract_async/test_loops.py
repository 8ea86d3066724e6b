"""Pools and event loops: made outside of one, opened in one, ended with it."""

import asyncio

import pytest


async def borrow_once(pool):
    async with pool.connection(timeout=5.0) as conn:
        cursor = await conn.execute("select 1")
        return await cursor.fetchone()


def test_a_pool_made_outside_of_a_loop_can_be_opened_in_one(impl, dsn):
    pool = impl.AsyncConnectionPool(dsn, min_size=1, open=False)

    async def main():
        async with pool:
            return await borrow_once(pool)

    assert asyncio.run(main()) == (1,)
    assert pool.closed is True


def test_one_loop_after_the_other_may_have_a_pool(impl, dsn):
    async def main():
        async with impl.AsyncConnectionPool(dsn, min_size=1, open=False) as pool:
            return await borrow_once(pool)

    assert [asyncio.run(main()) for _ in range(2)] == [(1,), (1,)]


def test_what_is_asked_before_the_pool_is_opened_does_not_bind_it_to_a_loop(impl, dsn):
    pool = impl.AsyncConnectionPool(dsn, min_size=1, open=False)

    async def ask():
        with pytest.raises(impl.PoolClosed):
            await pool.getconn()
        await pool.close()

    async def main():
        async with pool:
            return await borrow_once(pool)

    asyncio.run(ask())
    assert asyncio.run(main()) == (1,)


def test_opening_in_the_constructor_needs_a_loop(impl, dsn):
    with pytest.raises(RuntimeError, match="^AsyncConnectionPool open with no running loop$"):
        impl.AsyncConnectionPool(dsn, min_size=1)


def test_opening_in_the_constructor_warns_before_it_fails(impl, dsn):
    with pytest.warns(RuntimeWarning, match="^opening the async pool AsyncConnectionPool in the"):
        with pytest.raises(RuntimeError, match="^AsyncConnectionPool open with no running loop$"):
            impl.AsyncConnectionPool(dsn, min_size=1, open=True)


def test_the_figures_of_a_pool_can_be_read_outside_of_its_loop(impl, dsn):
    pool = impl.AsyncConnectionPool(dsn, min_size=1, open=False)

    async def main():
        async with pool:
            await borrow_once(pool)

    assert pool.get_stats()["pool_size"] == 1
    asyncio.run(main())
    assert pool.get_stats()["requests_num"] == 1
    assert pool.pop_stats()["requests_num"] == 1


def test_a_closed_pool_says_so_in_any_loop(impl, dsn):
    pool = impl.AsyncConnectionPool(dsn, min_size=1, open=False, name="p")

    async def open_and_close():
        async with pool:
            await borrow_once(pool)

    async def ask():
        with pytest.raises(impl.PoolClosed, match="^the pool 'p' is already closed$"):
            await pool.getconn()
        with pytest.raises(impl.PoolClosed, match="^the pool 'p' is already closed$"):
            await pool.wait()
        with pytest.raises(impl.PoolClosed, match="already been opened/closed"):
            await pool.open()
        await pool.check()
        await pool.drain()
        await pool.resize(2, 2)
        await pool.close()

    asyncio.run(open_and_close())
    asyncio.run(ask())


def test_a_connection_returned_after_its_loop_and_its_pool_is_closed(impl, dsn):
    pool = impl.AsyncConnectionPool(dsn, min_size=1, open=False, name="p")

    async def borrow():
        async with pool:
            return await pool.getconn()

    conn = asyncio.run(borrow())
    asyncio.run(pool.putconn(conn))
    assert conn.closed
