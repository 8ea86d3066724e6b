"""What the pool agrees with psycopg.Connection on: conn._pool, closing, blocks, proxies.

Some names that start with an underscore are here because programs in the world use them.
"""

import psycopg
import pytest
from driver import needs_close_returns
from shared.proxies import Proxy


@pytest.fixture
def proxying(network):
    """A connection class that connects to a proxy around the real connection."""

    class Proxying(network.connection_class):
        @classmethod
        def connect(cls, *args, **kwargs):
            return Proxy(super().connect(*args, **kwargs))

    return Proxying


# conn._pool


def test_a_connection_of_no_pool_does_not_name_one(admin):
    assert getattr(admin, "_pool", None) is None


def test_a_connection_names_its_pool_while_lent(open_pool):
    pool = open_pool()
    (idle,) = pool._pool
    assert idle._pool is None
    conn = pool.getconn()
    assert conn is idle
    assert conn._pool is pool
    pool.putconn(conn)
    assert conn._pool is None


def test_a_connection_can_be_returned_through_itself(open_pool):
    pool = open_pool()
    conn = pool.getconn()
    conn._pool.putconn(conn)
    assert pool.get_stats()["pool_available"] == 1


# with conn:


def fail_in_the_block_of(conn):
    with conn:
        conn.execute("insert into kept values (2)")
        raise KeyError


def test_leaving_a_connections_block_commits_and_keeps_it_lent(open_pool, admin):
    pool = open_pool()
    conn = pool.getconn()
    admin.execute("create table kept (x int)")
    try:
        with conn:
            conn.execute("insert into kept values (1)")
        assert not conn.closed
        assert conn._pool is pool
        assert admin.execute("select x from kept").fetchall() == [(1,)]
        with pytest.raises(KeyError):
            fail_in_the_block_of(conn)
        assert not conn.closed
        assert admin.execute("select x from kept").fetchall() == [(1,)]
        pool.putconn(conn)
    finally:
        admin.execute("drop table kept")


# close()


def test_close_closes_a_lent_connection_for_good(open_pool):
    pool = open_pool()
    conn = pool.getconn()
    conn.close()
    assert conn.closed
    assert pool.get_stats()["pool_available"] == 0
    pool.putconn(conn)


def test_close_returns_gives_it_back(open_pool, pid):
    pool = open_pool(close_returns=True)
    conn = pool.getconn()
    session = pid(conn)
    conn.close()
    assert not conn.closed
    assert conn._pool is None
    with pool.connection() as again:
        assert pid(again) == session


def test_close_returns_rolls_back(open_pool, admin):
    pool = open_pool(close_returns=True)
    conn = pool.getconn()
    conn.execute("create table never_kept (x int)")
    conn.close()
    assert pool.get_stats()["pool_available"] == 1
    assert admin.execute("select to_regclass('never_kept')").fetchone() == (None,)


@needs_close_returns
def test_close_returns_is_read_at_each_close(open_pool):
    pool = open_pool(close_returns=True)
    pool.close_returns = False
    conn = pool.getconn()
    conn.close()
    assert conn.closed
    pool.putconn(conn)


def test_close_returns_to_a_closed_pool_closes(open_pool):
    pool = open_pool(close_returns=True)
    conn = pool.getconn()
    pool.close()
    conn.close()
    assert conn.closed


def test_a_connection_detached_from_its_pool_is_closed_by_close(open_pool):
    pool = open_pool(close_returns=True)
    conn = pool.getconn()
    conn._pool = None
    conn.close()
    assert conn.closed


# Proxies


def test_a_proxy_is_lent_and_returned(open_pool, proxying):
    pool = open_pool(connection_class=proxying)
    for _ in range(2):
        with pool.connection() as conn:
            assert isinstance(conn, Proxy)
            assert conn.execute("select 1").fetchone() == (1,)
    conn = pool.getconn()
    assert conn._wrapped._pool is pool
    pool.putconn(conn)
    assert conn._wrapped._pool is None
    assert pool.get_stats()["pool_available"] == 1


def test_the_connection_inside_a_proxy_can_be_returned_in_its_place(open_pool, proxying):
    pool = open_pool(connection_class=proxying)
    conn = pool.getconn()
    pool.putconn(conn._wrapped)
    assert pool.get_stats()["pool_available"] == 1
    with pool.connection() as conn:
        assert conn.execute("select 1").fetchone() == (1,)


@needs_close_returns
def test_closing_the_connection_inside_a_proxy_gives_it_back(open_pool, monkeypatch):
    original = psycopg.Connection.connect.__func__
    monkeypatch.setattr(
        psycopg.Connection,
        "connect",
        classmethod(lambda cls, *args, **kwargs: Proxy(original(cls, *args, **kwargs))),
    )
    pool = open_pool(close_returns=True)
    conn = pool.getconn()
    conn.close()
    assert pool.get_stats()["pool_available"] == 1
    with pytest.raises(ValueError, match="doesn't come from any pool"):
        pool.putconn(conn)


def test_a_second_return_through_a_proxy_is_refused(open_pool, proxying):
    pool = open_pool(connection_class=proxying)
    conn = pool.getconn()
    pool.putconn(conn)
    for handle in (conn, conn._wrapped):
        with pytest.raises(ValueError, match="doesn't come from any pool"):
            pool.putconn(handle)
    assert pool.get_stats()["pool_available"] == 1


# Names that programs reach for


def test_the_idle_connections_can_be_counted_and_seen_oldest_first(full_pool):
    pool = full_pool(max_size=3)
    conns = [pool.getconn() for _ in range(3)]
    assert (len(pool._pool), list(pool._pool)) == (0, [])
    for conn in conns:
        pool.putconn(conn)
    assert (len(pool._pool), list(pool._pool)) == (3, conns)


def test_those_who_wait_can_be_counted(open_pool, spawn, waiting):
    pool = open_pool()
    conn = pool.getconn()
    assert len(pool._waiting) == 0
    call = spawn(pool.getconn, timeout=5.0)
    waiting(pool, 1)
    assert len(pool._waiting) == 1
    pool.putconn(conn)
    pool.putconn(call.result())
    assert len(pool._waiting) == 0


def test_the_size_and_the_state_can_be_read(new_pool):
    pool = new_pool(min_size=2)
    assert (pool._nconns, pool._closed) == (2, True)
    pool.open(wait=True, timeout=5.0)
    assert (pool._nconns, pool._closed) == (2, False)
    pool.close()
    assert pool._closed is True


def test_the_callbacks_can_be_read(new_pool):
    def configure(conn):
        pass

    def check(conn):
        pass

    def reset(conn):
        pass

    pool = new_pool(configure=configure, check=check, reset=reset)
    assert (pool._configure, pool._check, pool._reset) == (configure, check, reset)


def test_jitter_is_around_the_value(impl):
    values = [impl.ConnectionPool._jitter(10.0, -0.1, 0.1) for _ in range(20)]
    assert all(9.0 <= value <= 11.0 for value in values)
    assert len(set(values)) > 1
