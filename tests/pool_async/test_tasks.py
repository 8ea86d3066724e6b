"""Whose task does what: nothing of an idle pool's, one future a waiter, chores of their own."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import warnings
import weakref

import pytest
from pool_async.stepping import at_once

import fastpool

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick")]

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="none")


# --- no task of an idle pool ----------------------------------------------------------------------


async def test_an_idle_pool_has_no_task(open_pool, eventually):
    before = asyncio.all_tasks()
    for number in range(3):
        await open_pool(min_size=2, name=f"p{number}")
    await eventually(lambda: asyncio.all_tasks() == before)


async def test_nor_has_an_idle_null_pool(null_pool, eventually):
    before = asyncio.all_tasks()
    pool = await null_pool(max_size=3)
    await pool.wait()
    await pool.putconn(await pool.getconn())
    await eventually(lambda: asyncio.all_tasks() == before)


async def test_a_pool_that_has_grown_has_no_task(open_pool, eventually):
    before = asyncio.all_tasks()
    pool = await open_pool(min_size=0, max_size=3, max_connecting=3)
    conns = await asyncio.gather(*[pool.getconn(5.0) for _ in range(3)])
    await eventually(lambda: asyncio.all_tasks() == before)
    for conn in conns:
        await pool.putconn(conn)
    assert asyncio.all_tasks() == before


async def test_a_pool_that_has_reset_connections_has_no_task(open_pool, eventually):
    gate = asyncio.Event()

    async def reset(conn):
        await gate.wait()

    before = asyncio.all_tasks()
    pool = await open_pool(min_size=2, reset=reset)
    for conn in [await pool.getconn() for _ in range(2)]:
        await pool.putconn(conn)
    await eventually(lambda: len(asyncio.all_tasks() - before) == 2)  # at work
    gate.set()
    await eventually(lambda: pool.snapshot().counts["available"] == 2)
    await eventually(lambda: asyncio.all_tasks() == before)


async def test_a_pool_that_waits_to_try_again_has_no_task(
    new_pool, network, eventually, monkeypatch
):
    monkeypatch.setattr(fastpool.base.AttemptWithBackoff, "INITIAL_DELAY", 100.0)
    monkeypatch.setattr(fastpool.base.AttemptWithBackoff, "MAX_DELAY", 100.0)
    before = asyncio.all_tasks()
    network.down()
    pool = new_pool(min_size=3, connection_class=network.connection_class)
    await pool.open()
    # The first that fails has the others wait for it.
    await eventually(lambda: network.attempts > 0 and asyncio.all_tasks() == before)
    assert network.attempts < 4
    assert pool.snapshot().counts["connecting"] == 3


async def test_a_request_that_waits_starts_no_task(open_pool, eventually):
    before = asyncio.all_tasks()
    pool = await open_pool()
    conn = await pool.getconn()
    request = pool.getconn(timeout=5.0)
    assert request.send(None) is not None
    assert asyncio.all_tasks() == before
    request.close()
    await pool.putconn(conn)


async def test_shrinking_ends_its_task(open_pool, eventually):
    before = asyncio.all_tasks()
    pool = await open_pool(min_size=0, max_size=2, max_idle=0.05)
    for conn in await asyncio.gather(*[pool.getconn(5.0) for _ in range(2)]):
        await pool.putconn(conn)
    await eventually(lambda: pool.snapshot().size == 0)
    await eventually(lambda: asyncio.all_tasks() == before)


# --- waiting --------------------------------------------------------------------------------------


async def test_a_waiter_is_one_future(open_pool, monkeypatch):
    pool = await open_pool()
    conn = await pool.getconn()
    made = []
    loop = asyncio.get_running_loop()
    gates = loop.create_future

    class Loop:
        """The pool's loop, as far as waiting needs it."""

        def create_future(self):
            made.append(gates())
            return made[-1]

        def __getattr__(self, name):
            return getattr(loop, name)

    request = pool.getconn(timeout=5.0)
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "_get_running_loop", lambda: loop)
        own = pool._loop
        pool._set_loop(Loop())
        try:
            future = pool._new_waiter().gate
        finally:
            pool._set_loop(own)
    assert made == [future]
    assert request.send(None) is not None  # and one suspension
    await pool.putconn(conn)
    with pytest.raises(StopIteration) as end:
        request.send(None)
    await pool.putconn(end.value.value)


