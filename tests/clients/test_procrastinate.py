"""procrastinate, its connectors and its worker, over each of the four pools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

NEEDS = ("procrastinate",)

Run = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("null", [False, True], ids=["pool", "null-pool"])
def test_a_worker_does_all_jobs_and_gives_everything_back(run: Run, null: bool) -> None:
    assert run("with_procrastinate", "jobs", null=null) == {
        "pool": "AsyncNullConnectionPool" if null else "AsyncConnectionPool",
        "done": True,
        "statuses": {"succeeded": 50, "failed": 10},
        "in_threads": True,
        "connections_out": 0,
        "closed_inside": False,
    }


@pytest.mark.parametrize("null", [False, True], ids=["pool", "null-pool"])
def test_a_waiting_worker_is_notified_and_can_be_stopped(run: Run, null: bool) -> None:
    assert run("with_procrastinate", "listening", null=null) == {
        "heard": True,
        "done": [0, 1, 2, 3, 4],
        "stopped": "cancelled",
        "connections_out": 0,
    }


def test_a_waiting_worker_outlives_the_sessions_of_its_pool(run: Run) -> None:
    assert run("with_procrastinate", "terminated") == {
        "before": True,
        "after": True,
        "full": True,
    }


@pytest.mark.parametrize(
    ("kind", "pool"),
    [("own", "ConnectionPool"), ("given", "ConnectionPool"), ("null", "NullConnectionPool")],
)
def test_threads_defer_over_a_sync_pool(run: Run, kind: str, pool: str) -> None:
    assert run("with_procrastinate", "from_threads", kind=kind) == {
        "pool": pool,
        "done": True,
        "refused": 23,
        "connections_out": 0,
        "still_open": kind != "own",
    }
