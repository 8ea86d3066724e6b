"""What a null pool of fastpool has beside psycopg_pool's methods: connect(), snapshot(), order."""

import psycopg
import pytest

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("impl", ["fastpool"], indirect=True)]


async def test_closing_a_lease_closes_the_connection(open_pool, do, admin, pid, eventually):
    pool = await open_pool()
    lease = await do(pool.connect)
    assert isinstance(lease, (psycopg.Connection, psycopg.AsyncConnection))
    session = pid(lease)
    await do(lease.close)
    assert lease.closed
    assert pool.get_stats()["pool_size"] == 0
    query = "select 1 from pg_stat_activity where pid = %s"
    await eventually(lambda: admin.execute(query, [session]).fetchone() is None, what="it ended")


async def test_a_lease_may_be_a_block(open_pool, do, entered, admin):
    admin.execute("drop table if exists null_pool_leases; create table null_pool_leases (n int)")
    pool = await open_pool()
    async with entered(pool.connect()) as lease:
        await do(lease.execute, "insert into null_pool_leases values (1)")
    assert lease.closed
    with pytest.raises(ZeroDivisionError):
        async with entered(pool.connect()) as lease:
            await do(lease.execute, "insert into null_pool_leases values (2)")
            raise ZeroDivisionError
    assert pool.get_stats()["pool_size"] == 0
    assert admin.execute("select n from null_pool_leases").fetchall() == [(1,)]
    admin.execute("drop table null_pool_leases")


async def test_a_lease_that_has_ended_leaves_the_next_borrower_alone(
    open_pool, do, waiter, spawn, eventually, pid, works
):
    pool = await open_pool()
    old = await do(pool.connect)
    session = pid(old)
    call = await waiter(pool)
    await do(old.close)
    conn = await call.result()
    assert pid(conn) == session
    await do(old.close)
    assert not conn.closed
    assert await works(conn)
    assert pool.get_stats()["pool_size"] == 1
    await do(pool.putconn, conn)


async def test_a_lease_at_the_maximum_is_waited_for(impl, open_pool, do, spawn):
    async def lend():
        return await do(pool.connect, timeout=0.05)

    pool = await open_pool()
    lease = await do(pool.connect)
    with pytest.raises(impl.PoolTimeout):
        await lend()
    await do(lease.close)
    await do((await lend()).close)


async def test_what_is_lent_is_in_the_snapshot(
    open_pool, network, do, spawn, waiter, eventually, pid
):
    pool = await open_pool(max_size=2, connection_class=network.connection_class)
    assert pool.snapshot().size == 0
    conn = await do(pool.getconn)
    network.hold()
    call = spawn(pool.getconn, timeout=5.0)
    await eventually(lambda: network.in_flight == 1)
    queued = await waiter(pool)
    now = pool.snapshot()
    assert (now.min_size, now.max_size, now.size, now.waiting) == (0, 2, 2, 1)
    assert (now.counts["in_use"], now.counts["connecting"], now.counts["available"]) == (1, 1, 0)
    assert [slot.backend_pid for slot in now.slots if slot.state == "in_use"] == [pid(conn)]
    network.release()
    other = await call.result()
    await do(pool.putconn, other)
    await do(pool.putconn, await queued.result())
    await do(pool.putconn, conn)
    assert pool.snapshot().size == 0


async def test_a_connection_is_marked_as_gone_when_it_was_given_back(open_pool, do):
    pool = await open_pool(max_size=None)
    conns = [await do(pool.getconn) for _ in range(3)]
    for conn in conns:
        await do(pool.putconn, conn)
    counts = pool.snapshot().counts
    assert {state for state, count in counts.items() if count} <= {"empty"}


@pytest.mark.parametrize("order", ["fifo", "lifo"])
async def test_either_order_is_accepted(open_pool, do, order):
    pool = await open_pool(order=order, max_connecting=4)
    await do(pool.putconn, await do(pool.getconn))
