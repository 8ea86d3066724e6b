"""Giving back: what each state of a returned connection leads to, and what is refused."""

import re

import psycopg
import pytest
from psycopg.pq import TransactionStatus

pytestmark = pytest.mark.anyio


async def test_an_idle_connection_is_idle_in_the_pool_again(open_pool):
    pool = await open_pool()
    conn = await pool.getconn()
    assert pool.get_stats()["pool_available"] == 0
    await pool.putconn(conn)
    assert pool.get_stats()["pool_available"] == 1
    assert conn._pool is None
    assert not conn.closed


async def test_an_open_transaction_is_rolled_back(open_pool, admin, pid):
    pool = await open_pool()
    conn = await pool.getconn()
    session = pid(conn)
    await conn.execute("create table returned_in_a_transaction (x int)")
    await pool.putconn(conn)
    async with pool.connection() as again:
        assert pid(again) == session
        assert again.info.transaction_status == TransactionStatus.IDLE
    found = admin.execute("select to_regclass('returned_in_a_transaction')").fetchone()
    assert found == (None,)


async def test_a_failed_transaction_is_rolled_back(open_pool, pid, works):
    pool = await open_pool()
    conn = await pool.getconn()
    session = pid(conn)
    with pytest.raises(psycopg.errors.UndefinedTable):
        await conn.execute("select * from nowhere")
    assert conn.info.transaction_status == TransactionStatus.INERROR
    await pool.putconn(conn)
    async with pool.connection() as again:
        assert pid(again) == session
        assert await works(again)


async def test_one_in_the_middle_of_a_query_is_closed_and_replaced(open_pool, pid):
    pool = await open_pool()
    conn = await pool.getconn()
    session = pid(conn)
    rows = conn.cursor().stream("select generate_series(1, 10)")
    await anext(rows)
    assert conn.info.transaction_status == TransactionStatus.ACTIVE
    await pool.putconn(conn)
    assert conn.closed
    async with pool.connection(timeout=5.0) as again:
        assert pid(again) != session
    assert pool.get_stats()["returns_bad"] == 1
    await rows.aclose()


async def test_a_broken_one_is_replaced(open_pool, break_connection, pid):
    pool = await open_pool()
    conn = await pool.getconn()
    session = pid(conn)
    await break_connection(conn)
    await pool.putconn(conn)
    async with pool.connection(timeout=5.0) as again:
        assert pid(again) != session
    stats = pool.get_stats()
    assert (stats["returns_bad"], stats["pool_size"]) == (1, 1)


async def test_one_whose_rollback_fails_is_closed_and_replaced(open_pool, end_session, pid):
    pool = await open_pool()
    conn = await pool.getconn()
    session = pid(conn)
    await conn.execute("select 1")
    end_session(conn)
    await pool.putconn(conn)
    assert conn.closed
    async with pool.connection(timeout=5.0) as again:
        assert pid(again) != session
    assert pool.get_stats()["returns_bad"] == 1


async def test_one_that_its_borrower_closed_is_replaced(open_pool, works):
    pool = await open_pool()
    conn = await pool.getconn()
    await conn.close()
    assert conn.closed
    await pool.putconn(conn)
    async with pool.connection(timeout=5.0) as again:
        assert await works(again)
    assert pool.get_stats()["returns_bad"] == 1


async def test_an_expired_one_is_replaced_without_complaint(open_pool, pid, log):
    pool = await open_pool(max_lifetime=0.0)
    conn = await pool.getconn()
    session = pid(conn)
    await pool.putconn(conn)
    assert conn.closed
    async with pool.connection(timeout=5.0) as again:
        assert pid(again) != session
    assert pool.get_stats().get("returns_bad", 0) == 0
    assert log.warnings() == []


async def test_the_replacement_of_a_broken_one_serves_who_waits(
    open_pool, spawn, waiting, break_connection, pid
):
    pool = await open_pool()
    conn = await pool.getconn()
    session = pid(conn)
    call = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 1)
    await break_connection(conn)
    await pool.putconn(conn)
    received = await call.result()
    assert pid(received) != session
    await pool.putconn(received)


async def test_a_returned_one_keeps_what_its_borrower_set(open_pool):
    pool = await open_pool()
    async with pool.connection() as conn:
        await conn.set_autocommit(True)
    async with pool.connection() as conn:
        assert conn.autocommit is True


# Refusals


async def test_a_second_putconn_is_refused(open_pool):
    pool = await open_pool()
    conn = await pool.getconn()
    await pool.putconn(conn)
    text = f"can't return connection to pool 'p', it doesn't come from any pool: {conn}"
    with pytest.raises(ValueError, match=re.escape(text)):
        await pool.putconn(conn)
    assert pool.get_stats()["pool_available"] == 1


async def test_a_connection_of_no_pool_is_refused(open_pool, admin):
    with pytest.raises(ValueError, match="'p', it doesn't come from any pool: <psycopg"):
        await (await open_pool()).putconn(admin)


async def test_a_connection_of_another_pool_is_refused_and_stays_lent(open_pool):
    pool, other = await open_pool(), await open_pool(name="other")
    conn = await other.getconn()
    text = f"can't return connection to pool 'p', it comes from pool 'other': {conn}"
    with pytest.raises(ValueError, match=re.escape(text)):
        await pool.putconn(conn)
    assert conn._pool is other
    await other.putconn(conn)


@pytest.mark.parametrize("thing", [None, object()])
async def test_what_is_no_connection_is_refused(open_pool, thing):
    with pytest.raises(ValueError, match="doesn't come from any pool"):
        await (await open_pool()).putconn(thing)


async def test_a_refused_connection_changes_nothing(open_pool, admin, log):
    pool = await open_pool()
    before = pool.get_stats()
    log.clear()
    with pytest.raises(ValueError, match="doesn't come from any pool"):
        await pool.putconn(admin)
    assert pool.get_stats() == before
    assert log.lines() == []
    assert not admin.closed
