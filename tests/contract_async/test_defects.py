"""What psycopg_pool 3.3.3's async pool does wrong and fastpool's does right.

Every test runs on both and must fail on psycopg_pool, in the way it names: where psycopg_pool
learns better, the test belongs into the contract. Whatever may hang is bounded by a timeout of
its own; what may keep asyncio.run() from ending runs in an interpreter of its own.
"""

import asyncio
import gc
import random
import subprocess
import sys
import textwrap
import time
import warnings
from contextlib import suppress

import psycopg
import pytest
from driver import VERSION, needs_cancellations
from shared.defects import FAILED, KEYS, defect

pytestmark = pytest.mark.anyio


# Before Python 3.12 asyncio.wait_for() ran what it waited for in a task of its own.
WAIT_FOR_MAKES_A_TASK = sys.version_info < (3, 12)


async def borrow_and_return(pool, timeout=1.0):
    await pool.putconn(await pool.getconn(timeout=timeout))


# Those who gave up waiting


@defect("one who timed out stays in the queue")
async def test_one_who_timed_out_does_not_count_as_waiting(impl, open_pool):
    pool = await open_pool()
    conn = await pool.getconn()
    with pytest.raises(impl.PoolTimeout):
        await pool.getconn(timeout=0.02)
    assert pool.get_stats()["requests_waiting"] == 0
    await pool.putconn(conn)


@defect("those who are cancelled stay in the queue")
async def test_those_who_are_cancelled_do_not_count_as_waiting(open_pool, spawn, waiting):
    pool = await open_pool()
    conn = await pool.getconn()
    calls = [spawn(pool.getconn(timeout=5.0)) for _ in range(50)]
    await waiting(pool, 50)
    for call in calls:
        await call.cancel()
    assert pool.get_stats()["requests_waiting"] == 0
    await pool.putconn(conn)


@defect("one who timed out counts against max_waiting", raises="TooManyRequests")
async def test_one_who_timed_out_takes_no_place_in_the_queue(impl, open_pool):
    pool = await open_pool(max_waiting=1)
    conn = await pool.getconn()
    for _ in range(3):
        with pytest.raises(impl.PoolTimeout):
            await pool.getconn(timeout=0.02)
    await pool.putconn(conn)


@defect("one who was cancelled counts against max_waiting", raises="TooManyRequests")
async def test_one_who_was_cancelled_takes_no_place_in_the_queue(open_pool, spawn, waiting):
    pool = await open_pool(max_waiting=1)
    conn = await pool.getconn()
    first = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 1)
    await first.cancel()
    second = spawn(pool.getconn(timeout=5.0))
    # Time enough to be refused, or to queue.
    await asyncio.sleep(0.01)
    await pool.putconn(conn)
    await pool.putconn(await second.result())


class Interrupted(BaseException):
    """Thrown into a waiting coroutine, as a loop does that ends by KeyboardInterrupt."""


