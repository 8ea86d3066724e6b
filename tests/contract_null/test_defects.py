"""What psycopg_pool 3.3.3's null pools do wrong and fastpool's do right, a test or more for each.

Every test runs on both and must fail on psycopg_pool, in the way it names: where psycopg_pool
learns better, the test belongs into the contract. Whatever may hang is bounded by a timeout of
its own.
"""

import asyncio
import gc
import inspect
import math
import signal
import threading
import time
import warnings
from contextlib import suppress

import psycopg
import pytest
from shared.defects import FAILED, KEYS, defect

pytestmark = pytest.mark.anyio


threads_only = pytest.mark.parametrize("kind", ["threads"], indirect=True)
tasks_only = pytest.mark.parametrize("kind", ["tasks"], indirect=True)


# Connecting side by side


@defect("one connect at a time")
async def test_connects_go_side_by_side(open_pool, network, spawn, eventually, do):
    pool = await open_pool(max_size=4, connection_class=network.connection_class)
    network.hold()
    calls = [spawn(pool.getconn, timeout=5.0) for _ in range(4)]
    try:
        await eventually(lambda: network.in_flight == 4, timeout=0.5)
    finally:
        network.release()
        for call in calls:
            await do(pool.putconn, await call.result())


@defect("a connect keeps others from giving back", raises=TimeoutError)
async def test_a_return_does_not_wait_for_a_connect(open_pool, network, spawn, eventually, do):
    pool = await open_pool(max_size=2, connection_class=network.connection_class)
    conn = await do(pool.getconn)
    network.hold()
    call = spawn(pool.getconn, timeout=5.0)
    await eventually(lambda: network.in_flight == 1)
    try:
        await spawn(pool.putconn, conn).result(timeout=0.5)
    finally:
        network.release()
        await do(pool.putconn, await call.result())


@defect("a connect keeps the pool from closing", raises=TimeoutError)
async def test_closing_does_not_wait_for_a_connect(impl, open_pool, network, spawn, eventually, do):
    pool = await open_pool(connection_class=network.connection_class)
    network.hold()
    call = spawn(pool.getconn, timeout=10.0)
    await eventually(lambda: network.in_flight == 1)
    try:
        await spawn(pool.close, timeout=0.1).result(timeout=0.5)
    finally:
        network.release()
        with suppress(impl.PoolClosed):
            await do(pool.putconn, await call.result())
    assert pool.get_stats()["pool_size"] == 0


# The user's wishes


@pytest.mark.parametrize("place", ["kwargs", "address"])
@defect("the user's connect_timeout is overridden")
async def test_the_users_connect_timeout_is_honoured(open_pool, network, dsn, do, place):
    if place == "kwargs":
        pool = await open_pool(
            kwargs={"connect_timeout": 5}, connection_class=network.connection_class
        )
    else:
        pool = await open_pool(
            f"{dsn} connect_timeout=5", connection_class=network.connection_class
        )
    await do(pool.putconn, await do(pool.getconn, timeout=3.0))
    (attempt,) = network.attempts
    assert attempt.kwargs == ({"connect_timeout": 5} if place == "kwargs" else {})


@defect("the user's connect_timeout is overridden")
async def test_the_environments_connect_timeout_is_honoured(open_pool, network, do, monkeypatch):
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "5")
    pool = await open_pool(connection_class=network.connection_class)
    await do(pool.putconn, await do(pool.getconn, timeout=3.0))
    assert [attempt.kwargs for attempt in network.attempts] == [{}]


@defect("reconnect_failed is dropped, and the size falls below zero")
async def test_reconnect_failed_is_called_when_the_test_of_wait_is_given_up(
    impl, open_pool, network, callback, spawn, eventually, do, quick_backoff
):
    told = []
    pool = await open_pool(
        connection_class=network.connection_class,
        reconnect_timeout=0.05,
        reconnect_failed=callback(told.append),
    )
    network.down()
    call = spawn(pool.wait, timeout=0.5)
    try:
        await eventually(lambda: told, timeout=0.4)
    finally:
        await do(pool.close)
        with suppress(impl.PoolTimeout, impl.PoolClosed):
            await call.result()
    assert told[0] is pool
    assert pool.get_stats()["pool_size"] == 0


