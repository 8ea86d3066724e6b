"""Waiting, in one thread: who is woken, who gets what, and that nothing is forgotten.

What a waiter does when it is woken is left to the test, so every order of events can be played
through. With tau_ns=FAR the first in line is only woken, and competes (*patient*); with tau_ns=0
returns are handed to it (*overdue*). The table's invariants are verified after every call.
"""

from __future__ import annotations

import threading

import pytest
from core.stubs import FAR, CheckedTable, Stub, WokenWaiter, full

from fastpool._core import (
    RETURN_CONDEMNED,
    RETURN_NOT_LENT,
    RETURN_TAKEN,
    Waiter,
    monotonic_ns,
)

PATIENT, OVERDUE = FAR, 0
both = pytest.mark.parametrize("tau_ns", [PATIENT, OVERDUE], ids=["patient", "overdue"])


# ---- queueing up: the second look


@both
def test_a_waiter_for_whom_nothing_is_free_is_queued(tau_ns: int) -> None:
    table = CheckedTable(0, 1, tau_ns=tau_ns)
    waiter = WokenWaiter()
    assert table.enqueue(waiter.raw) is None
    assert not waiter.is_settled
    assert table.counts() == (0, 0, 1)
    assert waiter.wakes == 0


@both
def test_the_second_look_finds_what_came_back_after_the_first(tau_ns: int) -> None:
    table = full(1, tau_ns=tau_ns)
    conn = table.lend()
    assert table.checkout() is None
    table.give_back(conn)
    waiter = WokenWaiter()
    assert table.enqueue(waiter.raw) is conn
    assert waiter.is_settled
    assert waiter.wakes == 0
    assert table.counts() == (1, 0, 0)


def test_the_second_look_is_for_the_first_in_line_only() -> None:
    table = full(1, tau_ns=PATIENT)
    conn = table.lend()
    first = table.queue()
    table.give_back(conn)
    second = WokenWaiter()
    assert table.enqueue(second.raw) is None
    assert table.resume(first.raw) is conn
    assert not second.is_settled


def test_a_second_look_that_leaves_something_wakes_the_next_in_line() -> None:
    # The first finds one of the two at its second look; what is left is not forgotten.
    table = full(2, tau_ns=PATIENT)
    assert table.enqueue(WokenWaiter().raw) is not None
    assert table.counts() == (2, 1, 0)


@both
def test_a_waiter_owns_what_it_was_granted(tau_ns: int) -> None:
    # The slot shows the thread that waits, not the one that returned.
    table = full(1, tau_ns=tau_ns)
    conn = table.lend()
    made: list[WokenWaiter] = []
    thread = threading.Thread(target=lambda: made.append(table.queue()))
    thread.start()
    thread.join()
    table.give_back(conn)
    held = table.resume(made[0].raw)
    assert held is conn
    assert table.survey()[2][0][5] == thread.ident != threading.get_ident()


# ---- patient: a return wakes the first in line, to compete


def test_a_return_wakes_the_first_in_line_once() -> None:
    table = full(2, tau_ns=PATIENT)
    conns = [table.lend(), table.lend()]
    first, second = table.queue(), table.queue()
    table.give_back(conns[0])
    table.give_back(conns[1])
    assert (first.wakes, second.wakes) == (1, 0)
    assert not first.is_settled
    assert table.counts() == (2, 2, 2)


def test_a_woken_waiter_takes_what_is_free_and_wakes_the_next() -> None:
    table = full(2, tau_ns=PATIENT)
    conns = [table.lend(), table.lend()]
    first, second, third = table.queue(), table.queue(), table.queue()
    table.give_back(conns[0])
    table.give_back(conns[1])
    assert table.resume(first.raw) is conns[0]
    assert (first.wakes, second.wakes, third.wakes) == (1, 1, 0)
    assert table.resume(second.raw) is conns[1]
    assert third.wakes == 0
    assert table.counts() == (2, 0, 1)


def test_a_new_connection_goes_to_the_first_in_line_at_once() -> None:
    # Else the pool would grow once more for a waiter that is on its way to a free connection.
    table = CheckedTable(0, 2, tau_ns=PATIENT)
    waiter = table.queue()
    table.connect(table.grow())
    assert waiter.is_settled
    assert table.checkout() is None
    assert table.grow() == -1
    assert table.resume(waiter.raw) is not None


