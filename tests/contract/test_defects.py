"""What psycopg_pool 3.3.3 does wrong and fastpool does right, a test or more for each defect.

Every test runs on both and must fail on psycopg_pool, in the way it names: where psycopg_pool
learns better, the test belongs into the contract. Whatever may hang is bounded by a timeout of
its own.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import threading
import time
import warnings
from contextlib import suppress

import psycopg
import pytest
from driver import VERSION
from shared.defects import FAILED, KEYS, defect

# Those who gave up waiting


@defect("one who timed out stays in the queue")
def test_one_who_timed_out_does_not_count_as_waiting(impl, open_pool):
    pool = open_pool()
    conn = pool.getconn()
    with pytest.raises(impl.PoolTimeout):
        pool.getconn(timeout=0.02)
    assert pool.get_stats()["requests_waiting"] == 0
    pool.putconn(conn)


@defect("one who timed out counts against max_waiting", raises=FAILED)
def test_one_who_timed_out_takes_no_place_in_the_queue(impl, open_pool):
    pool = open_pool(max_waiting=1)
    conn = pool.getconn()
    for _ in range(3):
        try:
            pool.getconn(timeout=0.02)
        except impl.PoolTimeout:
            continue
        except impl.TooManyRequests:
            pytest.fail("the queue is empty, but full")
    pool.putconn(conn)


class Interrupted(BaseException):
    """Raised in the main thread while it waits, as KeyboardInterrupt would be."""


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
@defect("an exception out of the wait leaves a waiter that swallows a connection")
def test_an_interrupted_wait_loses_no_connection(impl, open_pool, spawn, waiting, monkeypatch):
    def interrupt(number, frame):
        raise Interrupted

    def interrupt_the_waiter():
        waiting(pool, 1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR2)

    pool = open_pool()
    conn = pool.getconn()
    before = signal.signal(signal.SIGUSR2, interrupt)
    try:
        spawn(interrupt_the_waiter)
        with pytest.raises(Interrupted):
            pool.getconn(timeout=5.0)
    finally:
        signal.signal(signal.SIGUSR2, before)
    pool.putconn(conn)
    assert pool.get_stats()["pool_available"] == 1


# Dead connections


@defect("a sleep after each stale connection uses up the time", raises="PoolTimeout")
def test_stale_connections_do_not_use_up_the_timeout(impl, open_pool, end_session):
    pool = open_pool(min_size=6, check=impl.ConnectionPool.check_connection)
    for conn in list(pool._pool):
        end_session(conn)
    with pool.connection(timeout=1.0) as conn:
        assert conn.execute("select 1").fetchone() == (1,)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs POSIX signals")
@defect("a check of a frozen backend has no end", raises=TimeoutError)
def test_a_check_of_a_frozen_backend_ends_by_the_deadline(impl, open_pool, spawn, pid):
    pool = open_pool(check=impl.ConnectionPool.check_connection)
    backend = pid(*pool._pool)
    os.kill(backend, signal.SIGSTOP)
    call = spawn(pool.getconn, timeout=0.6)
    try:
        with suppress(impl.PoolTimeout):
            pool.putconn(call.result(timeout=0.8))
    finally:
        os.kill(backend, signal.SIGCONT)
        with suppress(impl.PoolTimeout, TimeoutError, ValueError):
            pool.putconn(call.result())


@defect("a check that closes the connection has it lent", raises=FAILED)
def test_a_check_that_closes_the_connection_has_failed(impl, open_pool):
    def check(conn):
        conn.close()

    pool = open_pool(check=check)
    with pytest.raises(impl.PoolTimeout, match="the check function closed"):
        pool.getconn(timeout=0.2)


@defect("an expired idle connection is lent")
def test_an_expired_idle_connection_is_not_lent(open_pool, eventually, pid):
    pool = open_pool(max_lifetime=0.1)
    (conn,) = pool._pool
    # A pool's clock may run some milliseconds behind.
    session, expired = pid(conn), conn._expire_at + 0.02
    eventually(lambda: time.monotonic() > expired)
    with pool.connection(timeout=5.0) as again:
        assert pid(again) != session


@defect(
    "closing a broken connection never reaches the pool",
    raises="PoolTimeout",
    condition=VERSION >= (3, 3),
)
def test_closing_a_broken_connection_frees_its_place(impl, open_pool, break_connection):
    pool = open_pool(close_returns=True)
    dead = pool.getconn()
    break_connection(dead)
    dead.close()
    conn = pool.getconn(timeout=1.0)
    assert conn.execute("select 1").fetchone() == (1,)
    conn.close()
    # Its borrower may learn late, and give back what is no longer missed.
    pool.putconn(dead)
    assert pool.get_stats()["pool_size"] == 1


@defect("a connection collected while lent is lost", raises="PoolTimeout")
def test_a_lent_connection_that_is_collected_is_replaced(impl, open_pool):
    pool = open_pool()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        conn = pool.getconn()
        del conn
        gc.collect()
        again = pool.getconn(timeout=0.5)
    assert again.execute("select 1").fetchone() == (1,)
    again.rollback()
    pool.putconn(again)
    assert pool.get_stats()["pool_size"] == 1
    assert ResourceWarning in [warning.category for warning in caught]


@defect("a second close() closes the idle connection")
def test_a_second_close_leaves_the_idle_connection_alone(open_pool):
    pool = open_pool(close_returns=True)
    conn = pool.getconn()
    conn.close()
    conn.close()
    with pool.connection(timeout=1.0) as again:
        assert not again.closed
        assert again.execute("select 1").fetchone() == (1,)


@defect("leaving a block closes the idle connection, and fails", raises=ValueError)
def test_a_connection_may_be_closed_in_its_block(open_pool):
    pool = open_pool(close_returns=True)
    with pool.connection() as conn:
        conn.close()
    with pool.connection(timeout=1.0) as again:
        assert again.execute("select 1").fetchone() == (1,)


# Returning twice


@defect("while a reset is pending a second putconn is accepted", raises=FAILED)
def test_a_second_putconn_is_refused_while_reset_runs(open_pool):
    running, go_on = threading.Event(), threading.Event()

    def reset(conn):
        running.set()
        go_on.wait(5.0)

    pool = open_pool(max_size=2, reset=reset)
    conn = pool.getconn()
    pool.putconn(conn)
    assert running.wait(5.0)
    try:
        with pytest.raises(ValueError, match="doesn't come from any pool"):
            pool.putconn(conn)
    finally:
        go_on.set()


@defect("a connection returned twice is lent to two")
def test_a_connection_returned_twice_is_lent_once(open_pool, eventually):
    done = []
    pool = open_pool(max_size=2, reset=done.append)
    conn = pool.getconn()
    pool.putconn(conn)
    with suppress(ValueError):
        pool.putconn(conn)
    eventually(lambda: conn._pool is None)
    pool.wait(timeout=1.0)
    one, other = pool.getconn(timeout=1.0), pool.getconn(timeout=1.0)
    assert one is not other
    pool.putconn(one)
    pool.putconn(other)


@defect("two threads can return one connection at once")
def test_of_two_threads_returning_one_connection_one_is_refused(
    open_pool, network, spawn, eventually
):
    entered, go_on = [], threading.Event()

    class Slow(network.connection_class):
        def rollback(self):
            entered.append(threading.current_thread())
            go_on.wait(5.0)
            super().rollback()

    pool = open_pool(connection_class=Slow)
    conn = pool.getconn()
    conn.execute("select 1")
    first = spawn(pool.putconn, conn)
    eventually(lambda: len(entered) == 1)
    second = spawn(pool.putconn, conn)
    # Either it has been refused, or it's in the same rollback.
    eventually(lambda: second.done or len(entered) == 2)
    go_on.set()
    first.result()
    with suppress(ValueError):
        second.result()
    assert pool.get_stats()["pool_available"] == 1


@defect("a broken connection returned twice is replaced twice")
def test_a_broken_connection_returned_twice_is_replaced_once(
    open_pool, network, break_connection, eventually
):
    pool = open_pool(max_size=2, connection_class=network.connection_class)
    conn = pool.getconn()
    break_connection(conn)
    network.hold()
    pool.putconn(conn)
    with suppress(ValueError):
        pool.putconn(conn)
    network.release()
    eventually(lambda: network.in_flight == 0 and pool.get_stats()["pool_available"] >= 1)
    stats = pool.get_stats()
    assert (stats["returns_bad"], stats["pool_available"]) == (1, 1)


# Sizes


@defect("resize() adds what min_size grew by to whatever is there")
def test_resize_of_a_grown_pool_stays_within_max_size(full_pool):
    pool = full_pool(max_size=4)
    pool.resize(4, 4)
    assert pool.get_stats()["pool_size"] == 4


@defect("check() makes the pool grow")
def test_check_makes_no_connection_more(open_pool):
    pool = open_pool(max_size=4)
    for _ in range(3):
        pool.check()
    assert pool.get_stats()["pool_size"] == 1


@defect("check() takes every idle connection away", raises="PoolTimeout")
def test_a_request_is_served_while_check_runs(impl, open_pool, spawn):
    checking, go_on = threading.Event(), threading.Event()

    class Thorough(impl.ConnectionPool):
        @staticmethod
        def check_connection(conn):
            checking.set()
            go_on.wait(5.0)

    pool = open_pool(cls=Thorough, min_size=2)
    call = spawn(pool.check)
    assert checking.wait(5.0)
    try:
        pool.putconn(pool.getconn(timeout=0.2))
    finally:
        go_on.set()
        call.result()


@defect("a larger max_size does not reach those who wait", raises="PoolTimeout")
def test_a_larger_max_size_serves_those_who_wait(open_pool, spawn, waiting):
    pool = open_pool()
    conn = pool.getconn()
    call = spawn(pool.getconn, timeout=0.5)
    waiting(pool, 1)
    pool.resize(1, 2)
    pool.putconn(call.result())
    pool.putconn(conn)


@defect("resize() fails before open()", raises=AttributeError)
def test_a_pool_resized_before_it_is_opened_opens_at_its_new_size(new_pool):
    pool = new_pool()
    pool.resize(3, 4)
    pool.open(wait=True, timeout=5.0)
    stats = pool.get_stats()
    assert (stats["pool_size"], stats["pool_available"]) == (3, 3)


@defect("resize() before open() leaves the former size")
def test_a_pool_made_smaller_before_it_is_opened_opens_smaller(new_pool):
    pool = new_pool(min_size=3)
    pool.resize(1, 3)
    assert pool.get_stats()["pool_size"] == 1
    pool.open(wait=True, timeout=5.0)
    assert pool.get_stats()["connections_num"] == 1


@pytest.mark.parametrize("upkeep", ["check", "drain"])
@defect("check() fails before open(), drain() does not", raises=AttributeError)
def test_upkeep_before_open_spoils_nothing(impl, new_pool, upkeep, request):
    if impl.__name__ == "psycopg_pool" and upkeep == "drain":
        pytest.skip("drain() is well in psycopg_pool too")
    pool = new_pool(max_size=4)
    with suppress(impl.PoolClosed):
        getattr(pool, upkeep)()
    assert pool.get_stats()["pool_size"] == 1
    pool.open(wait=True, timeout=5.0)
    assert pool.get_stats()["pool_available"] == 1


# Waiting


@defect("a second wait() at the same time is an error")
def test_two_threads_may_wait_until_the_pool_is_full(new_pool, network, spawn, log, eventually):
    network.hold()
    pool = new_pool(connection_class=network.connection_class)
    pool.open()
    calls = [spawn(pool.wait, timeout=2.0) for _ in range(2)]
    started = "waiting for pool 'p' initialization"
    eventually(lambda: log.texts().count(started) == 2 or any(call.done for call in calls))
    network.release()
    for call in calls:
        call.result()


@defect("getconn(timeout=0) never looks", raises="PoolTimeout")
def test_no_time_to_wait_is_enough_for_what_is_idle(open_pool):
    pool = open_pool()
    pool.putconn(pool.getconn(timeout=0))


@defect("an endless timeout overflows", raises=OverflowError)
def test_one_may_wait_without_end(open_pool, spawn, waiting):
    pool = open_pool()
    conn = pool.getconn()
    call = spawn(pool.getconn, timeout=math.inf)
    waiting(pool, 1)
    pool.putconn(conn)
    pool.putconn(call.result())


# Closing


@defect("those who wait learn of the close after the workers have ended", raises=TimeoutError)
def test_closing_fails_those_who_wait_though_a_connect_is_stuck(
    impl, new_pool, network, spawn, waiting, eventually
):
    network.hold()
    pool = new_pool(connection_class=network.connection_class)
    pool.open()
    eventually(lambda: network.in_flight == 1)
    call = spawn(pool.getconn, timeout=10.0)
    waiting(pool, 1)
    closing = spawn(pool.close, timeout=5.0)
    try:
        with pytest.raises(impl.PoolClosed):
            call.result(timeout=0.5)
    finally:
        network.release()
        closing.result()


@defect("wait() does not learn of the close", raises="PoolTimeout")
def test_closing_fails_a_wait_until_full(impl, open_pool, spawn, eventually, log):
    pool = open_pool()
    conn = pool.getconn()
    log.clear()
    call = spawn(pool.wait, timeout=0.5)
    eventually(lambda: log.texts())
    pool.close()
    with pytest.raises(impl.PoolClosed):
        call.result()
    pool.putconn(conn)


@defect("a connection that waits for its reset when the pool closes is left open")
def test_closing_closes_what_waits_for_its_reset(open_pool, eventually):
    running, go_on = threading.Event(), threading.Event()

    def reset(conn):
        running.set()
        go_on.wait(5.0)

    pool = open_pool(min_size=2, num_workers=1, reset=reset)
    conns = [pool.getconn() for _ in range(2)]
    for conn in conns:
        pool.putconn(conn)
    assert running.wait(5.0)
    pool.close(timeout=0.05)
    go_on.set()
    try:
        eventually(lambda: all(conn.closed for conn in conns), timeout=0.5)
    finally:
        for conn in conns:
            conn._pool = None
            conn.close()


# Counting


@defect("each use is cut to whole milliseconds")
def test_many_short_uses_add_up(open_pool):
    pool = open_pool()
    used = 0.0
    for _ in range(200):
        with pool.connection():
            start = time.perf_counter()
            while time.perf_counter() < start + 0.0004:
                pass
            used += time.perf_counter() - start
    assert pool.get_stats()["usage_ms"] >= used * 1000 - 1


@defect("a key is missing while its value is zero")
def test_every_key_is_always_there(new_pool):
    pool = new_pool()
    assert set(pool.get_stats()) >= KEYS
    pool.open(wait=True, timeout=5.0)
    pool.pop_stats()
    assert set(pool.get_stats()) >= KEYS
    pool.close()
    assert set(pool.get_stats()) >= KEYS


# Outages


@defect("the delay between attempts has no limit")
def test_attempts_are_at_most_a_second_apart(new_pool, network, base, monkeypatch, eventually):
    monkeypatch.setattr(base.AttemptWithBackoff, "INITIAL_DELAY", 0.02)
    monkeypatch.setattr(base.AttemptWithBackoff, "DELAY_BACKOFF", 1000.0)
    network.down()
    pool = new_pool(connection_class=network.connection_class)
    pool.open()
    eventually(lambda: len(network.attempts) >= 2)
    network.up()
    eventually(lambda: pool.get_stats()["pool_available"] == 1, timeout=1.7)


@defect("a pool that gave up stays small until somebody asks")
def test_a_pool_that_gave_up_recovers_by_itself(
    impl, new_pool, network, quick_backoff, monkeypatch, eventually
):
    if impl.__name__ == "fastpool":
        monkeypatch.setattr(impl.connector, "REVIVAL_PERIOD", 0.05)
    told = []
    network.down()
    pool = new_pool(
        min_size=2,
        connection_class=network.connection_class,
        reconnect_timeout=0.05,
        reconnect_failed=told.append,
    )
    pool.open()
    eventually(lambda: told)
    network.up()
    eventually(lambda: pool.get_stats()["pool_available"] == 2, timeout=0.5)


# Telling why


@defect("a timeout tells only how long it waited")
def test_a_timeout_tells_why(impl, open_pool, network, spawn):
    pool = open_pool(connection_class=network.connection_class, max_size=3)
    lent, go_on = threading.Event(), threading.Event()

    def hold():
        with pool.connection():
            lent.set()
            go_on.wait(5.0)

    holder = spawn(hold, thread_name="the-holder")
    assert lent.wait(5.0)
    network.down()
    try:
        with pytest.raises(impl.PoolTimeout) as failure:
            pool.getconn(timeout=0.1)
    finally:
        go_on.set()
        holder.result()
    text = str(failure.value)
    assert text.startswith("couldn't get a connection after 0.10 sec")
    for part in ("2 of at most 3", "1 in use", "waiting", "the-holder", "the network is down"):
        assert part in text


# Sessions that end


@pytest.fixture
def end(admin):
    """`end(conn)` ends its session, and goes on when the server has."""

    def terminate(conn):
        pid = conn.pgconn.backend_pid
        assert admin.execute("select pg_terminate_backend(%s, 5000)", [pid]).fetchone() == (True,)

    return terminate


@defect("dead idle connections are lent", raises=psycopg.OperationalError)
def test_a_session_that_ended_while_idle_is_not_lent(full_pool, end):
    pool = full_pool(min_size=3)
    for conn in list(pool._pool):
        end(conn)
    time.sleep(0.1)
    for _ in range(20):
        with pool.connection(timeout=5.0) as conn:
            conn.execute("select 1")


@defect("nobody looks after idle connections")
def test_what_ended_while_idle_is_replaced_unasked(full_pool, end, eventually):
    pool = full_pool(min_size=2)
    before = {conn.pgconn.backend_pid for conn in pool._pool}
    for conn in list(pool._pool):
        end(conn)
    eventually(
        lambda: (
            len(pool._pool) == 2
            and not before & {conn.pgconn.backend_pid for conn in list(pool._pool)}
        ),
        timeout=2.0,
    )


@defect("a slot is its borrower's until he gives it back", raises="PoolTimeout")
@pytest.mark.parametrize("who", ["server", "borrower"])
def test_a_session_that_ends_while_lent_frees_its_place(open_pool, end, who):
    pool = open_pool()
    conn = pool.getconn()
    if who == "server":
        end(conn)
    else:
        conn.close()
    pool.putconn(pool.getconn(timeout=2.0))
    pool.putconn(conn)


# Threads


@defect("each idle pool keeps its threads")
def test_idle_pools_share_one_thread(full_pool, eventually):
    before = set(threading.enumerate())
    full_pool(max_size=3, name="one")
    full_pool(max_size=3, name="other")
    eventually(lambda: len(set(threading.enumerate()) - before) <= 1, timeout=1.0)


# Leases are fastpool's own


@pytest.mark.parametrize("impl", ["fastpool"], indirect=True)
@pytest.mark.parametrize("end", ["close", "exit"])
def test_a_lease_that_has_ended_leaves_the_next_borrower_alone(open_pool, pid, end):
    pool = open_pool()
    old = pool.connect()
    session = pid(old)
    old.close()
    new = pool.connect(timeout=1.0)
    assert pid(new) == session
    if end == "close":
        old.close()
    else:
        old.__exit__(None, None, None)
    assert not new.closed
    assert new.execute("select 1").fetchone() == (1,)
    assert pool.get_stats()["pool_available"] == 0
    new.close()
    assert pool.get_stats()["pool_available"] == 1


# Forked children


@defect("a forked child is lent its parent's sessions")
def test_a_forked_child_has_sessions_of_its_own(full_pool, fork, pid):
    pool = full_pool()
    conn = pool.getconn()
    parents = pid(conn)
    pool.putconn(conn)

    def child():
        with pool.connection(timeout=5.0) as conn:
            return pid(conn)

    assert fork(child).result() != parents


@defect("a forked child that closes its pool ends the parent's", raises=psycopg.OperationalError)
def test_a_forked_child_that_closes_its_pool_leaves_its_parents_alone(full_pool, fork):
    pool = full_pool()
    assert fork(lambda: pool.close(timeout=1.0)).result() is None
    with pool.connection() as conn:
        conn.execute("select 1")


@defect("a forked child has no threads to connect with")
def test_a_forked_child_may_grow_its_pool(open_pool, fork):
    pool = open_pool(min_size=1, max_size=2)

    def child():
        with pool.connection(timeout=2.0), pool.connection(timeout=2.0):
            return True

    assert fork(child).result()