@defect("an exception out of the wait leaves a waiter that swallows a connection")
@pytest.mark.parametrize("end", ["throw", "close"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_interrupted_wait_loses_no_connection(open_pool, end):
    loop = asyncio.get_running_loop()
    pool = await open_pool()
    conn = await pool.getconn()
    request = pool.getconn(timeout=5.0)
    request.send(None)
    # What psycopg_pool leaves behind complains to the loop.
    loop.set_exception_handler(lambda loop, context: None)
    if end == "throw":
        with pytest.raises(Interrupted):
            request.throw(Interrupted())
    else:
        request.close()
    await asyncio.sleep(0.01)
    await pool.putconn(conn)
    assert pool.get_stats()["pool_available"] == 1


# Cancelling


@defect("a cancelled putconn loses the connection", condition=WAIT_FOR_MAKES_A_TASK)
async def test_a_putconn_cancelled_while_somebody_begins_to_wait_loses_nothing(open_pool, spawn):
    pool = await open_pool()
    conn = await pool.getconn()
    waiter = spawn(pool.getconn(timeout=0.5))
    returning = spawn(pool.putconn(conn))
    await asyncio.sleep(0)
    returning.task.cancel()
    with suppress(asyncio.CancelledError):
        await returning.result()
    with suppress(psycopg.OperationalError):
        await pool.putconn(await waiter.result())
    assert pool.get_stats()["pool_available"] == 1


@defect("a waiter that has been given a connection swallows it", condition=WAIT_FOR_MAKES_A_TASK)
async def test_one_who_is_cancelled_with_a_connection_in_reach_is_cancelled(
    open_pool, spawn, waiting, eventually
):
    pool = await open_pool()
    conn = await pool.getconn()
    call = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 1)
    await pool.putconn(conn)
    await call.cancel()
    await eventually(lambda: pool.get_stats()["pool_available"] == 1)
    assert await pool.getconn() is conn
    await pool.putconn(conn)


@defect("a waiter that has been given a connection swallows it", condition=WAIT_FOR_MAKES_A_TASK)
async def test_what_was_given_to_one_who_is_cancelled_goes_to_the_next(open_pool, spawn, waiting):
    pool = await open_pool()
    conn = await pool.getconn()
    first = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 1)
    second = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 2)
    await pool.putconn(conn)
    await first.cancel()
    assert await second.result() is conn
    await pool.putconn(conn)


@needs_cancellations
@defect("a cancelled rollback is taken for a failed one")
@pytest.mark.parametrize("way", ["putconn", "close"])
async def test_a_return_that_is_cancelled_in_its_rollback_is_cancelled(
    open_pool, network, spawn, way, works
):
    rolling_back = asyncio.Event()

    class Slow(network.connection_class):
        async def rollback(self):
            rolling_back.set()
            await asyncio.Event().wait()

    async def borrow():
        conn = await pool.getconn()
        await conn.execute("select 1")
        await (conn.close() if way == "close" else pool.putconn(conn))

    pool = await open_pool(connection_class=Slow, close_returns=True)
    call = spawn(borrow())
    await rolling_back.wait()
    await call.cancel()
    async with pool.connection(timeout=5.0) as again:
        assert await works(again)
    assert pool.get_stats()["pool_size"] == 1


@defect("a cancelled check is taken for a failed one")
async def test_a_cancelled_check_is_cancelled_and_keeps_what_is_well(
    impl, open_pool, spawn, eventually
):
    checking = asyncio.Event()

    class Thorough(impl.AsyncConnectionPool):
        @staticmethod
        async def check_connection(conn):
            if not checking.is_set():
                checking.set()
                await asyncio.Event().wait()

    pool = await open_pool(cls=Thorough, min_size=2)
    call = spawn(pool.check())
    await checking.wait()
    await call.cancel()
    await eventually(lambda: pool.get_stats()["pool_available"] == 2)


async def cancel_at_random(use, seed):
    """Run *use* in many tasks and cancel many of them: how many went on all the same."""
    chance = random.Random(seed)
    went_on = 0
    for _ in range(40):
        tasks = [asyncio.ensure_future(use()) for _ in range(16)]
        asked = set()
        for _ in range(2000):
            task = chance.choice(tasks)
            if chance.random() < 0.5 and not task.done():
                task.cancel()
                asked.add(task)
            await asyncio.sleep(0)
            if all(task.done() for task in tasks):
                break
        done, _ = await asyncio.wait(tasks, timeout=10.0)
        went_on += sum(not task.cancelled() for task in asked & done)
        for task in done - asked:
            task.result()
    return went_on


@defect("slots are lost, cancellations swallowed", condition=WAIT_FOR_MAKES_A_TASK, at_times=True)
@pytest.mark.parametrize("callback", ["none", "check", "reset"])
@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_lost_however_tasks_are_cancelled(open_pool, eventually, callback, seed):
    async def pause(conn):
        await asyncio.sleep(0)

    async def use():
        conn = await pool.getconn(timeout=5.0)
        try:
            await asyncio.sleep(0)
        finally:
            await pool.putconn(conn)

    pool = await open_pool(min_size=4, **({} if callback == "none" else {callback: pause}))
    assert await cancel_at_random(use, seed) == 0
    await eventually(lambda: pool.get_stats()["pool_available"] == 4, timeout=2.0)
    stats = pool.get_stats()
    assert (stats["pool_size"], stats["requests_waiting"]) == (4, 0)