@defect("reconnect_failed is dropped")
async def test_reconnect_failed_is_called_when_a_replacement_is_given_up(
    open_pool, network, callback, waiter, do, break_connection, eventually, quick_backoff
):
    told = []
    pool = await open_pool(
        connection_class=network.connection_class,
        reconnect_timeout=0.05,
        reconnect_failed=callback(told.append),
    )
    conn = await do(pool.getconn)
    await break_connection(conn)
    await waiter(pool)
    network.down()
    await do(pool.putconn, conn)
    await eventually(lambda: told, timeout=0.5)
    assert told[0] is pool


@defect("who waits gets nothing when a replacement was given up", raises="PoolTimeout")
async def test_who_waits_is_served_though_a_replacement_was_given_up(
    open_pool, network, waiter, do, break_connection, eventually, quick_backoff, log
):
    pool = await open_pool(connection_class=network.connection_class, reconnect_timeout=0.05)
    conn = await do(pool.getconn)
    await break_connection(conn)
    call = await waiter(pool, timeout=0.8)
    network.down()
    await do(pool.putconn, conn)
    await eventually(lambda: any("reconnection attempt" in text for text in log.warnings()))
    network.up()
    await do(pool.putconn, await call.result())


@defect("conn.close() does not free the place", raises="PoolTimeout")
async def test_closing_a_connection_frees_its_place(open_pool, do, spawn):
    pool = await open_pool()
    conn = await do(pool.getconn)
    await do(conn.close)
    assert conn.closed
    await do(pool.putconn, await spawn(pool.getconn, timeout=0.5).result())
    assert pool.get_stats()["pool_size"] == 0


@defect("conn.close() does not reach those who wait", raises="PoolTimeout")
async def test_closing_a_connection_serves_who_waits(open_pool, do, waiter, works):
    pool = await open_pool()
    conn = await do(pool.getconn)
    call = await waiter(pool, timeout=0.5)
    await do(conn.close)
    again = await call.result()
    assert conn.closed
    assert again is not conn
    assert await works(again)
    await do(pool.putconn, again)


@defect("close() of a broken connection does not free the place", raises="PoolTimeout")
async def test_closing_a_broken_connection_frees_its_place(open_pool, do, spawn, break_connection):
    pool = await open_pool()
    conn = await do(pool.getconn)
    await break_connection(conn)
    await do(conn.close)
    again = await spawn(pool.getconn, timeout=0.5).result()
    # Its borrower may learn late, and give back what is no longer missed.
    await do(pool.putconn, conn)
    assert pool.get_stats()["pool_size"] == 1
    await do(pool.putconn, again)
    assert pool.get_stats()["pool_size"] == 0


# Those who gave up waiting


@defect("one who timed out stays in the queue")
async def test_one_who_timed_out_does_not_count_as_waiting(impl, open_pool, do, spawn):
    pool = await open_pool()
    conn = await do(pool.getconn)
    with pytest.raises(impl.PoolTimeout):
        await spawn(pool.getconn, timeout=0.02).result()
    assert pool.get_stats()["requests_waiting"] == 0
    await do(pool.putconn, conn)


@defect("one who timed out counts against max_waiting", raises=FAILED)
async def test_one_who_timed_out_takes_no_place_in_the_queue(impl, open_pool, do, spawn):
    pool = await open_pool(max_waiting=1)
    conn = await do(pool.getconn)
    for _ in range(3):
        try:
            await spawn(pool.getconn, timeout=0.02).result()
        except impl.PoolTimeout:
            continue
        except impl.TooManyRequests:
            pytest.fail("the queue is empty, but full")
    await do(pool.putconn, conn)


