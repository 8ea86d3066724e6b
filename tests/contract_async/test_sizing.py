"""How many connections there are: the first ones, growth, shrinking, resize, drain, check."""

import psycopg
import pytest
from psycopg.pq import TransactionStatus

pytestmark = pytest.mark.anyio


async def borrow(pool, count):
    return [await pool.getconn(timeout=5.0) for _ in range(count)]


async def give_back(pool, conns):
    for conn in conns:
        await pool.putconn(conn)


async def borrow_and_return(pool):
    await give_back(pool, await borrow(pool, 1))


def size(pool):
    return pool.get_stats()["pool_size"]


# The first connections


def test_the_size_is_min_size_before_there_is_a_connection(new_pool):
    assert size(new_pool(min_size=3)) == 3


async def test_opening_makes_min_size_connections(open_pool):
    stats = (await open_pool(min_size=3, max_size=5)).get_stats()
    assert (stats["pool_size"], stats["pool_available"], stats["connections_num"]) == (3, 3, 3)


async def test_the_first_connections_are_made_in_parallel(new_pool, network, eventually):
    network.hold()
    pool = new_pool(connection_class=network.connection_class, min_size=4, num_workers=3)
    await pool.open()
    await eventually(lambda: network.in_flight == 3)
    network.release()
    await pool.wait(timeout=5.0)
    assert network.most_in_flight <= 3


# Growth


async def test_a_request_that_finds_nothing_idle_makes_the_pool_grow(open_pool):
    pool = await open_pool(max_size=2)
    conns = await borrow(pool, 2)
    assert size(pool) == 2
    await give_back(pool, conns)


async def test_the_pool_does_not_grow_while_one_is_idle(open_pool):
    pool = await open_pool(max_size=4)
    for _ in range(3):
        await borrow_and_return(pool)
    assert size(pool) == 1


async def test_the_pool_never_grows_beyond_max_size(impl, full_pool, network):
    pool = await full_pool(max_size=2, connection_class=network.connection_class)
    conns = await borrow(pool, 2)
    with pytest.raises(impl.PoolTimeout):
        await pool.getconn(timeout=0.05)
    assert (size(pool), len(network.attempts)) == (2, 2)
    await give_back(pool, conns)


async def test_the_pool_grows_by_one_connection_at_a_time(
    open_pool, network, spawn, waiting, eventually
):
    pool = await open_pool(connection_class=network.connection_class, max_size=4)
    conns = await borrow(pool, 1)
    network.most_in_flight = 0
    network.hold()
    calls = [spawn(pool.getconn(timeout=5.0)) for _ in range(3)]
    await waiting(pool, 3)
    await eventually(lambda: network.in_flight == 1)
    assert size(pool) == 2
    network.release()
    conns += [await call.result() for call in calls]
    assert size(pool) == 4
    assert network.most_in_flight == 1
    await give_back(pool, conns)


async def test_nothing_grows_while_a_connect_is_tried_again(
    open_pool, network, spawn, waiting, eventually, quick_backoff
):
    pool = await open_pool(connection_class=network.connection_class, max_size=4)
    conns = await borrow(pool, 1)
    network.down()
    calls = [spawn(pool.getconn(timeout=5.0)) for _ in range(2)]
    await waiting(pool, 2)
    await eventually(lambda: len(network.attempts) >= 4)
    assert size(pool) == 2
    network.up()
    conns += [await call.result() for call in calls]
    assert size(pool) == 3
    await give_back(pool, conns)


async def test_growth_stops_when_nobody_waits_any_more(
    open_pool, network, spawn, waiting, eventually
):
    pool = await open_pool(connection_class=network.connection_class, max_size=4)
    (conn,) = await borrow(pool, 1)
    network.hold()
    calls = [spawn(borrow_and_return(pool)) for _ in range(2)]
    await waiting(pool, 2)
    await eventually(lambda: network.in_flight == 1)
    await pool.putconn(conn)
    for call in calls:
        await call.result()
    network.release()
    await eventually(lambda: pool.get_stats()["pool_available"] == 2)
    assert size(pool) == 2
    assert len(network.attempts) == 2