@needs_cancellations
@defect("cancellations are swallowed in rollbacks", at_times=True)
@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_lost_however_transactions_are_cancelled(open_pool, eventually, seed):
    async def use():
        conn = await pool.getconn(timeout=5.0)
        try:
            await conn.execute("select 1")
        finally:
            await pool.putconn(conn)

    pool = await open_pool(min_size=4)
    assert await cancel_at_random(use, seed) == 0
    await eventually(lambda: pool.get_stats()["pool_available"] == 4, timeout=2.0)
    stats = pool.get_stats()
    assert (stats["pool_size"], stats["requests_waiting"]) == (4, 0)


# Dead connections


@defect("a sleep after each stale connection uses up the time", raises="PoolTimeout")
async def test_stale_connections_do_not_use_up_the_timeout(impl, open_pool, end_session, works):
    pool = await open_pool(min_size=6, check=impl.AsyncConnectionPool.check_connection)
    for conn in list(pool._pool):
        end_session(conn)
    async with pool.connection(timeout=1.0) as conn:
        assert await works(conn)


@defect("a check that closes the connection has it lent", raises=FAILED)
async def test_a_check_that_closes_the_connection_has_failed(impl, open_pool):
    async def check(conn):
        await conn.close()

    pool = await open_pool(check=check)
    with pytest.raises(impl.PoolTimeout, match="the check function closed"):
        await pool.getconn(timeout=0.2)


@defect("an expired idle connection is lent")
async def test_an_expired_idle_connection_is_not_lent(open_pool, eventually, pid):
    pool = await open_pool(max_lifetime=0.1)
    (conn,) = pool._pool
    # A pool's clock may run some milliseconds behind.
    session, expired = pid(conn), conn._expire_at + 0.02
    await eventually(lambda: time.monotonic() > expired)
    async with pool.connection(timeout=5.0) as again:
        assert pid(again) != session


@defect(
    "closing a broken connection never reaches the pool",
    raises="PoolTimeout",
    condition=VERSION >= (3, 3),
)
async def test_closing_a_broken_connection_frees_its_place(
    impl, open_pool, break_connection, works
):
    pool = await open_pool(close_returns=True)
    dead = await pool.getconn()
    await break_connection(dead)
    await dead.close()
    conn = await pool.getconn(timeout=1.0)
    assert await works(conn)
    await conn.close()
    # Its borrower may learn late, and give back what is no longer missed.
    await pool.putconn(dead)
    assert pool.get_stats()["pool_size"] == 1


@defect("a connection collected while lent is lost", raises="PoolTimeout")
async def test_a_lent_connection_that_is_collected_is_replaced(impl, open_pool, works):
    pool = await open_pool()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        conn = await pool.getconn()
        del conn
        gc.collect()
        again = await pool.getconn(timeout=0.5)
    assert await works(again)
    await again.rollback()
    await pool.putconn(again)
    assert pool.get_stats()["pool_size"] == 1
    told = [warning for warning in caught if warning.category is ResourceWarning]
    assert ["'p'" in str(warning.message) for warning in told] == [True]


@defect("a connection collected while lent is lost", raises="PoolTimeout")
async def test_a_lent_connection_that_another_thread_collects_is_replaced(open_pool, works):
    pool = await open_pool()
    conn = await pool.getconn()
    gc.disable()
    try:
        cycle = [conn]
        cycle.append(cycle)
        del conn, cycle
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            await asyncio.to_thread(gc.collect)
    finally:
        gc.enable()
    async with pool.connection(timeout=0.5) as again:
        assert await works(again)


@defect("a second close() closes the idle connection")
async def test_a_second_close_leaves_the_idle_connection_alone(open_pool, works):
    pool = await open_pool(close_returns=True)
    conn = await pool.getconn()
    await conn.close()
    await conn.close()
    async with pool.connection(timeout=1.0) as again:
        assert not again.closed
        assert await works(again)


