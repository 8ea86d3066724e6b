"""Getting a connection from a null pool: opened for its borrower, waited for at the maximum."""

import threading
import time

import psycopg
import pytest

pytestmark = pytest.mark.anyio


# A connection for each


async def test_each_lending_opens_a_connection(open_pool, do, pid, works):
    pool = await open_pool()
    sessions = set()
    for _ in range(3):
        conn = await do(pool.getconn)
        assert await works(conn)
        sessions.add(pid(conn))
        await do(pool.putconn, conn)
    assert len(sessions) == 3


async def test_a_lent_connection_is_marked_as_the_pools(open_pool, do):
    pool = await open_pool(max_lifetime=100.0)
    before = time.monotonic()
    conn = await do(pool.getconn)
    assert conn._pool is pool
    assert before <= conn._created_at <= time.monotonic()
    assert 94.9 <= conn._expire_at - conn._created_at <= 100.1
    await do(pool.putconn, conn)


async def test_a_block_lends_and_closes(open_pool, entered, do):
    pool = await open_pool()
    async with entered(pool.connection()) as conn:
        await do(conn.execute, "create temp table t ()")
        assert not conn.closed
    assert conn.closed


async def test_a_block_commits_and_rolls_back(open_pool, entered, do, admin):
    admin.execute("drop table if exists null_pool_rows; create table null_pool_rows (n int)")
    pool = await open_pool()
    async with entered(pool.connection()) as conn:
        await do(conn.execute, "insert into null_pool_rows values (1)")
    with pytest.raises(ZeroDivisionError):
        async with entered(pool.connection()) as conn:
            await do(conn.execute, "insert into null_pool_rows values (2)")
            raise ZeroDivisionError
    assert admin.execute("select n from null_pool_rows").fetchall() == [(1,)]
    admin.execute("drop table null_pool_rows")


async def test_a_pool_without_maximum_lends_as_many_as_are_asked_for(open_pool, do):
    pool = await open_pool(max_size=None)
    conns = [await do(pool.getconn, timeout=5.0) for _ in range(7)]
    assert len({id(conn) for conn in conns}) == 7
    assert pool.get_stats()["pool_size"] == 7
    for conn in conns:
        await do(pool.putconn, conn)
    assert pool.get_stats()["pool_size"] == 0


async def test_nothing_is_ever_available(open_pool, do):
    pool = await open_pool(max_size=2)
    one, other = await do(pool.getconn), await do(pool.getconn)
    await do(pool.putconn, one)
    assert pool.get_stats()["pool_available"] == len(pool._pool) == 0
    await do(pool.putconn, other)
    assert pool.get_stats()["pool_available"] == len(pool._pool) == 0


# How it connects


@pytest.mark.parametrize(
    ("timeout", "connect_timeout"), [(None, 7), (2.4, 2), (2.6, 3), (0.2, 1), (100, 100)]
)
async def test_the_time_left_goes_to_the_driver(open_pool, network, do, timeout, connect_timeout):
    pool = await open_pool(connection_class=network.connection_class, timeout=7.0)
    await do(pool.putconn, await do(pool.getconn, timeout=timeout))
    ((_, _, kwargs),) = network.attempts
    assert kwargs == {"connect_timeout": connect_timeout}
    assert type(kwargs["connect_timeout"]) is int


async def test_the_users_kwargs_are_passed_and_left_alone(open_pool, network, do):
    kwargs = {"autocommit": True}
    pool = await open_pool(connection_class=network.connection_class, kwargs=kwargs)
    conn = await do(pool.getconn, timeout=3.0)
    (attempt,) = network.attempts
    assert attempt.kwargs == {"autocommit": True, "connect_timeout": 3}
    assert conn.autocommit
    assert kwargs == {"autocommit": True}
    await do(pool.putconn, conn)


