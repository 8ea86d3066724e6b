"""What an async pool tells of itself: its snapshot, the text of its PoolTimeout, its reprs."""

from __future__ import annotations

import asyncio
import json

import psycopg
import pytest

import fastpool

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick")]

STATES = {"empty", "connecting", "available", "in_use", "returning", "reserved", "closing"}


async def test_a_new_pool_owes_its_connections(new_pool):
    snapshot = new_pool(min_size=2, max_size=4, name="new").snapshot()
    assert (snapshot.name, snapshot.min_size, snapshot.max_size, snapshot.size) == ("new", 2, 4, 2)
    assert set(snapshot.counts) == STATES
    assert snapshot.counts["connecting"] == 2


async def test_counts_add_up_in_each_state(open_pool, network, spawn, eventually):
    gate = asyncio.Event()

    async def reset(conn):
        await gate.wait()

    pool = await open_pool(
        min_size=3, max_size=5, reset=reset, connection_class=network.connection_class
    )
    conns = [await pool.getconn() for _ in range(2)]
    await pool.putconn(conns.pop())
    await eventually(lambda: pool.snapshot().counts["returning"] == 1)
    network.hold()
    conns.append(await pool.getconn())
    call = spawn(pool.getconn(timeout=5.0))
    await eventually(lambda: pool.snapshot().counts["connecting"] == 1)
    snapshot = pool.snapshot()
    assert {state: count for state, count in snapshot.counts.items() if count} == {
        "in_use": 2,
        "returning": 1,
        "connecting": 1,
        "empty": 1,
    }
    assert (snapshot.size, snapshot.waiting) == (4, 1)
    assert len(snapshot.slots) == 5
    assert 0.0 < snapshot.oldest_wait < 5.0
    gate.set()
    conns.append(await call.result())
    network.release()
    for conn in conns:
        await pool.putconn(conn)
    await eventually(lambda: pool.snapshot().counts["available"] >= 3)


async def test_a_slot_tells_who_borrowed_it(open_pool, spawn):
    pool = await open_pool()
    lent, go_on = asyncio.Event(), asyncio.Event()

    async def hold():
        async with pool.connection() as conn:
            lent.set()
            await go_on.wait()
            return conn.pgconn.backend_pid

    call = spawn(hold(), task_name="the-holder")
    await lent.wait()
    (slot,) = pool.snapshot().slots
    assert (slot.state, slot.uses) == ("in_use", 1)
    assert (slot.owner_name, slot.owner_ident) == ("the-holder", id(call.task))
    assert slot.age is not None
    assert slot.age >= 0.0
    assert slot.time_in_state >= 0.0
    go_on.set()
    assert slot.backend_pid == await call.result()
    (slot,) = pool.snapshot().slots
    assert (slot.state, slot.uses, slot.owner_name, slot.owner_ident) == (
        "available",
        1,
        None,
        None,
    )


async def test_one_who_waited_is_told_as_owner_then(open_pool, spawn, waiting):
    pool = await open_pool()
    conn = await pool.getconn()
    call = spawn(pool.getconn(timeout=5.0), task_name="the-waiter")
    await waiting(pool, 1)
    await pool.putconn(conn)
    (slot,) = pool.snapshot().slots
    assert (slot.state, slot.owner_name) == ("in_use", "the-waiter")
    await pool.putconn(await call.result())


async def test_an_owner_that_has_ended_is_told_without_a_name(open_pool, spawn):
    pool = await open_pool()
    conn = await spawn(pool.getconn(), task_name="gone").result()
    (slot,) = pool.snapshot().slots
    assert (slot.state, slot.owner_name) == ("in_use", None)
    await pool.putconn(conn)


async def test_the_oldest_wait_is_the_first_ones(open_pool, spawn, waiting, eventually):
    pool = await open_pool()
    conn = await pool.getconn()
    assert pool.snapshot().oldest_wait == 0.0
    first = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 1)
    await eventually(lambda: pool.snapshot().oldest_wait > 0.02)
    second = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 2)
    assert pool.snapshot().oldest_wait > 0.02
    await first.cancel()
    assert pool.snapshot().waiting == 1
    await pool.putconn(conn)
    await pool.putconn(await second.result())


