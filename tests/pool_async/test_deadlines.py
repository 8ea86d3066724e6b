"""Every call of an async pool ends by its deadline, whatever the server and callbacks do."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from driver import needs_cancellations
from shared.deadlines import takes

import fastpool
import fastpool.guard

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs POSIX signals"),
]


@pytest.fixture
def freeze() -> Iterator[Callable[[Any], None]]:
    """`freeze(conn)` stops the backend of a connection until the test is over."""
    frozen: list[int] = []

    def stop(conn: Any) -> None:
        frozen.append(conn.pgconn.backend_pid)
        os.kill(frozen[-1], signal.SIGSTOP)

    yield stop
    for pid in frozen:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def short_round_trips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what the pool does on its own account take half a second, not five."""
    monkeypatch.setattr(fastpool.guard, "ROUND_TRIP", 0.5)


async def check(conn: psycopg.AsyncConnection[Any]) -> None:
    """A check of one's own."""
    await conn.execute("select 1")


class Stuck:
    """A callback of which the first call waits for something that never comes."""

    def __init__(self) -> None:
        self.was_cancelled = False
        self._calls = 0

    async def __call__(self, conn: Any) -> None:
        """Wait for ever, or return at once."""
        self._calls += 1
        if self._calls == 1:
            try:
                await asyncio.Event().wait()
            finally:
                self.was_cancelled = True


@pytest.mark.parametrize("function", [fastpool.AsyncConnectionPool.check_connection, check])
async def test_a_check_of_a_frozen_backend_makes_way_for_another_connection(
    open_pool: Callable[..., Awaitable[Any]], freeze: Callable[[Any], None], function: Any
) -> None:
    pool = await open_pool(check=function)
    (frozen,) = list(pool._pool)
    freeze(frozen)
    with takes(0.5, 1.0):
        conn = await pool.getconn(timeout=1.0)
    assert conn is not frozen
    assert frozen.closed
    await conn.execute("select 1")
    await pool.putconn(conn)


async def test_a_check_that_waits_for_something_else_is_cancelled(
    open_pool: Callable[..., Awaitable[Any]],
) -> None:
    stuck = Stuck()
    pool = await open_pool(check=stuck)
    with takes(0.3, 0.6):
        conn = await pool.getconn(timeout=0.6)
    assert stuck.was_cancelled
    await asyncio.sleep(0)  # no cancellation is left over
    await pool.putconn(conn)


async def test_a_timeout_names_the_check_that_did_not_end(
    open_pool: Callable[..., Awaitable[Any]], network: Any, freeze: Callable[[Any], None]
) -> None:
    pool = await open_pool(check=check, connection_class=network.connection_class)
    network.down()
    freeze(*pool._pool)
    with (
        takes(0.4, 0.4),
        pytest.raises(fastpool.PoolTimeout, match="the last check did not end in time; .*is down"),
    ):
        await pool.getconn(timeout=0.4)


@needs_cancellations
@pytest.mark.skipif(sys.version_info < (3, 11), reason="a task does not count who has cancelled it")
async def test_who_is_cancelled_while_a_check_is_overdue_ends_cancelled(
    open_pool: Callable[..., Awaitable[Any]],
    spawn: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The deadline cancels the check, and before it has ended the request is cancelled too."""
    monkeypatch.setattr(fastpool.guard, "GRACE", 0.0)
    in_check, ending = asyncio.Event(), asyncio.Event()

    async def slow_to_end(conn: Any) -> None:
        in_check.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ending.set()
            raise

    pool = await open_pool(check=slow_to_end)
    call = spawn(pool.getconn(timeout=0.2))
    await in_check.wait()
    # In the same turn of the loop, one behind the other.
    task_cancel = call.task.cancel
    guards: list[Any] = []
    monkeypatch.setattr(fastpool.guard.TaskGuard, "_cancel", lambda self: guards.append(self))
    while not guards:
        await asyncio.sleep(0.01)
    monkeypatch.undo()
    guards[0]._cancel()
    task_cancel()
    await asyncio.wait({call.task}, timeout=2.0)
    assert call.task.cancelled()
    assert ending.is_set()


@needs_cancellations
async def test_a_cancelled_request_whose_check_gets_no_answer_ends_cancelled(
    open_pool: Callable[..., Awaitable[Any]],
    freeze: Callable[[Any], None],
    spawn: Callable[..., Any],
    short_round_trips: None,
) -> None:
    pool = await open_pool(check=check)
    freeze(*pool._pool)
    call = spawn(pool.getconn(timeout=10.0))
    await asyncio.sleep(0.05)
    with takes(0.0, 0.5):
        await call.cancel()


async def test_a_return_does_not_wait_for_a_rollback_without_end(
    open_pool: Callable[..., Awaitable[Any]],
    freeze: Callable[[Any], None],
    short_round_trips: None,
    eventually: Callable[..., Awaitable[Any]],
) -> None:
    pool = await open_pool()
    conn = await pool.getconn()
    await conn.execute("select 1")
    freeze(conn)
    with takes(0.5, 0.5):
        await pool.putconn(conn)
    assert conn.closed
    await eventually(lambda: len(pool._pool) == 1)


async def test_a_reset_that_never_ends_holds_no_task(
    open_pool: Callable[..., Awaitable[Any]], short_round_trips: None
) -> None:
    stuck = Stuck()
    pool = await open_pool(min_size=2, num_workers=1, timeout=0.5, reset=stuck)
    for conn in [await pool.getconn() for _ in range(2)]:
        await pool.putconn(conn)
    with takes(0.3, 0.6):
        conns = [await pool.getconn(timeout=2.0) for _ in range(2)]
    assert stuck.was_cancelled
    for conn in conns:
        await pool.putconn(conn)


async def test_check_goes_on_past_frozen_backends(
    open_pool: Callable[..., Awaitable[Any]],
    freeze: Callable[[Any], None],
    short_round_trips: None,
    eventually: Callable[..., Awaitable[Any]],
) -> None:
    pool = await open_pool(min_size=2)
    frozen = list(pool._pool)
    for conn in frozen:
        freeze(conn)
    with takes(1.0, 1.0):
        await pool.check()
    await eventually(lambda: len(pool._pool) == 2)
    assert all(conn.closed for conn in frozen)


async def test_waiting_for_a_pool_ends_in_time_though_a_connect_is_stuck(
    new_pool: Callable[..., Any], network: Any
) -> None:
    pool = new_pool(connection_class=network.connection_class)
    network.hold()
    await pool.open()
    with takes(0.3, 0.3), pytest.raises(fastpool.PoolTimeout, match=r"incomplete after 0.3 sec"):
        await pool.wait(timeout=0.3)
    assert pool.closed


async def test_closing_does_not_wait_for_who_is_stuck(
    open_pool: Callable[..., Awaitable[Any]], spawn: Callable[..., Any], freeze: Any
) -> None:
    pool = await open_pool(min_size=1, max_size=1, reset=Stuck())
    await pool.putconn(await pool.getconn())
    call = spawn(pool.getconn(timeout=10.0))
    await asyncio.sleep(0.05)
    with takes(0.3, 0.3):
        await pool.close(timeout=0.3)
    with pytest.raises(fastpool.PoolClosed):
        await call.result()