async def test_address_and_kwargs_are_asked_for_each_time(open_pool, network, dsn, callback, do):
    asked = []

    def conninfo():
        asked.append("conninfo")
        return dsn

    def kwargs():
        asked.append("kwargs")
        return {"application_name": str(len(asked))}

    pool = await open_pool(
        callback(conninfo), kwargs=callback(kwargs), connection_class=network.connection_class
    )
    for _ in range(2):
        await do(pool.putconn, await do(pool.getconn))
    assert asked == ["conninfo", "kwargs"] * 2
    assert [attempt.kwargs["application_name"] for attempt in network.attempts] == ["2", "4"]


async def test_connecting_can_be_overridden(kind, pool_class, open_pool, do):
    calls = []

    class Own(pool_class):
        def _connect(self, timeout=None):
            calls.append(timeout)
            return super()._connect(timeout)

    pool = await open_pool(cls=Own)
    await do(pool.putconn, await do(pool.getconn, timeout=3.0))
    await do(pool.wait, timeout=5.0)
    in_getconn, in_wait = calls
    assert 2.0 < in_getconn <= 3.0
    assert in_wait is None


# What goes wrong


async def test_what_connecting_raises_is_what_the_client_gets(open_pool, network, do, log):
    pool = await open_pool(connection_class=network.connection_class)
    error = psycopg.OperationalError("no such luck")
    network.down(error)
    with pytest.raises(psycopg.OperationalError) as failure:
        await do(pool.getconn, timeout=5.0)
    assert failure.value is error
    assert len(network.attempts) == 1
    assert log.warnings() == []


async def test_what_the_users_callables_raise_is_what_the_client_gets(open_pool, dsn, callback, do):
    def fail():
        raise LookupError("no address")

    pool = await open_pool(callback(fail))
    with pytest.raises(LookupError, match="no address"):
        await do(pool.getconn, timeout=5.0)
    pool.conninfo, pool.kwargs = dsn, callback(fail)
    with pytest.raises(LookupError, match="no address"):
        await do(pool.getconn, timeout=5.0)
    pool.kwargs = None
    await do(pool.putconn, await do(pool.getconn, timeout=5.0))


async def test_a_connect_that_takes_too_long_is_a_timeout_of_the_pool(impl, open_pool, network, do):
    pool = await open_pool(connection_class=network.connection_class)
    network.down(psycopg.errors.ConnectionTimeout("connection timeout expired"))
    with pytest.raises(impl.PoolTimeout) as failure:
        await do(pool.getconn, timeout=5.0)
    assert str(failure.value).startswith("couldn't get a connection after 5.00 sec")
    assert failure.value.__cause__ is None
    assert len(network.attempts) == 1


async def test_a_connect_that_failed_takes_no_place(open_pool, network, do, works):
    pool = await open_pool(connection_class=network.connection_class)
    network.down()
    for _ in range(2):
        with pytest.raises(psycopg.OperationalError):
            await do(pool.getconn, timeout=5.0)
    assert pool.get_stats()["pool_size"] == 0
    network.up()
    conn = await do(pool.getconn, timeout=1.0)
    assert await works(conn)
    await do(pool.putconn, conn)


async def test_an_exception_that_is_no_error_takes_no_place(open_pool, network, do):
    class Interrupted(BaseException):
        pass

    pool = await open_pool(connection_class=network.connection_class)
    network.down(Interrupted())
    with pytest.raises(Interrupted):
        await do(pool.getconn, timeout=5.0)
    assert pool.get_stats()["pool_size"] == 0
    network.up()
    await do(pool.putconn, await do(pool.getconn, timeout=1.0))


@pytest.mark.parametrize("kind", ["tasks"], indirect=True)
async def test_a_cancelled_connect_takes_no_place(open_pool, network, spawn, eventually, do, kind):
    pool = await open_pool(connection_class=network.connection_class)
    network.hold()
    call = spawn(pool.getconn, timeout=10.0)
    await eventually(lambda: network.in_flight == 1)
    call.cancel()
    await eventually(lambda: call.done)
    assert call.task.cancelled()
    assert pool.get_stats()["pool_size"] == 0
    network.release()
    await do(pool.putconn, await do(pool.getconn, timeout=1.0))


# Callbacks


