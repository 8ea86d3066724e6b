"""Cancelling at every suspension: nothing is lost, and the cancellation comes out.

Each test runs one scenario again and again, and cancels it at its first suspension, at its second,
and so on until it runs through. It does so in three manners (see stepping). After each run the
pool must be whole: every slot can be lent, and the server has the pool's sessions and no other.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import time
from contextlib import suppress
from functools import partial

import psycopg
import pytest
from driver import SWALLOWS_CANCELLATIONS, needs_close_returns
from pool_async.stepping import MANNERS, Cancelling, at_once

import fastpool

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick")]

# Before Python 3.12 asyncio.wait_for(), in which the driver waits for the server, returns the
# result and forgets the cancellation when both come at once (python/cpython#86296).
WAIT_FOR_FORGETS = sys.version_info < (3, 12)

FEW = 100


@pytest.fixture(scope="module", autouse=True)
def little_to_collect():
    """Leave what there is already to itself, for these tests collect all the time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(params=MANNERS)
def everywhere(request):
    """`await everywhere(prepare, settle)` runs what `await prepare()` returns, a coroutine, and
    cancels it at every suspension in turn; `await settle()` after each run. Returns how many
    suspensions there are. *asks*: the scenario waits for the server."""
    manner = request.param

    async def run(prepare, settle, asks=False):
        for at in itertools.count():
            assert at < FEW, "it never runs through"
            count = await cancel_at(at, await prepare(), asks)
            await settle()
            if count == 0:
                return at
        return None

    async def cancel_at(at, coroutine, asks):
        # A function of its own: a task that was cancelled keeps the frames that it was cancelled
        # in, and those what the driver was connecting.
        cancelling = Cancelling(coroutine, at, manner)
        task = asyncio.get_running_loop().create_task(cancelling.run())
        await asyncio.wait({task}, timeout=10.0)
        assert task.done(), f"cancelled at suspension {at}, it hangs: {task}"
        if cancelling.cancellations == 0:
            task.result()
        elif not (WAIT_FOR_FORGETS and asks and manner == "woken"):
            swallowed = f"swallowed at suspension {at}: {task}"
            assert task.cancelled() or SWALLOWS_CANCELLATIONS, swallowed
        return cancelling.cancellations

    return run


@pytest.fixture
def settled(whole, sessions, eventually, spawn):
    """`settled(pool)` makes a settle() for *everywhere*: the pool is whole, the server agrees."""

    def make(pool):
        def agrees():
            gc.collect()  # the driver leaves a connect that is cancelled to the collector
            return sessions.pids() == {slot.backend_pid for slot in pool.snapshot().slots} - {None}

        async def settle():
            await whole(pool)
            await eventually(agrees, what=f"the server to have the sessions of {pool.snapshot()}")

        return settle

    return make


def turn_back(pool, conn, spawn):
    """Have *conn* given back as soon as somebody waits for it, or after a while in any case."""

    async def give():
        for _ in range(50):
            if pool.snapshot().waiting:
                break
            await asyncio.sleep(0)
        await pool.putconn(conn)

    return spawn(give())


# --- getconn ------------------------------------------------------------------------------------


async def test_a_request_that_waits(everywhere, open_pool, sessions, settled, spawn):
    pool = await open_pool(kwargs=sessions.kwargs)
    holders = []

    async def borrow():
        conn = await pool.getconn(timeout=5.0)
        await pool.putconn(conn)

    async def prepare():
        conn = await pool.getconn()
        holders.append(turn_back(pool, conn, spawn))
        return borrow()

    async def settle():
        await holders[-1].result()
        await settled(pool)()

    assert await everywhere(prepare, settle) == 1


async def test_a_request_in_front_of_another_one(everywhere, open_pool, sessions, settled, spawn):
    pool = await open_pool(kwargs=sessions.kwargs)
    calls = []

    async def borrow():
        conn = await pool.getconn(timeout=5.0)
        await pool.putconn(conn)

    async def prepare():
        conn = await pool.getconn()

        async def borrow_first():
            calls.append(spawn(borrow()))  # it runs, and queues, when this one has
            await borrow()

        calls.append(turn_back(pool, conn, spawn))
        return borrow_first()

    async def settle():
        for call in calls:
            await call.result()
        calls.clear()
        await settled(pool)()

    assert await everywhere(prepare, settle) == 1