async def test_a_snapshot_of_a_null_pool(null_pool, spawn, waiting):
    pool = await null_pool(max_size=1, name="null")
    assert pool.snapshot().size == 0
    conn = await pool.getconn()
    call = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 1)
    snapshot = pool.snapshot()
    assert (snapshot.size, snapshot.counts["in_use"], snapshot.waiting) == (1, 1, 1)
    await pool.putconn(conn)
    await pool.putconn(await call.result())
    assert pool.snapshot().size == 0


async def test_a_snapshot_can_be_written_as_json(open_pool):
    pool = await open_pool()
    async with pool.connection():
        text = json.dumps(pool.snapshot().as_dict())
    assert json.loads(text)["counts"]["in_use"] == 1


async def test_a_snapshot_is_taken_in_another_thread(open_pool):
    pool = await open_pool()
    async with pool.connection():
        loop = asyncio.get_running_loop()
        snapshot = await loop.run_in_executor(None, pool.snapshot)
    assert snapshot.counts["in_use"] == 1


# --- PoolTimeout ----------------------------------------------------------------------------------


async def test_a_timeout_tells_size_use_and_holders(open_pool, spawn, waiting):
    pool = await open_pool(min_size=2)
    lent, go_on = [], asyncio.Event()

    async def hold():
        async with pool.connection() as conn:
            lent.append(conn.pgconn.backend_pid)
            await go_on.wait()

    calls = [spawn(hold(), task_name=f"holder-{number}") for number in range(2)]
    while len(lent) < 2:
        await asyncio.sleep(0)
    calls.append(spawn(pool.getconn(timeout=5.0)))
    await waiting(pool, 1)
    with pytest.raises(fastpool.PoolTimeout) as failure:
        await pool.getconn(timeout=0.05)
    text = str(failure.value)
    assert text.startswith(
        "couldn't get a connection after 0.05 sec: 2 of at most 2 connections open, 2 in use,"
        " 1 requests waiting; held longest by task 'holder-"
    )
    assert "task 'holder-0' for 0." in text
    assert "task 'holder-1' for 0." in text
    for pid in lent:
        assert f"(backend {pid})" in text
    assert "attempt" not in text
    go_on.set()
    await pool.putconn(await calls.pop().result())
    for call in calls:
        await call.result()


async def test_a_timeout_tells_of_a_holder_that_has_ended(open_pool, spawn):
    pool = await open_pool()
    conn = await spawn(pool.getconn()).result()
    with pytest.raises(fastpool.PoolTimeout, match="held longest by a task that has ended for"):
        await pool.getconn(timeout=0.01)
    await pool.putconn(conn)


async def test_a_timeout_tells_why_no_connection_can_be_made(new_pool, network, eventually):
    network.down(psycopg.OperationalError("the cable\nis cut"))
    pool = new_pool(connection_class=network.connection_class)
    await pool.open()
    await eventually(lambda: network.attempts)
    with pytest.raises(fastpool.PoolTimeout) as failure:
        await pool.getconn(timeout=0.05)
    assert str(failure.value).endswith(
        "the last connection attempt failed with OperationalError: the cable is cut"
    )


async def test_a_timeout_tells_what_a_check_said(open_pool):
    async def check(conn):
        raise ValueError("not today")

    pool = await open_pool(check=check)
    with pytest.raises(fastpool.PoolTimeout, match="the last check failed with ValueError: not"):
        await pool.getconn(timeout=0.05)


async def test_a_null_pools_timeout_tells_as_much(null_pool, spawn):
    pool = await null_pool()
    conn = await pool.getconn()
    with pytest.raises(fastpool.PoolTimeout) as failure:
        await pool.getconn(timeout=0.01)
    assert "1 of at most 1 connections open, 1 in use" in str(failure.value)
    assert "held longest by task" in str(failure.value)
    await pool.putconn(conn)