async def test_a_request_that_has_waited_leaves_no_timer(open_pool, spawn, waiting):
    loop = asyncio.get_running_loop()
    if not hasattr(loop, "_scheduled"):
        pytest.skip("this loop does not show its timers")

    def timers():
        return sum(not handle.cancelled() for handle in loop._scheduled)

    pool = await open_pool()
    before = timers()
    conn = await pool.getconn()
    calls = [spawn(pool.getconn(timeout=1000.0)) for _ in range(3)]
    await waiting(pool, 3)
    assert timers() == before + 3
    await pool.putconn(conn)
    await pool.putconn(await calls[0].result())
    await calls[1].cancel()
    await pool.putconn(await calls[2].result())
    assert timers() == before


async def test_a_return_of_a_healthy_connection_does_not_suspend(open_pool, works):
    pool = await open_pool(min_size=2)
    conn = await pool.getconn()
    assert await works(conn)
    await conn.commit()
    at_once(pool.putconn(conn))
    lease = at_once(_awaited(pool.connect()))
    assert await works(lease)
    await lease.commit()
    at_once(lease.close())

    async def block(way):
        async with way() as conn:
            assert conn.info.transaction_status == 0

    at_once(block(pool.connection))
    at_once(block(pool.connect))
    assert pool.snapshot().counts["available"] == 2


async def _awaited(awaitable):
    return await awaitable


async def test_a_return_for_which_somebody_waits_does_not_suspend(open_pool, spawn, waiting):
    pool = await open_pool()
    conn = await pool.getconn()
    calls = [spawn(pool.getconn(timeout=5.0)) for _ in range(3)]
    await waiting(pool, 3)
    for call in calls:
        at_once(pool.putconn(conn))
        assert await call.result() is conn
    at_once(pool.putconn(conn))


async def test_a_return_that_has_a_reset_does_not_suspend(open_pool, eventually):
    gate = asyncio.Event()

    async def reset(conn):
        await gate.wait()

    pool = await open_pool(reset=reset)
    conn = await pool.getconn()
    await conn.execute("select 1")
    at_once(pool.putconn(conn))
    gate.set()
    await eventually(lambda: pool.snapshot().counts["available"] == 1)


async def test_a_second_return_is_refused_though_somebody_else_was_granted_it(
    open_pool, spawn, waiting
):
    """The waiter has been granted the connection, and has not run since."""
    pool = await open_pool()
    conn = await pool.getconn()
    calls = [spawn(pool.getconn(timeout=5.0)) for _ in range(2)]
    await waiting(pool, 2)
    at_once(pool.putconn(conn))
    with pytest.raises(ValueError, match="can't return connection"):
        at_once(pool.putconn(conn))
    assert await calls[0].result() is conn
    assert not calls[1].done
    at_once(pool.putconn(conn))
    assert await calls[1].result() is conn
    await pool.putconn(conn)
    pool._table.verify()


async def test_closing_twice_what_close_returns_keeps_the_next_borrowers(open_pool, spawn, waiting):
    pool = await open_pool(close_returns=True)
    conn = await pool.getconn()
    call = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 1)
    at_once(conn.close())
    at_once(conn.close())  # the waiter has not run since
    assert await call.result() is conn
    assert not conn.closed
    assert pool.snapshot().counts["in_use"] == 1
    await pool.putconn(conn)
    pool._table.verify()


# --- requests' contexts ---------------------------------------------------------------------------


