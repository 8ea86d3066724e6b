"""Lending: who gets which connection, when, in what order, and for how long one waits."""

import time

import psycopg
import pytest


def test_a_lent_connection_is_a_ready_psycopg_connection(open_pool):
    pool = open_pool()
    conn = pool.getconn()
    assert isinstance(conn, psycopg.Connection)
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert conn.execute("select 1").fetchone() == (1,)
    conn.rollback()
    pool.putconn(conn)


def test_a_returned_connection_is_lent_again(open_pool, pid):
    pool = open_pool()
    first = pool.getconn()
    session = pid(first)
    pool.putconn(first)
    second = pool.getconn()
    assert pid(second) == session
    pool.putconn(second)


def test_the_connection_returned_longest_ago_is_lent_first(full_pool, pid):
    pool = full_pool(max_size=3)
    conns = [pool.getconn() for _ in range(3)]
    order = [conns[1], conns[2], conns[0]]
    for conn in order:
        pool.putconn(conn)
    assert [pid(pool.getconn()) for _ in order] == [pid(conn) for conn in order]
    for conn in conns:
        pool.putconn(conn)


def test_one_lent_and_returned_goes_to_the_end_of_the_line(full_pool, pid):
    pool = full_pool(max_size=3)
    lent = []
    for _ in range(6):
        with pool.connection() as conn:
            lent.append(pid(conn))
    assert lent[:3] == lent[3:]
    assert len(set(lent)) == 3


def test_a_connection_may_be_returned_by_another_thread(open_pool, spawn):
    pool = open_pool()
    conn = pool.getconn()
    spawn(pool.putconn, conn).result()
    assert pool.get_stats()["pool_available"] == 1


def test_nobody_shares_a_connection(full_pool, pid):
    pool = full_pool(max_size=4)
    conns = [pool.getconn() for _ in range(4)]
    assert len({pid(conn) for conn in conns}) == 4
    for conn in conns:
        pool.putconn(conn)


# Waiting


def test_a_request_before_the_first_connect_landed_is_served_by_it(
    new_pool, network, spawn, waiting
):
    network.hold()
    pool = new_pool(connection_class=network.connection_class)
    pool.open()
    call = spawn(pool.getconn, timeout=5.0)
    waiting(pool, 1)
    network.release()
    pool.putconn(call.result())
    assert pool.get_stats()["connections_num"] == 1


def test_a_returned_connection_is_handed_to_the_one_who_waits(open_pool, spawn, waiting, pid):
    pool = open_pool()
    conn = pool.getconn()
    session = pid(conn)
    call = spawn(pool.getconn, timeout=5.0)
    waiting(pool, 1)
    pool.putconn(conn)
    received = call.result()
    assert pid(received) == session
    pool.putconn(received)


def test_those_who_wait_are_served_in_the_order_they_came(open_pool, spawn, waiting):
    pool = open_pool()
    served = []

    def borrow(number):
        conn = pool.getconn(timeout=5.0)
        served.append(number)
        pool.putconn(conn)

    conn = pool.getconn()
    calls = []
    for number in range(5):
        calls.append(spawn(borrow, number))
        waiting(pool, number + 1)
    pool.putconn(conn)
    for call in calls:
        call.result()
    assert served == [0, 1, 2, 3, 4]


def test_one_returned_before_the_new_one_landed_serves_the_request(
    open_pool, network, spawn, eventually, pid
):
    pool = open_pool(connection_class=network.connection_class, max_size=2)
    conn = pool.getconn()
    session = pid(conn)
    network.hold()
    call = spawn(pool.getconn, timeout=5.0)
    eventually(lambda: network.in_flight == 1)
    pool.putconn(conn)
    received = call.result()
    assert pid(received) == session
    network.release()
    eventually(lambda: pool.get_stats()["pool_available"] == 1)
    pool.putconn(received)


