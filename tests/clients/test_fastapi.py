"""FastAPI apps under load: async pools, sync pools in its threads, clients that leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

NEEDS = ("fastapi", "httpx", "uvicorn")

Run = Callable[..., dict[str, Any]]


def test_both_pools_serve_thirty_requests_at_a_time(run: Run) -> None:
    assert run("with_fastapi", "under_load") == {
        "right": 600,
        "borrowed": 300,
        "moved": True,
        "all_back": True,
        "closed": [True, True],
    }


CANCELLED_WELL = {
    "total": 900,
    "some_of_each": True,
    "all_back": True,
    "answers": True,
    "closed": [True, True],
}


@pytest.mark.usefixtures("rare_defect_of_psycopg_pool")
def test_cancelled_tasks_take_no_connection_with_them(run: Run) -> None:
    assert run("with_fastapi", "cancelled", kind="async", way="task", seed=1) == CANCELLED_WELL


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_cancelled_scopes_take_no_connection_with_them(run: Run, kind: str) -> None:
    assert run("with_fastapi", "cancelled", kind=kind, way="scope", seed=1) == CANCELLED_WELL


def test_clients_that_disconnect_take_no_connection_with_them(run: Run) -> None:
    assert run("with_fastapi", "disconnected") == {
        "streams_left": 12,
        "all_back": True,
        "answers": True,
        "closed": [True, True],
    }


def test_requests_whose_sessions_end_fail_alone(run: Run) -> None:
    assert run("with_fastapi", "terminated") == {
        "failed": {"503": 8},
        "later": True,
        "all_back": True,
        "closed": [True, True],
    }