@defect("leaving a block closes the idle connection, and fails", raises=ValueError)
async def test_a_connection_may_be_closed_in_its_block(open_pool, works):
    pool = await open_pool(close_returns=True)
    async with pool.connection() as conn:
        await conn.close()
    async with pool.connection(timeout=1.0) as again:
        assert await works(again)


# Returning twice


@defect("while a reset is pending a second putconn is accepted", raises=FAILED)
async def test_a_second_putconn_is_refused_while_reset_runs(open_pool):
    running, go_on = asyncio.Event(), asyncio.Event()

    async def reset(conn):
        running.set()
        await go_on.wait()

    pool = await open_pool(max_size=2, reset=reset)
    conn = await pool.getconn()
    await pool.putconn(conn)
    await running.wait()
    try:
        with pytest.raises(ValueError, match="doesn't come from any pool"):
            await pool.putconn(conn)
    finally:
        go_on.set()


@defect("a connection returned twice is lent to two")
async def test_a_connection_returned_twice_is_lent_once(open_pool, eventually):
    async def reset(conn):
        await asyncio.sleep(0)

    pool = await open_pool(max_size=2, reset=reset)
    conn = await pool.getconn()
    await pool.putconn(conn)
    with suppress(ValueError):
        await pool.putconn(conn)
    await eventually(lambda: conn._pool is None)
    await pool.wait(timeout=1.0)
    one, other = await pool.getconn(timeout=1.0), await pool.getconn(timeout=1.0)
    assert one is not other
    await pool.putconn(one)
    await pool.putconn(other)


@defect("two tasks can return one connection at once")
async def test_of_two_tasks_returning_one_connection_one_is_refused(
    open_pool, network, spawn, eventually
):
    entered, go_on = [], asyncio.Event()

    class Slow(network.connection_class):
        async def rollback(self):
            entered.append(asyncio.current_task())
            await go_on.wait()
            await super().rollback()

    pool = await open_pool(connection_class=Slow)
    conn = await pool.getconn()
    await conn.execute("select 1")
    first = spawn(pool.putconn(conn))
    await eventually(lambda: len(entered) == 1)
    second = spawn(pool.putconn(conn))
    # Either it has been refused, or it's in the same rollback.
    await eventually(lambda: second.done or len(entered) == 2)
    go_on.set()
    await first.result()
    with suppress(ValueError):
        await second.result()
    assert pool.get_stats()["pool_available"] == 1


@defect("a broken connection returned twice is replaced twice")
async def test_a_broken_connection_returned_twice_is_replaced_once(
    open_pool, network, break_connection, eventually
):
    pool = await open_pool(max_size=2, connection_class=network.connection_class)
    conn = await pool.getconn()
    await break_connection(conn)
    network.hold()
    await pool.putconn(conn)
    with suppress(ValueError):
        await pool.putconn(conn)
    network.release()
    await eventually(lambda: network.in_flight == 0 and pool.get_stats()["pool_available"] >= 1)
    stats = pool.get_stats()
    assert (stats["returns_bad"], stats["pool_available"]) == (1, 1)


# Sizes


@defect("resize() adds what min_size grew by to whatever is there")
async def test_resize_of_a_grown_pool_stays_within_max_size(full_pool):
    pool = await full_pool(max_size=4)
    await pool.resize(4, 4)
    assert pool.get_stats()["pool_size"] == 4


@defect("check() makes the pool grow")
async def test_check_makes_no_connection_more(open_pool):
    pool = await open_pool(max_size=4)
    for _ in range(3):
        await pool.check()
    assert pool.get_stats()["pool_size"] == 1


@defect("check() takes every idle connection away", raises="PoolTimeout")
async def test_a_request_is_served_while_check_runs(impl, open_pool, spawn):
    checking, go_on = asyncio.Event(), asyncio.Event()

    class Thorough(impl.AsyncConnectionPool):
        @staticmethod
        async def check_connection(conn):
            checking.set()
            await go_on.wait()

    pool = await open_pool(cls=Thorough, min_size=2)
    call = spawn(pool.check())
    await checking.wait()
    try:
        await pool.putconn(await pool.getconn(timeout=0.2))
    finally:
        go_on.set()
        await call.result()