def test_one_who_gave_up_is_passed_over(impl, open_pool, spawn, waiting):
    pool = open_pool()
    conn = pool.getconn()
    with pytest.raises(impl.PoolTimeout):
        pool.getconn(timeout=0.02)
    call = spawn(pool.getconn, timeout=5.0)
    pool.putconn(conn)
    pool.putconn(call.result())
    assert pool.get_stats()["pool_available"] == 1


# Timeouts


@pytest.mark.parametrize(
    ("args", "kwargs"), [((0.05,), {}), ((), {"timeout": 0.05}), ((), {}), ((None,), {})]
)
def test_a_request_ends_by_its_timeout(impl, open_pool, args, kwargs):
    pool = open_pool()
    pool.timeout = 0.05 if args in [(), (None,)] and not kwargs else 30.0
    conn = pool.getconn()
    start = time.monotonic()
    with pytest.raises(impl.PoolTimeout) as failure:
        pool.getconn(*args, **kwargs)
    assert 0.045 < time.monotonic() - start < 2.0
    assert str(failure.value).startswith("couldn't get a connection after 0.05 sec")
    pool.putconn(conn)


@pytest.mark.parametrize("timeout", [None, 0.05])
def test_a_block_is_not_entered_after_its_timeout(impl, open_pool, timeout):
    pool = open_pool(timeout=0.05)
    conn = pool.getconn()
    with pytest.raises(impl.PoolTimeout, match=r"after 0\.05 sec"), pool.connection(timeout):
        pytest.fail("entered")
    pool.putconn(conn)


@pytest.mark.parametrize(("timeout", "shown"), [(0, "0.00"), (0.0, "0.00"), (-1, "-1.00")])
def test_no_time_to_wait_ends_at_once_when_nothing_is_idle(impl, open_pool, timeout, shown):
    pool = open_pool()
    conn = pool.getconn()
    start = time.monotonic()
    with pytest.raises(impl.PoolTimeout) as failure:
        pool.getconn(timeout=timeout)
    assert time.monotonic() - start < 0.5
    assert str(failure.value).startswith(f"couldn't get a connection after {shown} sec")
    pool.putconn(conn)


def test_a_timeout_shows_no_inner_exception(impl, open_pool):
    pool = open_pool()
    conn = pool.getconn()
    with pytest.raises(impl.PoolTimeout) as failure:
        pool.getconn(timeout=0.01)
    assert failure.value.__cause__ is None
    assert failure.value.__suppress_context__ or failure.value.__context__ is None
    pool.putconn(conn)


# How many may wait


def test_a_request_beyond_max_waiting_is_refused(impl, open_pool, spawn, waiting):
    pool = open_pool(max_waiting=2)
    conn = pool.getconn()
    calls = []
    for count in (1, 2):
        calls.append(spawn(pool.getconn, timeout=5.0))
        waiting(pool, count)
    with pytest.raises(impl.TooManyRequests) as refusal:
        pool.getconn(timeout=5.0)
    assert str(refusal.value) == "the pool 'p' has already 2 requests waiting"
    for call in calls:
        pool.putconn(conn)
        conn = call.result()
    pool.putconn(conn)


def test_max_waiting_is_read_at_each_request(impl, open_pool, spawn, waiting):
    pool = open_pool()
    conn = pool.getconn()
    call = spawn(pool.getconn, timeout=5.0)
    waiting(pool, 1)
    pool.max_waiting = 1
    with pytest.raises(impl.TooManyRequests):
        pool.getconn(timeout=5.0)
    pool.putconn(conn)
    pool.putconn(call.result())


def test_max_waiting_does_not_refuse_what_can_be_lent(open_pool):
    pool = open_pool(max_waiting=1)
    for _ in range(3):
        pool.putconn(pool.getconn())


# connection()


