"""How many connections there are: the first ones, growth, shrinking, resize, drain, check."""

import psycopg
import pytest
from psycopg.pq import TransactionStatus


def borrow(pool, count):
    return [pool.getconn(timeout=5.0) for _ in range(count)]


def give_back(pool, conns):
    for conn in conns:
        pool.putconn(conn)


def size(pool):
    return pool.get_stats()["pool_size"]


# The first connections


def test_the_size_is_min_size_before_there_is_a_connection(new_pool):
    assert size(new_pool(min_size=3)) == 3


def test_opening_makes_min_size_connections(open_pool):
    stats = open_pool(min_size=3, max_size=5).get_stats()
    assert (stats["pool_size"], stats["pool_available"], stats["connections_num"]) == (3, 3, 3)


def test_the_first_connections_are_made_in_parallel(new_pool, network, eventually):
    network.hold()
    pool = new_pool(connection_class=network.connection_class, min_size=4, num_workers=3)
    pool.open()
    eventually(lambda: network.in_flight == 3)
    network.release()
    pool.wait(timeout=5.0)
    assert network.most_in_flight <= 3


# Growth


def test_a_request_that_finds_nothing_idle_makes_the_pool_grow(open_pool):
    pool = open_pool(max_size=2)
    conns = borrow(pool, 2)
    assert size(pool) == 2
    give_back(pool, conns)


def test_the_pool_does_not_grow_while_one_is_idle(open_pool):
    pool = open_pool(max_size=4)
    for _ in range(3):
        give_back(pool, borrow(pool, 1))
    assert size(pool) == 1


def test_the_pool_never_grows_beyond_max_size(impl, full_pool, network):
    pool = full_pool(max_size=2, connection_class=network.connection_class)
    conns = borrow(pool, 2)
    with pytest.raises(impl.PoolTimeout):
        pool.getconn(timeout=0.05)
    assert (size(pool), len(network.attempts)) == (2, 2)
    give_back(pool, conns)


def test_the_pool_grows_by_one_connection_at_a_time(open_pool, network, spawn, waiting, eventually):
    pool = open_pool(connection_class=network.connection_class, max_size=4)
    conns = borrow(pool, 1)
    network.most_in_flight = 0
    network.hold()
    calls = [spawn(pool.getconn, timeout=5.0) for _ in range(3)]
    waiting(pool, 3)
    eventually(lambda: network.in_flight == 1)
    assert size(pool) == 2
    network.release()
    conns += [call.result() for call in calls]
    assert size(pool) == 4
    assert network.most_in_flight == 1
    give_back(pool, conns)


def test_nothing_grows_while_a_connect_is_tried_again(
    open_pool, network, spawn, waiting, eventually, quick_backoff
):
    pool = open_pool(connection_class=network.connection_class, max_size=4)
    conns = borrow(pool, 1)
    network.down()
    calls = [spawn(pool.getconn, timeout=5.0) for _ in range(2)]
    waiting(pool, 2)
    eventually(lambda: len(network.attempts) >= 4)
    assert size(pool) == 2
    network.up()
    conns += [call.result() for call in calls]
    assert size(pool) == 3
    give_back(pool, conns)


def test_growth_stops_when_nobody_waits_any_more(open_pool, network, spawn, waiting, eventually):
    pool = open_pool(connection_class=network.connection_class, max_size=4)
    (conn,) = borrow(pool, 1)
    network.hold()
    calls = [spawn(lambda: give_back(pool, borrow(pool, 1))) for _ in range(2)]
    waiting(pool, 2)
    eventually(lambda: network.in_flight == 1)
    pool.putconn(conn)
    for call in calls:
        call.result()
    network.release()
    eventually(lambda: pool.get_stats()["pool_available"] == 2)
    assert size(pool) == 2
    assert len(network.attempts) == 2


def test_a_pool_of_min_size_zero_starts_empty_and_grows(new_pool):
    pool = new_pool(min_size=0, max_size=2)
    pool.open()
    assert size(pool) == 0
    give_back(pool, borrow(pool, 1))
    assert size(pool) == 1


# Shrinking


def test_what_is_idle_beyond_min_size_is_closed_one_a_period(full_pool, log, eventually):
    pool = full_pool(max_size=3, max_idle=0.05)
    idle = list(pool._pool)
    eventually(lambda: size(pool) == 1)
    shrinking = [text for text in log.texts() if text.startswith("shrinking")]
    assert [text.split(" because")[0] for text in shrinking] == [
        "shrinking pool 'p' to 2",
        "shrinking pool 'p' to 1",
    ]
    eventually(lambda: sum(conn.closed for conn in idle) == 2)
    assert pool.get_stats()["pool_available"] == 1


def test_min_size_connections_stay_however_idle(full_pool, open_pool, eventually, pid):
    pool = open_pool(min_size=2, max_size=3, max_idle=0.05)
    sessions = {pid(conn) for conn in pool._pool}
    # That this one shrinks twice shows that time for the other has passed too.
    clock = full_pool(max_size=3, max_idle=0.05)
    eventually(lambda: size(clock) == 1)
    assert {pid(conn) for conn in pool._pool} == sessions


def test_a_pool_in_use_does_not_shrink(full_pool, eventually):
    pool = full_pool(max_size=2, max_idle=0.05)
    conns = borrow(pool, 2)
    clock = full_pool(max_size=3, max_idle=0.05)
    eventually(lambda: size(clock) == 1)
    assert size(pool) == 2
    give_back(pool, conns)


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
def test_an_impossible_resize_is_refused_and_changes_nothing(open_pool, sizes, text):
    pool = open_pool(max_size=2)
    with pytest.raises(ValueError, match=f"^{text}$"):
        pool.resize(*sizes)
    assert (pool.min_size, pool.max_size) == (1, 2)


