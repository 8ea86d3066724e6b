"""What the pool agrees with psycopg.AsyncConnection on: conn._pool, closing, blocks, proxies.

Some names that start with an underscore are here because programs in the world use them.
"""

import psycopg
import pytest
from driver import needs_close_returns
from shared.proxies import Proxy

pytestmark = pytest.mark.anyio


@pytest.fixture
def proxying(network):
    """A connection class that connects to a proxy around the real connection."""

    class Proxying(network.connection_class):
        @classmethod
        async def connect(cls, *args, **kwargs):
            return Proxy(await super().connect(*args, **kwargs))

    return Proxying


# conn._pool


async def test_a_connection_of_no_pool_does_not_name_one(dsn):
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        assert getattr(conn, "_pool", None) is None


async def test_a_connection_names_its_pool_while_lent(open_pool):
    pool = await open_pool()
    (idle,) = pool._pool
    assert idle._pool is None
    conn = await pool.getconn()
    assert conn is idle
    assert conn._pool is pool
    await pool.putconn(conn)
    assert conn._pool is None


async def test_a_connection_can_be_returned_through_itself(open_pool):
    pool = await open_pool()
    conn = await pool.getconn()
    await conn._pool.putconn(conn)
    assert pool.get_stats()["pool_available"] == 1


# async with conn:


async def fail_in_the_block_of(conn):
    async with conn:
        await conn.execute("insert into kept values (2)")
        raise KeyError


async def test_leaving_a_connections_block_commits_and_keeps_it_lent(open_pool, admin):
    pool = await open_pool()
    conn = await pool.getconn()
    admin.execute("create table kept (x int)")
    try:
        async with conn:
            await conn.execute("insert into kept values (1)")
        assert not conn.closed
        assert conn._pool is pool
        assert admin.execute("select x from kept").fetchall() == [(1,)]
        with pytest.raises(KeyError):
            await fail_in_the_block_of(conn)
        assert not conn.closed
        assert admin.execute("select x from kept").fetchall() == [(1,)]
        await pool.putconn(conn)
    finally:
        admin.execute("drop table kept")


# close()


async def test_close_closes_a_lent_connection_for_good(open_pool):
    pool = await open_pool()
    conn = await pool.getconn()
    await conn.close()
    assert conn.closed
    assert pool.get_stats()["pool_available"] == 0
    await pool.putconn(conn)


async def test_close_returns_gives_it_back(open_pool, pid):
    pool = await open_pool(close_returns=True)
    conn = await pool.getconn()
    session = pid(conn)
    await conn.close()
    assert not conn.closed
    assert conn._pool is None
    async with pool.connection() as again:
        assert pid(again) == session


async def test_close_returns_rolls_back(open_pool, admin):
    pool = await open_pool(close_returns=True)
    conn = await pool.getconn()
    await conn.execute("create table never_kept (x int)")
    await conn.close()
    assert pool.get_stats()["pool_available"] == 1
    assert admin.execute("select to_regclass('never_kept')").fetchone() == (None,)


@needs_close_returns
async def test_close_returns_is_read_at_each_close(open_pool):
    pool = await open_pool(close_returns=True)
    pool.close_returns = False
    conn = await pool.getconn()
    await conn.close()
    assert conn.closed
    await pool.putconn(conn)


async def test_close_returns_to_a_closed_pool_closes(open_pool):
    pool = await open_pool(close_returns=True)
    conn = await pool.getconn()
    await pool.close()
    await conn.close()
    assert conn.closed


async def test_a_connection_detached_from_its_pool_is_closed_by_close(open_pool):
    pool = await open_pool(close_returns=True)
    conn = await pool.getconn()
    conn._pool = None
    await conn.close()
    assert conn.closed


# Proxies


async def test_a_proxy_is_lent_and_returned(open_pool, proxying, works):
    pool = await open_pool(connection_class=proxying)
    for _ in range(2):
        async with pool.connection() as conn:
            assert isinstance(conn, Proxy)
            assert await works(conn)
    conn = await pool.getconn()
    assert conn._wrapped._pool is pool
    await pool.putconn(conn)
    assert conn._wrapped._pool is None
    assert pool.get_stats()["pool_available"] == 1


async def test_the_connection_inside_a_proxy_can_be_returned_in_its_place(
    open_pool, proxying, works
):
    pool = await open_pool(connection_class=proxying)
    conn = await pool.getconn()
    await pool.putconn(conn._wrapped)
    assert pool.get_stats()["pool_available"] == 1
    async with pool.connection() as conn:
        assert await works(conn)


@needs_close_returns
async def test_closing_the_connection_inside_a_proxy_gives_it_back(open_pool, monkeypatch):
    original = psycopg.AsyncConnection.connect.__func__

    async def connect(cls, *args, **kwargs):
        return Proxy(await original(cls, *args, **kwargs))

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", classmethod(connect))
    pool = await open_pool(close_returns=True)
    conn = await pool.getconn()
    await conn.close()
    assert pool.get_stats()["pool_available"] == 1
    with pytest.raises(ValueError, match="doesn't come from any pool"):
        await pool.putconn(conn)


async def test_a_second_return_through_a_proxy_is_refused(open_pool, proxying):
    pool = await open_pool(connection_class=proxying)
    conn = await pool.getconn()
    await pool.putconn(conn)
    for handle in (conn, conn._wrapped):
        with pytest.raises(ValueError, match="doesn't come from any pool"):
            await pool.putconn(handle)
    assert pool.get_stats()["pool_available"] == 1


# Names that programs reach for


async def test_the_idle_connections_can_be_counted_and_seen_oldest_first(full_pool):
    pool = await full_pool(max_size=3)
    conns = [await pool.getconn() for _ in range(3)]
    assert (len(pool._pool), list(pool._pool)) == (0, [])
    for conn in conns:
        await pool.putconn(conn)
    assert (len(pool._pool), list(pool._pool)) == (3, conns)


async def test_those_who_wait_can_be_counted(open_pool, spawn, waiting):
    pool = await open_pool()
    conn = await pool.getconn()
    assert len(pool._waiting) == 0
    call = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 1)
    assert len(pool._waiting) == 1
    await pool.putconn(conn)
    await pool.putconn(await call.result())
    assert len(pool._waiting) == 0


async def test_the_size_and_the_state_can_be_read(new_pool):
    pool = new_pool(min_size=2)
    assert (pool._nconns, pool._closed) == (2, True)
    await pool.open(wait=True, timeout=5.0)
    assert (pool._nconns, pool._closed) == (2, False)
    await pool.close()
    assert pool._closed is True


def test_the_callbacks_can_be_read(new_pool):
    async def configure(conn):
        pass

    async def check(conn):
        pass

    async def reset(conn):
        pass

    pool = new_pool(configure=configure, check=check, reset=reset)
    assert (pool._configure, pool._check, pool._reset) == (configure, check, reset)


def test_jitter_is_around_the_value(impl):
    values = [impl.AsyncConnectionPool._jitter(10.0, -0.1, 0.1) for _ in range(20)]
    assert all(9.0 <= value <= 11.0 for value in values)
    assert len(set(values)) > 1
