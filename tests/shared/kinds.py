"""What suites share whose tests run on both kinds of pools: the kind, and pools that leave nothing.

How such a test speaks to either kind is in both.py.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from shared import tasks
from shared.both import done

# How the names of threads begin that are no pool's own: the process's one, and those of the loop.
LASTING = ("fastpool-housekeeper", "asyncio_")


@pytest.fixture(params=["threads", "tasks"])
def kind(request: pytest.FixtureRequest) -> str:
    """Who uses the pool: "threads" or "tasks"."""
    return str(request.param)


def others() -> set[Any]:
    """The threads, and the tasks that are not the test runner's own."""
    return {*threading.enumerate(), *tasks.others()}


@asynccontextmanager
async def building(pool_class: Any, dsn: str, **defaults: Any) -> AsyncIterator[Callable[..., Any]]:
    """Yield what builds pools that are not open: `build(conninfo, cls=..., name="x")`.

    All are closed at the end. Their threads and tasks have ended too by then, for one that lingers
    would log into the next test. One that does not end is for the test to find, not for this.
    """
    pools: list[Any] = []
    before = others()

    def ended() -> bool:
        return all(getattr(one, "name", "").startswith(LASTING) for one in others() - before)

    def build(conninfo: Any = dsn, *, cls: Any = pool_class, **options: Any) -> Any:
        pool = cls(conninfo, **{"open": False, "name": "p", **defaults, **options})
        pools.append(pool)
        return pool

    yield build
    for pool in pools:
        await done(pool.close(timeout=1.0))
    with suppress(AssertionError):
        await tasks.wait_until(ended, timeout=2.0)