@tasks_only
@defect("one who was cancelled stays in the queue")
async def test_one_who_was_cancelled_does_not_count_as_waiting(
    open_pool, do, waiter, eventually, kind
):
    pool = await open_pool()
    conn = await do(pool.getconn)
    call = await waiter(pool)
    call.cancel()
    await eventually(lambda: call.done)
    assert pool.get_stats()["requests_waiting"] == 0
    await do(pool.putconn, conn)


class Interrupted(BaseException):
    """Raised in the main thread while it waits, as KeyboardInterrupt would be."""


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
@threads_only
@defect("an exception out of the wait leaves a waiter that swallows a connection")
async def test_an_interrupted_wait_loses_no_connection(open_pool, do, kind):
    def interrupt(number, frame):
        raise Interrupted

    def interrupt_the_waiter():
        deadline = time.monotonic() + 5.0
        while not pool.get_stats()["requests_waiting"] and time.monotonic() < deadline:
            time.sleep(0.005)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR2)

    pool = await open_pool()
    conn = await do(pool.getconn)
    before = signal.signal(signal.SIGUSR2, interrupt)
    try:
        threading.Thread(target=interrupt_the_waiter, daemon=True).start()
        with pytest.raises(Interrupted):
            pool.getconn(timeout=5.0)
    finally:
        signal.signal(signal.SIGUSR2, before)
    pool.putconn(conn)
    assert conn.closed
    assert pool.get_stats()["pool_size"] == 0


# Cancelled returns


@tasks_only
@defect("a return cancelled while somebody connects is forgotten")
async def test_a_cancelled_return_loses_no_place(open_pool, network, spawn, eventually, do, kind):
    pool = await open_pool(max_size=2, connection_class=network.connection_class)
    conn = await do(pool.getconn)
    network.hold()
    call = spawn(pool.getconn, timeout=5.0)
    await eventually(lambda: network.in_flight == 1)
    returning = spawn(pool.putconn, conn)
    await asyncio.sleep(0)  # it has begun, and it may have ended
    returning.cancel()
    await eventually(lambda: returning.done)
    network.release()
    await do(pool.putconn, await call.result())
    await eventually(lambda: pool.get_stats()["pool_size"] == 0, timeout=0.5)
    assert conn.closed


@tasks_only
@defect("a return swallows its cancellation")
async def test_a_return_cancelled_in_its_rollback_serves_who_waits(
    open_pool, network, spawn, waiter, eventually, do, kind
):
    rolling_back = asyncio.Event()

    class Slow(network.connection_class):
        async def rollback(self):
            rolling_back.set()
            await asyncio.sleep(10.0)

    pool = await open_pool(connection_class=Slow)
    conn = await do(pool.getconn)
    await do(conn.execute, "select 1")
    call = await waiter(pool, timeout=1.0)
    returning = spawn(pool.putconn, conn)
    await asyncio.wait_for(rolling_back.wait(), timeout=5.0)
    returning.cancel()
    await eventually(lambda: returning.done)
    again = await call.result()
    assert again is not conn
    assert conn.closed
    await do(pool.putconn, again)
    assert returning.task.cancelled()


# Returning twice


@defect("while a reset is pending a second putconn is accepted", raises=FAILED)
async def test_a_second_putconn_is_refused_while_reset_runs(
    open_pool, do, waiter, callback, eventually
):
    running, go_on = threading.Event(), threading.Event()

    def reset(conn):
        running.set()
        return until(go_on, inspect.iscoroutinefunction(conn.execute))

    pool = await open_pool(reset=callback(reset))
    conn = await do(pool.getconn)
    call = await waiter(pool)
    await do(pool.putconn, conn)
    await eventually(running.is_set)
    try:
        with pytest.raises(ValueError, match="doesn't come from any pool"):
            await do(pool.putconn, conn)
    finally:
        go_on.set()
        # psycopg_pool has closed by now what it hands to the next.
        again = await call.result()
        with suppress(ValueError):
            await do(pool.putconn, again)