def test_a_block_commits_and_returns(open_pool, admin):
    pool = open_pool()
    admin.execute("create table committed (x int)")
    try:
        with pool.connection() as conn:
            conn.execute("insert into committed values (1)")
            assert pool.get_stats()["pool_available"] == 0
        assert pool.get_stats()["pool_available"] == 1
        assert admin.execute("select x from committed").fetchall() == [(1,)]
    finally:
        admin.execute("drop table committed")


def test_a_block_left_by_an_exception_rolls_back_and_returns(open_pool, admin, log):
    pool = open_pool()

    def fail_in_a_block():
        with pool.connection() as conn:
            conn.execute("create table never_committed (x int)")
            raise KeyError

    with pytest.raises(KeyError):
        fail_in_a_block()
    assert pool.get_stats()["pool_available"] == 1
    assert admin.execute("select to_regclass('never_committed')").fetchone() == (None,)
    assert log.warnings() == []


def test_a_block_may_be_left_with_a_broken_connection(open_pool, break_connection, pid):
    pool = open_pool()
    with pool.connection() as conn:
        session = pid(conn)
        break_connection(conn)
    with pool.connection(timeout=5.0) as conn:
        assert pid(conn) != session


def test_blocks_nest(full_pool):
    pool = full_pool(max_size=2)
    with pool.connection() as outer, pool.connection() as inner:
        assert outer is not inner
    assert pool.get_stats()["pool_available"] == 2


def test_nothing_is_lent_before_the_block_is_entered(open_pool):
    pool = open_pool()
    block = pool.connection()
    assert pool.get_stats()["pool_available"] == 1
    with block:
        assert pool.get_stats()["pool_available"] == 0


def test_a_block_of_a_closed_pool_fails_only_when_entered(impl, new_pool):
    block = new_pool().connection()
    with pytest.raises(impl.PoolClosed), block:
        pytest.fail("entered")


def test_a_block_can_be_entered_and_left_by_hand(open_pool):
    pool = open_pool()
    block = pool.connection(1.0)
    conn = block.__enter__()
    assert conn._pool is pool
    block.__exit__(None, None, None)
    assert conn._pool is None


def test_a_block_dropped_while_entered_returns_its_connection(open_pool, eventually):
    pool = open_pool()
    block = pool.connection()
    block.__enter__()
    del block
    eventually(lambda: pool.get_stats()["pool_available"] == 1)


def test_connection_decorates_a_function(open_pool):
    pool = open_pool()

    @pool.connection()
    def lent():
        return pool.get_stats()["pool_available"]

    assert (lent(), lent()) == (0, 0)
    assert pool.get_stats()["pool_available"] == 1


# Overriding


def test_a_block_calls_the_subclass_methods(impl, open_pool):
    calls = []

    class Watched(impl.ConnectionPool):
        def getconn(self, timeout=None):
            calls.append(("getconn", timeout))
            return super().getconn(timeout)

        def putconn(self, conn):
            calls.append(("putconn", conn))
            super().putconn(conn)

    pool = open_pool(cls=Watched)
    with pool.connection(timeout=3.0) as conn:
        pass
    assert calls == [("getconn", 3.0), ("putconn", conn)]


def test_a_block_calls_methods_patched_on_the_class(impl, open_pool, monkeypatch):
    calls = []
    original = impl.ConnectionPool.getconn

    def getconn(self, timeout=None):
        calls.append(timeout)
        return original(self, timeout=timeout)

    pool = open_pool()
    monkeypatch.setattr(impl.ConnectionPool, "getconn", getconn)
    with pool.connection():
        pass
    assert calls == [None]


def test_a_block_calls_methods_patched_on_the_instance(open_pool):
    pool, returned = open_pool(), []
    original = pool.putconn

    def putconn(conn):
        returned.append(conn)
        original(conn)

    pool.putconn = putconn
    with pool.connection() as conn:
        pass
    assert returned == [conn]


def test_a_bound_method_makes_connections_for_another_pool(open_pool):
    pool = open_pool()
    create = pool.getconn
    conn = create()
    assert conn._pool is pool
    pool.putconn(conn)