@defect("a larger max_size does not reach those who wait", raises="PoolTimeout")
async def test_a_larger_max_size_serves_those_who_wait(open_pool, spawn, waiting):
    pool = await open_pool()
    conn = await pool.getconn()
    call = spawn(pool.getconn(timeout=0.5))
    await waiting(pool, 1)
    await pool.resize(1, 2)
    await pool.putconn(await call.result())
    await pool.putconn(conn)


@defect("resize() fails before open()", raises=AttributeError)
async def test_a_pool_resized_before_it_is_opened_opens_at_its_new_size(new_pool):
    pool = new_pool()
    await pool.resize(3, 4)
    await pool.open(wait=True, timeout=5.0)
    stats = pool.get_stats()
    assert (stats["pool_size"], stats["pool_available"]) == (3, 3)


@defect("resize() fails before open()", raises=AttributeError)
async def test_a_pool_made_smaller_before_it_is_opened_opens_smaller(new_pool):
    pool = new_pool(min_size=3)
    await pool.resize(1, 3)
    assert pool.get_stats()["pool_size"] == 1
    await pool.open(wait=True, timeout=5.0)
    assert pool.get_stats()["connections_num"] == 1


@pytest.mark.parametrize("upkeep", ["check", "drain"])
@defect("check() and drain() fail before open()", raises=AttributeError)
async def test_upkeep_before_open_spoils_nothing(impl, new_pool, upkeep):
    pool = new_pool(max_size=4)
    with suppress(impl.PoolClosed):
        await getattr(pool, upkeep)()
    assert pool.get_stats()["pool_size"] == 1
    await pool.open(wait=True, timeout=5.0)
    assert pool.get_stats()["pool_available"] == 1


# Waiting


@defect("a second wait() at the same time is an error")
async def test_two_tasks_may_wait_until_the_pool_is_full(new_pool, network, spawn, log, eventually):
    network.hold()
    pool = new_pool(connection_class=network.connection_class)
    await pool.open()
    calls = [spawn(pool.wait(timeout=2.0)) for _ in range(2)]
    started = "waiting for pool 'p' initialization"
    await eventually(lambda: log.texts().count(started) == 2 or any(call.done for call in calls))
    network.release()
    for call in calls:
        await call.result()


@defect("a cancelled wait() breaks the next")
async def test_one_may_wait_again_after_a_cancelled_wait(open_pool, spawn, log, eventually):
    pool = await open_pool()
    conn = await pool.getconn()
    log.clear()
    call = spawn(pool.wait(timeout=5.0))
    await eventually(lambda: log.has("INFO", "waiting for pool"))
    await call.cancel()
    again = spawn(pool.wait(timeout=5.0))
    await asyncio.sleep(0)
    await pool.putconn(conn)
    await again.result()


@defect("getconn(timeout=0) never looks", raises="PoolTimeout")
async def test_no_time_to_wait_is_enough_for_what_is_idle(open_pool):
    pool = await open_pool()
    await pool.putconn(await pool.getconn(timeout=0))


# Closing


@defect("those who wait learn of the close after the workers have ended", raises=TimeoutError)
async def test_closing_fails_those_who_wait_though_a_connect_is_stuck(
    impl, new_pool, network, spawn, waiting, eventually
):
    network.hold()
    pool = new_pool(connection_class=network.connection_class)
    await pool.open()
    await eventually(lambda: network.in_flight == 1)
    call = spawn(pool.getconn(timeout=10.0))
    await waiting(pool, 1)
    closing = spawn(pool.close(timeout=5.0))
    try:
        with pytest.raises(impl.PoolClosed):
            await call.result(timeout=0.5)
    finally:
        network.release()
        await closing.result()


@defect("wait() does not learn of the close", raises="PoolTimeout")
async def test_closing_fails_a_wait_until_full(impl, open_pool, spawn, eventually, log):
    pool = await open_pool()
    conn = await pool.getconn()
    log.clear()
    call = spawn(pool.wait(timeout=0.5))
    await eventually(lambda: log.texts())
    await pool.close()
    with pytest.raises(impl.PoolClosed):
        await call.result()
    await pool.putconn(conn)


