"""Fixtures for tests that are tasks: conditions to wait for, calls, the use of connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import psycopg
import pytest

POLL = 0.005


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Run the tests in asyncio's own event loop, a new one for each test."""
    return ("asyncio", {})


def others() -> set[asyncio.Task[Any]]:
    """The tasks that are not the test runner's, which has new ones for each fixture and test."""
    return {
        task
        for task in asyncio.all_tasks()
        if not getattr(task.get_coro(), "__qualname__", "").startswith("TestRunner.")
    }


async def wait_until(predicate: Callable[[], Any], timeout: float = 5.0, what: str = "") -> Any:
    """Let the loop run until *predicate* returns something true, and return it."""
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() > deadline
        value = predicate()
        if value:
            return value
        if late:
            name = what or getattr(predicate, "__name__", repr(predicate))
            raise AssertionError(f"not within {timeout:g} s: {name} (last: {value!r})")
        await asyncio.sleep(POLL)


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Awaitable[Any]]:
    """Poll a condition with a deadline: `await eventually(lambda: pool.closed, timeout=5)`."""
    return wait_until


class TaskCall:
    """A coroutine running in a task of its own."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], name: str | None) -> None:
        self.task = asyncio.get_running_loop().create_task(coroutine, name=name)

    @property
    def done(self) -> bool:
        return self.task.done()

    async def result(self, timeout: float = 5.0) -> Any:
        """Return what the call returned, or raise what it raised, CancelledError included.

        Raises TimeoutError when that takes more than *timeout* seconds; the call goes on then.
        """
        await asyncio.wait({self.task}, timeout=timeout)
        if not self.done:
            raise TimeoutError(f"still running after {timeout} s: {self.task}")
        return self.task.result()

    async def cancel(self, timeout: float = 5.0) -> None:
        """Cancel the call and see it end so. One that ends otherwise has swallowed it."""
        self.task.cancel()
        try:
            await self.result(timeout)
        except asyncio.CancelledError:
            return
        raise AssertionError(f"the cancellation was swallowed: {self.task}")


@pytest.fixture
async def spawn(anyio_backend: object) -> AsyncIterator[Callable[..., TaskCall]]:
    """`spawn(pool.getconn(), task_name=None)` runs a coroutine in a task."""
    calls: list[TaskCall] = []

    def start(coroutine: Coroutine[Any, Any, Any], task_name: str | None = None) -> TaskCall:
        call = TaskCall(coroutine, task_name)
        calls.append(call)
        return call

    yield start
    for call in calls:
        call.task.cancel()
    if calls:
        await asyncio.wait([call.task for call in calls], timeout=5.0)


@pytest.fixture
def break_connection(end_session: Callable[[Any], None]) -> Callable[[Any], Awaitable[None]]:
    """`await break_connection(conn)` ends the session and lets the client notice."""

    async def break_(conn: Any) -> None:
        end_session(conn)
        with suppress(psycopg.OperationalError):
            await conn.execute("select 1")
        assert conn.broken

    return break_


@pytest.fixture
def works() -> Callable[[Any], Awaitable[bool]]:
    """`await works(conn)` tells whether a query on the connection is answered; ends no block."""

    async def ask(conn: Any) -> bool:
        cursor = await conn.execute("select 1")
        return bool(await cursor.fetchone() == (1,))

    return ask