async def test_a_request_for_which_the_pool_grows(
    everywhere, open_pool, sessions, settled, network
):
    pool = await open_pool(
        min_size=0, max_size=2, kwargs=sessions.kwargs, connection_class=network.connection_class
    )

    async def borrow():
        await pool.putconn(await pool.getconn(timeout=5.0))

    async def prepare():
        # As at the beginning: nothing idle, room for two.
        while pool.snapshot().counts["available"]:
            conn = await pool.getconn(timeout=0)
            await conn.close()
            await pool.putconn(conn)
        pool.pop_stats()
        return borrow()

    assert await everywhere(prepare, settled(pool)) == 1


async def test_a_request_that_times_out(everywhere, open_pool, sessions, settled):
    pool = await open_pool(kwargs=sessions.kwargs)
    held = []

    async def borrow():
        with pytest.raises(fastpool.PoolTimeout):
            await pool.getconn(timeout=0.02)

    async def prepare():
        held.append(await pool.getconn())
        return borrow()

    async def settle():
        await pool.putconn(held.pop())
        await settled(pool)()

    assert await everywhere(prepare, settle) == 1


async def test_a_request_with_a_check_that_passes(everywhere, open_pool, sessions, settled):
    async def check(conn):
        await asyncio.sleep(0)
        await fastpool.AsyncConnectionPool.check_connection(conn)
        await asyncio.sleep(0)

    pool = await open_pool(min_size=2, check=check, kwargs=sessions.kwargs)

    async def borrow():
        await pool.putconn(await pool.getconn(timeout=5.0))

    async def prepare():
        return borrow()

    assert await everywhere(prepare, settled(pool), asks=True) >= 3


async def test_a_request_with_a_check_that_fails_twice(everywhere, open_pool, sessions, settled):
    failures = []

    async def check(conn):
        await asyncio.sleep(0)
        if failures:
            failures.pop()
            await conn.execute("select 1")  # leaves a transaction, to be rolled back
            raise ValueError

    pool = await open_pool(check=check, kwargs=sessions.kwargs)

    async def borrow():
        await pool.putconn(await pool.getconn(timeout=5.0))

    async def prepare():
        failures[:] = [1, 2]
        return borrow()

    async def settle():
        failures.clear()
        await settled(pool)()

    # The checks, the rollbacks, the pause before the third attempt.
    assert await everywhere(prepare, settle, asks=True) >= 6


@pytest.mark.skipif(sys.version_info < (3, 11), reason="a task does not tell that it is cancelled")
@pytest.mark.parametrize("callback", ["check", "rollback"])
async def test_a_cancellation_that_ends_in_an_error_is_one(callback, open_pool):
    """The driver waits for the end of a cancelled query, and raises what ends its session then."""
    reached = asyncio.Event()

    async def fail_when_cancelled(conn):
        if reached.is_set():
            return
        reached.set()
        try:
            await asyncio.sleep(60.0)
        except asyncio.CancelledError:
            raise psycopg.OperationalError("the session has ended") from None

    async def borrow():
        conn = await pool.getconn()
        if callback == "rollback":
            await conn.execute("select 1")
            conn.rollback = partial(fail_when_cancelled, conn)
        await pool.putconn(conn)

    pool = await open_pool(check=fail_when_cancelled if callback == "check" else None)
    task = asyncio.create_task(borrow())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with pool.connection(timeout=5.0) as conn:
        await conn.execute("select 1")
    assert pool.snapshot().counts["available"] == 1


async def test_a_request_that_finds_broken_connections_by_a_check(
    everywhere, open_pool, sessions, settled, end_session
):
    pool = await open_pool(
        min_size=2,
        check=fastpool.AsyncConnectionPool.check_connection,
        kwargs=sessions.kwargs,
    )

    async def borrow():
        await pool.putconn(await pool.getconn(timeout=5.0))

    async def prepare():
        for conn in list(pool._pool):
            end_session(conn)
        return borrow()

    assert await everywhere(prepare, settled(pool), asks=True) >= 2


async def test_a_request_that_finds_an_expired_connection(
    everywhere, open_pool, sessions, settled, slow_to_close
):
    pool = await open_pool(
        min_size=2, kwargs=sessions.kwargs, connection_class=slow_to_close, check=nothing
    )

    async def borrow():
        await pool.putconn(await pool.getconn(timeout=5.0))

    async def prepare():
        pool._table.new_epoch()
        return borrow()

    # Both are closed, in two suspensions each, and a new one is waited for.
    assert await everywhere(prepare, settled(pool)) == 5


async def nothing(conn):
    """A check that takes the requests off the fast path."""


# --- putconn ------------------------------------------------------------------------------------