async def test_a_pool_of_min_size_zero_starts_empty_and_grows(new_pool):
    pool = new_pool(min_size=0, max_size=2)
    await pool.open()
    assert size(pool) == 0
    await borrow_and_return(pool)
    assert size(pool) == 1


# Shrinking


async def test_what_is_idle_beyond_min_size_is_closed_one_a_period(full_pool, log, eventually):
    pool = await full_pool(max_size=3, max_idle=0.05)
    idle = list(pool._pool)
    await eventually(lambda: size(pool) == 1)
    shrinking = [text for text in log.texts() if text.startswith("shrinking")]
    assert [text.split(" because")[0] for text in shrinking] == [
        "shrinking pool 'p' to 2",
        "shrinking pool 'p' to 1",
    ]
    await eventually(lambda: sum(conn.closed for conn in idle) == 2)
    assert pool.get_stats()["pool_available"] == 1


async def test_min_size_connections_stay_however_idle(full_pool, open_pool, eventually, pid):
    pool = await open_pool(min_size=2, max_size=3, max_idle=0.05)
    sessions = {pid(conn) for conn in pool._pool}
    # That this one shrinks twice shows that time for the other has passed too.
    clock = await full_pool(max_size=3, max_idle=0.05)
    await eventually(lambda: size(clock) == 1)
    assert {pid(conn) for conn in pool._pool} == sessions


async def test_a_pool_in_use_does_not_shrink(full_pool, eventually):
    pool = await full_pool(max_size=2, max_idle=0.05)
    conns = await borrow(pool, 2)
    clock = await full_pool(max_size=3, max_idle=0.05)
    await eventually(lambda: size(clock) == 1)
    assert size(pool) == 2
    await give_back(pool, conns)


# resize()


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ((-1,), "min_size cannot be negative"),
        ((2, 1), "max_size must be greater or equal than min_size"),
        ((0,), "if min_size is 0 max_size must be greater than 0"),
        ((0, 0), "if min_size is 0 max_size must be greater than 0"),
    ],
)
async def test_an_impossible_resize_is_refused_and_changes_nothing(open_pool, sizes, text):
    pool = await open_pool(max_size=2)
    with pytest.raises(ValueError, match=f"^{text}$"):
        await pool.resize(*sizes)
    assert (pool.min_size, pool.max_size) == (1, 2)


async def test_resize_to_one_number_sets_both(open_pool):
    pool = await open_pool()
    await pool.resize(2)
    assert (pool.min_size, pool.max_size) == (2, 2)
    await pool.resize(min_size=1, max_size=3)
    assert (pool.min_size, pool.max_size) == (1, 3)


async def test_a_larger_min_size_is_filled_without_a_request(open_pool, eventually):
    pool = await open_pool()
    await pool.resize(3)
    await eventually(lambda: pool.get_stats()["pool_available"] == 3)
    assert size(pool) == 3


async def test_a_larger_max_size_alone_makes_no_connection(open_pool):
    pool = await open_pool()
    await pool.resize(1, 4)
    assert pool.get_stats()["connections_num"] == 1
    conns = await borrow(pool, 2)
    assert size(pool) == 2
    await give_back(pool, conns)


async def test_a_smaller_size_closes_nothing_at_once(full_pool):
    pool = await full_pool(max_size=3)
    idle = list(pool._pool)
    await pool.resize(1, 2)
    assert size(pool) == 3
    assert not any(conn.closed for conn in idle)


async def test_a_smaller_min_size_lets_the_pool_shrink(open_pool, eventually):
    pool = await open_pool(min_size=3, max_idle=0.05)
    await pool.resize(1, 3)
    await eventually(lambda: size(pool) == 1)


# drain()


async def test_drain_replaces_what_is_idle(full_pool, eventually, pid):
    pool = await full_pool(max_size=2)
    idle = list(pool._pool)
    sessions = {pid(conn) for conn in idle}
    await pool.drain()
    assert all(conn.closed for conn in idle)
    assert size(pool) == 2
    await eventually(lambda: pool.get_stats()["pool_available"] == 2)
    assert not sessions & {pid(conn) for conn in pool._pool}


