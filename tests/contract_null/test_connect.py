"""What a null pool of fastpool has beside psycopg_pool's methods: connect(), snapshot(), order."""

import contextvars
import time

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


# What a borrower does not wait for


async def test_a_checkout_ends_in_time_though_its_connect_does_not(
    impl, open_pool, network, spawn, do, eventually, kind
):
    pool = await open_pool(connection_class=network.connection_class)
    network.hold()
    began = time.monotonic()
    with pytest.raises(
        impl.PoolTimeout, match=r"after 0.30 sec: .*1 being connected for up to 0.3"
    ):
        await spawn(pool.getconn, timeout=0.3).result()
    assert time.monotonic() - began < 0.3 + 0.05 + 0.15
    # Its place is taken until the connect ends; then the connection is closed.
    with pytest.raises(impl.PoolTimeout):
        await spawn(pool.getconn, timeout=0.05).result()
    assert len(network.attempts) == 1
    assert pool.get_stats()["pool_size"] == 1
    network.release()
    await eventually(lambda: pool.get_stats()["pool_size"] == 0)
    await do(pool.putconn, await do(pool.getconn, timeout=1.0))


async def test_a_connection_that_comes_late_goes_to_who_waits(
    impl, open_pool, network, spawn, do, waiter, works, callback
):
    configured = []
    pool = await open_pool(
        connection_class=network.connection_class, configure=callback(configured.append)
    )
    network.hold()
    with pytest.raises(impl.PoolTimeout):
        await spawn(pool.getconn, timeout=0.1).result()
    call = await waiter(pool)
    network.release()
    conn = await call.result()
    assert configured == [conn]
    assert await works(conn)
    assert len(network.attempts) == 1
    await do(pool.putconn, conn)
    assert pool.get_stats()["pool_size"] == 0


async def test_who_waits_connects_when_a_late_connect_fails(
    impl, open_pool, network, spawn, do, waiter
):
    pool = await open_pool(connection_class=network.connection_class)
    network.hold()
    with pytest.raises(impl.PoolTimeout):
        await spawn(pool.getconn, timeout=0.1).result()
    call = await waiter(pool)
    network.down()
    network.release()
    network.up()
    await do(pool.putconn, await call.result())


async def test_a_connection_that_comes_after_close_is_closed(
    impl, open_pool, network, spawn, do, eventually, admin
):
    name = "comes-after-close"
    pool = await open_pool(
        connection_class=network.connection_class, kwargs={"application_name": name}
    )
    network.hold()
    with pytest.raises(impl.PoolTimeout):
        await spawn(pool.getconn, timeout=0.1).result()
    await do(pool.close, timeout=0.1)
    network.release()
    await eventually(lambda: pool.get_stats()["pool_size"] == 0)
    query = "select 1 from pg_stat_activity where application_name = %s"
    await eventually(lambda: admin.execute(query, [name]).fetchone() is None)


async def test_a_configure_without_end_is_a_timeout(impl, open_pool, do, callback, spawn):
    pool = await open_pool(configure=callback(lambda conn: conn.execute("select pg_sleep(5)")))
    began = time.monotonic()
    with pytest.raises(impl.PoolTimeout, match="after 0.30 sec"):
        await spawn(pool.getconn, timeout=0.3).result()
    assert time.monotonic() - began < 0.3 + 0.05 + 0.15
    assert pool.get_stats()["pool_size"] == 0


@pytest.mark.parametrize("kind", ["threads"], indirect=True)
async def test_connecting_sees_the_borrowers_context(open_pool, do, kind):
    variable = contextvars.ContextVar("variable", default="none")
    seen = []

    class Own(psycopg.Connection):
        @classmethod
        def connect(cls, *args, **kwargs):
            seen.append(variable.get())
            return super().connect(*args, **kwargs)

    pool = await open_pool(connection_class=Own)
    token = variable.set("the borrower's")
    await do(pool.putconn, await do(pool.getconn))
    variable.reset(token)
    assert seen == ["the borrower's"]
