"""Lending: who gets which connection, when, in what order, and for how long one waits."""

import time

import psycopg
import pytest

pytestmark = pytest.mark.anyio


async def test_a_lent_connection_is_a_ready_psycopg_connection(open_pool, works):
    pool = await open_pool()
    conn = await pool.getconn()
    assert isinstance(conn, psycopg.AsyncConnection)
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert await works(conn)
    await conn.rollback()
    await pool.putconn(conn)


async def test_a_returned_connection_is_lent_again(open_pool, pid):
    pool = await open_pool()
    first = await pool.getconn()
    session = pid(first)
    await pool.putconn(first)
    second = await pool.getconn()
    assert pid(second) == session
    await pool.putconn(second)


async def test_the_connection_returned_longest_ago_is_lent_first(full_pool, pid):
    pool = await full_pool(max_size=3)
    conns = [await pool.getconn() for _ in range(3)]
    order = [conns[1], conns[2], conns[0]]
    for conn in order:
        await pool.putconn(conn)
    assert [pid(await pool.getconn()) for _ in order] == [pid(conn) for conn in order]
    for conn in conns:
        await pool.putconn(conn)


async def test_one_lent_and_returned_goes_to_the_end_of_the_line(full_pool, pid):
    pool = await full_pool(max_size=3)
    lent = []
    for _ in range(6):
        async with pool.connection() as conn:
            lent.append(pid(conn))
    assert lent[:3] == lent[3:]
    assert len(set(lent)) == 3


async def test_a_connection_may_be_returned_by_another_task(open_pool, spawn):
    pool = await open_pool()
    conn = await pool.getconn()
    await spawn(pool.putconn(conn)).result()
    assert pool.get_stats()["pool_available"] == 1


async def test_nobody_shares_a_connection(full_pool, pid):
    pool = await full_pool(max_size=4)
    conns = [await pool.getconn() for _ in range(4)]
    assert len({pid(conn) for conn in conns}) == 4
    for conn in conns:
        await pool.putconn(conn)


# Waiting


async def test_a_request_before_the_first_connect_landed_is_served_by_it(
    new_pool, network, spawn, waiting
):
    network.hold()
    pool = new_pool(connection_class=network.connection_class)
    await pool.open()
    call = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 1)
    network.release()
    await pool.putconn(await call.result())
    assert pool.get_stats()["connections_num"] == 1


async def test_a_returned_connection_is_handed_to_the_one_who_waits(open_pool, spawn, waiting, pid):
    pool = await open_pool()
    conn = await pool.getconn()
    session = pid(conn)
    call = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 1)
    await pool.putconn(conn)
    received = await call.result()
    assert pid(received) == session
    await pool.putconn(received)


async def test_those_who_wait_are_served_in_the_order_they_came(open_pool, spawn, waiting):
    pool = await open_pool()
    served = []

    async def borrow(number):
        conn = await pool.getconn(timeout=5.0)
        served.append(number)
        await pool.putconn(conn)

    conn = await pool.getconn()
    calls = []
    for number in range(5):
        calls.append(spawn(borrow(number)))
        await waiting(pool, number + 1)
    await pool.putconn(conn)
    for call in calls:
        await call.result()
    assert served == [0, 1, 2, 3, 4]


async def test_one_returned_before_the_new_one_landed_serves_the_request(
    open_pool, network, spawn, eventually, pid
):
    pool = await open_pool(connection_class=network.connection_class, max_size=2)
    conn = await pool.getconn()
    session = pid(conn)
    network.hold()
    call = spawn(pool.getconn(timeout=5.0))
    await eventually(lambda: network.in_flight == 1)
    await pool.putconn(conn)
    received = await call.result()
    assert pid(received) == session
    network.release()
    await eventually(lambda: pool.get_stats()["pool_available"] == 1)
    await pool.putconn(received)


