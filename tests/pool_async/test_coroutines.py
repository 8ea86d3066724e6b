"""What the methods of an async pool and its leases return is a coroutine, to all who ask."""

from __future__ import annotations

import asyncio
import collections.abc
import gc
import inspect
import sys
import types
import weakref

import pytest

import fastpool


async def lend(pool):
    return await pool.putconn(await pool.getconn())


async def test_a_call_is_a_coroutine_by_every_test(open_pool):
    pool = await open_pool()
    call = pool.getconn()
    assert inspect.iscoroutine(call)
    assert inspect.isawaitable(call)
    assert asyncio.iscoroutine(call)
    assert isinstance(call, types.CoroutineType)
    assert isinstance(call, collections.abc.Coroutine)
    assert inspect.getcoroutinestate(call) == inspect.CORO_CREATED or call.cr_frame is None
    assert "AsyncConnectionPool.getconn" in repr(call)
    assert call.__name__ == "getconn"
    assert call.cr_code is fastpool.AsyncConnectionPool.getconn.__code__
    await pool.putconn(await call)


async def test_a_call_knows_its_state(open_pool):
    pool = await open_pool()
    states = []
    conn = await pool.getconn()
    call = pool.getconn()
    states.append(call.cr_state)
    waiting = asyncio.ensure_future(call)
    await asyncio.sleep(0)
    states.append(call.cr_state)
    await pool.putconn(conn)
    await pool.putconn(await waiting)
    states.append(call.cr_state)
    assert states == [inspect.CORO_CREATED, inspect.CORO_SUSPENDED, inspect.CORO_CLOSED]


async def test_the_methods_are_coroutine_functions(open_pool):
    pool = await open_pool()
    async with pool.connect() as lease:
        methods = (pool.getconn, pool.putconn, type(pool).getconn, type(pool).putconn)
        for method in (*methods, lease.close, type(lease).close, lease.__aexit__):
            assert inspect.iscoroutinefunction(method)
    assert not inspect.iscoroutinefunction(pool.connect)  # it is a block too


async def test_what_connect_and_a_lease_return_are_coroutines(open_pool):
    pool = await open_pool()
    call = pool.connect()
    lease = await call
    leaving = lease.__aexit__(None, None, None)
    closing = lease.close()
    for coroutine, name in ((call, "connect"), (leaving, "__aexit__"), (closing, "close")):
        assert asyncio.iscoroutine(coroutine)
        assert isinstance(coroutine, types.CoroutineType)
        assert isinstance(coroutine, collections.abc.Coroutine)
        assert coroutine.__name__ == name
    assert pool.snapshot().counts["in_use"] == 1
    await leaving
    assert pool.snapshot().counts["in_use"] == 0
    await closing


async def test_a_lease_whose_close_is_never_awaited_is_lent_still(open_pool):
    pool = await open_pool()
    lease = await pool.connect()
    with pytest.warns(RuntimeWarning, match=r"'AsyncLease\.close' was never awaited"):
        lease.close()
    assert pool.snapshot().counts["in_use"] == 1
    await lease.close()


async def test_a_checkout_is_entered_once(open_pool):
    pool = await open_pool()
    checkout = pool.connect()
    async with checkout:
        pass
    with pytest.raises(RuntimeError, match="cannot reuse"):
        async with checkout:
            pass
    awaited = pool.connect()
    lease = await awaited
    with pytest.raises(RuntimeError, match="cannot reuse"):
        async with awaited:
            pass
    await lease.close()
    assert pool.snapshot().counts["in_use"] == 0


async def test_an_awaited_checkout_does_not_keep_its_lease(open_pool):
    pool = await open_pool()
    checkout = pool.connect()
    lease = await checkout
    await lease.close()
    ended = weakref.ref(lease)
    del lease
    gc.collect()
    assert ended() is None
    checkout.close()


async def test_a_block_that_waits_gets_what_comes_back(open_pool, waiting):
    pool = await open_pool()
    conn = await pool.getconn()

    async def block():
        async with pool.connect() as lease:
            return lease.pgconn

    task = asyncio.create_task(block())
    await waiting(pool, 1)
    await pool.putconn(conn)
    assert await task is conn.pgconn
    assert pool.snapshot().counts["in_use"] == 0


