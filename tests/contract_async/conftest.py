"""What the async contract tests share: two implementations, and ways to put a pool into a state.

The twin of tests/contract: every test runs once on psycopg_pool and once on fastpool. What is the
same for both kinds of pool is said here about tasks instead of threads; what is the same in words
too is in tests/contract_both, and what they have in common in tests/shared. Owns no assertion about
a pool.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from types import ModuleType
from typing import Any

import pytest
from shared.contract import base as base
from shared.contract import impl as impl
from shared.contract import log as log
from shared.contract import quick_backoff as quick_backoff
from shared.kinds import building
from shared.network import network as network
from shared.sessions import admin as admin
from shared.sessions import end_session as end_session
from shared.sessions import pid as pid
from shared.tasks import anyio_backend as anyio_backend
from shared.tasks import break_connection as break_connection
from shared.tasks import eventually as eventually
from shared.tasks import spawn as spawn
from shared.tasks import wait_until
from shared.tasks import works as works


@pytest.fixture
def kind() -> str:
    """Who uses the pool, said to what is shared."""
    return "tasks"


@pytest.fixture
async def new_pool(
    anyio_backend: object, impl: ModuleType, dsn: str
) -> AsyncIterator[Callable[..., Any]]:
    """Build pools that are not open, of one connection unless told; close them at the end."""
    async with building(impl.AsyncConnectionPool, dsn, min_size=1) as build:
        yield build


@pytest.fixture
def open_pool(new_pool: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Build pools that are open and full."""

    async def build(*args: Any, **options: Any) -> Any:
        pool = new_pool(*args, **options)
        await pool.open(wait=True, timeout=5.0)
        return pool

    return build


@pytest.fixture
def full_pool(open_pool: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Build pools that have grown to max_size, every connection idle."""

    async def build(*args: Any, **options: Any) -> Any:
        pool = await open_pool(*args, **options)
        lent = [await pool.getconn(timeout=5.0) for _ in range(pool.max_size)]
        for conn in lent:
            await pool.putconn(conn)
        return pool

    return build


@pytest.fixture
def waiting() -> Callable[..., Awaitable[None]]:
    """`await waiting(pool, n)` goes on when *n* requests are queued in *pool*."""

    async def wait(pool: Any, count: int) -> None:
        await wait_until(
            lambda: pool.get_stats()["requests_waiting"] == count, what=f"{count} waiting"
        )

    return wait
