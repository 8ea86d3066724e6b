"""A null pool as a whole: wait, resize, check, drain, close."""

from contextlib import suppress

import psycopg
import pytest

pytestmark = pytest.mark.anyio


# wait(): one connection for a test


async def test_wait_opens_one_connection_and_closes_it(
    open_pool, network, callback, do, eventually, admin
):
    sessions = []
    pool = await open_pool(
        connection_class=network.connection_class,
        configure=callback(lambda conn: sessions.append(conn.pgconn.backend_pid)),
    )
    await do(pool.wait, timeout=5.0)
    assert len(network.attempts) == 1
    assert "connect_timeout" not in network.attempts[0].kwargs
    (session,) = sessions
    await eventually(lambda: pool.get_stats()["pool_size"] == 0)
    await eventually(
        lambda: (
            admin.execute("select 1 from pg_stat_activity where pid = %s", [session]).fetchone()
            is None
        ),
        what="the session has ended",
    )


async def test_wait_makes_its_test_each_time(open_pool, network, do, eventually):
    pool = await open_pool(connection_class=network.connection_class)
    for _ in range(3):
        await do(pool.wait, timeout=5.0)
        await eventually(lambda: pool.get_stats()["pool_size"] == 0)
    assert len(network.attempts) == 3


@pytest.mark.parametrize("max_size", [0, 2, 1], ids=["no maximum", "room for one", "no room"])
async def test_wait_does_not_mind_what_is_lent(open_pool, do, spawn, works, max_size):
    pool = await open_pool(max_size=max_size)
    conn = await do(pool.getconn)
    await spawn(pool.wait, timeout=1.0).result()
    assert not pool.closed
    assert await works(conn)
    await do(pool.putconn, conn)
    assert pool.get_stats()["pool_size"] == 0


async def test_wait_does_not_count_a_connect_under_way(impl, open_pool, network, spawn, eventually):
    pool = await open_pool(connection_class=network.connection_class)
    network.hold()
    connecting = spawn(pool.getconn, timeout=5.0)
    await eventually(lambda: network.in_flight == 1)
    network.down()
    call = spawn(pool.wait, timeout=0.2)
    with suppress(AssertionError):
        await eventually(lambda: call.done, timeout=0.1)
    network.release()
    with pytest.raises(psycopg.OperationalError, match="the network is down"):
        await connecting.result()
    with pytest.raises(impl.PoolTimeout):
        await call.result()


async def test_wait_goes_on_until_the_server_answers(
    open_pool, network, spawn, eventually, quick_backoff, log
):
    pool = await open_pool(connection_class=network.connection_class)
    network.down()
    call = spawn(pool.wait, timeout=5.0)
    await eventually(lambda: len(network.attempts) >= 3)
    network.up()
    await call.result()
    assert not pool.closed
    assert "error connecting in 'p': the network is down" in log.warnings()


@pytest.mark.parametrize("fault", ["refused", "configure", "slow"])
async def test_a_wait_that_fails_closes_the_pool(
    impl, open_pool, network, callback, spawn, fault, eventually
):
    def configure(conn):
        if fault == "configure":
            raise LookupError("not prepared")

    pool = await open_pool(connection_class=network.connection_class, configure=callback(configure))
    if fault == "refused":
        network.down()
    elif fault == "slow":
        network.hold()
    call = spawn(pool.wait, timeout=0.2)
    if fault == "slow":
        await eventually(lambda: pool.closed)
        network.release()
    with pytest.raises(impl.PoolTimeout) as failure:
        await call.result()
    assert str(failure.value).startswith("pool initialization incomplete after 0.2 sec")
    assert pool.closed
    await eventually(lambda: pool.get_stats()["pool_size"] == 0)


# resize()


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ((1, 3), "null pools must have min_size = 0"),
        ((-1,), "null pools must have min_size = 0"),
        ((0, -1), "max_size must be greater or equal than min_size"),
    ],
)
async def test_resize_refuses_what_the_constructor_does(open_pool, do, sizes, text):
    pool = await open_pool()
    with pytest.raises(ValueError, match=f"^{text}$"):
        await do(pool.resize, *sizes)
    assert (pool.min_size, pool.max_size) == (0, 1)


