"""How a test speaks to a pool for threads and to one for tasks in the same words."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

POLL = 0.005


async def done(result: Any) -> Any:
    """Return what a call came to: for threads at once, for tasks when it has been awaited."""
    return await result if inspect.isawaitable(result) else result


@asynccontextmanager
async def entered(block: Any) -> AsyncIterator[Any]:
    """`async with` of either kind of block."""
    if hasattr(type(block), "__aexit__"):
        async with block as value:
            yield value
    else:
        with block as value:
            yield value


async def scalar(conn: Any, query: str) -> Any:
    """Execute *query*; return the first column of its first row."""
    cursor = await done(conn.execute(query))
    return (await done(cursor.fetchone()))[0]


async def until(predicate: Callable[[], Any], what: str, timeout: float = 5.0) -> None:
    """Wait, *timeout* seconds at most, for *predicate* to hold. The tasks run meanwhile."""
    deadline = time.monotonic() + timeout
    while not predicate():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        await asyncio.sleep(POLL)


async def available(pool: Any, count: int = 1) -> None:
    """Wait until *count* connections of *pool* are idle."""
    await until(lambda: pool.get_stats()["pool_available"] == count, f"{count} of {pool} available")