def test_a_newcomer_may_overtake_a_waiter_that_is_young() -> None:
    table = full(1, tau_ns=PATIENT)
    conn = table.lend()
    waiter = table.queue()
    table.give_back(conn)
    assert table.checkout() is conn
    assert table.resume(waiter.raw) is None
    assert not waiter.is_settled


def test_a_waiter_that_was_overtaken_is_woken_by_the_next_return() -> None:
    table = full(1, tau_ns=PATIENT)
    conn = table.lend()
    waiter = table.queue()
    table.give_back(conn)
    table.checkout()
    table.resume(waiter.raw)
    table.give_back(conn)
    assert waiter.wakes == 2
    assert table.resume(waiter.raw) is conn


def test_a_waiter_whose_wake_up_is_on_its_way_is_not_woken_again() -> None:
    table = full(1, tau_ns=PATIENT)
    conn = table.lend()
    waiter = table.queue()
    for _ in range(3):
        table.give_back(conn)
        assert table.checkout() is conn
    assert waiter.wakes == 1


def test_waiters_do_not_overtake_each_other() -> None:
    table = full(1, tau_ns=PATIENT)
    conn = table.lend()
    first, second = table.queue(), table.queue()
    table.give_back(conn)
    assert table.resume(second.raw) is None
    assert table.resume(first.raw) is conn


def test_a_connect_that_lands_wakes_the_first_in_line() -> None:
    table = CheckedTable(0, 1, tau_ns=PATIENT)
    waiter = table.queue()
    table.connect(table.grow())
    assert waiter.wakes == 1
    assert table.resume(waiter.raw) is not None


def test_what_maintenance_lets_go_wakes_the_first_in_line() -> None:
    table = full(1, tau_ns=PATIENT)
    conn = table.reserve(0)
    waiter = table.queue()
    table.restore(conn, False)
    assert waiter.wakes == 1


# ---- overdue: a return is handed over


def test_a_return_is_handed_to_the_first_in_line() -> None:
    table = full(1, tau_ns=OVERDUE)
    conn = table.lend()
    first, second = table.queue(), table.queue()
    table.give_back(conn)
    assert (first.wakes, second.wakes) == (1, 0)
    assert first.is_settled
    assert not first.was_shut
    assert table.states() == ["in_use"]
    assert table.resume(first.raw) is conn
    assert table.counts() == (1, 0, 1)


def test_what_was_granted_is_given_once() -> None:
    table = full(1, tau_ns=OVERDUE)
    conn = table.lend()
    waiter = table.queue()
    table.give_back(conn)
    assert table.resume(waiter.raw) is conn
    assert table.resume(waiter.raw) is None
    assert table.abandon(waiter.raw) is None


def test_a_newcomer_queues_behind_one_that_is_overdue() -> None:
    table = full(2, tau_ns=OVERDUE)
    held = [table.lend(), table.lend()]
    waiter = table.queue()
    assert table.checkout() is None
    newcomer = table.queue()
    table.give_back(held[0])
    table.give_back(held[1])
    assert waiter.is_settled
    assert newcomer.is_settled
    assert [table.resume(w.raw) for w in (newcomer, waiter)] == [held[1], held[0]]


def test_the_order_of_the_line_is_the_order_of_service() -> None:
    table = full(1, tau_ns=OVERDUE)
    conn = table.lend()
    waiters = [table.queue() for _ in range(5)]
    for waiter in waiters:
        table.give_back(conn)
        assert [w.is_settled for w in waiters].count(True) == waiters.index(waiter) + 1
        assert table.resume(waiter.raw) is conn


def test_one_service_settles_as_many_as_there_are_connections() -> None:
    table = CheckedTable(3, 3, tau_ns=OVERDUE)
    waiters = [table.queue() for _ in range(4)]
    table.fill()
    assert [w.wakes for w in waiters] == [1, 1, 1, 0]
    assert table.counts() == (3, 0, 1)


def test_a_granted_connection_is_at_nobodys_disposal() -> None:
    table = full(1, tau_ns=OVERDUE)
    conn = table.lend()
    waiter = table.queue()
    table.give_back(conn)
    assert table.idle() == []
    assert table.checkout() is None
    assert table.reserve(0) is None
    assert table.resume(waiter.raw) is conn


