"""Sessions of an async pool that end while nobody looks. The housekeeper's thread takes them out at
once, though the loop be busy; what is to be awaited is left to the loop."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import psycopg
import pytest

import fastpool
from fastpool import notices

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="no epoll, no kqueue"),
]


@pytest.fixture
def kill(admin):
    """`kill(*conns)` has the server end these sessions."""

    def end(*conns):
        for conn in conns:
            admin.execute("select pg_terminate_backend(%s)", [conn.pgconn.backend_pid])

    return end


async def test_idle_sessions_that_end_are_replaced_before_anybody_meets_them(
    open_pool, kill, at_rest, eventually
):
    pool = await open_pool(min_size=3)
    dead = {conn.pgconn.backend_pid for conn in pool._pool}
    kill(*pool._pool)
    # The loop does not turn; the thread acts all the same.
    while pool.get_stats()["connections_lost"] < 3:
        time.sleep(0.001)
    for _ in range(20):
        async with pool.connection(timeout=5.0) as conn:
            assert conn.pgconn.backend_pid not in dead
            await conn.execute("select 1")
    await eventually(lambda: pool.snapshot().counts["available"] == 3)
    await at_rest(pool)


async def test_a_session_that_ends_while_lent_is_replaced_while_its_borrower_still_has_it(
    open_pool, kill, at_rest, eventually
):
    pool = await open_pool()
    conn = await pool.getconn()
    kill(conn)
    await eventually(lambda: pool.snapshot().counts["available"] == 1)
    assert not conn.closed
    await pool.putconn(conn)
    assert conn.closed
    with pytest.raises(ValueError, match="can't return"):
        await pool.putconn(conn)
    stats = pool.get_stats()
    assert (stats["returns_bad"], stats["connections_lost"]) == (1, 0)
    await at_rest(pool)


async def test_a_session_that_ends_in_a_block_ends_the_block_like_any_broken_one(
    open_pool, kill, eventually
):
    pool = await open_pool()
    async with pool.connection() as conn:
        kill(conn)
        await eventually(lambda: pool.snapshot().counts["available"] == 1)
    with pytest.raises(psycopg.OperationalError):
        async with pool.connection() as conn:
            kill(conn)
            await conn.execute("select pg_sleep(5)")
    await eventually(lambda: pool.snapshot().counts["available"] == 1)
    assert pool.get_stats()["returns_bad"] == 2


@pytest.mark.parametrize("kind", ["plain", "null"])
@pytest.mark.parametrize("who", ["server", "borrower"])
async def test_one_that_ends_while_lent_makes_room_for_who_waits(
    open_pool, null_pool, kill, spawn, waiting, kind, who
):
    pool = await (open_pool() if kind == "plain" else null_pool(max_size=1))
    conn = await pool.getconn()
    call = spawn(pool.getconn(5.0))
    await waiting(pool, 1)
    if who == "server":
        kill(conn)
    else:
        await conn.close()
    other = await call.result()
    await other.execute("select 1")
    await pool.putconn(other)


async def test_sessions_that_end_after_their_loop_do_no_harm(dsn, kill):
    """In a thread with a loop of its own: that ends, and the pool is left open."""
    pools = []

    async def leave_open():
        pool = fastpool.AsyncConnectionPool(dsn, min_size=2, open=False)
        await pool.open(wait=True)
        pools.append(pool)

    thread = threading.Thread(target=asyncio.run, args=(leave_open(),))
    thread.start()
    thread.join(10.0)
    (pool,) = pools
    kill(*pool._pool)
    deadline = time.monotonic() + 5.0
    while pool.snapshot().counts["closing"] < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert pool.snapshot().counts["closing"] == 2
    await pool.close()
    assert pool.snapshot().size == 0
    assert not any(watch.belongs_to(pool) for watch in list(notices._watches.values()))


async def test_without_notices_each_connection_is_looked_at_before_it_is_lent(
    open_pool, admin, monkeypatch
):
    monkeypatch.setattr(notices, "can_watch", lambda: False)
    pool = await open_pool(min_size=2)
    for conn in pool._pool:
        admin.execute("select pg_terminate_backend(%s, 5000)", [conn.pgconn.backend_pid])
    for _ in range(10):
        async with pool.connection(timeout=5.0) as conn:
            await conn.execute("select 1")
    assert pool.get_stats()["connections_lost"] == 2