async def test_chores_do_not_run_in_the_context_of_a_request(new_pool, network, eventually, spawn):
    seen = {}

    class Connection(network.connection_class):
        @classmethod
        async def connect(cls, *args, **kwargs):
            seen.setdefault("connect", set()).add(request_id.get())
            return await super().connect(*args, **kwargs)

    async def configure(conn):
        seen.setdefault("configure", set()).add(request_id.get())

    async def reset(conn):
        seen.setdefault("reset", set()).add(request_id.get())

    async def check(conn):
        seen.setdefault("check", set()).add(request_id.get())

    async def failed(pool):
        seen.setdefault("failed", set()).add(request_id.get())

    async def serve():
        request_id.set("a request's")
        pool = new_pool(
            min_size=1,
            max_size=2,
            configure=configure,
            reset=reset,
            check=check,
            reconnect_failed=failed,
            reconnect_timeout=0.1,
            connection_class=Connection,
        )
        await pool.open(wait=True)
        conns = await asyncio.gather(pool.getconn(), pool.getconn())  # grows
        network.down()
        await pool.drain()
        for conn in conns:
            await pool.putconn(conn)  # resets, and replaces
        await eventually(lambda: "failed" in seen)
        network.up()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            await pool.putconn(await pool.getconn(timeout=5.0))
        await eventually(lambda: pool.snapshot().counts["available"])
        assert request_id.get() == "a request's"

    await spawn(serve()).result(timeout=10.0)
    assert seen.pop("check") == {"a request's"}  # it is part of the request
    assert seen == {name: {"none"} for name in ("connect", "configure", "reset", "failed")}


async def test_a_null_pools_connect_is_part_of_the_request(null_pool, spawn):
    seen = []

    async def configure(conn):
        seen.append(request_id.get())

    pool = await null_pool(configure=configure)

    async def serve():
        request_id.set("a request's")
        await pool.putconn(await pool.getconn())

    await spawn(serve()).result()
    assert seen == ["a request's"]


async def test_an_idle_pool_keeps_no_request_alive(open_pool, eventually, spawn):
    class Payload:
        """Something large that belongs to a request."""

    payload = contextvars.ContextVar("payload")

    async def reset(conn):
        await asyncio.sleep(0)

    pool = await open_pool(max_size=2, max_idle=0.05, reset=reset)
    refs = []

    async def serve():
        value = Payload()
        refs.append(weakref.ref(value))
        payload.set(value)
        conns = await asyncio.gather(pool.getconn(), pool.getconn())
        for conn in conns:
            await pool.putconn(conn)

    call = spawn(serve())
    await call.result()
    del call
    spawn.__closure__[0].cell_contents.clear()  # what the fixture remembers of it

    def gone():
        gc.collect()
        return refs[0]() is None

    await eventually(gone)


# --- what is dropped ------------------------------------------------------------------------------


async def test_a_dropped_connection_frees_its_slot_and_is_warned_of(open_pool, eventually, whole):
    pool = await open_pool()
    with pytest.warns(ResourceWarning, match="lent to task 'the-forgetful'"):

        async def forget():
            await pool.getconn()

        await asyncio.get_running_loop().create_task(forget(), name="the-forgetful")
        gc.collect()
    await whole(pool)
    assert pool.get_stats()["connections_lost"] == 1


async def test_a_dropped_lease_frees_its_slot_and_is_warned_of(open_pool, whole):
    pool = await open_pool()
    with pytest.warns(ResourceWarning, match="was collected without being given back"):
        await pool.connect()
        gc.collect()
    await whole(pool)


async def test_a_dropped_block_gives_back(open_pool, eventually, whole):
    pool = await open_pool()
    block = pool.connection()
    conn = await block.__aenter__()
    pid = conn.pgconn.backend_pid
    await conn.execute("select 1")
    del block, conn
    gc.collect()
    await eventually(lambda: pool.snapshot().counts["available"] == 1)
    (conn,) = pool._pool
    assert conn.pgconn.backend_pid == pid
    assert conn.info.transaction_status == 0
    del conn
    await whole(pool)


@pytest.mark.parametrize("way", ["connection", "connect"])
async def test_a_dropped_generator_gives_back(open_pool, eventually, whole, way):
    pool = await open_pool()

    async def rows():
        async with getattr(pool, way)() as conn:
            cursor = await conn.execute("select generate_series(1, 3)")
            async for row in cursor:
                yield row

    generator = rows()
    assert await generator.__anext__() == (1,)
    assert pool.snapshot().counts["in_use"] == 1
    del generator
    gc.collect()
    await eventually(lambda: pool.snapshot().counts["available"] == 1)
    await whole(pool)


