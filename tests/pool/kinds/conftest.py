"""What these tests share: both packages, both kinds of pools, and pools of them.

A test here runs on the pool for threads and on the one for tasks, which behave alike; the one for
threads blocks the loop that the test runs in, and is none the worse for it. What is agreed with
psycopg_pool runs on that too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import psycopg
import pytest
from shared.both import done, scalar
from shared.contract import IMPLEMENTATIONS, implementation
from shared.tasks import anyio_backend as anyio_backend


@pytest.fixture(params=IMPLEMENTATIONS)
def package(request: pytest.FixtureRequest) -> ModuleType:
    """The package under test."""
    return implementation(request.param)


@pytest.fixture(params=["", "Async"], ids=["threads", "tasks"])
def kind(request: pytest.FixtureRequest) -> str:
    """What the names of the classes begin with."""
    return str(request.param)


@pytest.fixture
def pool_class(package: ModuleType, kind: str) -> Any:
    """The plain pool of that package and kind."""
    return getattr(package, kind + "ConnectionPool")


@pytest.fixture
async def open_pool(
    anyio_backend: object, package: ModuleType, kind: str, dsn: str
) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Build pools that are open and full, of one connection unless told.

    The class is given itself, or by the rest of its name.
    """
    pools: list[Any] = []

    async def build(cls: Any = "ConnectionPool", **options: Any) -> Any:
        if isinstance(cls, str):
            cls = getattr(package, kind + cls)
        size = 0 if "Null" in cls.__name__ else 1
        options = {"min_size": size, "max_size": 1, "open": False, "name": "p", **options}
        pool = cls(dsn, **options)
        pools.append(pool)
        await done(pool.open(wait=True, timeout=5.0))
        return pool

    yield build
    for pool in pools:
        await done(pool.close(timeout=2.0))


@pytest.fixture
def admin(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection that nobody's `connect()` has made, in autocommit mode."""
    pgconn = psycopg.pq.PGconn.connect(dsn.encode())
    with psycopg.Connection(pgconn) as conn:
        conn.autocommit = True
        yield conn


@pytest.fixture
def break_connection(admin: psycopg.Connection[Any]) -> Callable[[Any], Awaitable[None]]:
    """`await break_connection(conn)` ends the session and lets the client notice."""

    async def break_(conn: Any) -> None:
        admin.execute("select pg_terminate_backend(%s, 5000)", [conn.pgconn.backend_pid])
        with suppress(psycopg.OperationalError):
            await scalar(conn, "select 1")
        assert conn.broken

    return break_
