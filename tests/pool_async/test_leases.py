"""Leases of an async pool: `await pool.connect()`, and `async with pool.connect()`."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

import fastpool

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["plain", "null"])
async def pool(request, open_pool, null_pool):
    """An open pool of each kind, with room for one."""
    if request.param == "plain":
        return await open_pool()
    return await null_pool()


def lent(pool):
    return pool.snapshot().counts["in_use"]


async def test_an_awaited_connect_lends_until_closed(pool, works):
    lease = await pool.connect(timeout=5.0)
    assert isinstance(lease, psycopg.AsyncConnection)
    assert lent(pool) == 1
    assert await works(lease)
    await lease.close()
    assert lent(pool) == 0


async def test_a_block_lends_until_it_ends(pool, works):
    async with pool.connect(timeout=5.0) as lease:
        assert isinstance(lease, psycopg.AsyncConnection)
        assert lent(pool) == 1
        assert await works(lease)
    assert lent(pool) == 0
    assert lease.closed


async def test_an_awaited_connect_is_a_block_too(pool, works):
    async with await pool.connect(5.0) as lease:
        assert await works(lease)
    assert lent(pool) == 0


async def test_a_connect_that_is_not_awaited_lends_nothing(pool):
    with pytest.warns(RuntimeWarning, match="was never awaited"):
        pool.connect()
    assert lent(pool) == 0
    assert pool.get_stats()["requests_num"] == 0


async def test_a_connect_can_be_made_a_task(pool, works):
    lease = await asyncio.get_running_loop().create_task(pool.connect())
    assert await works(lease)
    await lease.close()
    lease = await asyncio.wait_for(pool.connect(), timeout=5.0)
    await lease.close()
    (lease,) = await asyncio.gather(pool.connect())
    await lease.close()
    assert lent(pool) == 0


async def test_a_block_commits(pool, admin):
    admin.execute("drop table if exists committed")
    async with pool.connect() as lease:
        await lease.execute("create table committed (x int)")
    assert admin.execute("select to_regclass('committed')").fetchone() == ("committed",)
    admin.execute("drop table committed")


async def test_a_block_that_raises_rolls_back(pool, admin):
    with pytest.raises(ZeroDivisionError):
        async with pool.connect() as lease:
            await lease.execute("create table rolled_back (x int)")
            raise ZeroDivisionError
    assert admin.execute("select to_regclass('rolled_back')").fetchone() == (None,)
    assert lent(pool) == 0


async def test_closing_rolls_back(pool, admin):
    lease = await pool.connect()
    await lease.execute("create table closed_early (x int)")
    await lease.close()
    assert admin.execute("select to_regclass('closed_early')").fetchone() == (None,)


async def test_an_ended_lease_is_a_closed_connection(open_pool, works):
    pool = await open_pool()
    lease = await pool.connect()
    await lease.close()
    async with pool.connection() as conn:  # the same session, lent again
        assert lease.closed
        assert lease is not conn
        with pytest.raises(psycopg.OperationalError, match="closed"):
            await lease.execute("select 1")
        await lease.close()
        await lease.close()
        assert not conn.closed
        assert await works(conn)


async def test_an_ended_lease_cannot_be_returned(pool):
    lease = await pool.connect()
    await lease.close()
    with pytest.raises(ValueError, match="can't return connection"):
        await pool.putconn(lease)


async def test_a_lease_may_be_returned_by_putconn(pool):
    lease = await pool.connect()
    await pool.putconn(lease)
    assert lease.closed
    assert lent(pool) == 0


async def test_a_lease_closed_inside_its_block_is_given_back_once(open_pool, works):
    pool = await open_pool(min_size=2)
    async with pool.connect() as lease:
        await lease.close()
        assert lent(pool) == 0
        conns = [await pool.getconn(timeout=0) for _ in range(2)]
    assert lent(pool) == 2
    for conn in conns:
        assert await works(conn)
        await pool.putconn(conn)


async def test_who_waits_gets_what_a_lease_gives_back(pool, spawn, waiting, works):
    lease = await pool.connect()
    call = spawn(pool.connect(timeout=5.0))
    await waiting(pool, 1)
    await lease.close()
    other = await call.result()
    assert other is not lease
    assert await works(other)
    await other.close()
    assert lent(pool) == 0


async def test_the_timeout_of_a_connect_is_kept(pool):
    async with pool.connect():
        with pytest.raises(fastpool.PoolTimeout, match="after 0.02 sec"):
            await pool.connect(timeout=0.02)
        with pytest.raises(fastpool.PoolTimeout, match="after 0.02 sec"):
            async with pool.connect(0.02):
                pytest.fail("entered")


async def test_a_connect_of_a_closed_pool_is_refused(pool):
    await pool.close()
    with pytest.raises(fastpool.PoolClosed):
        await pool.connect()


async def test_a_lease_of_a_broken_session_frees_its_slot(
    open_pool, break_connection, whole, eventually
):
    pool = await open_pool()
    lease = await pool.connect()
    await break_connection(lease)
    await lease.close()
    await whole(pool)


async def test_a_lease_is_of_the_pools_connection_class(new_pool):
    class Mine(psycopg.AsyncConnection):
        """With something of its own."""

        def greet(self):
            return f"hello from {self.pgconn.backend_pid}"

    pool = new_pool(connection_class=Mine)
    await pool.open()
    async with pool.connect() as lease:
        assert isinstance(lease, Mine)
        assert lease.greet() == f"hello from {lease.pgconn.backend_pid}"


async def test_blocks_of_many_tasks_are_kept_apart(open_pool, works):
    pool = await open_pool(min_size=3)
    held = set()

    async def work():
        async with pool.connect(timeout=10.0) as lease:
            session = lease.pgconn
            assert session not in held
            held.add(session)
            assert await works(lease)
            held.remove(session)

    await asyncio.gather(*[work() for _ in range(60)])
    assert lent(pool) == 0
