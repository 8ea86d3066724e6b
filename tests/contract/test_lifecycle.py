"""New, open, closed: what each state allows, and the ways from one to the next."""

import gc
import threading
import time
import warnings
import weakref

import psycopg
import pytest

IMPLICIT_OPEN = "^the default for the ConnectionPool 'open' parameter will become 'False'"


def borrow_and_return(pool):
    pool.putconn(pool.getconn())


def borrow_for_a_block(pool):
    with pool.connection():
        pass


def wait_until_full(pool):
    pool.wait(timeout=5.0)


def open_and_wait(pool):
    pool.open(wait=True, timeout=5.0)


def enter(pool):
    with pool:
        pass


# New


@pytest.mark.parametrize("use", [borrow_and_return, borrow_for_a_block, wait_until_full])
def test_a_new_pool_refuses_to_be_used(impl, new_pool, use):
    with pytest.raises(impl.PoolClosed) as refusal:
        use(new_pool())
    assert str(refusal.value) == "the pool 'p' is not open yet"


def test_a_new_pool_is_closed(new_pool):
    assert new_pool().closed is True


def test_closing_a_new_pool_does_not_use_it_up(new_pool):
    pool = new_pool()
    pool.close()
    pool.open(wait=True, timeout=5.0)
    assert pool.closed is False


# Opening


def test_an_open_pool_is_not_closed(new_pool):
    pool = new_pool()
    pool.open()
    assert pool.closed is False


def test_opening_an_open_pool_changes_nothing(open_pool):
    pool = open_pool(min_size=2)
    before = pool.get_stats()
    pool.open()
    assert pool.get_stats() == before


def test_opening_an_open_pool_can_wait_until_it_is_full(new_pool):
    pool = new_pool(min_size=2)
    pool.open()
    pool.open(wait=True, timeout=5.0)
    assert pool.get_stats()["pool_available"] == 2


def test_the_constructor_opens_when_told(new_pool):
    pool = new_pool(open=True)
    assert pool.closed is False
    pool.wait(timeout=5.0)


def test_opening_from_many_threads_opens_once(new_pool, spawn):
    pool = new_pool(min_size=2)
    start = threading.Barrier(8)

    def open_together():
        start.wait(5.0)
        pool.open()

    for call in [spawn(open_together) for _ in range(8)]:
        call.result()
    pool.wait(timeout=5.0)
    assert pool.get_stats()["connections_num"] == 2


def test_opening_does_not_wait_for_connections(new_pool, network):
    network.hold()
    pool = new_pool(connection_class=network.connection_class)
    pool.open()
    assert pool.get_stats()["pool_available"] == 0


# Opening implicitly


@pytest.mark.parametrize(
    "use", [borrow_and_return, borrow_for_a_block, wait_until_full, open_and_wait]
)
def test_a_pool_opened_implicitly_warns_at_its_first_use_only(new_pool, use):
    pool = new_pool(open=None)
    assert pool.closed is False
    with pytest.warns(DeprecationWarning, match=IMPLICIT_OPEN) as caught:
        use(pool)
    assert len(caught) == 1
    use(pool)


def test_an_explicit_open_does_not_silence_the_warning(new_pool):
    pool = new_pool(open=None)
    pool.open()
    with pytest.warns(DeprecationWarning, match=IMPLICIT_OPEN):
        borrow_and_return(pool)


def test_entering_the_pool_silences_the_warning(new_pool):
    with new_pool(open=None) as pool:
        borrow_and_return(pool)


@pytest.mark.parametrize("open_", [True, False])
def test_an_explicit_parameter_never_warns(new_pool, open_):
    pool = new_pool(open=open_)
    pool.open()
    borrow_and_return(pool)


def test_upkeep_of_an_implicitly_opened_pool_does_not_warn(new_pool):
    pool = new_pool(open=None)
    pool.get_stats()
    pool.resize(1, 2)
    pool.check()
    pool.drain()
    pool.close()


# The pool as a context


def test_a_block_opens_and_closes_the_pool(new_pool):
    pool = new_pool()
    with pool as entered:
        assert entered is pool
        assert pool.closed is False
    assert pool.closed is True


def test_an_open_pool_can_be_entered_and_is_closed_by_leaving(open_pool):
    pool = open_pool()
    with pool:
        borrow_and_return(pool)
    assert pool.closed is True


def test_an_exception_leaves_the_block_and_closes_the_pool(new_pool):
    pool = new_pool()
    with pytest.raises(KeyError), pool:
        raise KeyError
    assert pool.closed is True


# Waiting until full


def test_wait_returns_when_every_connection_is_idle(new_pool, network, spawn):
    network.hold()
    pool = new_pool(connection_class=network.connection_class, min_size=3)
    pool.open()
    call = spawn(pool.wait, timeout=5.0)
    assert not call.done
    network.release()
    call.result()
    assert pool.get_stats()["pool_available"] == 3


def test_wait_on_a_full_pool_returns_at_once_and_again(open_pool):
    pool = open_pool()
    pool.wait(timeout=0)
    pool.wait(timeout=0.0)


