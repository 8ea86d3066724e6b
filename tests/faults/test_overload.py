"""Half as much again as the connections can do, asked by clients who don't wait for long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from faults.subject import POOLS, Loop

import fastpool

SIZE = 5
HOLD = "select pg_sleep(0.04)"
SECONDS = 5.0
PATIENCE = 0.2
OVERLOAD = 1.5
GOODPUT = 0.9


def capacity_of_threads(dsn: str, seconds: float) -> float:
    """How often a second as many connections as there are can do the work, without a pool."""
    done = [0] * SIZE

    def work(number: int) -> None:
        with psycopg.connect(dsn, autocommit=True) as conn:
            start.wait()
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                conn.execute(HOLD)
                done[number] += 1

    start = threading.Barrier(SIZE)
    threads = [threading.Thread(target=work, args=[number]) for number in range(SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / seconds


async def capacity_of_tasks(dsn: str, seconds: float) -> float:
    """The same for tasks."""

    async def work() -> int:
        done = 0
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                await conn.execute(HOLD)
                done += 1
        return done

    return sum(await asyncio.gather(*(work() for _ in range(SIZE)))) / seconds


@pytest.mark.parametrize("kind", POOLS)
def test_clients_that_time_out_take_no_capacity_away(
    kind: str, new_pool: Callable[..., Any], faults: Any, loop: Loop
) -> None:
    pool = new_pool(kind, min_size=SIZE, max_size=SIZE)

    def capacity() -> float:
        if pool.is_async:
            return float(loop.submit(capacity_of_tasks(faults.server.dsn, 1.0)).result(10.0))
        return capacity_of_threads(faults.server.dsn, 1.0)

    before = capacity()
    rate = OVERLOAD * before
    began = time.monotonic()
    started = []
    for number in range(int(rate * SECONDS)):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        started.append(pool.start("use", timeout=PATIENCE, sql=HOLD))
    asked = time.monotonic() - began
    outcomes = [pool.outcome(future) for future in started]
    # The machine may have become slower or faster meanwhile.
    most = min(before, capacity())

    served = sum(1 for o in outcomes if o.ok and o.ended < began + asked)
    refused = [o.fails_with(fastpool.PoolTimeout) for o in outcomes if not o.ok]
    assert refused
    # Hundreds of clients and the server share two processors: one in fifty may get its turn late.
    punctual = sorted(refused, key=lambda o: o.took)[: len(refused) * 49 // 50]
    punctual[-1].ends_within(PATIENCE)
    assert served / asked >= GOODPUT * most, f"{served / asked:.1f}/s of {most:.1f}/s"
    assert pool.do("use", timeout=PATIENCE)