async def test_one_who_gave_up_is_passed_over(impl, open_pool, spawn, waiting):
    pool = await open_pool()
    conn = await pool.getconn()
    with pytest.raises(impl.PoolTimeout):
        await pool.getconn(timeout=0.02)
    call = spawn(pool.getconn(timeout=5.0))
    await pool.putconn(conn)
    await pool.putconn(await call.result())
    assert pool.get_stats()["pool_available"] == 1


# Timeouts


@pytest.mark.parametrize(
    ("args", "kwargs"), [((0.05,), {}), ((), {"timeout": 0.05}), ((), {}), ((None,), {})]
)
async def test_a_request_ends_by_its_timeout(impl, open_pool, args, kwargs):
    pool = await open_pool()
    pool.timeout = 0.05 if args in [(), (None,)] and not kwargs else 30.0
    conn = await pool.getconn()
    start = time.monotonic()
    with pytest.raises(impl.PoolTimeout) as failure:
        await pool.getconn(*args, **kwargs)
    assert 0.045 < time.monotonic() - start < 2.0
    assert str(failure.value).startswith("couldn't get a connection after 0.05 sec")
    await pool.putconn(conn)


@pytest.mark.parametrize("timeout", [None, 0.05])
async def test_a_block_is_not_entered_after_its_timeout(impl, open_pool, timeout):
    pool = await open_pool(timeout=0.05)
    conn = await pool.getconn()
    with pytest.raises(impl.PoolTimeout, match=r"after 0\.05 sec"):
        async with pool.connection(timeout):
            pytest.fail("entered")
    await pool.putconn(conn)


@pytest.mark.parametrize(("timeout", "shown"), [(0, "0.00"), (0.0, "0.00"), (-1, "-1.00")])
async def test_no_time_to_wait_ends_at_once_when_nothing_is_idle(impl, open_pool, timeout, shown):
    pool = await open_pool()
    conn = await pool.getconn()
    start = time.monotonic()
    with pytest.raises(impl.PoolTimeout) as failure:
        await pool.getconn(timeout=timeout)
    assert time.monotonic() - start < 0.5
    assert str(failure.value).startswith(f"couldn't get a connection after {shown} sec")
    await pool.putconn(conn)


async def test_a_timeout_shows_no_inner_exception(impl, open_pool):
    pool = await open_pool()
    conn = await pool.getconn()
    with pytest.raises(impl.PoolTimeout) as failure:
        await pool.getconn(timeout=0.01)
    assert failure.value.__cause__ is None
    assert failure.value.__suppress_context__ or failure.value.__context__ is None
    await pool.putconn(conn)


# How many may wait


async def test_a_request_beyond_max_waiting_is_refused(impl, open_pool, spawn, waiting):
    pool = await open_pool(max_waiting=2)
    conn = await pool.getconn()
    calls = []
    for count in (1, 2):
        calls.append(spawn(pool.getconn(timeout=5.0)))
        await waiting(pool, count)
    with pytest.raises(impl.TooManyRequests) as refusal:
        await pool.getconn(timeout=5.0)
    assert str(refusal.value) == "the pool 'p' has already 2 requests waiting"
    for call in calls:
        await pool.putconn(conn)
        conn = await call.result()
    await pool.putconn(conn)


async def test_max_waiting_is_read_at_each_request(impl, open_pool, spawn, waiting):
    pool = await open_pool()
    conn = await pool.getconn()
    call = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 1)
    pool.max_waiting = 1
    with pytest.raises(impl.TooManyRequests):
        await pool.getconn(timeout=5.0)
    await pool.putconn(conn)
    await pool.putconn(await call.result())


async def test_max_waiting_does_not_refuse_what_can_be_lent(open_pool):
    pool = await open_pool(max_waiting=1)
    for _ in range(3):
        await pool.putconn(await pool.getconn())


# connection()


async def test_a_block_commits_and_returns(open_pool, admin):
    pool = await open_pool()
    admin.execute("create table committed (x int)")
    try:
        async with pool.connection() as conn:
            await conn.execute("insert into committed values (1)")
            assert pool.get_stats()["pool_available"] == 0
        assert pool.get_stats()["pool_available"] == 1
        assert admin.execute("select x from committed").fetchall() == [(1,)]
    finally:
        admin.execute("drop table committed")