def until(gate, as_task):
    """Wait at a gate for up to five seconds: here, or as something to be awaited."""

    async def poll():
        for _ in range(1000):
            if gate.is_set():
                return
            await asyncio.sleep(0.005)

    return poll() if as_task else gate.wait(5.0)


@defect("a connection returned twice is closed for who gets it next")
async def test_a_connection_returned_twice_is_not_closed_for_the_next(
    open_pool, do, waiter, callback, eventually, works
):
    running, go_on = threading.Event(), threading.Event()

    def reset(conn):
        running.set()
        return until(go_on, inspect.iscoroutinefunction(conn.execute))

    pool = await open_pool(reset=callback(reset))
    conn = await do(pool.getconn)
    call = await waiter(pool)
    await do(pool.putconn, conn)
    await eventually(running.is_set)
    with suppress(ValueError):
        await do(pool.putconn, conn)
    go_on.set()
    again = await call.result()
    for _ in range(20):  # the second return, where it is taken, ends after the first
        assert not again.closed
        await asyncio.sleep(0.005)
    assert await works(again)
    await do(pool.putconn, again)


# wait()


@defect("a second wait() at the same time is an error")
async def test_two_may_wait_at_once(open_pool, network, spawn, eventually, log):
    pool = await open_pool(connection_class=network.connection_class)
    network.hold()
    first = spawn(pool.wait, timeout=2.0)
    await eventually(lambda: network.in_flight == 1)
    log.clear()
    second = spawn(pool.wait, timeout=2.0)
    await eventually(lambda: second.done or log.texts())
    # Nothing has shown yet that connecting works.
    assert not first.done
    assert not second.done
    network.release()
    await first.result()
    await second.result()


@tasks_only
@defect("a cancelled wait() spoils the next")
async def test_a_cancelled_wait_spoils_nothing(open_pool, network, spawn, eventually, do, kind):
    pool = await open_pool(connection_class=network.connection_class)
    network.hold()
    call = spawn(pool.wait, timeout=5.0)
    await eventually(lambda: network.in_flight == 1)
    call.cancel()
    await eventually(lambda: call.done)
    assert call.task.cancelled()
    network.release()
    await do(pool.wait, timeout=2.0)
    await eventually(lambda: pool.get_stats()["pool_size"] == 0)


@defect("the connection that wait() makes is lent beyond the maximum", raises="PoolTimeout")
async def test_wait_serves_nobody_beyond_the_maximum(open_pool, do, spawn, waiter):
    pool = await open_pool()
    conn = await do(pool.getconn)
    call = await waiter(pool)
    await spawn(pool.wait, timeout=0.5).result()
    assert not call.done
    assert not pool.closed
    await do(pool.putconn, conn)
    await do(pool.putconn, await call.result())
    assert pool.get_stats()["pool_size"] == 0


# Time


@defect("an endless timeout overflows", raises=OverflowError)
async def test_one_with_no_deadline_connects(open_pool, do):
    pool = await open_pool()
    await do(pool.putconn, await do(pool.getconn, timeout=math.inf))


@threads_only
@defect("an endless timeout overflows", raises=OverflowError)
async def test_one_may_wait_without_end(open_pool, do, waiter, kind):
    pool = await open_pool()
    conn = await do(pool.getconn)
    # psycopg_pool's waiter stays in the queue when the call has failed.
    call = await waiter(pool, timeout=math.inf)
    await do(pool.putconn, conn)
    await do(pool.putconn, await call.result())


# Closing