def test_wait_on_a_pool_that_may_be_empty_returns_at_once(new_pool):
    pool = new_pool(min_size=0, max_size=1)
    pool.open()
    pool.wait(timeout=0.5)


def test_wait_blocks_while_a_connection_is_lent(open_pool, spawn, log, eventually):
    pool = open_pool()
    log.clear()
    conn = pool.getconn()
    call = spawn(pool.wait, timeout=5.0)
    eventually(lambda: log.has("INFO", "waiting for pool"))
    assert not call.done
    pool.putconn(conn)
    call.result()


@pytest.mark.parametrize(("timeout", "shown"), [(0.05, "0.05"), (0, "0")])
def test_a_wait_in_vain_closes_the_pool(impl, new_pool, network, timeout, shown):
    network.down()
    pool = new_pool(connection_class=network.connection_class)
    pool.open()
    with pytest.raises(impl.PoolTimeout) as failure:
        pool.wait(timeout=timeout)
    assert str(failure.value).startswith(f"pool initialization incomplete after {shown} sec")
    assert pool.closed is True


# Closing


@pytest.mark.parametrize("use", [borrow_and_return, borrow_for_a_block, wait_until_full])
def test_a_closed_pool_refuses_to_be_used(impl, open_pool, use):
    pool = open_pool()
    pool.close()
    with pytest.raises(impl.PoolClosed) as refusal:
        use(pool)
    assert str(refusal.value) == "the pool 'p' is already closed"


@pytest.mark.parametrize("use", [lambda pool: pool.open(), open_and_wait, enter])
def test_a_closed_pool_cannot_be_opened_again(impl, open_pool, use):
    pool = open_pool()
    pool.close()
    with pytest.raises(impl.PoolClosed) as refusal:
        use(pool)
    assert str(refusal.value) == "pool has already been opened/closed and cannot be reused"


def test_closing_twice_is_harmless(open_pool):
    pool = open_pool()
    pool.close()
    pool.close(timeout=0.1)
    assert pool.closed is True


def test_closing_closes_idle_connections(full_pool):
    pool = full_pool(max_size=2)
    idle = list(pool._pool)
    pool.close()
    assert [conn.closed for conn in idle] == [True, True]
    assert pool.get_stats()["pool_available"] == 0


def test_a_lent_connection_outlives_the_pool_until_it_is_returned(open_pool):
    pool = open_pool()
    conn = pool.getconn()
    pool.close()
    assert conn.execute("select 1").fetchone() == (1,)
    pool.putconn(conn)
    assert conn.closed
    assert conn._pool is None


def test_a_block_may_end_after_its_pool(open_pool):
    pool = open_pool()
    with pool.connection() as conn:
        pool.close()
        conn.execute("select 1")
    assert conn.closed


def test_a_connection_is_returned_to_a_closed_pool_only_once(open_pool):
    pool = open_pool()
    conn = pool.getconn()
    pool.close()
    pool.putconn(conn)
    with pytest.raises(ValueError, match="doesn't come from any pool"):
        pool.putconn(conn)


def test_closing_fails_those_who_wait(impl, open_pool, spawn, waiting):
    pool = open_pool()
    conn = pool.getconn()
    calls = [spawn(pool.getconn, timeout=5.0) for _ in range(2)]
    waiting(pool, 2)
    pool.close()
    for call in calls:
        with pytest.raises(impl.PoolClosed) as failure:
            call.result()
        assert str(failure.value) == "the pool 'p' is closed"
    pool.putconn(conn)


def test_closing_ends_by_its_timeout_though_a_connect_is_stuck(new_pool, network, eventually):
    network.hold()
    pool = new_pool(connection_class=network.connection_class)
    pool.open()
    eventually(lambda: network.in_flight == 1)
    start = time.monotonic()
    pool.close(timeout=0.1)
    assert time.monotonic() - start < 2.0
    assert pool.closed is True


def test_closing_while_a_connect_is_under_way_warns_of_nothing(
    new_pool, network, spawn, eventually, log
):
    network.hold()
    pool = new_pool(connection_class=network.connection_class)
    pool.open()
    eventually(lambda: network.in_flight == 1)
    call = spawn(pool.close, timeout=5.0)
    eventually(lambda: pool.closed)
    network.release()
    call.result()
    eventually(lambda: network.in_flight == 0)
    assert log.warnings() == []


def test_upkeep_of_a_closed_pool_is_harmless(open_pool):
    pool = open_pool()
    pool.close()
    pool.check()
    pool.drain()
    pool.resize(2, 3)
    assert (pool.min_size, pool.max_size) == (2, 3)


def test_a_dropped_open_pool_is_collected_silently(impl, dsn, eventually):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool = impl.ConnectionPool(dsn, min_size=2, open=False)
        pool.open(wait=True, timeout=5.0)
        sessions = [conn.pgconn.backend_pid for conn in pool._pool]
        gone = weakref.ref(pool)
        del pool
        gc.collect()
        eventually(lambda: gone() is None)

    def left():
        with psycopg.connect(dsn) as conn:
            query = "select count(*) from pg_stat_activity where pid = any(%s)"
            return conn.execute(query, [sessions]).fetchone()[0]

    eventually(lambda: left() == 0)