async def test_a_return_of_an_open_transaction(everywhere, open_pool, sessions, settled):
    pool = await open_pool(min_size=2, kwargs=sessions.kwargs)

    async def prepare():
        conn = await pool.getconn()
        await conn.execute("select 1")
        return pool.putconn(conn)

    assert await everywhere(prepare, settled(pool), asks=True) >= 1


async def test_a_return_of_an_open_transaction_for_which_somebody_waits(
    everywhere, open_pool, sessions, settled, spawn, waiting
):
    pool = await open_pool(kwargs=sessions.kwargs)
    calls = []

    async def prepare():
        conn = await pool.getconn()
        await conn.execute("select 1")
        calls.append(spawn(pool.getconn(timeout=5.0)))
        await waiting(pool, 1)
        return pool.putconn(conn)

    async def settle():
        await pool.putconn(await calls.pop().result())
        await settled(pool)()

    assert await everywhere(prepare, settle, asks=True) >= 1


async def test_a_return_of_a_connection_in_a_query(everywhere, open_pool, sessions, settled):
    pool = await open_pool(kwargs=sessions.kwargs)

    async def prepare():
        conn = await pool.getconn()
        conn.pgconn.send_query(b"select pg_sleep(20)")
        return pool.putconn(conn)

    async def settle():
        conn = await pool.getconn(timeout=5.0)
        assert conn.info.transaction_status == 0
        await pool.putconn(conn)
        pids = {slot.backend_pid for slot in pool.snapshot().slots}
        assert pids <= sessions.pids()

    assert await everywhere(prepare, settle) == 0  # closing is all, and does not suspend


@pytest.mark.parametrize("ends", ["broken", "drained", "in a query"])
async def test_a_return_that_closes(
    everywhere, open_pool, sessions, settled, slow_to_close, break_connection, eventually, ends
):
    pool = await open_pool(kwargs=sessions.kwargs, connection_class=slow_to_close)

    async def prepare():
        conn = await pool.getconn()
        if ends == "broken":
            await break_connection(conn)
        elif ends == "drained":
            pool._table.new_epoch()
        else:
            conn.pgconn.send_query(b"select")
        return pool.putconn(conn)

    assert await everywhere(prepare, settled(pool)) >= 2


async def test_closing_what_close_returns(everywhere, open_pool, sessions, settled):
    pool = await open_pool(min_size=2, close_returns=True, kwargs=sessions.kwargs)

    async def prepare():
        conn = await pool.getconn()
        await conn.execute("select 1")
        return conn.close()

    assert await everywhere(prepare, settled(pool), asks=True) >= 1


@needs_close_returns
async def test_closing_what_close_returns_when_it_is_broken(
    everywhere, open_pool, sessions, settled, slow_to_close, break_connection
):
    pool = await open_pool(
        close_returns=True, kwargs=sessions.kwargs, connection_class=slow_to_close
    )

    async def prepare():
        conn = await pool.getconn()
        await break_connection(conn)
        return conn.close()

    await everywhere(prepare, settled(pool))


# --- blocks and leases --------------------------------------------------------------------------


class Failure(Exception):
    """What a borrower's block raises."""


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("way", ["connection", "connect"])
async def test_a_block(everywhere, open_pool, sessions, settled, spawn, way, fails):
    pool = await open_pool(kwargs=sessions.kwargs)
    holders = []

    async def work():
        with suppress(Failure):
            async with getattr(pool, way)(timeout=5.0) as conn:
                await conn.execute("select 1")
                await asyncio.sleep(0)
                if fails:
                    raise Failure

    async def prepare():
        conn = await pool.getconn()
        holders.append(turn_back(pool, conn, spawn))
        return work()

    async def settle():
        await holders.pop().result()
        await settled(pool)()

    # Waiting for the connection, the query, the pause, the end of the transaction.
    assert await everywhere(prepare, settle, asks=True) >= 4


async def test_a_block_given_a_connection_of_a_class_that_does_more_when_it_is_entered(
    everywhere, open_pool, sessions, settled, network
):
    class Careful(network.connection_class):
        async def __aenter__(self):
            await asyncio.sleep(0)
            await self.execute("select 1")
            return await super().__aenter__()

        async def __aexit__(self, *args):
            await asyncio.sleep(0)
            await super().__aexit__(*args)

    pool = await open_pool(kwargs=sessions.kwargs, connection_class=Careful)

    async def work():
        async with pool.connection(timeout=5.0):
            await asyncio.sleep(0)

    async def prepare():
        return work()

    assert await everywhere(prepare, settled(pool), asks=True) >= 5


