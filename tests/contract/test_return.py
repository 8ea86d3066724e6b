"""Giving back: what each state of a returned connection leads to, and what is refused."""

import re

import psycopg
import pytest
from psycopg.pq import TransactionStatus


def test_an_idle_connection_is_idle_in_the_pool_again(open_pool):
    pool = open_pool()
    conn = pool.getconn()
    assert pool.get_stats()["pool_available"] == 0
    pool.putconn(conn)
    assert pool.get_stats()["pool_available"] == 1
    assert conn._pool is None
    assert not conn.closed


def test_an_open_transaction_is_rolled_back(open_pool, admin, pid):
    pool = open_pool()
    conn = pool.getconn()
    session = pid(conn)
    conn.execute("create table returned_in_a_transaction (x int)")
    pool.putconn(conn)
    with pool.connection() as again:
        assert pid(again) == session
        assert again.info.transaction_status == TransactionStatus.IDLE
    found = admin.execute("select to_regclass('returned_in_a_transaction')").fetchone()
    assert found == (None,)


def test_a_failed_transaction_is_rolled_back(open_pool, pid):
    pool = open_pool()
    conn = pool.getconn()
    session = pid(conn)
    with pytest.raises(psycopg.errors.UndefinedTable):
        conn.execute("select * from nowhere")
    assert conn.info.transaction_status == TransactionStatus.INERROR
    pool.putconn(conn)
    with pool.connection() as again:
        assert pid(again) == session
        assert again.execute("select 1").fetchone() == (1,)


def test_one_in_the_middle_of_a_query_is_closed_and_replaced(open_pool, pid):
    pool = open_pool()
    conn = pool.getconn()
    session = pid(conn)
    rows = conn.cursor().stream("select generate_series(1, 10)")
    next(rows)
    assert conn.info.transaction_status == TransactionStatus.ACTIVE
    pool.putconn(conn)
    assert conn.closed
    with pool.connection(timeout=5.0) as again:
        assert pid(again) != session
    assert pool.get_stats()["returns_bad"] == 1
    rows.close()


def test_a_broken_one_is_replaced(open_pool, break_connection, pid):
    pool = open_pool()
    conn = pool.getconn()
    session = pid(conn)
    break_connection(conn)
    pool.putconn(conn)
    with pool.connection(timeout=5.0) as again:
        assert pid(again) != session
    stats = pool.get_stats()
    assert (stats["returns_bad"], stats["pool_size"]) == (1, 1)


def test_one_whose_rollback_fails_is_closed_and_replaced(open_pool, end_session, pid):
    pool = open_pool()
    conn = pool.getconn()
    session = pid(conn)
    conn.execute("select 1")
    end_session(conn)
    pool.putconn(conn)
    assert conn.closed
    with pool.connection(timeout=5.0) as again:
        assert pid(again) != session
    assert pool.get_stats()["returns_bad"] == 1


def test_one_that_its_borrower_closed_is_replaced(open_pool):
    pool = open_pool()
    conn = pool.getconn()
    conn.close()
    assert conn.closed
    pool.putconn(conn)
    with pool.connection(timeout=5.0) as again:
        assert again.execute("select 1").fetchone() == (1,)
    assert pool.get_stats()["returns_bad"] == 1


def test_an_expired_one_is_replaced_without_complaint(open_pool, pid, log):
    pool = open_pool(max_lifetime=0.0)
    conn = pool.getconn()
    session = pid(conn)
    pool.putconn(conn)
    assert conn.closed
    with pool.connection(timeout=5.0) as again:
        assert pid(again) != session
    assert pool.get_stats().get("returns_bad", 0) == 0
    assert log.warnings() == []


def test_the_replacement_of_a_broken_one_serves_who_waits(
    open_pool, spawn, waiting, break_connection, pid
):
    pool = open_pool()
    conn = pool.getconn()
    session = pid(conn)
    call = spawn(pool.getconn, timeout=5.0)
    waiting(pool, 1)
    break_connection(conn)
    pool.putconn(conn)
    received = call.result()
    assert pid(received) != session
    pool.putconn(received)


def test_a_returned_one_keeps_what_its_borrower_set(open_pool):
    pool = open_pool()
    with pool.connection() as conn:
        conn.autocommit = True
    with pool.connection() as conn:
        assert conn.autocommit is True


# Refusals


def test_a_second_putconn_is_refused(open_pool):
    pool = open_pool()
    conn = pool.getconn()
    pool.putconn(conn)
    text = f"can't return connection to pool 'p', it doesn't come from any pool: {conn}"
    with pytest.raises(ValueError, match=re.escape(text)):
        pool.putconn(conn)
    assert pool.get_stats()["pool_available"] == 1


def test_a_connection_of_no_pool_is_refused(open_pool, admin):
    with pytest.raises(ValueError, match="'p', it doesn't come from any pool: <psycopg"):
        open_pool().putconn(admin)


def test_a_connection_of_another_pool_is_refused_and_stays_lent(open_pool):
    pool, other = open_pool(), open_pool(name="other")
    conn = other.getconn()
    text = f"can't return connection to pool 'p', it comes from pool 'other': {conn}"
    with pytest.raises(ValueError, match=re.escape(text)):
        pool.putconn(conn)
    assert conn._pool is other
    other.putconn(conn)


@pytest.mark.parametrize("thing", [None, object()])
def test_what_is_no_connection_is_refused(open_pool, thing):
    with pytest.raises(ValueError, match="doesn't come from any pool"):
        open_pool().putconn(thing)


def test_a_refused_connection_changes_nothing(open_pool, admin, log):
    pool = open_pool()
    before = pool.get_stats()
    log.clear()
    with pytest.raises(ValueError, match="doesn't come from any pool"):
        pool.putconn(admin)
    assert pool.get_stats() == before
    assert log.lines() == []
    assert not admin.closed
