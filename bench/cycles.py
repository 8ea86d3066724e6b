"""The loops of the cycle workload: lend and give back, with nobody else about.

Owns: how one scenario is done n times, by a thread or a task, and timed. Refuses: to know pools.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

SCENARIOS = ("getconn_putconn", "connect_close", "connection_block")


def take_and_put(take: Callable[[], Any], put: Callable[[Any], object], n: int) -> float:
    """Take, and give back to the pool, *n* times; return the seconds for one."""
    start = time.perf_counter()
    for _ in range(n):
        put(take())
    return (time.perf_counter() - start) / n


def take_and_close(take: Callable[[], Any], n: int) -> float:
    """Take a connection whose own close() gives it back, *n* times; return the seconds for one."""
    start = time.perf_counter()
    for _ in range(n):
        take().close()
    return (time.perf_counter() - start) / n


def block(connection: Callable[[], Any], n: int) -> float:
    """Take for the length of a with block, *n* times; return the seconds for one."""
    start = time.perf_counter()
    for _ in range(n):
        with connection():
            pass
    return (time.perf_counter() - start) / n


async def take_and_put_async(
    take: Callable[[], Awaitable[Any]], put: Callable[[Any], Awaitable[object]], n: int
) -> float:
    """As take_and_put()."""
    start = time.perf_counter()
    for _ in range(n):
        await put(await take())
    return (time.perf_counter() - start) / n


async def take_and_close_async(take: Callable[[], Awaitable[Any]], n: int) -> float:
    """As take_and_close()."""
    start = time.perf_counter()
    for _ in range(n):
        await (await take()).close()
    return (time.perf_counter() - start) / n


async def block_async(connection: Callable[[], Any], n: int) -> float:
    """As block()."""
    start = time.perf_counter()
    for _ in range(n):
        async with connection():
            pass
    return (time.perf_counter() - start) / n
