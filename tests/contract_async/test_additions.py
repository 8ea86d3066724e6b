"""What fastpool's async pool has beyond psycopg_pool: connect(), snapshot(), order, growth."""

import asyncio

import psycopg
import pytest

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("impl", ["fastpool"], indirect=True),
]


# connect()


async def test_a_lease_can_be_awaited_and_closed(open_pool, works):
    pool = await open_pool()
    conn = await pool.connect()
    assert isinstance(conn, psycopg.AsyncConnection)
    assert await works(conn)
    assert pool.get_stats()["pool_available"] == 0
    await conn.close()
    assert conn.closed
    assert pool.get_stats()["pool_available"] == 1


async def test_a_lease_can_be_entered_without_being_awaited(open_pool, works):
    pool = await open_pool()
    async with pool.connect() as conn:
        assert await works(conn)
        assert pool.get_stats()["pool_available"] == 0
    assert pool.get_stats()["pool_available"] == 1


async def test_a_lease_can_be_awaited_and_entered(open_pool, works):
    pool = await open_pool()
    async with await pool.connect() as conn:
        assert await works(conn)
    assert pool.get_stats()["pool_available"] == 1


async def test_nothing_is_lent_before_connect_is_awaited(open_pool):
    pool = await open_pool()
    lease = pool.connect()
    await asyncio.sleep(0)
    assert pool.get_stats()["pool_available"] == 1
    conn = await lease
    assert pool.get_stats()["pool_available"] == 0
    await conn.close()


@pytest.mark.parametrize("awaited", [True, False])
async def test_leaving_a_lease_commits_or_rolls_back(open_pool, admin, awaited):
    pool = await open_pool()

    async def insert(number, error=None):
        async with await pool.connect() if awaited else pool.connect() as conn:
            await conn.execute("insert into leased values (%s)", [number])
            if error:
                raise error

    admin.execute("create table leased (x int)")
    try:
        await insert(1)
        with pytest.raises(KeyError):
            await insert(2, KeyError())
        assert admin.execute("select x from leased").fetchall() == [(1,)]
    finally:
        admin.execute("drop table leased")
    assert pool.get_stats()["pool_available"] == 1


async def test_closing_a_lease_rolls_back(open_pool, admin):
    pool = await open_pool()
    conn = await pool.connect()
    await conn.execute("create table never_leased (x int)")
    await conn.close()
    assert pool.get_stats()["pool_available"] == 1
    assert admin.execute("select to_regclass('never_leased')").fetchone() == (None,)


async def test_a_lease_that_has_ended_leaves_the_next_borrower_alone(open_pool, pid, works):
    pool = await open_pool()
    old = await pool.connect()
    session = pid(old)
    await old.close()
    new = await pool.connect(timeout=1.0)
    assert pid(new) == session
    await old.close()
    with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
        await old.execute("select 1")
    assert await works(new)
    assert pool.get_stats()["pool_available"] == 0
    await new.close()
    assert pool.get_stats()["pool_available"] == 1


async def test_connect_ends_by_its_timeout(impl, open_pool):
    pool = await open_pool()
    conn = await pool.connect()
    with pytest.raises(impl.PoolTimeout, match=r"after 0\.02 sec"):
        await pool.connect(timeout=0.02)
    with pytest.raises(impl.PoolTimeout, match=r"after 0\.02 sec"):
        async with pool.connect(0.02):
            pytest.fail("entered")
    await conn.close()


async def test_a_cancelled_connect_loses_nothing(open_pool, spawn, waiting):
    pool = await open_pool()
    conn = await pool.connect()

    async def borrow():
        return await pool.connect(timeout=5.0)

    call = spawn(borrow())
    await waiting(pool, 1)
    await call.cancel()
    await conn.close()
    assert pool.get_stats()["pool_available"] == 1


# snapshot()


async def test_a_snapshot_shows_slots_and_who_waits(full_pool, spawn, waiting, pid):
    pool = await full_pool(max_size=2)
    first, second = await pool.getconn(), await pool.getconn()
    call = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 1)
    shown = pool.snapshot()
    assert (shown.name, shown.size, shown.waiting, shown.counts["in_use"]) == ("p", 2, 1, 2)
    assert {slot.backend_pid for slot in shown.slots} == {pid(first), pid(second)}
    await pool.putconn(first)
    await pool.putconn(await call.result())
    await pool.putconn(second)
    assert pool.snapshot().counts["available"] == 2


async def test_a_snapshot_of_a_pool_that_is_not_open_can_be_taken(new_pool):
    assert new_pool().snapshot().counts["available"] == 0


# order and max_connecting


async def test_last_in_first_out_keeps_lending_the_same_connection(full_pool, pid):
    pool = await full_pool(max_size=3, order="lifo")
    sessions = set()
    for _ in range(6):
        async with pool.connection() as conn:
            sessions.add(pid(conn))
    assert len(sessions) == 1


async def test_the_pool_grows_by_as_many_connections_as_it_may(
    open_pool, network, spawn, waiting, eventually
):
    pool = await open_pool(
        connection_class=network.connection_class, max_size=5, max_connecting=3, num_workers=4
    )
    conns = [await pool.getconn()]
    network.hold()
    calls = [spawn(pool.getconn(timeout=5.0)) for _ in range(4)]
    await waiting(pool, 4)
    await eventually(lambda: network.in_flight == 3)
    await asyncio.sleep(0)
    assert network.in_flight == 3
    network.release()
    conns += [await call.result() for call in calls]
    for conn in conns:
        await pool.putconn(conn)
    assert network.most_in_flight == 3