@pytest.mark.parametrize("overridden", [False, True])
async def test_a_cancelled_block_whose_connection_was_given_back_inside_it_ends_cancelled(
    everywhere, open_pool, sessions, settled, overridden
):
    """putconn inside the block, then the cancellation: it comes out, not the ValueError that
    refuses the second return, or whoever waits for a cancelled task sees a task that failed."""
    pool = await open_pool(kwargs=sessions.kwargs)
    if overridden:
        pool.putconn = pool.putconn

    async def work():
        with suppress(ValueError):
            async with pool.connection(timeout=5.0) as conn:
                await pool.putconn(conn)
                await asyncio.sleep(0)
                await asyncio.sleep(0)

    async def prepare():
        return work()

    assert await everywhere(prepare, settled(pool)) == 2


async def test_without_a_cancellation_the_second_return_of_a_block_is_refused(open_pool, whole):
    pool = await open_pool()
    with pytest.raises(ValueError, match="can't return connection"):
        async with pool.connection() as conn:
            await pool.putconn(conn)
    await whole(pool)


async def test_a_lease_closed_by_hand(everywhere, open_pool, sessions, settled):
    pool = await open_pool(min_size=2, kwargs=sessions.kwargs)

    async def work():
        lease = await pool.connect(timeout=5.0)
        try:
            await lease.execute("select 1")
        finally:
            await lease.close()
        await lease.close()

    async def prepare():
        return work()

    assert await everywhere(prepare, settled(pool), asks=True) >= 2


async def test_a_block_of_a_pool_that_overrides_getconn_and_putconn(
    everywhere, new_pool, sessions, settled
):
    class Traced(fastpool.AsyncConnectionPool):
        async def getconn(self, timeout=None):
            await asyncio.sleep(0)
            return await super().getconn(timeout)

        async def putconn(self, conn):
            try:
                await asyncio.sleep(0)
            finally:
                await super().putconn(conn)

    pool = new_pool(cls=Traced, min_size=2, kwargs=sessions.kwargs)
    await pool.open(wait=True)

    async def work():
        async with pool.connection(timeout=5.0) as conn:
            await conn.execute("select 1")
        async with pool.connect(timeout=5.0) as conn:
            await conn.execute("select 1")

    async def prepare():
        return work()

    assert await everywhere(prepare, settled(pool), asks=True) >= 8


# --- the pool as a whole ------------------------------------------------------------------------


async def test_opening_and_waiting_until_full(everywhere, new_pool, sessions, settled):
    pools = []

    async def prepare():
        pools.append(new_pool(min_size=2, kwargs=sessions.kwargs))
        return pools[-1].open(wait=True, timeout=5.0)

    async def settle():
        assert pools[-1].closed is False
        await settled(pools[-1])()
        await pools.pop().close()

    assert await everywhere(prepare, settle) == 1


async def test_opening_in_a_block(everywhere, new_pool, sessions, eventually):
    pools = []

    async def work(pool):
        async with pool:
            await pool.wait(5.0)
            await asyncio.sleep(0)

    async def prepare():
        pools.append(new_pool(min_size=2, kwargs=sessions.kwargs))
        return work(pools[-1])

    async def settle():
        pool = pools.pop()
        assert pool.closed
        await eventually(lambda: not sessions.pids(), what="no sessions left")
        await eventually(lambda: pool.snapshot().size == 0)
        pool._table.verify()

    assert await everywhere(prepare, settle) >= 2


async def test_waiting_until_full(everywhere, open_pool, sessions, settled, spawn):
    pool = await open_pool(min_size=2, kwargs=sessions.kwargs)
    holders = []

    async def prepare():
        conn = await pool.getconn()

        async def give():
            for _ in range(5):
                await asyncio.sleep(0)
            await pool.putconn(conn)

        holders.append(spawn(give()))
        return pool.wait(timeout=5.0)

    async def settle():
        await holders.pop().result()
        await settled(pool)()
        await pool.wait(timeout=1.0)

    assert await everywhere(prepare, settle) == 1


async def test_waiting_in_vain(everywhere, new_pool, network, eventually):
    pools = []
    network.down()

    async def wait(pool):
        with pytest.raises(fastpool.PoolTimeout):
            await pool.wait(timeout=0.05)

    async def prepare():
        pool = new_pool(connection_class=network.connection_class)
        pools.append(pool)
        await pool.open()
        return wait(pool)

    async def settle():
        pool = pools.pop()
        await pool.close()
        await eventually(lambda: pool.snapshot().size == 0)
        pool._table.verify()

    assert await everywhere(prepare, settle) >= 1