def test_resize_to_one_number_sets_both(open_pool):
    pool = open_pool()
    pool.resize(2)
    assert (pool.min_size, pool.max_size) == (2, 2)
    pool.resize(min_size=1, max_size=3)
    assert (pool.min_size, pool.max_size) == (1, 3)


def test_a_larger_min_size_is_filled_without_a_request(open_pool, eventually):
    pool = open_pool()
    pool.resize(3)
    eventually(lambda: pool.get_stats()["pool_available"] == 3)
    assert size(pool) == 3


def test_a_larger_max_size_alone_makes_no_connection(open_pool):
    pool = open_pool()
    pool.resize(1, 4)
    assert pool.get_stats()["connections_num"] == 1
    conns = borrow(pool, 2)
    assert size(pool) == 2
    give_back(pool, conns)


def test_a_smaller_size_closes_nothing_at_once(full_pool):
    pool = full_pool(max_size=3)
    idle = list(pool._pool)
    pool.resize(1, 2)
    assert size(pool) == 3
    assert not any(conn.closed for conn in idle)


def test_a_smaller_min_size_lets_the_pool_shrink(open_pool, eventually):
    pool = open_pool(min_size=3, max_idle=0.05)
    pool.resize(1, 3)
    eventually(lambda: size(pool) == 1)


# drain()


def test_drain_replaces_what_is_idle(full_pool, eventually, pid):
    pool = full_pool(max_size=2)
    idle = list(pool._pool)
    sessions = {pid(conn) for conn in idle}
    pool.drain()
    assert all(conn.closed for conn in idle)
    assert size(pool) == 2
    eventually(lambda: pool.get_stats()["pool_available"] == 2)
    assert not sessions & {pid(conn) for conn in pool._pool}


def test_drain_replaces_what_is_lent_when_it_is_returned(open_pool, pid):
    pool = open_pool()
    conn = pool.getconn()
    session = pid(conn)
    pool.drain()
    assert conn.execute("select 1").fetchone() == (1,)
    conn.rollback()
    pool.putconn(conn)
    assert conn.closed
    with pool.connection(timeout=5.0) as again:
        assert pid(again) != session
    assert pool.get_stats().get("returns_bad", 0) == 0


def test_a_connection_made_after_a_drain_stays(open_pool, pid):
    pool = open_pool()
    pool.drain()
    sessions = []
    for _ in range(2):
        with pool.connection(timeout=5.0) as conn:
            sessions.append(pid(conn))
    assert sessions[0] == sessions[1]


# check()


def test_check_keeps_what_is_well(full_pool, pid):
    pool = full_pool(max_size=2)
    sessions = {pid(conn) for conn in pool._pool}
    pool.check()
    assert {pid(conn) for conn in pool._pool} == sessions
    assert all(
        conn.info.transaction_status == TransactionStatus.IDLE and not conn.autocommit
        for conn in pool._pool
    )


def test_check_replaces_what_is_broken(full_pool, end_session, eventually, pid):
    pool = full_pool(max_size=2)
    well, dead = list(pool._pool)
    sessions = {pid(well), pid(dead)}
    gone = pid(dead)
    end_session(dead)
    pool.check()
    eventually(lambda: pool.get_stats()["pool_available"] == 2)
    assert {pid(conn) for conn in pool._pool} & sessions == sessions - {gone}
    stats = pool.get_stats()
    assert (stats["connections_lost"], stats["pool_size"]) == (1, 2)


def test_check_replaces_what_has_expired(open_pool, eventually, pid):
    pool = open_pool(max_lifetime=0.0)
    (conn,) = pool._pool
    session = pid(conn)
    pool.check()
    eventually(lambda: pool.get_stats()["pool_available"] == 1)
    assert session not in {pid(conn) for conn in pool._pool}
    assert pool.get_stats().get("connections_lost", 0) == 0


def test_check_leaves_what_is_lent_alone(open_pool):
    pool = open_pool()
    conn = pool.getconn()
    pool.check()
    assert conn.info.transaction_status == TransactionStatus.IDLE
    assert (size(pool), pool.get_stats()["pool_available"]) == (1, 0)
    pool.putconn(conn)


def test_check_asks_check_connection_and_not_the_check_callback(impl, full_pool, eventually):
    asked, called = [], []

    class Asking(impl.ConnectionPool):
        @staticmethod
        def check_connection(conn):
            asked.append(conn)

    pool = full_pool(cls=Asking, max_size=2, check=called.append)
    idle = list(pool._pool)
    called.clear()
    pool.check()
    assert set(asked) == set(idle)
    assert called == []


# check_connection()


@pytest.mark.parametrize("autocommit", [True, False])
def test_check_connection_leaves_a_well_connection_as_it_was(impl, dsn, autocommit):
    with psycopg.connect(dsn, autocommit=autocommit) as conn:
        impl.ConnectionPool.check_connection(conn)
        assert conn.autocommit is autocommit
        assert conn.info.transaction_status == TransactionStatus.IDLE


def test_check_connection_raises_on_a_dead_connection(impl, dsn, end_session):
    with psycopg.connect(dsn) as conn:
        end_session(conn)
        with pytest.raises(psycopg.OperationalError):
            impl.ConnectionPool.check_connection(conn)
        assert conn.closed


def test_check_connection_raises_on_a_closed_connection(impl, dsn):
    conn = psycopg.connect(dsn)
    conn.close()
    with pytest.raises(psycopg.OperationalError):
        impl.ConnectionPool.check_connection(conn)
