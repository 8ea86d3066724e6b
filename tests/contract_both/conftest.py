"""What the tests share that are the same for both kinds of pools: two packages, two kinds.

Every test in this directory runs on psycopg_pool and on fastpool, and on each with the pool for
threads and with the one for tasks; one of the package itself runs once on each. What is said of
threads alone is in tests/contract, what is said of tasks alone in tests/contract_async. Owns no
assertion about a pool.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import ModuleType
from typing import Any

import psycopg
import pytest
from shared.contract import base as base
from shared.contract import impl as impl
from shared.kinds import building
from shared.kinds import kind as kind
from shared.network import network as network
from shared.tasks import anyio_backend as anyio_backend


@pytest.fixture
def pool_class(impl: ModuleType, kind: str) -> Any:
    """The pool of that package, for that kind."""
    return impl.ConnectionPool if kind == "threads" else impl.AsyncConnectionPool


@pytest.fixture
def connection_class(kind: str) -> Any:
    """What that kind of pool lends."""
    return psycopg.Connection if kind == "threads" else psycopg.AsyncConnection


@pytest.fixture
async def new_pool(
    anyio_backend: object, pool_class: Any, dsn: str
) -> AsyncIterator[Callable[..., Any]]:
    """Build pools that are not open, of one connection unless told; close them at the end."""
    async with building(pool_class, dsn, min_size=1) as build:
        yield build