@defect("a connection that waits for its reset when the pool closes is left open")
async def test_closing_closes_what_waits_for_its_reset(open_pool, eventually):
    running, go_on = asyncio.Event(), asyncio.Event()

    async def reset(conn):
        running.set()
        await go_on.wait()

    pool = await open_pool(min_size=2, num_workers=1, reset=reset)
    conns = [await pool.getconn() for _ in range(2)]
    for conn in conns:
        await pool.putconn(conn)
    await running.wait()
    await pool.close(timeout=0.05)
    go_on.set()
    try:
        await eventually(lambda: all(conn.closed for conn in conns), timeout=0.5)
    finally:
        for conn in conns:
            conn._pool = None
            await conn.close()


# Counting


@defect("each use is cut to whole milliseconds")
async def test_many_short_uses_add_up(open_pool):
    pool = await open_pool()
    used = 0.0
    for _ in range(200):
        async with pool.connection():
            start = time.perf_counter()
            while time.perf_counter() < start + 0.0004:
                pass
            used += time.perf_counter() - start
    assert pool.get_stats()["usage_ms"] >= used * 1000 - 1


@defect("a key is missing while its value is zero")
async def test_every_key_is_always_there(new_pool):
    pool = new_pool()
    assert set(pool.get_stats()) >= KEYS
    await pool.open(wait=True, timeout=5.0)
    pool.pop_stats()
    assert set(pool.get_stats()) >= KEYS
    await pool.close()
    assert set(pool.get_stats()) >= KEYS


# Outages


@defect("the delay between attempts has no limit")
async def test_attempts_are_at_most_a_second_apart(
    new_pool, network, base, monkeypatch, eventually
):
    monkeypatch.setattr(base.AttemptWithBackoff, "INITIAL_DELAY", 0.02)
    monkeypatch.setattr(base.AttemptWithBackoff, "DELAY_BACKOFF", 1000.0)
    network.down()
    pool = new_pool(connection_class=network.connection_class)
    await pool.open()
    await eventually(lambda: len(network.attempts) >= 2)
    network.up()
    await eventually(lambda: pool.get_stats()["pool_available"] == 1, timeout=1.7)