async def test_configure_prepares_each_connection_before_it_is_lent(open_pool, callback, do):
    seen = []

    def configure(conn):
        seen.append((conn, conn._pool, conn.info.transaction_status))

    pool = await open_pool(configure=callback(configure))
    conns = []
    for _ in range(2):
        conns.append(await do(pool.getconn))
        await do(pool.putconn, conns[-1])
    idle = psycopg.pq.TransactionStatus.IDLE
    assert seen == [(conns[0], pool, idle), (conns[1], pool, idle)]


@pytest.mark.parametrize("kind", ["threads"], indirect=True)
async def test_configure_runs_in_the_borrowing_thread(open_pool, do, spawn, kind):
    threads = []
    pool = await open_pool(configure=lambda conn: threads.append(threading.current_thread()))
    call = spawn(pool.getconn, caller="the borrower")
    await do(pool.putconn, await call.result())
    assert [thread.name for thread in threads] == ["the borrower"]


async def test_what_configure_raises_is_what_the_client_gets(open_pool, callback, do, log):
    def configure(conn):
        raise LookupError("not prepared")

    pool = await open_pool(configure=callback(configure))
    with pytest.raises(LookupError, match="not prepared"):
        await do(pool.getconn, timeout=5.0)
    assert pool.get_stats()["pool_size"] == 0
    assert log.warnings() == []


async def test_configure_must_end_its_transaction(open_pool, callback, do):
    pool = await open_pool(configure=callback(lambda conn: conn.execute("select 1")))
    with pytest.raises(psycopg.ProgrammingError) as failure:
        await do(pool.getconn, timeout=5.0)
    text = str(failure.value)
    assert text.startswith("connection left in status INTRANS by configure function ")
    assert text.endswith(": discarded")
    assert pool.get_stats()["pool_size"] == 0


async def test_check_looks_at_each_connection_after_configure(open_pool, callback, do):
    calls = []
    pool = await open_pool(
        configure=callback(lambda conn: calls.append("configure")),
        check=callback(lambda conn: calls.append("check")),
    )
    await do(pool.putconn, await do(pool.getconn))
    assert calls == ["configure", "check"]


async def test_a_connection_that_fails_its_check_is_replaced_and_closed(
    open_pool, callback, do, log
):
    seen = []

    def check(conn):
        seen.append(conn)
        if len(seen) == 1:
            raise LookupError("not this one")

    pool = await open_pool(check=callback(check))
    conn = await do(pool.getconn, timeout=5.0)
    first, second = seen
    assert first is not conn is second
    assert first.closed
    assert "connection failed check: not this one" in log.texts()
    assert log.warnings() == []
    assert pool.get_stats()["pool_size"] == 1
    await do(pool.putconn, conn)


async def test_a_check_that_always_fails_ends_by_the_deadline(
    impl, open_pool, network, callback, spawn
):
    def check(conn):
        raise LookupError("none is good enough")

    pool = await open_pool(connection_class=network.connection_class, check=callback(check))
    call = spawn(pool.getconn, timeout=0.4)
    with pytest.raises(impl.PoolTimeout) as failure:
        await call.result(timeout=3.0)
    assert str(failure.value).startswith("couldn't get a connection after 0.40 sec")
    # The second at once, the third after a second.
    assert len(network.attempts) == 2
    assert pool.get_stats()["pool_size"] == 0


async def test_a_check_that_fails_often_is_retried_with_backoff(
    open_pool, network, callback, quick_backoff, spawn, do
):
    times = []

    def check(conn):
        times.append(time.monotonic())
        if len(times) < 4:
            raise LookupError("not yet")

    pool = await open_pool(connection_class=network.connection_class, check=callback(check))
    call = spawn(pool.getconn, timeout=5.0)
    conn = await call.result()
    assert len(network.attempts) == 4
    # About 20 ms, then 40; the connects come on top.
    assert times[2] - times[1] >= 0.017
    assert times[3] - times[2] >= 0.034
    await do(pool.putconn, conn)


async def test_check_connection_can_be_the_check(pool_class, open_pool, do, works):
    pool = await open_pool(check=pool_class.check_connection)
    conn = await do(pool.getconn)
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert await works(conn)
    await do(pool.putconn, conn)


