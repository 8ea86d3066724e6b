"""What the contract tests share: the two implementations, and ways to put a pool into a state.

Every test in this directory runs once on psycopg_pool and once on fastpool, so the contract is
checked and not only believed. The pools are those for threads; what is the same in words for tasks
is in tests/contract_both. What the four suites of the contract have in common is in tests/shared.
Owns no assertion about a pool.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import pytest
from shared.contract import base as base
from shared.contract import impl as impl
from shared.contract import log as log
from shared.contract import quick_backoff as quick_backoff
from shared.network import network as network
from shared.sessions import admin as admin
from shared.sessions import end_session as end_session
from shared.sessions import pid as pid
from shared.threads import ThreadCall
from shared.threads import break_connection as break_connection


@pytest.fixture(autouse=True)
def threads_end_with_their_test(eventually: Callable[..., Any]) -> Iterator[None]:
    """Let the threads of a test's pools end, for one that lingers would log into the next test.

    All pools are closed by then. A thread that does not end is for the test to find, not for this.
    """
    before = set(threading.enumerate())

    def ended() -> bool:
        new = set(threading.enumerate()) - before
        return all(thread.name == "fastpool-housekeeper" for thread in new)

    yield
    with suppress(AssertionError):
        eventually(ended, timeout=2.0)


@pytest.fixture
def kind() -> str:
    """Who uses the pool, said to what is shared."""
    return "threads"


@pytest.fixture
def new_pool(impl: ModuleType, dsn: str) -> Iterator[Callable[..., Any]]:
    """Build pools that are not open, of one connection unless told; close them at the end."""
    pools: list[Any] = []

    def build(conninfo: Any = dsn, *, cls: Any = None, **options: Any) -> Any:
        options = {"min_size": 1, "open": False, "name": "p", **options}
        pool = (cls or impl.ConnectionPool)(conninfo, **options)
        pools.append(pool)
        return pool

    yield build
    for pool in pools:
        pool.close(timeout=1.0)


@pytest.fixture
def open_pool(new_pool: Callable[..., Any]) -> Callable[..., Any]:
    """Build pools that are open and full."""

    def build(*args: Any, **options: Any) -> Any:
        pool = new_pool(*args, **options)
        pool.open(wait=True, timeout=5.0)
        return pool

    return build


@pytest.fixture
def full_pool(open_pool: Callable[..., Any]) -> Callable[..., Any]:
    """Build pools that have grown to max_size, every connection idle."""

    def build(*args: Any, **options: Any) -> Any:
        pool = open_pool(*args, **options)
        lent = [pool.getconn(timeout=5.0) for _ in range(pool.max_size)]
        for conn in lent:
            pool.putconn(conn)
        return pool

    return build


@pytest.fixture
def waiting(eventually: Callable[..., Any]) -> Callable[..., None]:
    """`waiting(pool, n)` blocks until *n* requests are queued in *pool*."""

    def wait(pool: Any, count: int) -> None:
        eventually(lambda: pool.get_stats()["requests_waiting"] == count, what=f"{count} waiting")

    return wait


@pytest.fixture
def spawn() -> Iterator[Callable[..., ThreadCall]]:
    """`spawn(function, *args, thread_name=None, **kwargs)` starts a call in a thread."""
    calls: list[ThreadCall] = []

    def start(
        function: Callable[..., Any], *args: Any, thread_name: str | None = None, **kwargs: Any
    ) -> ThreadCall:
        call = ThreadCall(lambda: function(*args, **kwargs), thread_name)
        calls.append(call)
        return call

    yield start
    for call in calls:
        call.thread.join(5.0)