async def test_drain_replaces_what_is_lent_when_it_is_returned(open_pool, pid, works):
    pool = await open_pool()
    conn = await pool.getconn()
    session = pid(conn)
    await pool.drain()
    assert await works(conn)
    await conn.rollback()
    await pool.putconn(conn)
    assert conn.closed
    async with pool.connection(timeout=5.0) as again:
        assert pid(again) != session
    assert pool.get_stats().get("returns_bad", 0) == 0


async def test_a_connection_made_after_a_drain_stays(open_pool, pid):
    pool = await open_pool()
    await pool.drain()
    sessions = []
    for _ in range(2):
        async with pool.connection(timeout=5.0) as conn:
            sessions.append(pid(conn))
    assert sessions[0] == sessions[1]


# check()


async def test_check_keeps_what_is_well(full_pool, pid):
    pool = await full_pool(max_size=2)
    sessions = {pid(conn) for conn in pool._pool}
    await pool.check()
    assert {pid(conn) for conn in pool._pool} == sessions
    assert all(
        conn.info.transaction_status == TransactionStatus.IDLE and not conn.autocommit
        for conn in pool._pool
    )


async def test_check_replaces_what_is_broken(full_pool, end_session, eventually, pid):
    pool = await full_pool(max_size=2)
    well, dead = list(pool._pool)
    sessions = {pid(well), pid(dead)}
    gone = pid(dead)
    end_session(dead)
    await pool.check()
    await eventually(lambda: pool.get_stats()["pool_available"] == 2)
    assert {pid(conn) for conn in pool._pool} & sessions == sessions - {gone}
    stats = pool.get_stats()
    assert (stats["connections_lost"], stats["pool_size"]) == (1, 2)


async def test_check_replaces_what_has_expired(open_pool, eventually, pid):
    pool = await open_pool(max_lifetime=0.0)
    (conn,) = pool._pool
    session = pid(conn)
    await pool.check()
    await eventually(lambda: pool.get_stats()["pool_available"] == 1)
    assert session not in {pid(conn) for conn in pool._pool}
    assert pool.get_stats().get("connections_lost", 0) == 0


async def test_check_leaves_what_is_lent_alone(open_pool):
    pool = await open_pool()
    conn = await pool.getconn()
    await pool.check()
    assert conn.info.transaction_status == TransactionStatus.IDLE
    assert (size(pool), pool.get_stats()["pool_available"]) == (1, 0)
    await pool.putconn(conn)


async def test_check_asks_check_connection_and_not_the_check_callback(impl, full_pool):
    asked, called = [], []

    class Asking(impl.AsyncConnectionPool):
        @staticmethod
        async def check_connection(conn):
            asked.append(conn)

    async def check(conn):
        called.append(conn)

    pool = await full_pool(cls=Asking, max_size=2, check=check)
    idle = list(pool._pool)
    called.clear()
    await pool.check()
    assert set(asked) == set(idle)
    assert called == []


# check_connection()


@pytest.mark.parametrize("autocommit", [True, False])
async def test_check_connection_leaves_a_well_connection_as_it_was(impl, dsn, autocommit):
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=autocommit) as conn:
        await impl.AsyncConnectionPool.check_connection(conn)
        assert conn.autocommit is autocommit
        assert conn.info.transaction_status == TransactionStatus.IDLE


async def test_check_connection_raises_on_a_dead_connection(impl, dsn, end_session):
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        end_session(conn)
        with pytest.raises(psycopg.OperationalError):
            await impl.AsyncConnectionPool.check_connection(conn)
        assert conn.closed


async def test_check_connection_raises_on_a_closed_connection(impl, dsn):
    conn = await psycopg.AsyncConnection.connect(dsn)
    await conn.close()
    with pytest.raises(psycopg.OperationalError):
        await impl.AsyncConnectionPool.check_connection(conn)
