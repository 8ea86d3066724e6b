"""What is only asked of an async pool: its loop, its warnings, cancellation, kinds of callbacks."""

import asyncio
import importlib.util
import math

import anyio
import psycopg
import pytest
from driver import needs_cancellations_of_the_dead
from psycopg.pq import TransactionStatus

HAS_UVLOOP = importlib.util.find_spec("uvloop") is not None

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_backoff")]


@pytest.fixture(
    scope="module",
    params=[
        "asyncio",
        pytest.param(
            "uvloop", marks=pytest.mark.skipif(not HAS_UVLOOP, reason="uvloop is not installed")
        ),
    ],
)
def anyio_backend(request):
    """Run this module's tests in asyncio's loop, and in uvloop's where it is installed."""
    return ("asyncio", {"use_uvloop": request.param == "uvloop"})


def at_once(coroutine):
    """Run a coroutine to its end, and return its value. One that suspends fails the test."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    return pytest.fail("suspended")


# Suspending


async def test_what_is_idle_is_lent_and_returned_without_suspending(open_pool):
    pool = await open_pool()
    for _ in range(2):
        conn = at_once(pool.getconn())
        assert pool.get_stats()["pool_available"] == 0
        at_once(pool.putconn(conn))
        assert pool.get_stats()["pool_available"] == 1


async def test_a_return_to_one_who_waits_does_not_suspend(open_pool, spawn, waiting):
    pool = await open_pool()
    conn = await pool.getconn()
    call = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 1)
    at_once(pool.putconn(conn))
    await pool.putconn(await call.result())


async def test_a_refusal_does_not_suspend(impl, open_pool):
    pool = await open_pool(max_waiting=1)
    conn = await pool.getconn()
    with pytest.raises(impl.PoolTimeout):
        at_once(pool.getconn(timeout=0))
    await pool.close()
    with pytest.raises(impl.PoolClosed):
        at_once(pool.getconn())
    await pool.putconn(conn)


async def test_one_may_wait_without_end(open_pool, spawn, waiting):
    pool = await open_pool()
    conn = await pool.getconn()
    call = spawn(pool.getconn(timeout=math.inf))
    await waiting(pool, 1)
    await pool.putconn(conn)
    await pool.putconn(await call.result())


async def test_many_tasks_share_few_connections(full_pool, spawn, works):
    pool = await full_pool(max_size=3)
    lent = set()

    async def use():
        async with pool.connection(timeout=10.0) as conn:
            assert conn not in lent
            lent.add(conn)
            assert await works(conn)
            lent.remove(conn)

    for call in [spawn(use()) for _ in range(60)]:
        await call.result(timeout=10.0)
    stats = pool.get_stats()
    assert (stats["requests_num"], stats["pool_size"], stats["pool_available"]) == (63, 3, 3)


# Cancelling


async def test_one_who_is_cancelled_while_waiting_is_passed_over(open_pool, spawn, waiting):
    pool = await open_pool()
    conn = await pool.getconn()
    first = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 1)
    second = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 2)
    await first.cancel()
    await pool.putconn(conn)
    assert await second.result() is conn
    await pool.putconn(conn)
    stats = pool.get_stats()
    assert (stats["requests_errors"], stats["pool_available"]) == (1, 1)


async def test_a_timeout_around_a_request_is_no_pool_timeout(impl, open_pool):
    pool = await open_pool()
    conn = await pool.getconn()
    with pytest.raises(asyncio.TimeoutError) as failure:
        await asyncio.wait_for(pool.getconn(), timeout=0.02)
    assert not isinstance(failure.value, impl.PoolTimeout)
    await pool.putconn(conn)
    assert pool.get_stats()["pool_available"] == 1


async def test_a_block_that_is_cancelled_rolls_back_and_returns(
    open_pool, spawn, eventually, admin
):
    pool = await open_pool()
    entered = asyncio.Event()

    async def work():
        async with pool.connection() as conn:
            await conn.execute("create table cancelled (x int)")
            entered.set()
            await asyncio.Event().wait()

    call = spawn(work())
    await entered.wait()
    await call.cancel()
    assert pool.get_stats()["pool_available"] == 1
    (conn,) = pool._pool
    assert conn.info.transaction_status == TransactionStatus.IDLE
    assert admin.execute("select to_regclass('cancelled')").fetchone() == (None,)


async def test_a_block_that_is_cancelled_in_a_query_returns_a_connection_that_works(
    open_pool, spawn, eventually, works
):
    pool = await open_pool()

    async def work():
        async with pool.connection() as conn:
            await conn.execute("select pg_sleep(20)")

    call = spawn(work())
    # The request is on its way to the server: there is nothing to see here of a running query.
    await eventually(lambda: pool.get_stats()["pool_available"] == 0)
    await asyncio.sleep(0.05)
    await call.cancel()
    async with pool.connection(timeout=5.0) as conn:
        assert await works(conn)
    assert pool.get_stats()["pool_size"] == 1


@pytest.mark.parametrize("query", ["select 1", "select pg_sleep(20)"])
async def test_a_cancel_scope_around_blocks_loses_nothing(
    full_pool, waiting, eventually, works, query
):
    pool = await full_pool(max_size=2)
    errors = pool.get_stats().get("requests_errors", 0)

    async def work():
        async with pool.connection(timeout=10.0) as conn:
            await conn.execute(query)
            await asyncio.sleep(20)

    # Such a scope cancels again at each await that is not shielded, in the block's end too.
    async with anyio.create_task_group() as group:
        for _ in range(6):
            group.start_soon(work)
        await waiting(pool, 4)
        # Time for the others to send their queries.
        await asyncio.sleep(0.02)
        group.cancel_scope.cancel()
    await eventually(lambda: pool.get_stats()["pool_available"] == 2)
    assert pool.get_stats()["requests_errors"] == errors + 4
    for _ in range(2):
        async with pool.connection(timeout=5.0) as conn:
            assert await works(conn)


async def test_a_block_that_is_cancelled_before_it_is_entered_lends_nothing(
    open_pool, spawn, waiting
):
    pool = await open_pool()
    conn = await pool.getconn()

    async def work():
        async with pool.connection():
            pytest.fail("entered")

    call = spawn(work())
    await waiting(pool, 1)
    await call.cancel()
    await pool.putconn(conn)
    assert pool.get_stats()["pool_available"] == 1


async def test_a_check_that_is_cancelled_loses_no_connection(open_pool, spawn, eventually):
    checking = asyncio.Event()

    async def check(conn):
        checking.set()
        await asyncio.Event().wait()

    pool = await open_pool(check=check)
    call = spawn(pool.getconn(timeout=5.0))
    await checking.wait()
    await call.cancel()
    await eventually(lambda: pool.get_stats()["pool_available"] == 1)


@needs_cancellations_of_the_dead
@pytest.mark.parametrize("steps", [1, 2, 3])
async def test_check_connection_cancelled_on_a_dead_connection_is_cancelled(
    impl, dsn, end_session, spawn, steps
):
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        end_session(conn)
        call = spawn(impl.AsyncConnectionPool.check_connection(conn))
        for _ in range(steps):
            await asyncio.sleep(0)
        if not call.done:
            await call.cancel()
        await conn.close()


async def test_an_open_that_is_cancelled_leaves_the_pool_open(new_pool, network, spawn, eventually):
    pool = new_pool(connection_class=network.connection_class)
    network.hold()
    call = spawn(pool.open(wait=True, timeout=5.0))
    await eventually(lambda: network.in_flight == 1)
    await call.cancel()
    assert pool.closed is False
    network.release()
    await pool.putconn(await pool.getconn(timeout=5.0))


async def test_a_close_that_is_cancelled_has_closed_the_pool(
    impl, new_pool, network, spawn, eventually
):
    pool = new_pool(connection_class=network.connection_class)
    network.hold()
    await pool.open()
    await eventually(lambda: network.in_flight == 1)
    call = spawn(pool.close(timeout=5.0))
    await eventually(lambda: pool.closed)
    call.task.cancel()
    await eventually(lambda: call.done)
    assert pool.closed is True
    with pytest.raises(impl.PoolClosed):
        await pool.getconn()


async def test_leaving_the_pools_block_by_cancellation_closes_it(new_pool, spawn):
    pool = new_pool()
    entered = asyncio.Event()

    async def serve():
        async with pool:
            entered.set()
            await asyncio.Event().wait()

    call = spawn(serve())
    await entered.wait()
    await call.cancel()
    assert pool.closed is True


async def test_a_connect_that_raises_cancelled_error_is_tried_again(new_pool, network, eventually):
    network.down(asyncio.CancelledError())
    pool = new_pool(connection_class=network.connection_class)
    await pool.open()
    await eventually(lambda: len(network.attempts) >= 2)
    network.up()
    await pool.wait(timeout=5.0)


# Whose task


async def test_the_pool_runs_configure_and_reset_in_other_tasks_than_the_borrowers(
    open_pool, eventually
):
    tasks = {}

    async def configure(conn):
        tasks["configure"] = asyncio.current_task()

    async def check(conn):
        tasks["check"] = asyncio.current_task()

    async def reset(conn):
        tasks["reset"] = asyncio.current_task()

    pool = await open_pool(configure=configure, check=check, reset=reset)
    await pool.putconn(await pool.getconn())
    await eventually(lambda: len(tasks) == 3 and pool.get_stats()["pool_available"] == 1)
    mine = asyncio.current_task()
    assert {name: task is mine for name, task in tasks.items()} == {
        "configure": False,
        "check": True,
        "reset": False,
    }


async def test_a_putconn_does_not_wait_for_the_reset(open_pool, eventually):
    running, go_on = asyncio.Event(), asyncio.Event()

    async def reset(conn):
        running.set()
        await go_on.wait()

    pool = await open_pool(reset=reset)
    await pool.putconn(await pool.getconn())
    await running.wait()
    assert pool.get_stats()["pool_available"] == 0
    go_on.set()
    await eventually(lambda: pool.get_stats()["pool_available"] == 1)


# Callbacks that are no coroutine functions


def nothing(conn):
    """An ordinary function, where a coroutine function is due."""


async def test_an_ordinary_configure_function_fails_each_connect(new_pool, log, eventually):
    pool = new_pool(configure=nothing)
    await pool.open()
    await eventually(lambda: len(log.warnings()) >= 2)
    assert all(
        text.startswith("error connecting in 'p': ") and "await" in text for text in log.warnings()
    )
    assert pool.get_stats()["pool_available"] == 0


async def test_an_ordinary_check_function_fails_each_check(impl, open_pool, log):
    pool = await open_pool(check=nothing)
    with pytest.raises(impl.PoolTimeout):
        await pool.getconn(timeout=0.1)
    (failed, *_) = [text for text in log.texts() if "failed check" in text]
    assert "await" in failed
    assert pool.get_stats()["pool_available"] == 1


async def test_an_ordinary_reset_function_costs_the_connection(open_pool, log, eventually):
    pool = await open_pool(reset=nothing)
    conn = await pool.getconn()
    await pool.putconn(conn)
    await eventually(lambda: len(log.warnings()) >= 2)
    resetting, discarding = log.warnings()
    assert resetting.startswith("error resetting connection: ")
    assert "await" in resetting
    assert discarding == f"discarding closed connection: {conn}"
    assert conn.closed


async def test_a_sync_connection_class_never_connects(new_pool, network, log, eventually):
    class Connection(psycopg.Connection):
        @classmethod
        def connect(cls, *args, **kwargs):
            return "no awaitable"

    pool = new_pool(connection_class=Connection)
    await pool.open()
    await eventually(lambda: log.warnings())
    assert log.warnings()[0].startswith("error connecting in 'p': ")
    assert "await" in log.warnings()[0]