def test_a_waiter_grows_overdue_with_time() -> None:
    # 1 ns has passed whenever anybody looks; the clock has no coarser step than that here.
    table = full(1, tau_ns=1)
    conn = table.lend()
    waiter = table.queue()
    until = monotonic_ns() + 1000
    while monotonic_ns() < until:
        pass
    table.give_back(conn)
    assert waiter.is_settled


def test_the_age_that_counts_is_the_first_in_lines() -> None:
    # The first leaves; the second becomes first, with its own age.
    table = full(1, tau_ns=OVERDUE)
    conn = table.lend()
    first = table.queue()
    second = table.queue()
    table.abandon(first.raw)
    assert table.checkout() is None
    table.abandon(second.raw)
    table.give_back(conn)
    assert table.checkout() is conn


# ---- leaving: timed out, cancelled, interrupted


@both
def test_a_waiter_that_leaves_is_unlinked_at_once(tau_ns: int) -> None:
    table = full(1, tau_ns=tau_ns)
    conn = table.lend()
    waiters = [table.queue() for _ in range(3)]
    for gone in (1, 0, 2):
        assert table.abandon(waiters[gone].raw) is None
        assert waiters[gone].is_settled
    assert table.counts() == (1, 0, 0)
    table.give_back(conn)
    assert [w.wakes for w in waiters] == [0, 0, 0]
    assert table.counts() == (1, 1, 0)


@both
def test_leaving_twice_is_harmless(tau_ns: int) -> None:
    table = full(1, tau_ns=tau_ns)
    conn = table.lend()
    waiter = table.queue()
    table.abandon(waiter.raw)
    assert table.abandon(waiter.raw) is None
    assert table.resume(waiter.raw) is None
    assert conn.name == 0
    assert table.counts() == (1, 0, 0)


def test_a_waiter_that_leaves_with_a_grant_gets_it_to_hand_on() -> None:
    table = full(1, tau_ns=OVERDUE)
    conn = table.lend()
    leaving, staying = table.queue(), table.queue()
    table.give_back(conn)
    assert table.abandon(leaving.raw) is conn
    assert table.states() == ["in_use"]
    table.give_back(conn)
    assert table.resume(staying.raw) is conn


def test_a_woken_waiter_that_leaves_passes_the_wake_up_on() -> None:
    table = full(1, tau_ns=PATIENT)
    conn = table.lend()
    leaving, staying = table.queue(), table.queue()
    table.give_back(conn)
    assert (leaving.wakes, staying.wakes) == (1, 0)
    assert table.abandon(leaving.raw) is None
    assert staying.wakes == 1
    assert table.resume(staying.raw) is conn


def test_a_wake_up_is_passed_on_by_one_that_looked_and_left() -> None:
    # Woken, resumed in vain, and something came back before it left: no wake-up for that one yet.
    table = full(2, tau_ns=PATIENT)
    conns = [table.lend(), table.lend()]
    leaving, staying = table.queue(), table.queue()
    table.give_back(conns[0])
    table.checkout()
    assert table.resume(leaving.raw) is None
    table.give_back(conns[1])
    table.abandon(leaving.raw)
    assert staying.wakes == 1


def test_one_that_leaves_from_the_middle_disturbs_nobody() -> None:
    table = full(1, tau_ns=OVERDUE)
    conn = table.lend()
    first, middle, last = (table.queue() for _ in range(3))
    table.abandon(middle.raw)
    table.give_back(conn)
    assert table.resume(first.raw) is conn
    table.give_back(conn)
    assert table.resume(last.raw) is conn
    assert middle.wakes == 0


def test_leaving_before_queueing_keeps_a_waiter_out() -> None:
    table = full(1)
    waiter = WokenWaiter()
    assert table.abandon(waiter.raw) is None
    assert waiter.is_settled