@defect("a pool that gave up stays small until somebody asks")
async def test_a_pool_that_gave_up_recovers_by_itself(
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
    await pool.open()
    await eventually(lambda: told)
    network.up()
    await eventually(lambda: pool.get_stats()["pool_available"] == 2, timeout=0.5)


# Telling why


@defect("a timeout tells only how long it waited")
async def test_a_timeout_tells_why(impl, open_pool, network, spawn):
    pool = await open_pool(connection_class=network.connection_class, max_size=3)
    lent, go_on = asyncio.Event(), asyncio.Event()

    async def hold():
        async with pool.connection():
            lent.set()
            await go_on.wait()

    holder = spawn(hold(), task_name="the-holder")
    await lent.wait()
    network.down()
    try:
        with pytest.raises(impl.PoolTimeout) as failure:
            await pool.getconn(timeout=0.1)
    finally:
        go_on.set()
        await holder.result()
    text = str(failure.value)
    assert text.startswith("couldn't get a connection after 0.10 sec")
    for part in ("2 of at most 3", "1 in use", "waiting", "the-holder", "the network is down"):
        assert part in text


# Tasks


@defect("each idle pool keeps its tasks")
async def test_idle_pools_have_no_tasks(full_pool, eventually):
    before = asyncio.all_tasks()
    await full_pool(max_size=3, name="one")
    await full_pool(max_size=3, name="other")
    await eventually(lambda: asyncio.all_tasks() <= before, timeout=1.0)


# Ending


def run(impl, dsn, code, timeout=30.0):
    """Run main() of *code* in an interpreter of its own, and return what it printed as errors.

    A run that does not end within *timeout* seconds is ended, and fails the test.
    """
    head = f"""
        import asyncio, psycopg
        from {impl.__name__} import AsyncConnectionPool

        dsn = {dsn!r}

        class Stuck(psycopg.AsyncConnection):
            @classmethod
            async def connect(cls, *args, **kwargs):
                await asyncio.sleep(3600)

        async def forever(conn):
            await asyncio.sleep(3600)
    """
    program = "\n".join([textwrap.dedent(head), textwrap.dedent(code), "asyncio.run(main())"])
    command = [sys.executable, "-X", "dev", "-c", program]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        pytest.fail("it does not end")
    return done.stderr


LEFT_OPEN = {
    "a connect is stuck": """
        async def main():
            global pool
            pool = AsyncConnectionPool(dsn, connection_class=Stuck, min_size=2, open=False)
            await pool.open()
            await asyncio.sleep(0.02)
    """,
    "a connect has begun": """
        async def main():
            global pool
            pool = AsyncConnectionPool(dsn, min_size=2, open=False)
            await pool.open()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    """,
    "a connect is stuck and the program fails": """
        async def main():
            global pool
            pool = AsyncConnectionPool(dsn, connection_class=Stuck, min_size=1, open=False)
            await pool.open()
            await asyncio.sleep(0.02)
            raise SystemExit
    """,
    "a reset is stuck": """
        async def main():
            global pool
            pool = AsyncConnectionPool(dsn, reset=forever, min_size=2, open=False)
            await pool.open(wait=True)
            await pool.putconn(await pool.getconn())
            await asyncio.sleep(0.02)
    """,
    "somebody waits for a stuck connect": """
        async def main():
            global pool, waiter
            pool = AsyncConnectionPool(dsn, connection_class=Stuck, min_size=1, open=False)
            await pool.open()
            waiter = asyncio.create_task(pool.getconn())
            await asyncio.sleep(0.02)
    """,
}


@defect("a worker swallows the cancellation that should end it", raises=FAILED, at_times=True)
@pytest.mark.parametrize("when", LEFT_OPEN)
def test_asyncio_run_ends_though_the_pool_was_left_open(impl, dsn, when):
    timeout = 2.0 if impl.__name__ == "psycopg_pool" else 30.0
    complaints = run(impl, dsn, LEFT_OPEN[when], timeout)
    assert complaints == ""


QUIET = {
    "all is idle": """
        async def main():
            global pool
            pool = AsyncConnectionPool(dsn, min_size=2, open=False)
            await pool.open(wait=True)
    """,
    "one is lent and somebody waits": """
        async def main():
            global pool, conn, waiter
            pool = AsyncConnectionPool(dsn, min_size=1, open=False)
            await pool.open(wait=True)
            conn = await pool.getconn()
            waiter = asyncio.create_task(pool.getconn())
            await asyncio.sleep(0.02)
    """,
    "a check is stuck": """
        async def main():
            global pool, check
            pool = AsyncConnectionPool(dsn, min_size=2, open=False)
            await pool.open(wait=True)
            pool.check_connection = forever
            check = asyncio.create_task(pool.check())
            await asyncio.sleep(0.02)
    """,
    "the pool was dropped": """
        async def main():
            pool = AsyncConnectionPool(dsn, min_size=2, open=False)
            await pool.open(wait=True)
            del pool
            await asyncio.sleep(0.02)
    """,
}


@pytest.mark.parametrize("impl", ["fastpool"], indirect=True)
@pytest.mark.parametrize("when", QUIET)
def test_a_program_that_leaves_the_pool_open_ends_quietly(impl, dsn, when):
    complaints = run(impl, dsn, QUIET[when])
    assert complaints == ""


@defect("nothing tells that the loop is another one", raises=FAILED)
def test_use_in_another_loop_is_refused_and_said_so(impl, dsn):
    pool = impl.AsyncConnectionPool(dsn, min_size=1, open=False)
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(pool.open(wait=True, timeout=5.0))
        with pytest.raises(RuntimeError, match="loop"):
            asyncio.run(pool.getconn(timeout=0.5))
    finally:
        loop.run_until_complete(pool.close())
        loop.close()
