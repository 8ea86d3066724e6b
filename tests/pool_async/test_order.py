"""Orders of an async pool: of lending, of those who wait, of connects."""

from __future__ import annotations

import asyncio

import pytest

import fastpool

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick")]


def pid(conn):
    return conn.pgconn.backend_pid


async def borrow(pool, count):
    """Borrow and return one after the other; the sessions that were lent."""
    seen = []
    for _ in range(count):
        conn = await pool.getconn()
        seen.append(pid(conn))
        await pool.putconn(conn)
    return seen


async def test_fifo_lends_what_came_back_first(open_pool):
    pool = await open_pool(min_size=3)
    first = await borrow(pool, 3)
    assert len(set(first)) == 3
    assert await borrow(pool, 6) == first * 2


async def test_lifo_keeps_to_one_connection(open_pool):
    pool = await open_pool(min_size=3, order="lifo")
    assert len(set(await borrow(pool, 6))) == 1


async def test_an_unknown_order_is_refused(new_pool):
    with pytest.raises(ValueError, match="order must be 'fifo' or 'lifo', not 'random'"):
        new_pool(order="random")


@pytest.mark.parametrize("kind", ["plain", "null"])
async def test_those_who_wait_are_served_in_order(open_pool, null_pool, spawn, waiting, kind):
    pool = await (open_pool() if kind == "plain" else null_pool())
    conn = await pool.getconn()
    served = []

    async def work(number):
        conn = await pool.getconn(timeout=10.0)
        served.append(number)
        await asyncio.sleep(0)
        await pool.putconn(conn)

    calls = []
    for number in range(20):
        calls.append(spawn(work(number)))
        await waiting(pool, number + 1)
    await pool.putconn(conn)
    for call in calls:
        await call.result()
    assert served == list(range(20))


async def test_a_newcomer_does_not_overtake_one_who_was_granted(open_pool, spawn, waiting):
    pool = await open_pool()
    conn = await pool.getconn()
    call = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 1)
    await pool.putconn(conn)
    with pytest.raises(fastpool.PoolTimeout):
        await pool.getconn(timeout=0)
    assert await call.result() is conn
    await pool.putconn(conn)


async def test_growth_connects_one_at_a_time(open_pool, network, spawn, eventually):
    pool = await open_pool(min_size=0, max_size=4, connection_class=network.connection_class)
    network.hold()
    calls = [spawn(pool.getconn(timeout=10.0)) for _ in range(4)]
    for number in range(4):
        await eventually(lambda: network.in_flight == 1)
        assert pool.snapshot().size == number + 1
        network.let(1)
        await eventually(lambda n=number: sum(call.done for call in calls) == n + 1)
    assert network.most_in_flight == 1
    for call in calls:
        await pool.putconn(await call.result())


@pytest.mark.parametrize("limit", [2, 3])
async def test_max_connecting_lets_more_go_at_once(
    open_pool, network, spawn, eventually, waiting, limit
):
    pool = await open_pool(
        min_size=0,
        max_size=6,
        max_connecting=limit,
        num_workers=6,
        connection_class=network.connection_class,
    )
    network.hold()
    calls = [spawn(pool.getconn(timeout=10.0)) for _ in range(6)]
    await waiting(pool, 6)
    await eventually(lambda: network.in_flight == limit)
    network.let(6)
    for call in calls:
        await call.result()
    assert network.most_in_flight == limit
    for call in calls:
        await pool.putconn(call.task.result())


async def test_no_more_connects_than_those_who_wait(open_pool, network, spawn, eventually, waiting):
    pool = await open_pool(
        min_size=0,
        max_size=6,
        max_connecting=6,
        num_workers=6,
        connection_class=network.connection_class,
    )
    network.hold()
    calls = [spawn(pool.getconn(timeout=10.0)) for _ in range(2)]
    await waiting(pool, 2)
    await eventually(lambda: network.in_flight == 2)
    assert pool.snapshot().size == 2
    network.release()
    for call in calls:
        await pool.putconn(await call.result())
    assert network.attempts == 2


async def test_a_connect_outlives_the_request_that_asked_for_it(
    open_pool, network, spawn, eventually
):
    pool = await open_pool(min_size=0, max_size=2, connection_class=network.connection_class)
    network.hold()
    call = spawn(pool.getconn(timeout=10.0))
    await eventually(lambda: network.in_flight == 1)
    await call.cancel()
    network.release()
    await eventually(lambda: pool.snapshot().counts["available"] == 1)
    assert network.attempts == 1


async def test_null_pools_connect_side_by_side(null_pool, network, spawn, eventually):
    pool = await null_pool(max_size=4, connection_class=network.connection_class)
    network.hold()
    calls = [spawn(pool.getconn(timeout=10.0)) for _ in range(4)]
    await eventually(lambda: network.in_flight == 4)
    network.release()
    for call in calls:
        await pool.putconn(await call.result())
    assert network.most_in_flight == 4
