"""What the README guarantees and moving.md lists is shown by a test: this is the list of which.

A claim is known by a few of its words. It is the tests that are named here that prove it; what is
proved here is that none is claimed without one.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs.pages import ROOT

DEFECTS = "tests/contract/test_defects.py"
ASYNC = "tests/contract_async/test_defects.py"
NULL = "tests/contract_null/test_defects.py"
MOVING = ROOT / "docs" / "moving.md"

GUARANTEES = {
    "lent to one borrower at a time": [
        "tests/core/test_races.py::test_of_two_threads_one_gets_the_last_connection",
        f"{DEFECTS}::test_of_two_threads_returning_one_connection_one_is_refused",
    ],
    "in the order in which they came": [
        "tests/core/test_waiting.py::test_the_order_of_the_line_is_the_order_of_service",
        "tests/core/test_waiting.py::test_a_newcomer_queues_behind_one_that_is_overdue",
    ],
    "lends as many connections at once as serve most requests": [
        "tests/core/test_pacing.py::test_it_finds_the_width_that_serves_most",
        "tests/core/test_holding_back.py::test_the_last_in_the_queue_looks_after_a_stall",
        "tests/core/test_holding_back.py::test_who_gives_up_waiting_takes_what_is_held_back",
        "tests/pool/test_pacing.py::"
        "test_who_waits_behind_one_that_holds_for_long_gets_what_is_held_back",
    ],
    "leaves the queue at once": [
        f"{DEFECTS}::test_one_who_timed_out_takes_no_place_in_the_queue",
        f"{ASYNC}::test_what_was_given_to_one_who_is_cancelled_goes_to_the_next",
    ],
    "garbage-collected unreturned frees its slot": [
        f"{DEFECTS}::test_a_lent_connection_that_is_collected_is_replaced",
    ],
    "names who has held connections longest": [
        "tests/pool/kinds/test_call_sites.py::test_a_timeout_names_the_call_site_and_notes_the_stack",
    ],
    "its counts add up": [
        "tests/pool/test_snapshot.py::test_the_counts_of_every_snapshot_add_up_under_load",
    ],
    "works with sessions of its own": [
        "tests/pool/test_forks.py::test_a_childs_pool_opens_sessions_of_its_own",
        "tests/pool/test_forks.py::test_whatever_a_child_does_the_parents_sessions_go_on",
    ],
    "replaced before anybody": [
        "tests/pool/test_notices.py::"
        "test_idle_sessions_that_end_are_replaced_before_anybody_meets_them",
        "tests/pool/test_notices.py::test_work_on_watched_connections_wakes_nobody",
    ],
    "ends by its timeout, with `check=` too": [
        "tests/pool/test_deadlines.py::"
        "test_a_checkout_ends_in_time_when_backends_and_server_are_frozen",
        "tests/pool/test_deadlines.py::test_a_return_does_not_wait_for_a_rollback_without_end",
        "tests/pool/test_deadlines.py::test_a_reset_that_never_returns_holds_no_worker",
    ],
    "through a failover": [
        "tests/docs/test_servers.py::test_the_failover_page_follows_a_promotion",
        "tests/pool/kinds/test_roles.py::test_a_pool_for_writers_leaves_a_server_that_was_made_read_only",
    ],
    "keeps no task of its own": [
        f"{ASYNC}::test_asyncio_run_ends_though_the_pool_was_left_open",
        f"{ASYNC}::test_nothing_is_lost_however_tasks_are_cancelled",
    ],
    "No lock is held": [
        "tests/pool/test_reentrancy.py::test_configure_may_borrow_another_connection",
        f"{DEFECTS}::test_closing_fails_those_who_wait_though_a_connect_is_stuck",
    ],
}

MENDED = {
    # Waiting
    "A request that gave up stays": [
        f"{DEFECTS}::test_one_who_timed_out_does_not_count_as_waiting",
        f"{ASYNC}::test_those_who_are_cancelled_do_not_count_as_waiting",
    ],
    "A `KeyboardInterrupt`": [f"{DEFECTS}::test_an_interrupted_wait_loses_no_connection"],
    "`getconn(timeout=0)`": [f"{DEFECTS}::test_no_time_to_wait_is_enough_for_what_is_idle"],
    "`timeout=math.inf`": [f"{DEFECTS}::test_one_may_wait_without_end"],
    "Stale connections and `check=`": [
        f"{DEFECTS}::test_stale_connections_do_not_use_up_the_timeout"
    ],
    "`getconn(timeout=1)` with": [
        f"{DEFECTS}::test_a_check_of_a_frozen_backend_ends_by_the_deadline",
    ],
    "A `check` that closes": [f"{DEFECTS}::test_a_check_that_closes_the_connection_has_failed"],
    "A `PoolTimeout` says how long": [f"{DEFECTS}::test_a_timeout_tells_why"],
    "`wait()` twice at a time": [
        f"{DEFECTS}::test_two_threads_may_wait_until_the_pool_is_full",
        f"{ASYNC}::test_one_may_wait_again_after_a_cancelled_wait",
    ],
    "`close()` tells those who wait": [
        f"{DEFECTS}::test_closing_fails_those_who_wait_though_a_connect_is_stuck"
    ],
    # Giving back
    "With `reset`, or from two threads": [
        f"{DEFECTS}::test_a_second_putconn_is_refused_while_reset_runs",
        f"{DEFECTS}::test_of_two_threads_returning_one_connection_one_is_refused",
    ],
    "With `close_returns`, closing a broken": [
        f"{DEFECTS}::test_closing_a_broken_connection_frees_its_place"
    ],
    "With `close_returns`, the second": [
        f"{DEFECTS}::test_a_second_close_leaves_the_idle_connection_alone",
        f"{DEFECTS}::test_a_connection_may_be_closed_in_its_block",
    ],
    "ends while it is lent": [f"{DEFECTS}::test_a_session_that_ends_while_lent_frees_its_place"],
    "dropped without being given back is lost": [
        f"{DEFECTS}::test_a_lent_connection_that_is_collected_is_replaced"
    ],
    "Cancelling an async `putconn()`": [
        f"{ASYNC}::test_a_putconn_cancelled_while_somebody_begins_to_wait_loses_nothing",
        f"{ASYNC}::test_a_return_that_is_cancelled_in_its_rollback_is_cancelled",
    ],
    "`asyncio.run()` hangs": [f"{ASYNC}::test_asyncio_run_ends_though_the_pool_was_left_open"],
    "whose reset was still queued": [f"{DEFECTS}::test_closing_closes_what_waits_for_its_reset"],
    # Sizes and upkeep
    "`resize(10, 10)`": [f"{DEFECTS}::test_resize_of_a_grown_pool_stays_within_max_size"],
    "A larger `max_size`": [f"{DEFECTS}::test_a_larger_max_size_serves_those_who_wait"],
    "Each `check()` adds a connection": [
        f"{DEFECTS}::test_check_makes_no_connection_more",
        f"{DEFECTS}::test_a_request_is_served_while_check_runs",
    ],
    "before `open()` raise": [f"{DEFECTS}::test_upkeep_before_open_spoils_nothing"],
    "Idle connections past `max_lifetime`": [
        f"{DEFECTS}::test_an_expired_idle_connection_is_not_lent"
    ],
    "`num_workers` + 1 threads": [f"{DEFECTS}::test_idle_pools_share_one_thread"],
    # Connecting and failing
    "Attempts to connect get rarer": [f"{DEFECTS}::test_attempts_are_at_most_a_second_apart"],
    "After an outage longer": [f"{DEFECTS}::test_a_pool_that_gave_up_recovers_by_itself"],
    "A forked child uses": [
        f"{DEFECTS}::test_a_forked_child_has_sessions_of_its_own",
        "tests/pool_async/test_forks.py::test_in_a_child_the_pool_refuses_and_says_why",
    ],
    "Dead idle connections": [
        f"{DEFECTS}::test_a_session_that_ended_while_idle_is_not_lent",
        f"{DEFECTS}::test_what_ended_while_idle_is_replaced_unasked",
    ],
    "Senseless arguments": [
        "tests/pool/kinds/test_parameters.py::test_an_argument_out_of_range_is_refused",
        "tests/pool/kinds/test_parameters.py::test_a_pool_for_threads_takes_no_coroutine_function",
    ],
    "A malformed `conninfo`": [
        "tests/pool/kinds/test_secrets.py::test_a_failing_connect_shows_no_password"
    ],
    # Statistics
    "Times are cut": [f"{DEFECTS}::test_many_short_uses_add_up"],
    "Keys are absent": [f"{DEFECTS}::test_every_key_is_always_there"],
    # Null pools
    "Connects one at a time": [f"{NULL}::test_connects_go_side_by_side"],
    "Overrides your `connect_timeout`": [
        f"{NULL}::test_the_users_connect_timeout_is_honoured",
        f"{NULL}::test_reconnect_failed_is_called_when_a_replacement_is_given_up",
        f"{NULL}::test_closing_a_connection_frees_its_place",
    ],
    "While one connects": [
        f"{NULL}::test_a_return_does_not_wait_for_a_connect",
        f"{NULL}::test_closing_does_not_wait_for_a_connect",
    ],
    "to a smaller maximum": [f"{NULL}::test_a_connection_beyond_a_smaller_maximum_is_closed"],
}

DIFFERENT = {
    "**Available while some wait.**": [
        "tests/core/test_holding_back.py::test_each_return_serves_the_first_in_line_from_then_on",
        "tests/pool/test_pacing.py::test_the_snapshot_says_how_many_are_lent_at_once",
    ],
    "**Overtaking.**": [
        "tests/core/test_waiting.py::test_a_newcomer_queues_behind_one_that_is_overdue",
        "tests/core/test_waiting.py::test_the_order_of_the_line_is_the_order_of_service",
    ],
    "**Deadlines.**": [
        "tests/pool/test_deadlines.py::test_a_return_does_not_wait_for_a_rollback_without_end",
        "tests/pool/test_deadlines.py::test_a_reset_that_gets_no_answer_holds_no_worker",
        "tests/pool/test_deadlines.py::test_check_goes_on_past_frozen_backends",
    ],
    "**An attempt to connect that": [
        "tests/pool/test_recovery.py::test_an_attempt_without_an_answer_holds_no_worker",
        "tests/pool/test_recovery.py::"
        "test_a_pool_that_gives_up_at_once_makes_two_attempts_a_second",
    ],
    "**A null pool's connect**": [
        "tests/faults/test_network.py::"
        "test_a_null_pools_connect_ends_by_its_callers_deadline_in_a_frozen_network",
        "tests/contract_null/test_connect.py::test_connecting_sees_the_borrowers_context",
    ],
    "**A late return**": [
        "tests/pool/test_notices.py::"
        "test_a_session_that_ends_while_lent_is_replaced_while_its_borrower_still_has_it",
    ],
    "**Descriptors.**": [
        "tests/pool/test_notices.py::"
        "test_descriptors_and_threads_are_as_before_when_the_last_pool_is_closed",
    ],
    "**Private attributes.**": [
        "tests/contract/test_driver.py::test_the_size_and_the_state_can_be_read",
    ],
}

pytestmark = pytest.mark.skipif(
    not (ROOT / "docs").exists(), reason="these tests need the checkout around them"
)


def section(page: Path, title: str) -> str:
    """Return the text below a heading of the second level."""
    text = page.read_text(encoding="utf-8")
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def items(page: Path, title: str) -> list[str]:
    """Return the items of the list below a heading."""
    text = re.split(r"\n\n(?![- ])", section(page, title).partition("\n- ")[2])[0]
    return [" ".join(item.split()) for item in text.split("\n- ")]


def rows(page: Path, title: str) -> list[str]:
    """Return the rows of the tables below a heading, without what stands above their columns."""
    found = re.findall(r"^\| (.+) \|$", section(page, title), re.MULTILINE)
    return [row for row in found if not row.startswith("psycopg_pool 3.3 |")]


@pytest.mark.parametrize(
    ("claims", "shown_by"),
    [
        (items(ROOT / "README.md", "What it guarantees"), GUARANTEES),
        (rows(MOVING, "What is mended"), MENDED),
        (items(MOVING, "What is different"), DIFFERENT),
    ],
    ids=["guarantees", "mended", "different"],
)
def test_nothing_is_claimed_that_no_test_shows(
    claims: list[str], shown_by: dict[str, list[str]]
) -> None:
    assert claims
    unshown = [claim for claim in claims if sum(words in claim for words in shown_by) != 1]
    assert unshown == []
    assert [words for words in shown_by if not any(words in claim for claim in claims)] == []


@pytest.mark.parametrize(
    "test",
    sorted(
        {
            name
            for each in (GUARANTEES, MENDED, DIFFERENT)
            for names in each.values()
            for name in names
        }
    ),
)
def test_a_test_that_shows_it_exists(test: str) -> None:
    path, _, name = test.partition("::")
    text = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(rf"^(?:async )?def {name}\(", text, re.MULTILINE), f"no {test}"
