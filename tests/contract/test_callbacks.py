"""configure, check and reset: when they are called, with what, and what their failure leads to."""

import threading
from contextlib import suppress

import psycopg
import pytest
from psycopg.pq import TransactionStatus

pytestmark = pytest.mark.usefixtures("quick_backoff")


def fail(conn):
    raise RuntimeError("refused")


def leave_a_transaction(conn):
    conn.execute("select 1")


def leave_a_failed_transaction(conn):
    with suppress(psycopg.errors.UndefinedTable):
        conn.execute("select * from nowhere")


def close(conn):
    conn.close()


def first_time(misbehave):
    """Make a callback that calls *misbehave* the first time; its `seen` are the connections."""

    def callback(conn):
        callback.seen.append(conn)
        if len(callback.seen) == 1:
            misbehave(conn)

    callback.seen = []
    return callback


# configure


def test_configure_is_called_once_for_each_new_connection(open_pool):
    seen = []
    pool = open_pool(min_size=2, configure=seen.append)
    for _ in range(3):
        with pool.connection():
            pass
    assert len(seen) == 2
    assert set(seen) == set(pool._pool)


def test_configure_is_called_for_a_replacement(open_pool):
    seen = []
    pool = open_pool(configure=seen.append)
    conn = pool.getconn()
    conn.close()
    pool.putconn(conn)
    with pool.connection(timeout=5.0) as again:
        assert seen == [conn, again]


def test_configure_sees_the_pool_on_the_connection(open_pool):
    seen = []
    pool = open_pool(configure=lambda conn: seen.append(conn._pool))
    assert seen == [pool]


def test_configure_may_use_the_connection_as_a_context(open_pool):
    def configure(conn):
        with conn:
            conn.execute("set application_name = 'configured'")

    with open_pool(configure=configure).connection() as conn:
        assert conn.execute("show application_name").fetchone() == ("configured",)


def test_configure_may_return_what_it_likes(open_pool):
    with open_pool(configure=lambda conn: False).connection() as conn:
        assert conn.execute("select 1").fetchone() == (1,)


@pytest.mark.parametrize(
    "misbehave", [fail, leave_a_transaction, leave_a_failed_transaction, close]
)
def test_a_connection_that_configure_spoiled_is_never_lent(open_pool, misbehave):
    configure = first_time(misbehave)
    pool = open_pool(configure=configure)
    spoiled, well = configure.seen
    with pool.connection() as conn:
        assert conn is well
    spoiled.close()
    stats = pool.get_stats()
    assert (stats["connections_num"], stats.get("connections_errors", 0)) == (2, 0)


def test_configure_may_ask_the_pool(open_pool):
    seen = []
    pool = open_pool(configure=lambda conn: seen.append(conn._pool.get_stats()["pool_size"]))
    assert seen == [pool.get_stats()["pool_size"]]


# check


def test_check_is_called_in_the_borrowers_thread_at_each_request(open_pool):
    seen = []

    def check(conn):
        seen.append((conn, conn._pool, threading.current_thread()))

    pool = open_pool(check=check)
    for _ in range(2):
        with pool.connection() as conn:
            pass
    assert seen == [(conn, pool, threading.current_thread())] * 2


def test_check_is_called_for_one_who_waited_too(open_pool, spawn, waiting):
    seen = []
    pool = open_pool(check=seen.append)
    conn = pool.getconn()
    call = spawn(pool.getconn, timeout=5.0)
    waiting(pool, 1)
    pool.putconn(conn)
    pool.putconn(call.result())
    assert len(seen) == 2


def test_what_fails_the_check_but_is_well_stays_in_the_pool(open_pool, pid):
    check = first_time(fail)
    pool = open_pool(min_size=2, check=check)
    sessions = {pid(conn) for conn in pool._pool}
    with pool.connection(timeout=5.0) as conn:
        assert conn is check.seen[1]
        assert conn is not check.seen[0]
    assert {pid(conn) for conn in pool._pool} == sessions
    assert pool.get_stats().get("connections_lost", 0) == 0


def test_what_fails_the_check_goes_to_the_end_of_the_line(open_pool):
    check = first_time(fail)
    pool = open_pool(min_size=3, check=check)
    order = list(pool._pool)
    with pool.connection(timeout=5.0) as conn:
        assert conn is order[1]
        assert list(pool._pool) == [order[2], order[0]]


def test_a_transaction_left_by_a_failed_check_is_rolled_back(open_pool):
    def misbehave(conn):
        conn.execute("select 1")
        raise RuntimeError("refused")

    pool = open_pool(min_size=2, check=first_time(misbehave))
    with pool.connection(timeout=5.0):
        (other,) = pool._pool
        assert other.info.transaction_status == TransactionStatus.IDLE


