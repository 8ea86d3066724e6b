"""A deadlock among tasks is found out when it is certain, and only then."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import fastpool

pytestmark = pytest.mark.anyio
LONG = 20.0
# Longer than a look takes to be made.
MOMENT = 0.5


async def test_a_task_that_holds_all_and_wants_one_more_is_told(
    open_pool: Callable[..., Awaitable[Any]],
) -> None:
    pool = await open_pool()
    async with pool.connection() as conn:
        with pytest.raises(fastpool.PoolDeadlock, match="deadlock in the pool") as caught:
            async with pool.connection(timeout=LONG):
                pass
        assert f"backend {conn.pgconn.backend_pid}" in str(caught.value)
        assert "test_deadlock.py:" in str(caught.value)
    async with pool.connection(timeout=1.0):
        pass


async def test_tasks_that_hold_one_each_and_want_a_second_are_all_told(
    open_pool: Callable[..., Awaitable[Any]],
) -> None:
    pool = await open_pool(min_size=3, max_size=3)
    lent = 0
    go = asyncio.Event()

    async def work() -> None:
        nonlocal lent
        async with pool.connection() as conn:
            await conn.execute("select 1")
            lent += 1
            if lent == 3:
                go.set()
            await go.wait()
            await pool.getconn(timeout=LONG)

    working = asyncio.gather(*(work() for _ in range(3)), return_exceptions=True)
    results = await asyncio.wait_for(working, LONG / 2)
    assert all(isinstance(result, fastpool.PoolDeadlock) for result in results)
    assert pool.snapshot().counts["available"] == 3


async def test_a_deadlock_is_found_as_often_as_there_is_one(
    open_pool: Callable[..., Awaitable[Any]],
) -> None:
    """What a look has seen it must not keep alive: a second one would find it there."""
    pool = await open_pool(min_size=1, max_size=1)

    async def work() -> str:
        async with pool.connection() as first:
            await first.execute("select 1")
            try:
                await pool.getconn(timeout=LONG)
            except fastpool.PoolTimeout as error:
                return type(error).__name__
        return "lent"

    gc.disable()
    try:
        for _ in range(3):
            assert await asyncio.create_task(work()) == "PoolDeadlock"
    finally:
        gc.enable()


async def in_a_block_without_a_name(pool: Any) -> None:
    async with pool.connection():
        await pool.getconn(timeout=LONG)


async def in_an_exit_stack(pool: Any) -> None:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(pool.connection())
        await stack.enter_async_context(pool.connection(timeout=LONG))


async def in_an_object(pool: Any) -> None:
    box = argparse.Namespace(conn=await pool.getconn())
    try:
        await pool.getconn(timeout=LONG)
    finally:
        await pool.putconn(box.conn)


async def in_a_closure(pool: Any) -> None:
    async with pool.connection() as conn:

        async def inner() -> None:
            await conn.execute("select 1")
            await pool.getconn(timeout=LONG)

        await inner()


async def in_a_cursor(pool: Any) -> None:
    async with pool.connection() as conn, conn.cursor() as cursor:
        await cursor.execute("select generate_series(1, 3)")
        async for _ in cursor:
            await pool.getconn(timeout=LONG)


@pytest.mark.parametrize(
    "work",
    [in_a_block_without_a_name, in_an_exit_stack, in_an_object, in_a_closure, in_a_cursor],
)
async def test_wherever_the_connections_are_kept(
    open_pool: Callable[..., Awaitable[Any]], work: Callable[[Any], Awaitable[None]]
) -> None:
    pool = await open_pool()
    began = time.monotonic()
    (error,) = await asyncio.gather(work(pool), return_exceptions=True)
    assert isinstance(error, fastpool.PoolDeadlock)
    assert time.monotonic() - began < LONG / 2
    assert pool.snapshot().counts["available"] == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_connection_in_garbage_comes_back(open_pool: Callable[..., Awaitable[Any]]) -> None:
    pool = await open_pool()
    gc.disable()
    try:
        cycle: list[Any] = [await pool.getconn()]
        cycle.append(cycle)
        del cycle
        async with pool.connection(timeout=LONG):
            pass
    finally:
        gc.enable()


async def test_a_connection_in_a_thread_is_no_deadlock(
    open_pool: Callable[..., Awaitable[Any]],
) -> None:
    pool = await open_pool()
    loop = asyncio.get_running_loop()

    def give_back(conn: Any) -> None:
        time.sleep(MOMENT)
        asyncio.run_coroutine_threadsafe(pool.putconn(conn), loop).result()

    future = loop.run_in_executor(None, give_back, await pool.getconn())
    again = await pool.getconn(timeout=LONG)
    await future
    await pool.putconn(again)


async def test_a_connection_that_another_task_gives_back_is_no_deadlock(
    open_pool: Callable[..., Awaitable[Any]],
) -> None:
    pool = await open_pool()
    conn = await pool.getconn()

    async def give_back(conn: Any) -> None:
        await asyncio.sleep(MOMENT)
        await pool.putconn(conn)

    task = asyncio.create_task(give_back(conn))
    again = await pool.getconn(timeout=LONG)
    await task
    assert again is conn
    await pool.putconn(again)


async def test_a_connection_that_a_callback_gives_back_is_no_deadlock(
    open_pool: Callable[..., Awaitable[Any]],
) -> None:
    pool = await open_pool()
    conn = await pool.getconn()
    tasks = []

    def give_back(conn: Any) -> None:
        tasks.append(asyncio.ensure_future(pool.putconn(conn)))

    asyncio.get_running_loop().call_later(MOMENT, give_back, conn)
    again = await pool.getconn(timeout=LONG)
    assert again is conn
    await tasks[0]
    await pool.putconn(again)