async def test_resize_opens_and_closes_nothing(open_pool, network, do, works):
    pool = await open_pool(max_size=2, connection_class=network.connection_class)
    conns = [await do(pool.getconn) for _ in range(2)]
    for max_size in (1, 5, None):
        await do(pool.resize, 0, max_size)
        assert pool.max_size == (max_size or 0)
        assert pool.get_stats()["pool_size"] == 2
    assert len(network.attempts) == 2
    for conn in conns:
        assert await works(conn)
        await do(pool.putconn, conn)


async def test_a_larger_maximum_has_room_for_the_next(open_pool, do):
    pool = await open_pool()
    one = await do(pool.getconn)
    await do(pool.resize, 0, 2)
    other = await do(pool.getconn, timeout=1.0)
    assert one is not other
    await do(pool.putconn, one)
    await do(pool.putconn, other)


async def test_a_smaller_maximum_makes_the_next_wait(impl, open_pool, do, spawn):
    pool = await open_pool(max_size=2)
    conns = [await do(pool.getconn) for _ in range(2)]
    await do(pool.resize, 0, 1)
    await do(pool.putconn, conns.pop())
    with pytest.raises(impl.PoolTimeout):
        await spawn(pool.getconn, timeout=0.05).result()
    await do(pool.putconn, conns.pop())
    await do(pool.putconn, await do(pool.getconn, timeout=1.0))


# check() and drain()


async def test_check_does_nothing(open_pool, network, do, log):
    pool = await open_pool(max_size=2, connection_class=network.connection_class)
    conn = await do(pool.getconn)
    log.clear()
    await do(pool.check)
    assert len(network.attempts) == 1
    assert log.texts() == []
    assert not conn.closed
    await do(pool.putconn, conn)


async def test_drain_leaves_what_is_lent_alone(open_pool, network, do, works, log):
    pool = await open_pool(max_size=2, connection_class=network.connection_class)
    conn = await do(pool.getconn)
    log.clear()
    await do(pool.drain)
    assert log.texts() == []
    assert await works(conn)
    await do(pool.putconn, conn)
    assert len(network.attempts) == 1
    assert pool.get_stats()["pool_size"] == 0


# close()


async def test_what_is_lent_when_the_pool_closes_stays_usable(open_pool, do, works):
    pool = await open_pool()
    conn = await do(pool.getconn)
    await do(pool.close)
    assert await works(conn)
    assert pool.get_stats()["pool_size"] == 1
    await do(pool.putconn, conn)
    assert conn.closed
    assert pool.get_stats()["pool_size"] == 0


async def test_closing_fails_those_who_wait(impl, open_pool, do, waiter):
    pool = await open_pool()
    conn = await do(pool.getconn)
    calls = [await waiter(pool) for _ in range(2)]
    await do(pool.close)
    for call in calls:
        with pytest.raises(impl.PoolClosed) as refusal:
            await call.result()
        assert str(refusal.value) == "the pool 'p' is closed"
    await do(pool.putconn, conn)


async def test_a_closed_pool_may_be_looked_after(open_pool, do):
    pool = await open_pool()
    await do(pool.close)
    await do(pool.check)
    await do(pool.drain)
    await do(pool.resize, 0, 4)
    stats = pool.get_stats()
    assert (stats["pool_max"], stats["pool_size"]) == (4, 0)


async def test_closing_leaves_no_session_behind(
    impl, open_pool, dsn, network, spawn, eventually, do, admin
):
    name = f"left_behind_by_{impl.__name__}"
    pool = await open_pool(
        connection_class=network.connection_class, kwargs={"application_name": name}
    )
    network.hold()
    call = spawn(pool.getconn, timeout=10.0)
    await eventually(lambda: network.in_flight == 1)
    closing = spawn(pool.close, timeout=5.0)
    network.release()
    await closing.result()
    # Whether the connection was lent in time is a race that either may win.
    try:
        conn = await call.result()
    except impl.PoolClosed:
        pass
    else:
        await do(pool.putconn, conn)
    query = "select 1 from pg_stat_activity where application_name = %s"
    await eventually(lambda: admin.execute(query, [name]).fetchone() is None, what="no session")
    assert pool.get_stats()["pool_size"] == 0


async def test_closing_tells_a_client_with_a_bad_server_the_truth(impl, open_pool, network, do):
    pool = await open_pool(connection_class=network.connection_class)
    network.down()
    with pytest.raises(psycopg.OperationalError, match="the network is down"):
        await do(pool.getconn, timeout=5.0)
    await do(pool.close)
    with pytest.raises(impl.PoolClosed):
        await do(pool.getconn, timeout=5.0)