async def test_a_block_that_is_cancelled_while_it_waits_gets_nothing(open_pool, waiting):
    pool = await open_pool()
    conn = await pool.getconn()

    async def block():
        async with pool.connect():
            raise AssertionError

    task = asyncio.create_task(block())
    await waiting(pool, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await pool.putconn(conn)
    assert pool.snapshot().counts["available"] == 1


async def test_nothing_happens_before_the_first_step(open_pool):
    pool = await open_pool()
    call = pool.getconn()
    assert pool.snapshot().counts["in_use"] == 0
    conn = await call
    back = pool.putconn(conn)
    assert pool.snapshot().counts["in_use"] == 1
    await back
    assert pool.snapshot().counts["in_use"] == 0


async def test_one_that_is_never_awaited_is_warned_of(open_pool):
    pool = await open_pool()
    with pytest.warns(RuntimeWarning, match=r"'AsyncConnectionPool\.getconn' was never awaited"):
        pool.getconn()
    conn = await pool.getconn()
    with pytest.warns(RuntimeWarning, match=r"'AsyncConnectionPool\.putconn' was never awaited"):
        pool.putconn(conn)
    await pool.putconn(conn)


async def test_one_that_is_closed_before_its_first_step_does_nothing(open_pool):
    pool = await open_pool()
    call = pool.getconn()
    call.close()
    call.close()
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await call
    assert pool.get_stats()["requests_num"] == 0


async def test_one_that_has_ended_is_not_awaited_again(open_pool):
    pool = await open_pool()
    call = pool.getconn()
    conn = await call
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await call
    with pytest.raises(RuntimeError, match="cannot reuse"):
        call.throw(ValueError())
    await pool.putconn(conn)


async def test_an_exception_thrown_before_the_first_step_comes_out(open_pool):
    pool = await open_pool()
    call = pool.getconn()
    with pytest.raises(KeyError):
        call.throw(KeyError("no"))
    assert pool.get_stats()["requests_num"] == 0
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await call


async def test_steps_by_hand_end_in_the_result(open_pool):
    pool = await open_pool()
    with pytest.raises(StopIteration) as end:
        pool.getconn().send(None)
    conn = end.value.value
    with pytest.raises(StopIteration) as end:
        next(pool.putconn(conn))
    assert end.value.value is None
    assert pool.snapshot().counts["available"] == 1


async def test_a_waiting_call_shows_what_it_waits_in(open_pool, waiting):
    pool = await open_pool()
    conn = await pool.getconn()
    call = pool.getconn()
    task = asyncio.create_task(call)
    await waiting(pool, 1)
    assert call.cr_await.__name__ == "checkout"
    assert call.cr_frame.f_code.co_name == "checkout"
    assert not call.cr_running
    assert call.cr_suspended
    if type(task) is asyncio.Task:
        assert task.get_stack()
    await pool.putconn(conn)
    await pool.putconn(await task)


async def test_a_call_under_a_tracer_does_the_same(open_pool):
    pool = await open_pool()
    seen = []
    sys.setprofile(lambda frame, event, arg: seen.append(event))
    try:
        await lend(pool)
    finally:
        sys.setprofile(None)
    assert seen
    sys.settrace(lambda frame, event, arg: None)
    try:
        await lend(pool)
    finally:
        sys.settrace(None)
    assert pool.snapshot().counts["available"] == 1


async def test_a_call_can_be_a_task_or_have_a_time_limit(open_pool):
    pool = await open_pool()
    conn = await asyncio.create_task(pool.getconn())
    await asyncio.gather(pool.putconn(conn))
    conn = await asyncio.wait_for(pool.getconn(), 5.0)
    await asyncio.wait_for(pool.putconn(conn), 5.0)


async def test_the_borrower_is_the_task_also_where_a_callback_turns_the_loop(open_pool):
    pool = await open_pool()
    conn = await pool.getconn()
    [slot] = [slot for slot in pool.snapshot().slots if slot.state == "in_use"]
    assert slot.owner_ident == id(asyncio.current_task())
    await pool.putconn(conn)
    done = asyncio.Event()
    found = []

    def in_no_task():
        with pytest.raises(StopIteration) as end:
            pool.getconn().send(None)
        found.append(end.value.value)
        done.set()

    asyncio.get_running_loop().call_soon(in_no_task)
    await done.wait()
    await pool.putconn(found[0])