async def test_a_block_that_is_entered_never_lends_nothing(open_pool):
    pool = await open_pool()
    pool.connection()
    gc.collect()
    assert pool.get_stats()["requests_num"] == 0


async def test_what_another_thread_collects_is_replaced_in_the_loop(open_pool, eventually, whole):
    pool = await open_pool()

    async def forget():
        cycle = [await pool.getconn()]
        cycle.append(cycle)

    gc.disable()
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            await forget()
            assert pool.snapshot().counts["in_use"] == 1
            collector = threading.Thread(target=gc.collect)
            collector.start()
            collector.join()
            await eventually(lambda: pool.snapshot().counts["available"] == 1)
    finally:
        gc.enable()
    assert len(warned) == 1
    assert warned[0].category is ResourceWarning
    await whole(pool)


async def test_a_block_that_another_thread_collects_is_given_back_in_the_loop(
    open_pool, eventually, whole
):
    pool = await open_pool()
    block = pool.connection()
    await block.__aenter__()
    cycle = [block]
    cycle.append(cycle)
    del block, cycle
    collector = threading.Thread(target=gc.collect)
    collector.start()
    collector.join()
    await eventually(lambda: pool.snapshot().counts["available"] == 1)
    await whole(pool)


async def test_a_dropped_pool_closes_its_sessions_and_warns_of_nothing(
    anyio_backend, dsn, sessions, eventually
):
    async def drop(**options):
        pool = fastpool.AsyncConnectionPool(
            dsn, min_size=2, open=False, kwargs=sessions.kwargs, **options
        )
        await pool.open(wait=True, timeout=5.0)
        await eventually(lambda: not pool._tasks._tasks)
        return weakref.ref(pool)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ref = await drop()
        await eventually(lambda: ref() is None or gc.collect() is None)
        await eventually(lambda: not sessions.pids())


async def test_a_pool_dropped_while_it_cannot_connect_ends_its_attempts(
    anyio_backend, network, eventually
):
    network.down()

    async def drop():
        pool = fastpool.AsyncConnectionPool(
            "", connection_class=network.connection_class, open=False
        )
        await pool.open()
        await eventually(lambda: network.attempts >= 8)
        return weakref.ref(pool)

    ref = await drop()
    await eventually(lambda: gc.collect() is not None and ref() is None)
    seen = network.attempts
    await asyncio.sleep(0.15)  # three times the longest pause between attempts
    assert network.attempts <= seen + 1


# --- requests whose task is destroyed -------------------------------------------------------------


async def test_a_destroyed_request_hands_on_what_it_was_granted(open_pool, spawn, waiting):
    pool = await open_pool()
    conn = await pool.getconn()
    first = pool.getconn(timeout=5.0)
    first.send(None)
    second = spawn(pool.getconn(timeout=5.0))
    await waiting(pool, 2)
    await pool.putconn(conn)
    first.close()
    assert await second.result() is conn
    await pool.putconn(conn)


async def test_a_destroyed_request_leaves_the_queue(open_pool, waiting):
    pool = await open_pool()
    conn = await pool.getconn()
    requests = [pool.getconn(timeout=5.0) for _ in range(3)]
    for request in requests:
        request.send(None)
    assert pool.snapshot().waiting == 3
    requests.clear()
    del request
    gc.collect()
    await waiting(pool, 0)
    await pool.putconn(conn)
    assert pool.snapshot().counts["available"] == 1


async def test_a_return_destroyed_in_its_rollback_replaces_the_connection(open_pool, whole):
    pool = await open_pool()
    conn = await pool.getconn()
    await conn.execute("select 1")
    returning = pool.putconn(conn)
    assert returning.send(None) is not None
    returning.close()
    assert conn.closed
    await whole(pool)


async def test_a_null_pools_request_destroyed_while_it_connects_frees_its_slot(null_pool, whole):
    pool = await null_pool()
    request = pool.getconn(timeout=5.0)
    assert request.send(None) is not None
    assert pool.snapshot().counts["connecting"] == 1
    request.close()
    await whole(pool)