async def test_a_block_left_by_an_exception_rolls_back_and_returns(open_pool, admin, log):
    pool = await open_pool()

    async def fail_in_a_block():
        async with pool.connection() as conn:
            await conn.execute("create table never_committed (x int)")
            raise KeyError

    with pytest.raises(KeyError):
        await fail_in_a_block()
    assert pool.get_stats()["pool_available"] == 1
    assert admin.execute("select to_regclass('never_committed')").fetchone() == (None,)
    assert log.warnings() == []


async def test_a_block_may_be_left_with_a_broken_connection(open_pool, break_connection, pid):
    pool = await open_pool()
    async with pool.connection() as conn:
        session = pid(conn)
        await break_connection(conn)
    async with pool.connection(timeout=5.0) as conn:
        assert pid(conn) != session


async def test_blocks_nest(full_pool):
    pool = await full_pool(max_size=2)
    async with pool.connection() as outer, pool.connection() as inner:
        assert outer is not inner
    assert pool.get_stats()["pool_available"] == 2


async def test_nothing_is_lent_before_the_block_is_entered(open_pool):
    pool = await open_pool()
    block = pool.connection()
    assert pool.get_stats()["pool_available"] == 1
    async with block:
        assert pool.get_stats()["pool_available"] == 0


async def test_a_block_of_a_closed_pool_fails_only_when_entered(impl, new_pool):
    block = new_pool().connection()
    with pytest.raises(impl.PoolClosed):
        async with block:
            pytest.fail("entered")


async def test_a_block_can_be_entered_and_left_by_hand(open_pool):
    pool = await open_pool()
    block = pool.connection(1.0)
    conn = await block.__aenter__()
    assert conn._pool is pool
    await block.__aexit__(None, None, None)
    assert conn._pool is None


async def test_a_block_dropped_while_entered_returns_its_connection(open_pool, eventually):
    pool = await open_pool()
    block = pool.connection()
    await block.__aenter__()
    del block
    await eventually(lambda: pool.get_stats()["pool_available"] == 1)


async def test_connection_decorates_a_coroutine_function(open_pool):
    pool = await open_pool()

    @pool.connection()
    async def lent():
        return pool.get_stats()["pool_available"]

    assert (await lent(), await lent()) == (0, 0)
    assert pool.get_stats()["pool_available"] == 1


# Overriding


async def test_a_block_calls_the_subclass_methods(impl, open_pool):
    calls = []

    class Watched(impl.AsyncConnectionPool):
        async def getconn(self, timeout=None):
            calls.append(("getconn", timeout))
            return await super().getconn(timeout)

        async def putconn(self, conn):
            calls.append(("putconn", conn))
            await super().putconn(conn)

    pool = await open_pool(cls=Watched)
    async with pool.connection(timeout=3.0) as conn:
        pass
    assert calls == [("getconn", 3.0), ("putconn", conn)]


async def test_a_block_calls_methods_patched_on_the_class(impl, open_pool, monkeypatch):
    calls = []
    original = impl.AsyncConnectionPool.getconn

    async def getconn(self, timeout=None):
        calls.append(timeout)
        return await original(self, timeout=timeout)

    pool = await open_pool()
    monkeypatch.setattr(impl.AsyncConnectionPool, "getconn", getconn)
    async with pool.connection():
        pass
    assert calls == [None]


async def test_a_block_calls_methods_patched_on_the_instance(open_pool):
    pool, returned = await open_pool(), []
    original = pool.putconn

    async def putconn(conn):
        returned.append(conn)
        await original(conn)

    pool.putconn = putconn
    async with pool.connection() as conn:
        pass
    assert returned == [conn]


async def test_a_bound_method_makes_connections_for_another_pool(open_pool):
    pool = await open_pool()
    create = pool.getconn
    conn = await create()
    assert conn._pool is pool
    await pool.putconn(conn)