def test_what_the_check_found_broken_is_replaced(open_pool, eventually):
    def misbehave(conn):
        conn.close()
        raise RuntimeError("refused")

    check = first_time(misbehave)
    pool = open_pool(min_size=2, check=check)
    with pool.connection(timeout=5.0) as conn:
        assert conn is not check.seen[0]
    eventually(lambda: pool.get_stats()["pool_available"] == 2)
    assert check.seen[0] not in list(pool._pool)
    stats = pool.get_stats()
    assert (stats["connections_lost"], stats["pool_size"]) == (1, 2)


def test_a_dead_idle_connection_is_not_lent_when_checked(impl, open_pool, end_session, pid):
    pool = open_pool(min_size=2, check=impl.ConnectionPool.check_connection)
    dead = next(iter(pool._pool))
    session = pid(dead)
    end_session(dead)
    with pool.connection(timeout=5.0) as conn:
        assert pid(conn) != session
        assert conn.execute("select 1").fetchone() == (1,)
    assert pool.get_stats()["connections_lost"] == 1


def test_a_request_whose_checks_all_fail_ends_by_its_timeout(impl, open_pool):
    pool = open_pool(check=fail)
    with pytest.raises(impl.PoolTimeout) as failure:
        pool.getconn(timeout=0.1)
    assert str(failure.value).startswith("couldn't get a connection after 0.10 sec")
    assert pool.get_stats()["pool_available"] == 1


def test_an_interrupted_check_loses_no_connection(open_pool):
    class Interrupted(BaseException):
        pass

    def interrupt(conn):
        raise Interrupted

    pool = open_pool(check=first_time(interrupt))
    with pytest.raises(Interrupted):
        pool.getconn(timeout=1.0)
    with pool.connection(timeout=1.0) as conn:
        assert conn.execute("select 1").fetchone() == (1,)


# reset


def test_reset_is_called_once_for_each_return_with_an_idle_connection(open_pool, eventually):
    seen = []

    def reset(conn):
        seen.append((conn, conn._pool, conn.info.transaction_status))

    pool = open_pool(reset=reset)
    conn = pool.getconn()
    assert seen == []
    conn.execute("select 1")
    pool.putconn(conn)
    eventually(lambda: pool.get_stats()["pool_available"] == 1)
    assert seen == [(conn, pool, TransactionStatus.IDLE)]
    assert conn._pool is None


def test_reset_comes_before_the_next_borrower(open_pool, spawn, waiting):
    def reset(conn):
        conn.autocommit = False

    pool = open_pool(reset=reset)
    conn = pool.getconn()
    conn.autocommit = True
    call = spawn(pool.getconn, timeout=5.0)
    waiting(pool, 1)
    pool.putconn(conn)
    received = call.result()
    assert received is conn
    assert received.autocommit is False
    pool.putconn(received)


def test_reset_comes_after_a_block(open_pool, eventually):
    seen = []
    pool = open_pool(reset=seen.append)
    with pool.connection() as conn:
        conn.execute("select 1")
    eventually(lambda: pool.get_stats()["pool_available"] == 1)
    assert seen == [conn]


@pytest.mark.parametrize(
    "misbehave", [fail, leave_a_transaction, leave_a_failed_transaction, close]
)
def test_a_connection_that_reset_spoiled_is_closed_and_replaced(open_pool, misbehave, pid):
    reset = first_time(misbehave)
    pool = open_pool(reset=reset)
    conn = pool.getconn()
    session = pid(conn)
    pool.putconn(conn)
    with pool.connection(timeout=5.0) as again:
        assert pid(again) != session
    assert conn.closed
    assert reset.seen[0] is conn
    assert pool.get_stats()["returns_bad"] == 1


def test_reset_is_not_called_on_a_broken_connection(open_pool, break_connection):
    seen = []
    pool = open_pool(reset=seen.append)
    conn = pool.getconn()
    break_connection(conn)
    pool.putconn(conn)
    with pool.connection(timeout=5.0) as again:
        assert again.execute("select 1").fetchone() == (1,)
    assert conn not in seen


def test_a_connection_returned_to_a_closed_pool_is_closed_though_reset_is_set(open_pool):
    pool = open_pool(reset=lambda conn: None)
    conn = pool.getconn()
    pool.close()
    pool.putconn(conn)
    assert conn.closed


def test_reset_may_ask_the_pool(open_pool, eventually):
    seen = []
    pool = open_pool(reset=lambda conn: seen.append(conn._pool.get_stats()["pool_size"]))
    with pool.connection():
        pass
    eventually(lambda: seen == [1])
