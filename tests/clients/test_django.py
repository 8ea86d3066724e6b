"""Django's PostgreSQL backend with OPTIONS["pool"]: requests, threads, breakages, test runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

NEEDS = ("django",)

Run = Callable[..., dict[str, Any]]


def test_sixteen_threads_share_four_connections(run: Run) -> None:
    seen = run("with_django", "many_threads")
    assert 1 <= seen.pop("sessions") <= 4
    # Nine of a thread's 25 requests are rolled back.
    assert seen == {"right": 400, "kept": 16 * 16, "all_back": True, "bad": 0}


def test_a_session_outlives_the_requests_that_use_it(run: Run) -> None:
    assert run("with_django", "persistence") == {
        "sessions": 1,
        "times_given": 9,
        "idle_during_a_request": 0,
        "idle_after_it": 1,
        "zone": "Europe/Rome",
        "clients_handle": True,
    }


def test_a_request_whose_session_ends_fails_alone(run: Run) -> None:
    assert run("with_django", "broken_in_use") == {
        "error": "OperationalError",
        "another_session": True,
        "all_back": True,
        "bad": 1,
    }


def test_a_session_that_ends_in_a_transaction_is_replaced(run: Run) -> None:
    assert run("with_django", "broken_in_a_transaction") == {
        "errors": ["OperationalError"] * 3,
        "answers": 1,
        "all_back": True,
    }


SESSIONS_WERE_REPLACED = {
    "full": True,
    "ended": 4,
    "answered": 4,
    "by_the_dead": 0,
    "errors": [],
    "all_back": True,
}


def test_health_checks_find_the_sessions_that_ended_while_idle(run: Run) -> None:
    seen = run("with_django", "broken_while_idle", health_checks=True)
    assert seen == SESSIONS_WERE_REPLACED


def test_sessions_that_ended_while_idle_are_found_without_health_checks(run: Run) -> None:
    seen = run("with_django", "broken_while_idle", health_checks=False)
    assert seen == SESSIONS_WERE_REPLACED


def test_close_old_connections_gives_the_connection_back(run: Run) -> None:
    assert run("with_django", "old_connections") == {"held": 0, "given_back": 1, "once": 1}


def test_a_test_run_makes_its_databases_and_drops_them(run: Run) -> None:
    assert run("with_django", "test_databases") == {
        "in_the_test_database": True,
        "users": 8,
        "databases": 3,
        "left": 0,
    }


def test_a_new_time_zone_reaches_every_connection(run: Run) -> None:
    rome, lima = "Europe/Rome", "America/Lima"
    assert run("with_django", "time_zone") == {
        "zones": [rome, *[lima] * 5, rome],
        "held": rome,
        "replaced": True,
        "closed": True,
    }


def test_an_exhausted_pool_is_an_operational_error(run: Run) -> None:
    assert run("with_django", "exhausted") == {"caught": [["django.db.utils", "PoolTimeout"]]}


@pytest.mark.usefixtures("defect_of_psycopg_pool")
def test_threads_that_give_nothing_back_take_no_connection_with_them(run: Run) -> None:
    assert run("with_django", "forgetful_threads") == {
        "answers": [1] * 4,
        "errors": [],
    }
