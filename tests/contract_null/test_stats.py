"""What a null pool counts."""

import psycopg
import pytest
from shared.stats import count

pytestmark = pytest.mark.anyio


async def test_the_measures_are_always_there(new_pool, do):
    pool = new_pool(max_size=3)
    measures = {
        "pool_min": 0,
        "pool_max": 3,
        "pool_size": 0,
        "pool_available": 0,
        "requests_waiting": 0,
    }
    assert pool.get_stats().items() >= measures.items()
    await do(pool.open)
    assert pool.get_stats().items() >= measures.items()
    await do(pool.close)
    assert pool.get_stats().items() >= measures.items()


async def test_the_size_is_what_is_lent(open_pool, do):
    pool = await open_pool(max_size=None)
    conns = []
    for size in range(1, 4):
        conns.append(await do(pool.getconn))
        assert count(pool, "pool_size") == size
    for size in reversed(range(3)):
        await do(pool.putconn, conns.pop())
        assert count(pool, "pool_size") == size
    assert count(pool, "pool_max") == 0


async def test_each_lending_is_a_request_and_a_connect(open_pool, do):
    pool = await open_pool()
    for _ in range(3):
        await do(pool.putconn, await do(pool.getconn))
    assert count(pool, "requests_num") == 3
    assert count(pool, "connections_num") == 3
    for key in ("requests_queued", "requests_errors", "connections_errors", "returns_bad"):
        assert count(pool, key) == 0


async def test_who_waits_is_counted(open_pool, do, waiter):
    pool = await open_pool()
    conn = await do(pool.getconn)
    call = await waiter(pool)
    assert count(pool, "requests_waiting") == 1
    await do(pool.putconn, conn)
    await call.result()
    assert count(pool, "requests_waiting") == 0
    assert count(pool, "requests_num") == 2
    assert count(pool, "requests_queued") == 1
    assert count(pool, "connections_num") == 1
    await do(pool.putconn, conn)


async def test_who_waited_in_vain_is_an_error(impl, open_pool, do, spawn):
    pool = await open_pool()
    conn = await do(pool.getconn)
    with pytest.raises(impl.PoolTimeout):
        await spawn(pool.getconn, timeout=0.05).result()
    assert count(pool, "requests_errors") == 1
    assert count(pool, "requests_queued") == 1
    assert count(pool, "requests_wait_ms") >= 45
    await do(pool.putconn, conn)


async def test_who_may_not_wait_is_an_error_but_was_not_queued(impl, open_pool, do, waiter):
    pool = await open_pool(max_waiting=1)
    conn = await do(pool.getconn)
    call = await waiter(pool)
    with pytest.raises(impl.TooManyRequests):
        await do(pool.getconn, timeout=5.0)
    assert (count(pool, "requests_errors"), count(pool, "requests_queued")) == (1, 1)
    await do(pool.putconn, conn)
    await call.result()
    await do(pool.putconn, conn)


async def test_who_has_no_time_is_no_error(impl, open_pool, do):
    pool = await open_pool()
    with pytest.raises(impl.PoolTimeout):
        await do(pool.getconn, timeout=0)
    assert count(pool, "requests_num") == 1
    assert count(pool, "requests_errors") == 0
    assert count(pool, "connections_num") == 0


async def test_a_connect_that_fails_is_the_connections_error(open_pool, network, do):
    pool = await open_pool(connection_class=network.connection_class)
    for error in (psycopg.OperationalError("no"), LookupError("no")):
        network.down(error)
        with pytest.raises(type(error)):
            await do(pool.getconn, timeout=5.0)
    assert count(pool, "connections_num") == 2
    assert count(pool, "connections_errors") == 2
    assert count(pool, "requests_errors") == 0


@pytest.mark.parametrize("fault", ["conninfo", "configure"])
async def test_what_fails_beside_the_connect_is_no_error_of_it(open_pool, dsn, do, callback, fault):
    def fail(*args):
        raise LookupError(fault)

    conninfo = callback(fail) if fault == "conninfo" else dsn
    pool = await open_pool(conninfo, configure=callback(fail))
    with pytest.raises(LookupError, match=fault):
        await do(pool.getconn, timeout=5.0)
    assert count(pool, "connections_num") == 1
    assert count(pool, "connections_errors") == 0


async def test_the_test_of_wait_is_counted(open_pool, do, eventually):
    pool = await open_pool()
    await do(pool.wait, timeout=5.0)
    assert count(pool, "connections_num") == 1
    assert count(pool, "requests_num") == 0
    await eventually(lambda: count(pool, "pool_size") == 0)


async def test_a_connection_that_its_check_found_broken_is_lost(
    open_pool, do, callback, end_session
):
    seen = []

    def check(conn):
        seen.append(conn)
        if len(seen) == 1:
            end_session(conn)
        return conn.execute("")

    pool = await open_pool(check=callback(check), kwargs={"autocommit": True})
    conn = await do(pool.getconn, timeout=5.0)
    assert count(pool, "connections_lost") == 1
    assert count(pool, "returns_bad") == 0
    assert count(pool, "pool_size") == 1
    await do(pool.putconn, conn)


async def test_only_blocks_measure_usage(open_pool, do, entered):
    pool = await open_pool()
    await do(pool.putconn, await do(pool.getconn))
    assert count(pool, "usage_ms") == 0
    async with entered(pool.connection()) as conn:
        await do(conn.execute, "select pg_sleep(0.02)")
    assert count(pool, "usage_ms") >= 20


async def test_popping_starts_the_counters_anew(open_pool, do):
    pool = await open_pool()
    conn = await do(pool.getconn)
    popped = pool.pop_stats()
    assert (popped["requests_num"], popped["connections_num"], popped["pool_size"]) == (1, 1, 1)
    assert count(pool, "requests_num") == count(pool, "connections_num") == 0
    assert count(pool, "pool_size") == 1
    await do(pool.putconn, conn)