@defect("those who wait learn of the close after the workers have ended", raises=TimeoutError)
async def test_closing_fails_those_who_wait_though_a_connect_is_stuck(
    impl, open_pool, network, spawn, waiter, do, break_connection, eventually
):
    pool = await open_pool(connection_class=network.connection_class)
    conn = await do(pool.getconn)
    await break_connection(conn)
    call = await waiter(pool, timeout=10.0)
    network.hold()
    await do(pool.putconn, conn)
    await eventually(lambda: network.in_flight == 1)
    closing = spawn(pool.close, timeout=3.0)
    try:
        with pytest.raises(impl.PoolClosed):
            await call.result(timeout=0.5)
    finally:
        network.release()
        await closing.result()


@defect("wait() does not learn of the close", raises=TimeoutError)
async def test_closing_fails_a_wait(impl, open_pool, network, spawn, eventually):
    pool = await open_pool(connection_class=network.connection_class)
    network.hold()
    call = spawn(pool.wait, timeout=5.0)
    await eventually(lambda: network.in_flight == 1)
    closing = spawn(pool.close, timeout=2.0)
    try:
        with pytest.raises(impl.PoolClosed):
            await call.result(timeout=0.5)
    finally:
        network.release()
        await closing.result()


@defect("a connection that waits for its reset when the pool closes is left open")
async def test_closing_closes_what_waits_for_its_reset(
    impl, open_pool, do, waiter, callback, eventually
):
    running, go_on = threading.Event(), threading.Event()

    def reset(conn):
        running.set()
        return until(go_on, inspect.iscoroutinefunction(conn.execute))

    pool = await open_pool(max_size=2, num_workers=1, reset=callback(reset))
    conns = [await do(pool.getconn) for _ in range(2)]
    calls = [await waiter(pool) for _ in range(2)]
    for conn in conns:
        await do(pool.putconn, conn)
    await eventually(running.is_set)
    await do(pool.close, timeout=0.05)
    go_on.set()
    try:
        await eventually(lambda: all(conn.closed for conn in conns), timeout=0.5)
    finally:
        for conn in conns:
            conn._pool = None
            await do(conn.close)
        for call in calls:
            with pytest.raises(impl.PoolClosed):
                await call.result()


# Sizes


@tasks_only
@pytest.mark.parametrize("upkeep", ["resize", "drain"])
@defect("a pool for tasks fails before open()", raises=AttributeError)
async def test_upkeep_before_open_spoils_nothing(impl, new_pool, do, upkeep, kind):
    pool = new_pool()
    if upkeep == "resize":
        await do(pool.resize, 0, 2)
    else:
        with suppress(impl.PoolClosed):
            await do(pool.drain)
    assert pool.get_stats()["pool_size"] == 0
    await do(pool.open)
    await do(pool.putconn, await do(pool.getconn, timeout=1.0))
    assert pool.max_size == (2 if upkeep == "resize" else 1)


@defect("a larger max_size does not reach those who wait", raises="PoolTimeout")
async def test_a_larger_maximum_serves_those_who_wait(open_pool, do, waiter):
    pool = await open_pool()
    conn = await do(pool.getconn)
    call = await waiter(pool, timeout=0.5)
    await do(pool.resize, 0, 2)
    await do(pool.putconn, await call.result())
    await do(pool.putconn, conn)


@defect("a connection beyond max_size is handed on")
async def test_a_connection_beyond_a_smaller_maximum_is_closed(open_pool, do, waiter):
    pool = await open_pool(max_size=2)
    conns = [await do(pool.getconn) for _ in range(2)]
    await do(pool.resize, 0, 1)
    call = await waiter(pool)
    await do(pool.putconn, conns[0])
    size = pool.get_stats()["pool_size"]
    await do(pool.putconn, conns[1])
    await do(pool.putconn, await call.result())
    assert size == 1


@defect("a connection collected while lent is lost", raises="PoolTimeout")
async def test_a_lent_connection_that_is_collected_frees_its_place(open_pool, do, spawn):
    pool = await open_pool()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        conn = await do(pool.getconn)
        del conn
        gc.collect()
        again = await spawn(pool.getconn, timeout=0.5).result()
    await do(pool.putconn, again)
    assert pool.get_stats()["pool_size"] == 0
    assert ResourceWarning in [warning.category for warning in caught]