async def test_checking_all(everywhere, open_pool, sessions, settled, end_session):
    pool = await open_pool(min_size=3, kwargs=sessions.kwargs)

    async def prepare():
        end_session(next(iter(pool._pool)))
        return pool.check()

    async def settle():
        await pool.check()  # if it was cancelled before it came to the broken one
        await settled(pool)()

    assert await everywhere(prepare, settle, asks=True) >= 3


async def test_checking_all_when_some_have_expired(
    everywhere, open_pool, sessions, settled, slow_to_close
):
    pool = await open_pool(min_size=2, kwargs=sessions.kwargs, connection_class=slow_to_close)

    async def prepare():
        pool._table.new_epoch()
        return pool.check()

    assert await everywhere(prepare, settled(pool)) == 4


async def test_draining(everywhere, open_pool, sessions, settled, slow_to_close):
    pool = await open_pool(min_size=2, kwargs=sessions.kwargs, connection_class=slow_to_close)
    before = []

    async def prepare():
        before[:] = list(pool._pool)
        return pool.drain()

    async def settle():
        await settled(pool)()
        # All of them are replaced in the end, also those that the cancelled drain did not reach.
        assert not set(before) & set(pool._pool)

    assert await everywhere(prepare, settle) == 4


async def test_resizing_draining_and_closing_an_idle_pool_do_not_suspend(open_pool):
    pool = await open_pool(min_size=2)
    at_once(pool.resize(1, 3))
    at_once(pool.drain())
    pool = await open_pool(min_size=2)
    at_once(pool.close())
    assert pool.snapshot().size == 0


@pytest.mark.parametrize("under_way", ["connect", "reset"])
async def test_closing_while_a_chore_is_under_way(
    everywhere, new_pool, network, sessions, eventually, under_way
):
    pools = []

    async def reset(conn):
        for _ in range(5):
            await asyncio.sleep(0)

    async def prepare():
        pool = new_pool(
            min_size=2,
            num_workers=1,
            reset=reset,
            kwargs=sessions.kwargs,
            connection_class=network.connection_class,
        )
        pools.append(pool)
        if under_way == "connect":
            network.hold()
            await pool.open()
            await eventually(lambda: network.in_flight)
            asyncio.get_running_loop().call_soon(network.release)  # when it is being closed
        else:
            await pool.open(wait=True)
            conns = [await pool.getconn() for _ in range(2)]
            for conn in conns:
                await pool.putconn(conn)
            await asyncio.sleep(0)
        return pool.close(timeout=5.0)

    async def settle():
        pool = pools.pop()
        await eventually(lambda: pool.snapshot().size == 0, what=f"{pool.snapshot()} empty")
        pool._table.verify()
        await eventually(lambda: not sessions.pids(), what="no sessions left")
        await eventually(lambda: not pool._tasks._tasks, what="no tasks left")

    assert await everywhere(prepare, settle) >= 1


async def test_closing_connections_that_are_slow_to_close(
    everywhere, new_pool, sessions, eventually, slow_to_close
):
    pools = []

    async def prepare():
        pool = new_pool(min_size=3, kwargs=sessions.kwargs, connection_class=slow_to_close)
        pools.append(pool)
        await pool.open(wait=True)
        return pool.close()

    async def settle():
        pool = pools.pop()
        await pool.close()  # goes on where the cancelled one was stopped
        await eventually(lambda: pool.snapshot().size == 0, what=f"{pool.snapshot()} empty")
        pool._table.verify()
        await eventually(lambda: not sessions.pids(), what="no sessions left")

    assert await everywhere(prepare, settle) == 6


async def test_a_return_to_a_closed_pool(everywhere, new_pool, sessions, eventually, slow_to_close):
    pools = []

    async def prepare():
        pool = new_pool(min_size=2, kwargs=sessions.kwargs, connection_class=slow_to_close)
        pools.append(pool)
        await pool.open(wait=True)
        conn = await pool.getconn()
        await conn.execute("select 1")
        await pool.close()
        return pool.putconn(conn)

    async def settle():
        pool = pools.pop()
        await eventually(lambda: pool.snapshot().size == 0)
        pool._table.verify()
        await eventually(lambda: not sessions.pids(), what="no sessions left")

    assert await everywhere(prepare, settle) == 2


# --- null pools ---------------------------------------------------------------------------------


