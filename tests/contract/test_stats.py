"""get_stats() and pop_stats(): what each key counts, and when."""

import time

import pytest
from shared.stats import MEASURES, count, measures

pytestmark = pytest.mark.usefixtures("quick_backoff")


def test_measures_of_a_new_pool(new_pool):
    assert measures(new_pool(min_size=2, max_size=3)) == {
        "pool_min": 2,
        "pool_max": 3,
        "pool_size": 2,
        "pool_available": 0,
        "requests_waiting": 0,
    }


def test_measures_follow_the_pool(open_pool, spawn, waiting):
    pool = open_pool(min_size=1, max_size=2)
    conns = [pool.getconn() for _ in range(2)]
    call = spawn(pool.getconn, timeout=5.0)
    waiting(pool, 1)
    assert measures(pool) == {
        "pool_min": 1,
        "pool_max": 2,
        "pool_size": 2,
        "pool_available": 0,
        "requests_waiting": 1,
    }
    pool.putconn(conns[0])
    pool.putconn(call.result())
    pool.putconn(conns[1])
    assert measures(pool)["pool_available"] == 2


def test_measures_follow_a_resize(open_pool):
    pool = open_pool()
    pool.resize(1, 5)
    stats = pool.get_stats()
    assert (stats["pool_min"], stats["pool_max"]) == (1, 5)


def test_measures_of_a_closed_pool_are_there(open_pool):
    pool = open_pool()
    pool.close()
    stats = pool.get_stats()
    assert set(stats) >= MEASURES
    assert (stats["pool_available"], stats["requests_waiting"]) == (0, 0)


def test_connects_in_flight_count_as_size(new_pool, network):
    network.hold()
    pool = new_pool(connection_class=network.connection_class, min_size=2)
    pool.open()
    assert (count(pool, "pool_size"), count(pool, "pool_available")) == (2, 0)


def test_keys_are_strings_and_values_integers(open_pool):
    pool = open_pool()
    with pool.connection():
        pass
    stats = pool.get_stats()
    assert {type(key) for key in stats} == {str}
    assert {type(value) for value in stats.values()} == {int}


def test_stats_are_a_copy(open_pool):
    pool = open_pool()
    pool.get_stats()["requests_num"] = 1000
    assert count(pool, "requests_num") == 0


def test_each_request_is_counted(open_pool):
    pool = open_pool()
    for _ in range(3):
        pool.putconn(pool.getconn())
    assert count(pool, "requests_num") == 3
    assert count(pool, "requests_queued") == 0
    assert count(pool, "requests_errors") == 0


def test_requests_refused_by_a_closed_pool_are_counted(impl, new_pool):
    pool = new_pool()
    with pytest.raises(impl.PoolClosed):
        pool.getconn()
    assert count(pool, "requests_num") == 1
    assert count(pool, "requests_errors") == 0


def test_a_request_that_waited_is_counted_and_timed(open_pool, spawn, waiting):
    pool = open_pool()
    conn = pool.getconn()
    before = time.monotonic()
    call = spawn(pool.getconn, timeout=5.0)
    waiting(pool, 1)
    time.sleep(0.03)  # the time that is to be counted
    pool.putconn(conn)
    pool.putconn(call.result())
    total = (time.monotonic() - before) * 1000
    assert count(pool, "requests_queued") == 1
    assert count(pool, "requests_errors") == 0
    assert 29 <= count(pool, "requests_wait_ms") <= total


def test_a_request_that_timed_out_is_an_error_and_timed(impl, open_pool):
    pool = open_pool()
    conn = pool.getconn()
    with pytest.raises(impl.PoolTimeout):
        pool.getconn(timeout=0.03)
    assert count(pool, "requests_num") == 2
    assert count(pool, "requests_queued") == 1
    assert count(pool, "requests_errors") == 1
    assert count(pool, "requests_wait_ms") >= 29
    pool.putconn(conn)