@pytest.mark.parametrize("kind", ["tasks"], indirect=True)
async def test_callbacks_of_a_pool_for_tasks_are_coroutine_functions(open_pool, do, kind):
    pool = await open_pool(configure=lambda conn: None)
    with pytest.raises(TypeError, match="await"):
        await do(pool.getconn, timeout=5.0)
    assert pool.get_stats()["pool_size"] == 0


# At the maximum


async def test_at_the_maximum_one_waits_for_a_return(open_pool, do, waiter):
    pool = await open_pool()
    conn = await do(pool.getconn)
    call = await waiter(pool)
    await do(pool.putconn, conn)
    assert await call.result() is conn
    await do(pool.putconn, conn)


async def test_those_who_wait_are_served_in_their_order(open_pool, do, waiter):
    pool = await open_pool()
    conn = await do(pool.getconn)
    calls = [await waiter(pool) for _ in range(3)]
    for turn, call in enumerate(calls):
        await do(pool.putconn, conn)
        assert await call.result() is conn
        assert not any(later.done for later in calls[turn + 1 :])
    await do(pool.putconn, conn)


async def test_waiting_ends_by_the_deadline(impl, open_pool, do, spawn):
    pool = await open_pool()
    conn = await do(pool.getconn)
    start = time.monotonic()
    with pytest.raises(impl.PoolTimeout) as failure:
        await spawn(pool.getconn, timeout=0.2).result()
    assert 0.19 <= time.monotonic() - start < 2.0
    assert str(failure.value).startswith("couldn't get a connection after 0.20 sec")
    await do(pool.putconn, conn)


async def test_the_pools_timeout_is_the_default(impl, open_pool, do, spawn):
    pool = await open_pool(timeout=0.05)
    conn = await do(pool.getconn)
    with pytest.raises(impl.PoolTimeout, match=r"after 0\.05 sec"):
        await spawn(pool.getconn).result()
    await do(pool.putconn, conn)


@pytest.mark.parametrize("timeout", [0, -1.0])
@pytest.mark.parametrize("lent", [0, 1])
async def test_without_time_nothing_is_opened(impl, open_pool, network, do, timeout, lent):
    pool = await open_pool(connection_class=network.connection_class)
    conns = [await do(pool.getconn) for _ in range(lent)]
    with pytest.raises(impl.PoolTimeout) as failure:
        await do(pool.getconn, timeout=timeout)
    assert str(failure.value).startswith(f"couldn't get a connection after {timeout:.2f} sec")
    assert len(network.attempts) == lent
    for conn in conns:
        await do(pool.putconn, conn)


async def test_no_more_than_max_waiting_may_wait(impl, open_pool, do, waiter):
    pool = await open_pool(max_waiting=2)
    conn = await do(pool.getconn)
    calls = [await waiter(pool) for _ in range(2)]
    with pytest.raises(impl.TooManyRequests) as refusal:
        await do(pool.getconn, timeout=5.0)
    assert str(refusal.value) == "the pool 'p' has already 2 requests waiting"
    for call in calls:
        await do(pool.putconn, conn)
        await call.result()
    await do(pool.putconn, conn)


async def test_the_limit_of_waiters_says_nothing_while_there_is_room(open_pool, do):
    pool = await open_pool(max_size=2, max_waiting=1)
    conns = [await do(pool.getconn) for _ in range(2)]
    for conn in conns:
        await do(pool.putconn, conn)


@pytest.mark.parametrize("kind", ["tasks"], indirect=True)
async def test_a_cancelled_waiter_loses_nothing(open_pool, do, waiter, eventually, kind):
    pool = await open_pool()
    conn = await do(pool.getconn)
    call = await waiter(pool)
    call.cancel()
    await eventually(lambda: call.done)
    assert call.task.cancelled()
    await do(pool.putconn, conn)
    assert conn.closed
    assert pool.get_stats()["pool_size"] == 0
    await do(pool.putconn, await do(pool.getconn, timeout=1.0))