async def pause(conn):
    """A callback that suspends twice."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_a_null_pool_that_connects(everywhere, null_pool, sessions, settled):
    pool = await null_pool(max_size=2, configure=pause, check=pause, kwargs=sessions.kwargs)

    async def borrow():
        await pool.putconn(await pool.getconn(timeout=5.0))

    async def prepare():
        return borrow()

    # The connect, configure, check.
    assert await everywhere(prepare, settled(pool), asks=True) >= 5


async def test_a_connection_whose_configure_is_cancelled_is_closed(null_pool, spawn):
    configured, entered = [], asyncio.Event()

    async def configure(conn):
        configured.append(conn)
        entered.set()
        await asyncio.Event().wait()

    pool = await null_pool(configure=configure)
    call = spawn(pool.getconn(timeout=5.0))
    await entered.wait()
    await call.cancel()
    (conn,) = configured
    assert conn.closed
    assert pool.snapshot().size == 0


async def test_a_null_pool_that_connects_while_another_request_waits(
    everywhere, null_pool, sessions, settled, spawn
):
    pool = await null_pool(configure=pause, kwargs=sessions.kwargs)
    calls = []

    async def borrow():
        await pool.putconn(await pool.getconn(timeout=5.0))

    async def borrow_first():
        calls.append(spawn(borrow()))
        await borrow()

    async def prepare():
        return borrow_first()

    async def settle():
        await calls.pop().result()
        await settled(pool)()

    assert await everywhere(prepare, settle, asks=True) >= 3


async def test_a_request_that_waits_in_a_null_pool(everywhere, null_pool, sessions, settled, spawn):
    pool = await null_pool(kwargs=sessions.kwargs)
    holders = []

    async def borrow():
        await pool.putconn(await pool.getconn(timeout=5.0))

    async def prepare():
        conn = await pool.getconn()
        holders.append(turn_back(pool, conn, spawn))
        return borrow()

    async def settle():
        await holders.pop().result()
        await settled(pool)()

    assert await everywhere(prepare, settle) == 1


async def test_a_null_pools_return(everywhere, null_pool, sessions, settled, slow_to_close):
    pool = await null_pool(kwargs=sessions.kwargs, connection_class=slow_to_close)

    async def prepare():
        conn = await pool.getconn()
        await conn.execute("select 1")
        return pool.putconn(conn)

    assert await everywhere(prepare, settled(pool)) == 2


async def test_a_null_pools_return_for_which_somebody_waits(
    everywhere, null_pool, sessions, settled, spawn, waiting
):
    pool = await null_pool(kwargs=sessions.kwargs)
    calls = []

    async def prepare():
        conn = await pool.getconn()
        await conn.execute("select 1")
        calls.append(spawn(pool.getconn(timeout=5.0)))
        await waiting(pool, 1)
        return pool.putconn(conn)

    async def settle():
        await pool.putconn(await calls.pop().result())
        await settled(pool)()

    assert await everywhere(prepare, settle, asks=True) >= 1


async def test_closing_a_connection_of_a_null_pool(
    everywhere, null_pool, sessions, settled, slow_to_close
):
    pool = await null_pool(kwargs=sessions.kwargs, connection_class=slow_to_close)

    async def prepare():
        return (await pool.getconn()).close()

    assert await everywhere(prepare, settled(pool)) == 2


@pytest.mark.parametrize("way", ["connection", "connect"])
async def test_a_null_pools_block(everywhere, null_pool, sessions, settled, way):
    pool = await null_pool(kwargs=sessions.kwargs)

    async def work():
        async with getattr(pool, way)(timeout=5.0) as conn:
            await conn.execute("select 1")

    async def prepare():
        return work()

    assert await everywhere(prepare, settled(pool), asks=True) >= 3


async def test_a_null_pools_wait(everywhere, null_pool, sessions, settled):
    pool = await null_pool(kwargs=sessions.kwargs)

    async def prepare():
        return pool.wait(timeout=5.0)

    assert await everywhere(prepare, settled(pool)) == 1


# --- the pool's own tasks -----------------------------------------------------------------------
#
# Programs cancel asyncio.all_tasks(), which includes the pool's.


@pytest.fixture(params=MANNERS)
def at_every_suspension(request, monkeypatch, eventually):
    """`await at_every_suspension(act, settle)` calls *act* with the pools' workers cancelled at
    each of their suspensions in turn; then, with no more cancelled, *settle*. What *act* returns
    says whether all that it gave rise to is done; it is given what *prepare* returned, before.
    Returns how many suspensions there are."""
    work = fastpool.tasks.Tasks._work
    workers = []
    at = None

    async def work_and_be_cancelled(tasks):
        if at is None:
            await work(tasks)
        else:
            workers.append(Cancelling(work(tasks), at, request.param))
            await workers[-1].run()

    def cancelled():
        return any(worker.cancellations for worker in workers)

    async def run(act, settle, prepare=None):
        nonlocal at
        for number in range(FEW):
            prepared = [] if prepare is None else [await prepare()]
            at = number
            is_done = await act(*prepared)
            await eventually(lambda done=is_done: cancelled() or done(), what="an end of that")
            at, any_more = None, cancelled()
            workers.clear()
            await settle()
            if not any_more:
                return number
        return pytest.fail("it never runs through")

    monkeypatch.setattr(fastpool.tasks.Tasks, "_work", work_and_be_cancelled)
    return run


def idle(pool, count):
    """Tell later whether *count* connections of *pool* are idle."""
    return lambda: pool.snapshot().counts["available"] == count


async def test_connects_by_workers(at_every_suspension, new_pool, sessions, settled):
    pools = []

    async def act():
        pool = new_pool(min_size=2, num_workers=1, configure=pause, kwargs=sessions.kwargs)
        pools.append(pool)
        await pool.open()
        return idle(pool, 2)

    async def settle():
        pool = pools.pop()
        await pool.wait(timeout=5.0)
        await settled(pool)()
        await pool.close()

    assert await at_every_suspension(act, settle) >= 3


async def test_connects_by_workers_for_those_who_wait(
    at_every_suspension, open_pool, sessions, settled, spawn
):
    pool = await open_pool(
        min_size=0, max_size=2, configure=pause, max_connecting=2, kwargs=sessions.kwargs
    )
    calls = []

    async def borrow_and_close():
        # So that nothing is idle at the next one's request, or at the next round's.
        conn = await pool.getconn(timeout=5.0)
        await conn.close()
        await pool.putconn(conn)

    async def act():
        calls.extend(spawn(borrow_and_close()) for _ in range(4))
        return lambda: all(call.done for call in calls)

    async def settle():
        for call in calls:
            await call.result(timeout=10.0)
        calls.clear()
        await settled(pool)()
        while pool.snapshot().counts["available"]:
            await borrow_and_close()

    assert await at_every_suspension(act, settle) >= 3


async def test_resets_by_workers(at_every_suspension, open_pool, sessions, settled):
    pool = await open_pool(min_size=2, num_workers=1, reset=pause, kwargs=sessions.kwargs)

    async def act():
        for conn in [await pool.getconn(timeout=5.0) for _ in range(2)]:
            await conn.execute("select 1")
            await pool.putconn(conn)
        return idle(pool, 2)

    assert await at_every_suspension(act, settled(pool)) >= 3


async def test_closing_idle_connections_by_workers(
    at_every_suspension, open_pool, sessions, settled, slow_to_close
):
    pool = await open_pool(
        min_size=0,
        max_size=2,
        max_idle=0.01,
        kwargs=sessions.kwargs,
        connection_class=slow_to_close,
    )

    async def prepare():
        return await asyncio.gather(*[pool.getconn(timeout=5.0) for _ in range(2)])

    async def act(conns):
        for conn in conns:
            await pool.putconn(conn)
        return lambda: pool.snapshot().size == 0

    assert await at_every_suspension(act, settled(pool), prepare) >= 2


async def test_attempts_to_reconnect_by_workers(
    at_every_suspension, new_pool, network, sessions, settled, eventually
):
    pools = []

    async def act():
        network.down()
        attempts = network.attempts
        pool = new_pool(
            min_size=2,
            num_workers=1,
            configure=pause,
            kwargs=sessions.kwargs,
            connection_class=network.connection_class,
        )
        pools.append(pool)
        await pool.open()
        await eventually(lambda: network.attempts >= attempts + 2)
        network.up()
        return idle(pool, 2)

    async def settle():
        pool = pools.pop()
        await pool.wait(timeout=5.0)
        await settled(pool)()
        await pool.close()

    assert await at_every_suspension(act, settle) >= 3


async def test_workers_that_are_cancelled_before_they_have_begun(
    open_pool, settled, sessions, monkeypatch
):
    pool = await open_pool(min_size=2, num_workers=1, kwargs=sessions.kwargs)
    start = fastpool.tasks.Tasks._start
    doomed = []

    def start_and_cancel(tasks):
        start(tasks)
        if len(doomed) < 3:
            doomed.extend(task for task in tasks._tasks if task.cancel())

    monkeypatch.setattr(fastpool.tasks.Tasks, "_start", start_and_cancel)
    await pool.drain()
    await settled(pool)()
    assert len(doomed) == 3


async def test_a_probe_that_is_cancelled_is_followed_by_another(
    new_pool, network, eventually, settled, sessions
):
    network.down()
    pool = new_pool(min_size=2, kwargs=sessions.kwargs, connection_class=network.connection_class)
    await pool.open()
    await eventually(lambda: network.attempts >= 2 and network.in_flight == 0)
    network.hold()
    await eventually(lambda: network.in_flight == 1)
    (worker,) = pool._tasks._tasks
    worker.cancel()
    await eventually(lambda: network.in_flight == 0)
    network.up()
    network.release()
    await settled(pool)()


async def test_a_connect_that_raises_cancelled_error_again_and_again_is_tried_again(
    new_pool, network, eventually, settled, sessions
):
    pool = new_pool(min_size=2, kwargs=sessions.kwargs, connection_class=network.connection_class)
    network.down()
    await pool.open()
    await eventually(lambda: network.attempts >= 3)
    network.down(asyncio.CancelledError())
    await eventually(lambda: network.attempts >= 6)
    network.up()
    await settled(pool)()


# --- more than one cancellation -----------------------------------------------------------------


async def test_many_who_wait_and_are_all_cancelled_leave_nothing(open_pool, spawn, waiting, whole):
    pool = await open_pool()
    conn = await pool.getconn()
    calls = [spawn(pool.getconn(timeout=5.0)) for _ in range(200)]
    await waiting(pool, 200)
    await pool.putconn(conn)  # one is granted the connection, and is cancelled before it goes on
    for call in calls:
        call.task.cancel()
        call.task.cancel()
    await asyncio.wait([call.task for call in calls], timeout=5.0)
    assert all(call.task.cancelled() for call in calls)
    assert pool.snapshot().waiting == 0
    await whole(pool)


async def test_each_who_is_granted_and_cancelled_hands_on_to_the_next(open_pool, spawn, waiting):
    pool = await open_pool()
    conn = await pool.getconn()
    requests = [Cancelling(pool.getconn(timeout=5.0), 0, "woken") for _ in range(20)]
    calls = [spawn(request.run()) for request in requests]
    last = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 21)
    await pool.putconn(conn)
    assert await last.result() is conn
    assert all(call.task.cancelled() for call in calls)
    assert [request.cancellations for request in requests] == [1] * 20
    await pool.putconn(conn)


async def test_who_waits_after_a_drain_is_not_granted_what_came_back_while_it_swept(
    open_pool, spawn, waiting, whole
):
    pool = await open_pool()
    old = await pool.getconn()
    pool._table.begin_return(old)  # found new enough, and not yet available
    await pool.drain()
    call = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 1)
    pool._table.restore(old)
    conn = await call.result()
    assert conn is not old
    assert old.closed
    await pool.putconn(conn)
    await whole(pool)


async def get_in_time(pool, seconds):
    """getconn() in a block of asyncio.timeout(); what it brings at the last moment goes back."""
    conn = None
    try:
        async with asyncio.timeout(seconds):
            conn = await pool.getconn(timeout=5.0)
    except TimeoutError:
        if conn is not None:
            await pool.putconn(conn)
        raise
    return conn


@pytest.mark.parametrize("grants_first", [False, True])
@pytest.mark.parametrize("how", ["its own", "wait_for", "timeout", "cancel"])
async def test_an_end_of_the_wait_and_a_grant_in_one_turn_of_the_loop(
    open_pool, spawn, waiting, whole, how, grants_first
):
    """Either may come first; the connection is lent or stays in the pool, and is not lost."""
    loop = asyncio.get_running_loop()
    pool = await open_pool()
    conn = await pool.getconn()
    due = 0.05
    if how == "its own":
        call = spawn(pool.getconn(timeout=due))
    elif how == "wait_for":
        call = spawn(asyncio.wait_for(pool.getconn(timeout=5.0), timeout=due))
    elif how == "timeout":
        if sys.version_info < (3, 11):
            pytest.skip("asyncio.timeout() came with Python 3.11")
        call = spawn(get_in_time(pool, due))
    else:
        call = spawn(pool.getconn(timeout=5.0))
        loop.call_later(due, call.task.cancel)
    grant_after = due - 0.01 if grants_first else due + 0.01
    loop.call_later(grant_after, lambda: at_once(pool.putconn(conn)))
    await waiting(pool, 1)
    time.sleep(due + 0.05)  # both are due when the loop goes on
    with suppress(asyncio.TimeoutError, asyncio.CancelledError, fastpool.PoolTimeout):
        await pool.putconn(await call.result())
    assert pool.snapshot().waiting == 0
    assert pool.snapshot().counts["available"] == 1
    await whole(pool)