# ---- max_waiting


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_than_max_waiting_may_wait(limit: int) -> None:
    table = CheckedTable(0, 1)
    waiters = []
    for _ in range(limit):
        waiters.append(WokenWaiter())
        table.enqueue(waiters[-1].raw, limit)
    refused = WokenWaiter()
    with pytest.raises(OverflowError):
        table.enqueue(refused.raw, limit)
    assert not refused.is_settled
    assert table.counts() == (0, 0, limit)
    assert table.counters()["requests_queued"] == limit
    table.abandon(waiters[0].raw)
    assert table.enqueue(WokenWaiter().raw, limit) is None


def test_no_limit_on_those_who_wait_is_no_limit() -> None:
    table = CheckedTable(0, 1)
    for _ in range(50):
        assert table.enqueue(WokenWaiter().raw, 0) is None
    assert table.counts() == (0, 0, 50)


# ---- those who wait for a full pool


def watch(table: CheckedTable) -> WokenWaiter:
    watcher = WokenWaiter()
    assert table.watch(watcher.raw) is False
    return watcher


def test_a_full_pool_need_not_be_waited_for() -> None:
    table = full(2)
    watcher = WokenWaiter()
    assert table.watch(watcher.raw) is True
    assert watcher.is_settled
    assert not watcher.was_shut
    assert watcher.wakes == 0


def test_watchers_are_all_woken_when_the_minimum_is_available() -> None:
    table = CheckedTable(2, 4)
    watchers = [watch(table), watch(table)]
    table.connect(0)
    assert [w.wakes for w in watchers] == [0, 0]
    table.connect(1)
    assert [w.wakes for w in watchers] == [1, 1]
    assert all(table.unwatch(w.raw) for w in watchers)


def test_a_pool_whose_connections_are_lent_is_not_full() -> None:
    table = full(2)
    conn = table.lend()
    watcher = watch(table)
    table.give_back(conn)
    assert watcher.is_settled


def test_a_watcher_may_stop() -> None:
    table = CheckedTable(2, 2)
    leaving, staying = watch(table), watch(table)
    assert table.unwatch(leaving.raw) is False
    table.fill()
    assert (leaving.wakes, staying.wakes) == (0, 1)
    assert table.unwatch(leaving.raw) is True


def test_those_who_want_a_connection_go_before_those_who_watch() -> None:
    table = full(1, tau_ns=OVERDUE)
    conn = table.lend()
    watcher = watch(table)
    waiter = table.queue()
    table.give_back(conn)
    assert waiter.is_settled
    assert not watcher.is_settled
    table.give_back(table.resume(waiter.raw))
    assert watcher.wakes == 1


@both
def test_a_watcher_is_told_when_the_last_waiter_leaves_a_full_pool(tau_ns: int) -> None:
    table = full(1, tau_ns=tau_ns)
    conn = table.lend()
    watcher = watch(table)
    waiter = table.queue()
    table.give_back(conn)
    left = table.abandon(waiter.raw)
    if left is not None:
        table.give_back(left)
    assert watcher.wakes == 1


def test_watchers_do_not_count_as_waiting() -> None:
    table = CheckedTable(1, 2)
    watch(table)
    assert table.counts() == (1, 0, 0)
    assert table.grow() == -1
    assert table.enqueue(WokenWaiter().raw, 1) is None


def test_watchers_do_not_hold_up_newcomers() -> None:
    table = full(2, tau_ns=OVERDUE)
    conn = table.lend()
    watch(table)
    assert table.checkout() is not None
    assert conn.name == 0


# ---- the end


@both
def test_closing_settles_everybody_and_wakes_each_once(tau_ns: int) -> None:
    table = full(1, tau_ns=tau_ns)
    conn = table.lend()
    waiters = [table.queue() for _ in range(3)]
    watchers = [watch(table), watch(table)]
    assert table.close() is True
    for one in waiters + watchers:
        assert one.wakes == 1
        assert one.was_shut
    assert all(table.resume(w.raw) is None for w in waiters)
    assert table.counts() == (1, 0, 0)
    assert table.give_back(conn) is True


def test_closing_does_not_wake_one_that_is_awake_already() -> None:
    table = full(1, tau_ns=PATIENT)
    conn = table.lend()
    waiter = table.queue()
    table.give_back(conn)
    table.close()
    assert waiter.wakes == 1
    assert waiter.was_shut
    assert table.resume(waiter.raw) is None