def test_a_request_too_many_is_an_error_and_not_queued(impl, open_pool, spawn, waiting):
    pool = open_pool(max_waiting=1)
    conn = pool.getconn()
    call = spawn(pool.getconn, timeout=5.0)
    waiting(pool, 1)
    with pytest.raises(impl.TooManyRequests):
        pool.getconn()
    assert count(pool, "requests_num") == 3
    assert count(pool, "requests_queued") == 1
    assert count(pool, "requests_errors") == 1
    pool.putconn(conn)
    pool.putconn(call.result())


def test_one_who_waited_when_the_pool_closed_is_an_error(impl, open_pool, spawn, waiting):
    pool = open_pool()
    conn = pool.getconn()
    call = spawn(pool.getconn, timeout=5.0)
    waiting(pool, 1)
    pool.close()
    with pytest.raises(impl.PoolClosed):
        call.result()
    assert count(pool, "requests_errors") == 1
    pool.putconn(conn)


def test_the_time_in_a_block_is_counted(open_pool):
    pool = open_pool()
    start = time.monotonic()
    with pool.connection() as conn:
        conn.execute("select pg_sleep(0.03)")
    assert 30 <= count(pool, "usage_ms") <= (time.monotonic() - start) * 1000


def test_the_time_in_a_block_that_failed_is_counted(open_pool):
    pool = open_pool()

    def fail_in_a_block():
        with pool.connection() as conn:
            conn.execute("select pg_sleep(0.02)")
            raise KeyError

    with pytest.raises(KeyError):
        fail_in_a_block()
    assert count(pool, "usage_ms") >= 20


def test_the_time_between_getconn_and_putconn_is_not_usage(open_pool):
    pool = open_pool()
    conn = pool.getconn()
    conn.execute("select pg_sleep(0.02)")
    conn.rollback()
    pool.putconn(conn)
    assert count(pool, "usage_ms") == 0


def test_connects_are_counted_and_timed(open_pool, network, spawn, eventually):
    network.hold()
    start = time.monotonic()
    call = spawn(open_pool, connection_class=network.connection_class)
    eventually(lambda: network.in_flight == 1)
    time.sleep(0.03)  # the time that is to be counted
    network.release()
    pool = call.result()
    assert count(pool, "connections_num") == 1
    assert count(pool, "connections_errors") == 0
    assert 29 <= count(pool, "connections_ms") <= (time.monotonic() - start) * 1000


def test_failed_connects_are_counted(new_pool, network, eventually):
    network.down()
    pool = new_pool(connection_class=network.connection_class)
    pool.open()
    eventually(lambda: count(pool, "connections_errors") >= 2)
    assert count(pool, "connections_num") >= 2
    assert count(pool, "connections_ms") == 0


def test_connections_that_check_found_broken_are_lost(open_pool, end_session):
    pool = open_pool(min_size=2)
    for conn in list(pool._pool):
        end_session(conn)
    pool.check()
    assert count(pool, "connections_lost") == 2
    assert count(pool, "returns_bad") == 0


def test_pop_stats_returns_the_stats_and_begins_anew(open_pool):
    pool = open_pool()
    pool.putconn(pool.getconn())
    before = pool.get_stats()
    assert pool.pop_stats() == before
    stats = pool.get_stats()
    assert {key: value for key, value in stats.items() if value and key not in MEASURES} == {}
    assert measures(pool) == {key: before[key] for key in MEASURES}


def test_counting_goes_on_after_pop_stats(open_pool):
    pool = open_pool()
    pool.putconn(pool.getconn())
    pool.pop_stats()
    pool.putconn(pool.getconn())
    assert count(pool, "requests_num") == 1
    assert count(pool, "connections_num") == 0


def test_counters_outlive_the_pool(open_pool):
    pool = open_pool()
    pool.putconn(pool.getconn())
    pool.close()
    assert pool.pop_stats()["requests_num"] == 1
