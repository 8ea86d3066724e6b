"""A deadlock among tasks is found out when it is certain, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import fastpool

pytestmark = pytest.mark.anyio
LONG = 20.0


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

    async with asyncio.timeout(LONG / 2) if hasattr(asyncio, "timeout") else pool.connection():
        results = await asyncio.gather(*(work() for _ in range(3)), return_exceptions=True)
    assert all(isinstance(result, fastpool.PoolDeadlock) for result in results)
    assert pool.snapshot().counts["available"] == 3


async def test_a_connection_that_another_task_gives_back_is_no_deadlock(
    open_pool: Callable[..., Awaitable[Any]],
) -> None:
    pool = await open_pool()
    conn = await pool.getconn()

    async def give_back(conn: Any) -> None:
        await asyncio.sleep(0.02)
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

    asyncio.get_running_loop().call_later(0.02, give_back, conn)
    again = await pool.getconn(timeout=LONG)
    assert again is conn
    await tasks[0]
    await pool.putconn(again)