@defect("a connection collected while lent does not reach those who wait", raises="PoolTimeout")
async def test_a_lent_connection_that_is_collected_serves_who_waits(open_pool, do, waiter):
    pool = await open_pool()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        conn = await do(pool.getconn)
        call = await waiter(pool, timeout=2.0)
        del conn
        gc.collect()
        await do(pool.putconn, await call.result())
    assert pool.get_stats()["pool_size"] == 0


# Counting


@defect("each connect is cut to whole milliseconds")
async def test_many_short_connects_add_up(open_pool, network, do, kind):
    times = []

    class ForThreads(network.connection_class):
        @classmethod
        def connect(cls, *args, **kwargs):
            start = time.perf_counter()
            conn = super().connect(*args, **kwargs)
            times.append(time.perf_counter() - start)
            return conn

    class ForTasks(network.connection_class):
        @classmethod
        async def connect(cls, *args, **kwargs):
            start = time.perf_counter()
            conn = await super().connect(*args, **kwargs)
            times.append(time.perf_counter() - start)
            return conn

    pool = await open_pool(connection_class=ForThreads if kind == "threads" else ForTasks)
    for _ in range(50):
        await do(pool.putconn, await do(pool.getconn))
    assert pool.get_stats()["connections_ms"] >= sum(times) * 1000 - 1


@defect("a key is missing while its value is zero")
async def test_every_key_is_always_there(new_pool, do):
    pool = new_pool()
    assert set(pool.get_stats()) >= KEYS
    await do(pool.open)
    await do(pool.putconn, await do(pool.getconn))
    pool.pop_stats()
    assert set(pool.get_stats()) >= KEYS
    await do(pool.close)
    assert set(pool.get_stats()) >= KEYS


# Telling why


@defect("a timeout tells only how long it waited")
async def test_a_timeout_tells_who_holds_what(impl, kind, open_pool, do, spawn, pid):
    here, now = threading.current_thread(), asyncio.current_task()
    holder = here.name if kind == "threads" else now.get_name()
    pool = await open_pool(max_size=2)
    conns = [await do(pool.getconn) for _ in range(2)]
    parts = ["2 of at most 2", "2 in use", "waiting", holder]
    parts += [str(pid(conn)) for conn in conns]
    with pytest.raises(impl.PoolTimeout) as failure:
        await spawn(pool.getconn, timeout=0.1).result()
    for conn in conns:
        await do(pool.putconn, conn)
    text = str(failure.value)
    assert text.startswith("couldn't get a connection after 0.10 sec")
    for part in parts:
        assert part in text


@defect("a timeout does not tell what the connect met")
async def test_a_timeout_tells_what_the_connect_met(impl, open_pool, network, do):
    pool = await open_pool(connection_class=network.connection_class)
    network.down(psycopg.errors.ConnectionTimeout("no answer from the server"))
    with pytest.raises(impl.PoolTimeout) as failure:
        await do(pool.getconn, timeout=2.0)
    text = str(failure.value)
    assert text.startswith("couldn't get a connection after 2.00 sec")
    assert "no answer from the server" in text


# Threads and tasks


@defect("each idle pool keeps its threads or tasks")
async def test_idle_pools_share_one_thread_and_have_no_task(open_pool, do, eventually):
    def at_work():
        return {*threading.enumerate(), *asyncio.all_tasks()}

    before = at_work()
    for name in ("one", "other"):
        pool = await open_pool(name=name)
        await do(pool.wait, timeout=5.0)
        await do(pool.putconn, await do(pool.getconn))
    await eventually(lambda: len(at_work() - before) <= 1, timeout=0.5)
    assert not asyncio.all_tasks() - before
