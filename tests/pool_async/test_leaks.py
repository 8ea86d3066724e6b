"""Leases that last too long, and those whose task has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

pytestmark = pytest.mark.anyio


def lines_about(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    messages = [record.getMessage() for record in caplog.records if record.name == "psycopg.pool"]
    return [message for message in messages if text in message]


async def test_a_lease_that_lasts_too_long_is_warned_of_once(
    open_pool: Callable[..., Awaitable[Any]],
    eventually: Callable[..., Awaitable[Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = await open_pool(leak_timeout=0.05)
    task = asyncio.current_task()
    assert task is not None
    task.set_name("the borrower")
    async with pool.connection():
        await eventually(lambda: lines_about(caplog, "has not been given back"))
        await asyncio.sleep(0.1)
        (line,) = lines_about(caplog, "has not been given back")
        assert "lent to task 'the borrower'" in line
        assert "test_leaks.py:" in line
        assert pool.snapshot().slots[0].is_overdue


async def test_a_lease_whose_task_has_ended_is_reported_and_reclaimed(
    open_pool: Callable[..., Awaitable[Any]],
    eventually: Callable[..., Awaitable[Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = await open_pool(leak_timeout=0.05, reclaim_dead=True)
    conn = await asyncio.create_task(pool.getconn())
    await eventually(lambda: pool.snapshot().counts["available"] == 1)
    assert len(lines_about(caplog, "lent to a task that has ended")) == 1
    async with pool.connection(timeout=2.0) as other:
        assert other is not conn
    await pool.putconn(conn)
    assert pool.snapshot().counts["available"] == 1
