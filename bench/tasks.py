"""The contended load of one event loop: as threads.py, with tasks.

Owns: the loop that every async pool meets. Refuses: to know pools; to sum up (rounds.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from .rounds import Round, summary


async def hold_nothing(session: Any) -> None:
    """Let the others run once: a task that never suspends would be the only one to run."""
    await asyncio.sleep(0)


async def hold_millisecond(session: Any) -> None:
    """Keep the connection for 1 ms."""
    await asyncio.sleep(0.001)


async def play(
    take: Callable[[], Awaitable[Any]],
    put: Callable[[Any], Awaitable[object]],
    session_of: Callable[[Any], Any] | None,
    hold: Callable[[Any], Awaitable[None]],
    *,
    tasks: int,
    seconds: float,
) -> Round:
    """Let *tasks* take, hold and give back for *seconds*.

    *session_of* is that of threads.play(). Raises what a task raised, and AssertionError if two
    had one session.
    """
    begin = asyncio.Event()
    served = [0] * tasks
    waits: list[list[float]] = [[] for _ in range(tasks)]
    deadline = 0.0

    async def client(index: int) -> None:
        clock, mine, n = time.perf_counter, waits[index], 0
        await begin.wait()
        while (asked := clock()) < deadline:
            conn = await take()
            mine.append(clock() - asked)
            session = conn if session_of is None else session_of(conn)
            session.bench_holder = index
            await hold(session)
            assert session.bench_holder == index, "one connection was lent twice at a time"
            await put(conn)
            n += 1
        served[index] = n

    clients = [asyncio.ensure_future(client(i)) for i in range(tasks)]
    await asyncio.sleep(0)
    cpu = time.process_time()
    start = time.perf_counter()
    deadline = start + seconds
    begin.set()
    await asyncio.gather(*clients)
    elapsed = time.perf_counter() - start
    return summary(elapsed, time.process_time() - cpu, served, waits)