def test_a_grant_made_before_the_close_is_still_good() -> None:
    table = full(1, tau_ns=OVERDUE)
    conn = table.lend()
    waiter = table.queue()
    table.give_back(conn)
    table.close()
    assert not waiter.was_shut
    assert table.resume(waiter.raw) is conn
    assert table.give_back(conn) is True


def test_whoever_queues_at_a_closed_table_is_shut_out_at_once() -> None:
    table = full(1)
    table.close()
    waiter, watcher = WokenWaiter(), WokenWaiter()
    assert table.enqueue(waiter.raw) is None
    assert waiter.was_shut
    assert table.watch(watcher.raw) is True
    assert watcher.was_shut
    assert (waiter.wakes, watcher.wakes) == (0, 0)
    assert table.counts()[2] == 0


def test_one_that_left_before_the_close_was_not_shut() -> None:
    table = CheckedTable(0, 1)
    waiter = table.queue()
    table.abandon(waiter.raw)
    table.close()
    assert not waiter.was_shut
    assert waiter.wakes == 0


# ---- parking in the core, for threads


def test_a_threads_waiter_gets_what_was_granted_before_it_parked() -> None:
    table = full(1, tau_ns=OVERDUE)
    conn = table.lend()
    waiter = Waiter()
    table.enqueue(waiter)
    table.give_back(conn)
    assert table.raw.wait(waiter, 5.0) is conn


def test_a_threads_waiter_that_was_woken_before_it_parked_does_not_sleep() -> None:
    table = full(1, tau_ns=PATIENT)
    conn = table.lend()
    waiter = Waiter()
    table.enqueue(waiter)
    table.give_back(conn)
    assert table.raw.wait(waiter, 5.0) is conn


def test_a_threads_waiter_times_out_and_has_left() -> None:
    table = full(1)
    conn = table.lend()
    waiter = Waiter()
    table.enqueue(waiter)
    begun = monotonic_ns()
    assert table.raw.wait(waiter, 0.02) is None
    assert monotonic_ns() - begun >= 20_000_000
    assert waiter.is_settled
    assert not waiter.was_shut
    assert table.counts() == (1, 0, 0)
    assert conn.name == 0


def test_a_threads_waiter_that_is_shut_does_not_sleep() -> None:
    table = full(1)
    conn = table.lend()
    waiter = Waiter()
    table.enqueue(waiter)
    table.close()
    assert table.raw.wait(waiter, 5.0) is None
    assert waiter.was_shut
    assert conn.name == 0


def test_a_threads_watcher_sleeps_until_its_time_is_over_at_most() -> None:
    table = CheckedTable(1, 1)
    watcher = Waiter()
    assert table.watch(watcher) is False
    table.raw.park_until(watcher, 0.01)
    assert not watcher.is_settled
    table.fill()
    table.raw.park_until(watcher, 5.0)
    assert watcher.is_settled
    assert table.unwatch(watcher) is True


@pytest.mark.parametrize("generation", [-1, 2])
def test_a_slot_that_was_granted_is_not_returned_before_its_waiter_has_come(
    generation: int,
) -> None:
    # By who had it before, with the connection in hand.
    table = full(1, tau_ns=OVERDUE)
    conn = table.lend()
    waiter = table.queue()
    table.give_back(conn)
    assert table.generation(conn._slot) == 2  # lent once more
    assert table.begin_return(conn, generation) == RETURN_NOT_LENT
    assert table.resume(waiter.raw) is conn
    assert table.begin_return(conn, generation) == RETURN_TAKEN


class Watch:
    """What watches a socket."""

    def close(self) -> None:
        """There is nothing to close."""


def test_a_slot_that_was_granted_is_not_condemned_before_its_waiter_has_come() -> None:
    table = CheckedTable(1, 1, tau_ns=OVERDUE)
    watch = Watch()
    table.install(table.owed()[0], Stub(0), None, 1, FAR, watch=watch)
    conn = table.lend()
    waiter = table.queue()
    table.give_back(conn)
    assert waiter.is_settled
    assert table.condemn(0, watch) == (False, None)
    assert table.resume(waiter.raw) is conn
    assert table.condemn(0, watch) == (True, None)
    assert table.states() == ["closing"]
    assert table.begin_return(conn) == RETURN_CONDEMNED
