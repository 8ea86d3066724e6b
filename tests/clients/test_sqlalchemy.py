"""SQLAlchemy over a pool with close_returns, sync and async: work, breakages, cancellations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

NEEDS = ("sqlalchemy", "greenlet")

Run = Callable[..., dict[str, Any]]


def test_eight_threads_share_three_connections(run: Run) -> None:
    assert run("with_sqlalchemy", "many_threads") == {
        "rows": 8 * 20,
        "failed": 8 * 10,
        "kinds": ["IntegrityError"],
        "at_most_3": True,
        "all_back": True,
    }


def test_close_gives_back_in_each_of_its_ways(run: Run) -> None:
    assert run("with_sqlalchemy", "one_session") == {"sessions": 1, "lent": 0, "all_back": True}


@pytest.mark.usefixtures("defect_of_psycopg_pool")
@pytest.mark.parametrize("scenario", ["broken", "broken_async"])
def test_a_connection_that_breaks_in_use_is_not_lost(run: Run, scenario: str) -> None:
    assert run("with_sqlalchemy", scenario, times=3) == {
        "errors": [True] * 3,
        "sessions": 4,
        "all_back": True,
    }


@pytest.mark.usefixtures("defect_of_psycopg_pool")
def test_a_connection_that_breaks_in_a_session_is_not_lost(run: Run) -> None:
    assert run("with_sqlalchemy", "broken_in_a_session") == {
        "errors": ["AdminShutdown"] * 3,
        "names": ["3"],
        "all_back": True,
    }


def test_an_exhausted_pool_is_an_operational_error(run: Run) -> None:
    assert run("with_sqlalchemy", "exhausted") == {
        "caught": ["OperationalError", "PoolTimeout"],
        "answer": 1,
    }


def test_forty_tasks_share_three_connections(run: Run) -> None:
    assert run("with_sqlalchemy", "many_tasks") == {
        "rows": 40 * 4,
        "failed": 40 * 2,
        "kinds": ["IntegrityError"],
        "at_most_3": True,
        "all_back": True,
    }


@pytest.mark.usefixtures("rare_defect_of_psycopg_pool")
def test_cancelled_sessions_take_no_connection_with_them(run: Run) -> None:
    assert run("with_sqlalchemy", "cancelled", seed=1) == {
        "total": 300,
        "some_of_each": True,
        "all_back": True,
        "answer": 1,
    }
