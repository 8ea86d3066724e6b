"""The slot table, transition by transition: each legal one, and each one that is refused.

In one thread, with stub connections. The table's invariants are verified after every call.
"""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from core.stubs import FAR, CheckedTable, Stub, WokenWaiter, coarse_ns, full

from fastpool._core import (
    COUNT_CONNECT,
    COUNT_CONNECT_ERROR,
    COUNT_CONNECT_NS,
    COUNT_LOST,
    COUNT_REQUEST,
    COUNT_REQUEST_ERROR,
    COUNT_RETURN_BAD,
    LIMIT,
    RETURN_FOREIGN,
    RETURN_LATE,
    RETURN_NOT_LENT,
    RETURN_TAKEN,
    STATES,
    SlotTable,
    monotonic_ns,
)

EMPTY, CONNECTING, AVAILABLE, IN_USE, RETURNING, RESERVED, CLOSING = STATES

SECOND = 1_000_000_000


def table_in(state: str) -> tuple[CheckedTable, Any]:
    """A table of one slot, in *state*, and its connection (None where there is none)."""
    table = CheckedTable(1, 1)
    conn: Any = None
    if state == EMPTY:
        table.vacate(0)
    elif state != CONNECTING:
        table.fill()
        (conn,) = table.idle()
    if state == RESERVED:
        table.reserve(0)
    elif state in (IN_USE, RETURNING, CLOSING):
        table.checkout()
    if state in (RETURNING, CLOSING):
        table.begin_return(conn)
    if state == CLOSING:
        table.evict(conn)
    assert table.states() == [state]
    return table, conn


def all_but(*states: str) -> list[str]:
    return [state for state in STATES if state not in states]


# ---- the diagram: EMPTY -> CONNECTING -> AVAILABLE -> IN_USE -> RETURNING -> AVAILABLE


def test_a_new_table_owes_a_connect_for_each_slot_of_min_size() -> None:
    table = CheckedTable(2, 4)
    assert table.states() == [CONNECTING, CONNECTING, EMPTY, EMPTY]
    assert table.owed() == [0, 1]
    assert table.counts() == (2, 0, 0)


def test_a_connection_that_is_installed_is_available() -> None:
    table = CheckedTable(1, 1)
    assert table.install(0, Stub(0), None, 1, FAR) is True
    assert table.states() == [AVAILABLE]
    assert table.owed() == []
    assert table.counts() == (1, 1, 0)


def test_installing_makes_the_entry_of_the_connection() -> None:
    table = CheckedTable(1, 3)
    pgconn = object()
    conn = Stub(0)
    before = coarse_ns()
    table.install(table.enter(3), conn, pgconn, 4711, FAR)
    entry = conn._slot
    assert (entry.index, entry.backend_pid, entry.pg) == (1, 4711, pgconn)
    assert before <= entry.created_ns <= monotonic_ns()
    assert entry.connection_face is None
    assert entry.is_at_home
    assert not entry.leased


def test_a_checkout_lends_the_connection() -> None:
    table = full(1)
    conn = table.checkout()
    assert isinstance(conn, Stub)
    assert table.states() == [IN_USE]
    assert not conn._slot.is_at_home


def test_a_checkout_finds_nothing_where_nothing_is_free() -> None:
    table = full(1)
    held = table.checkout()
    assert table.checkout() is None
    assert not held._slot.is_at_home


def test_a_return_goes_by_returning_to_available() -> None:
    table = full(1)
    conn = table.lend()
    assert table.begin_return(conn) == RETURN_TAKEN
    assert table.states() == [RETURNING]
    assert table.checkout() is None
    assert table.restore(conn) is False
    assert table.states() == [AVAILABLE]
    assert table.checkout() is conn


def test_a_connect_that_is_given_up_leaves_the_slot_empty() -> None:
    table = CheckedTable(1, 2)
    table.vacate(0)
    assert table.states() == [EMPTY, EMPTY]
    assert table.counts() == (0, 0, 0)


def test_a_reserved_connection_is_not_lent() -> None:
    table = full(1)
    conn = table.reserve(0)
    assert table.states() == [RESERVED]
    assert conn._slot.is_at_home
    assert table.checkout() is None
    table.restore(conn, False)
    assert table.checkout() is conn


@pytest.mark.parametrize("state", [RETURNING, RESERVED])
def test_an_evicted_connection_leaves_a_closing_slot(state: str) -> None:
    table, conn = table_in(state)
    assert table.evict(conn) == 0
    assert table.states() == [CLOSING]
    assert table.is_retired(conn._slot)
    assert not conn._slot.is_at_home
    assert table.counts() == (1, 0, 0)


def test_a_closing_slot_becomes_a_connect_that_is_owed() -> None:
    table, _ = table_in(CLOSING)
    assert table.recycle(0, True) is True
    assert table.states() == [CONNECTING]
    assert table.owed() == [0]


def test_a_closing_slot_that_is_not_to_be_replaced_becomes_empty() -> None:
    table, _ = table_in(CLOSING)
    assert table.recycle(0, False) is False
    assert table.states() == [EMPTY]
    assert table.counts() == (0, 0, 0)


def test_an_empty_slot_is_used_again() -> None:
    table, _ = table_in(CLOSING)
    table.recycle(0, False)
    assert table.enter(1) == 0
    table.connect(0)
    assert table.lend().name == 1


# ---- transitions that are refused


@pytest.mark.parametrize("state", all_but(RETURNING, RESERVED, EMPTY, CONNECTING))
def test_restore_refuses_a_slot_that_is_not_the_callers(state: str) -> None:
    table, conn = table_in(state)
    with pytest.raises(RuntimeError, match="^bug: "):
        table.restore(conn)
    assert table.states() == [state]


@pytest.mark.parametrize("state", all_but(RETURNING, RESERVED, EMPTY, CONNECTING))
def test_evict_refuses_a_slot_that_is_not_the_callers(state: str) -> None:
    table, conn = table_in(state)
    with pytest.raises(RuntimeError, match="^bug: "):
        table.evict(conn)
    assert table.states() == [state]


@pytest.mark.parametrize("state", all_but(CONNECTING))
def test_vacate_refuses_a_slot_that_is_not_connecting(state: str) -> None:
    table, _ = table_in(state)
    with pytest.raises(RuntimeError, match="^bug: "):
        table.vacate(0)
    assert table.states() == [state]


@pytest.mark.parametrize("state", all_but(CONNECTING))
def test_install_refuses_a_slot_that_is_not_connecting(state: str) -> None:
    table, conn = table_in(state)
    with pytest.raises(RuntimeError, match="^bug: "):
        table.raw.install(0, Stub(99), None, 1, FAR)
    table.verify()
    assert table.states() == [state]
    assert conn is None or conn._slot.index == 0


@pytest.mark.parametrize("state", all_but(CLOSING))
@pytest.mark.parametrize("replace", [True, False])
def test_recycle_refuses_a_slot_that_is_not_closing(state: str, replace: bool) -> None:
    table, conn = table_in(state)
    with pytest.raises(RuntimeError, match="^bug: "):
        table.raw.recycle(0, replace)
    table.verify()
    assert table.states() == [state]
    assert conn is None or not table.is_retired(conn._slot)


@pytest.mark.parametrize("state", all_but(AVAILABLE))
def test_reserve_takes_only_what_is_available(state: str) -> None:
    table, _ = table_in(state)
    assert table.reserve(0) is None
    assert table.states() == [state]


def test_reserve_finds_nothing_beyond_the_last_slot() -> None:
    table = full(1)
    assert table.reserve(table.capacity()) is None
    assert table.reserve(LIMIT) is None


@pytest.mark.parametrize("verb", ["restore", "evict"])
def test_a_connection_that_was_taken_out_is_refused_when_its_slot_has_another(verb: str) -> None:
    table, old = table_in(CLOSING)
    table.recycle(0, True)
    table.connect(0)
    new = table.lend()
    table.begin_return(new)
    with pytest.raises(RuntimeError, match="^bug: "):
        getattr(table.raw, verb)(old)
    table.restore(new)
    assert table.idle() == [new]


@pytest.mark.parametrize("verb", ["restore", "evict"])
def test_a_connection_of_another_table_is_refused(verb: str) -> None:
    table, mine = table_in(RETURNING)
    other, theirs = table_in(RETURNING)
    with pytest.raises(RuntimeError, match="^bug: "):
        getattr(table.raw, verb)(theirs)
    assert table.states() == other.states() == [RETURNING]
    table.restore(mine)
    other.restore(theirs)


def test_a_connection_that_takes_no_attributes_is_refused_and_its_slot_still_connecting() -> None:
    table = CheckedTable(1, 1)
    with pytest.raises(AttributeError):
        table.install(0, object(), None, 1, FAR)
    assert table.states() == [CONNECTING]


def test_no_state_has_a_name_where_there_is_no_slot() -> None:
    table = full(1)
    assert table.state_name(0) == AVAILABLE
    for index in (-1, table.capacity()):
        with pytest.raises(IndexError, match=f"no slot {index}"):
            table.state_name(index)


# ---- returns that are refused: generations


def test_of_two_returns_the_second_is_refused() -> None:
    table = full(1)
    conn = table.lend()
    assert table.begin_return(conn) == RETURN_TAKEN
    assert table.begin_return(conn) == RETURN_NOT_LENT
    table.restore(conn)
    assert table.begin_return(conn) == RETURN_NOT_LENT
    assert table.states() == [AVAILABLE]


def test_every_lending_has_a_generation_of_its_own() -> None:
    table = full(1)
    seen = set()
    for _ in range(5):
        conn = table.lend()
        seen.add(table.generation(conn._slot))
        table.give_back(conn)
    assert len(seen) == 5


def test_a_return_with_the_generation_of_an_earlier_lending_is_refused() -> None:
    table = full(1)
    conn = table.lend()
    old = table.generation(conn._slot)
    table.give_back(conn)
    assert table.checkout() is conn
    new = table.generation(conn._slot)
    assert table.begin_return(conn, old) == RETURN_NOT_LENT
    assert table.states() == [IN_USE]
    assert table.begin_return(conn, new) == RETURN_TAKEN


def test_generations_do_not_begin_anew_with_a_new_connection() -> None:
    table = full(1)
    first = table.lend()
    old = table.generation(first._slot)
    table.begin_return(first)
    table.recycle(table.evict(first), True)
    table.fill()
    second = table.lend()
    assert table.generation(second._slot) > old


@pytest.mark.parametrize("slot", [None, "nothing", 0])
def test_a_return_of_what_is_no_connection_of_the_table_is_refused(slot: Any) -> None:
    table = full(1)
    held = table.lend()
    stranger = Stub(7)
    if slot != "nothing":
        stranger._slot = slot
    assert table.begin_return(stranger) == RETURN_FOREIGN
    assert not held._slot.is_at_home


def test_a_return_of_another_tables_connection_is_refused() -> None:
    table, other = full(1), full(1)
    mine, theirs = table.lend(), other.lend()
    assert table.begin_return(theirs) == RETURN_FOREIGN
    assert table.states() == other.states() == [IN_USE]
    assert table.begin_return(mine) == RETURN_TAKEN


def test_a_connection_evicted_while_lent_may_be_returned_once_late() -> None:
    table = full(1)
    conn = table.lend()
    table.begin_return(conn)
    table.recycle(table.evict(conn, True), True)
    assert table.begin_return(conn) == RETURN_LATE
    assert table.begin_return(conn) == RETURN_NOT_LENT
    assert table.states() == [CONNECTING]


def test_a_late_return_leaves_the_slots_next_connection_alone() -> None:
    table = full(1)
    old = table.lend()
    table.begin_return(old)
    table.recycle(table.evict(old, True), True)
    table.fill()
    new = table.lend()
    assert table.begin_return(old) == RETURN_LATE
    assert table.states() == [IN_USE]
    assert table.begin_return(new) == RETURN_TAKEN


def test_a_connection_evicted_by_its_owner_has_no_late_return() -> None:
    table, conn = table_in(CLOSING)
    assert table.begin_return(conn) == RETURN_NOT_LENT


# ---- the order of lending


def test_fifo_lends_the_connection_that_has_been_back_for_longest() -> None:
    table = full(3)
    conns = [table.lend() for _ in range(3)]
    for position in (1, 2, 0):
        table.give_back(conns[position])
    assert table.idle_names() == [1, 2, 0]
    assert [table.lend().name for _ in range(3)] == [1, 2, 0]


def test_fifo_uses_all_connections_in_turn() -> None:
    table = full(3)
    lent = []
    for _ in range(6):
        conn = table.lend()
        lent.append(conn.name)
        table.give_back(conn)
    assert lent == [0, 1, 2, 0, 1, 2]


def test_lifo_keeps_few_connections_busy() -> None:
    table = full(3, lifo=True)
    lent = []
    for _ in range(6):
        conn = table.lend()
        lent.append(conn.name)
        table.give_back(conn)
    assert lent == [0] * 6


def test_lifo_lends_the_lowest_free_slot() -> None:
    table = full(3, lifo=True)
    conns = [table.lend() for _ in range(3)]
    for position in (2, 0, 1):
        table.give_back(conns[position])
    assert table.idle_names() == [0, 1, 2]
    assert [table.lend().name for _ in range(3)] == [0, 1, 2]


def test_a_connection_looked_at_keeps_its_place_in_the_order() -> None:
    table = full(3)
    table.restore(table.reserve(0), False)
    table.restore(table.reserve(1), False)
    assert table.idle_names() == [0, 1, 2]


def test_a_connection_restored_with_a_new_turn_goes_to_the_end() -> None:
    table = full(3)
    table.restore(table.reserve(0), True)
    assert table.idle_names() == [1, 2, 0]


def test_looking_at_the_idle_connections_changes_nothing() -> None:
    table = full(3)
    table.restore(table.reserve(0), True)
    before = table.survey()[2]
    assert table.idle_names() == table.idle_names() == [1, 2, 0]
    assert [row[0] for row in table.survey()[2]] == [row[0] for row in before]


@pytest.mark.parametrize("lifo", [False, True])
def test_the_order_goes_across_chunks(lifo: bool) -> None:
    table = full(150, lifo=lifo)
    conns = [table.raw.checkout() for _ in range(150)]
    random.Random(4).shuffle(conns)
    for conn in conns:
        table.raw.begin_return(conn)
        table.raw.restore(conn)
    expected = sorted(range(150)) if lifo else [conn.name for conn in conns]
    assert table.idle_names() == expected
    held = [table.raw.checkout() for _ in range(150)]
    assert [conn.name for conn in held] == expected
    assert table.checkout() is None


# ---- capacity


@pytest.mark.parametrize("size", [1, 64, 65, 1000, LIMIT])
def test_a_table_holds_and_lends_as_many_connections_as_it_was_made_for(size: int) -> None:
    table = SlotTable(size, size, lifo=True)
    for index in table.owed():
        table.install(index, Stub(index), None, index, FAR)
    assert table.counts() == (size, size, 0)
    conns = [table.checkout() for _ in range(size)]
    assert table.checkout() is None
    assert len({conn.name for conn in conns}) == size
    for conn in conns:
        table.begin_return(conn)
        table.restore(conn)
    table.verify()
    assert table.counts() == (size, size, 0)


def test_more_than_the_limit_is_refused() -> None:
    assert LIMIT == 16384
    with pytest.raises(ValueError, match="at most 16384 connections, not 16385"):
        SlotTable(0, LIMIT + 1)
    table = full(1)
    with pytest.raises(ValueError, match="at most 16384 connections, not 20000"):
        table.resize(1, 20000)
    assert (table.min_size, table.max_size) == (1, 1)


def test_a_table_without_a_limit_grows_as_it_is_needed() -> None:
    table = CheckedTable(0, 0)
    assert table.capacity() == 32
    for expected in range(200):
        index = table.raw.enter(1000)
        assert index == expected
        table.connect(index)
    assert table.capacity() == 224
    assert table.counts() == (200, 200, 0)


def test_a_table_without_a_limit_ends_at_the_limit_of_slots() -> None:
    table = SlotTable(0, 0)
    for _ in range(LIMIT):
        assert table.enter(LIMIT + 1) >= 0
    assert table.enter(LIMIT + 1) == -1
    assert table.grow() == -1
    table.verify()


# ---- resize


def test_a_connection_lent_before_a_resize_is_returned_after_it() -> None:
    table = full(2)
    conn = table.lend()
    table.resize(2, 1000)
    table.give_back(conn)
    assert table.counts() == (2, 2, 0)
    assert table.enter(1000) == 2


def test_a_resize_closes_nothing_and_starts_nothing() -> None:
    table = full(2)
    table.resize(4, 4)
    assert table.states() == [AVAILABLE, AVAILABLE, EMPTY, EMPTY]
    table.resize(0, 1)
    assert table.counts() == (2, 2, 0)
    assert (table.min_size, table.max_size) == (0, 1)


def test_a_resize_below_the_size_leaves_a_surplus_until_it_is_gone() -> None:
    table = full(3)
    conn = table.lend()
    assert not table.surplus
    table.resize(1, 2)
    assert table.surplus
    table.begin_return(conn)
    assert table.recycle(table.evict(conn), True) is False
    assert not table.surplus
    assert table.counts() == (2, 2, 0)


def test_a_slot_above_the_maximum_is_not_replaced_and_one_within_it_is() -> None:
    table = full(3)
    table.resize(1, 2)
    first, second = table.reserve(0), table.reserve(1)
    assert table.recycle(table.evict(first), True) is False
    assert table.recycle(table.evict(second), True) is True
    assert table.counts() == (2, 1, 0)


def test_a_resize_up_ends_the_surplus() -> None:
    table = full(3)
    table.resize(1, 2)
    table.resize(1, 3)
    assert not table.surplus


def test_nothing_is_entered_while_there_is_a_surplus() -> None:
    table = full(3)
    held = [table.lend() for _ in range(3)]
    table.resize(1, 2)
    table.queue()
    assert table.grow() == -1
    assert table.enter(5) == -1
    assert len(held) == 3


def test_a_resize_to_fewer_settles_those_who_wait_for_a_full_pool() -> None:
    table = CheckedTable(2, 2)
    table.connect(0)
    watcher = WokenWaiter()
    assert table.watch(watcher.raw) is False
    table.resize(1, 2)
    assert watcher.wakes == 1
    assert table.unwatch(watcher.raw) is True


# ---- growth: grow(), enter(), max_connecting


def test_nothing_grows_when_nobody_waits_and_the_minimum_is_there() -> None:
    assert full(1, 4).grow() == -1


def test_a_waiter_makes_the_table_grow_by_one_connect_at_a_time() -> None:
    table = CheckedTable(0, 4)
    for _ in range(3):
        table.queue()
    assert table.grow() == 0
    assert table.grow() == -1
    table.connect(0)
    assert table.grow() == 1
    assert table.grow() == -1


def test_max_connecting_connects_may_be_in_flight_at_once() -> None:
    table = CheckedTable(0, 9, max_connecting=3)
    for _ in range(5):
        table.queue()
    assert [table.grow() for _ in range(4)] == [0, 1, 2, -1]
    table.connect(1)
    assert [table.grow() for _ in range(2)] == [3, -1]


def test_no_more_connects_are_started_than_there_are_waiters() -> None:
    table = CheckedTable(0, 9, max_connecting=5)
    table.queue()
    table.queue()
    assert [table.grow() for _ in range(3)] == [0, 1, -1]


def test_a_waiter_that_was_given_a_connection_needs_no_connect() -> None:
    table = CheckedTable(0, 4, tau_ns=0)
    table.queue()
    assert table.grow() == 0
    table.connect(0)
    assert table.grow() == -1


def test_growth_ends_at_the_maximum() -> None:
    table = CheckedTable(0, 2, max_connecting=9)
    for _ in range(5):
        table.queue()
    assert [table.grow() for _ in range(3)] == [0, 1, -1]


def test_growth_goes_on_to_the_minimum_with_nobody_waiting() -> None:
    table = CheckedTable(3, 3)
    for index in (0, 1, 2):
        table.vacate(index)
    assert [table.grow() for _ in range(2)] == [0, -1]
    table.connect(0)
    assert table.grow() == 1


def test_a_connect_that_is_given_up_makes_room_for_another() -> None:
    table = CheckedTable(0, 4)
    table.queue()
    assert table.grow() == 0
    table.vacate(0)
    assert table.grow() == 0


def test_connects_that_replace_are_not_counted_as_growth() -> None:
    table = full(1, 4)
    conn = table.lend()
    table.queue()
    table.begin_return(conn)
    assert table.recycle(table.evict(conn), True) is True
    assert table.grow() == 1


def test_a_closed_connection_of_a_grown_slot_does_not_hold_growth_up() -> None:
    table = CheckedTable(0, 4)
    first, _ = table.queue(), table.queue()
    table.connect(table.grow())
    conn = table.resume(first.raw)
    table.begin_return(conn)
    table.recycle(table.evict(conn), False)
    assert [table.grow() for _ in range(2)] == [0, -1]


def test_enter_starts_connects_until_so_many_slots_are_taken() -> None:
    table = full(1, 5)
    assert [table.enter(3) for _ in range(3)] == [1, 2, -1]
    assert table.states() == [AVAILABLE, CONNECTING, CONNECTING, EMPTY, EMPTY]


def test_enter_never_goes_above_the_maximum() -> None:
    table = full(1, 2)
    assert [table.enter(9) for _ in range(2)] == [1, -1]


# ---- shrinking


def lend_at_once(table: CheckedTable, number: int) -> None:
    """Have *number* connections lent at the same time, and given back in that order."""
    conns = [table.lend() for _ in range(number)]
    for conn in conns:
        table.give_back(conn)


def grown(min_size: int, size: int, **options: Any) -> CheckedTable:
    """A table that has grown to *size*, at the beginning of a shrink period."""
    table = full(min_size, size, **options)
    while (index := table.enter(size)) >= 0:
        table.connect(index)
    table.reserve_surplus()
    return table


def test_what_was_never_needed_in_the_period_is_surplus_one_at_a_time() -> None:
    table = grown(1, 3)
    conn, unused = table.reserve_surplus()
    assert (conn.name, unused) == (0, 3)
    assert table.states() == [RESERVED, AVAILABLE, AVAILABLE]


def test_the_number_unused_is_the_lowest_of_the_period() -> None:
    table = grown(1, 4)
    lend_at_once(table, 3)
    lend_at_once(table, 1)
    conn, unused = table.reserve_surplus()
    assert unused == 1
    assert conn.name == 0
    table.restore(conn)


def test_nothing_is_surplus_when_all_were_needed_at_once() -> None:
    table = grown(1, 3)
    lend_at_once(table, 3)
    assert table.reserve_surplus() is None
    assert table.states() == [AVAILABLE] * 3


def test_nothing_is_surplus_when_somebody_found_none() -> None:
    table = grown(1, 2)
    held = [table.lend(), table.lend()]
    assert table.checkout() is None
    for conn in held:
        table.give_back(conn)
    assert table.reserve_surplus() is None


def test_a_period_that_ended_says_nothing_of_the_next() -> None:
    table = grown(1, 3)
    lend_at_once(table, 3)
    assert table.reserve_surplus() is None
    conn, unused = table.reserve_surplus()
    assert unused == 3
    assert conn.name == 0


def test_what_is_lent_when_the_period_begins_counts_as_needed() -> None:
    table = full(1, 3)
    while (index := table.enter(3)) >= 0:
        table.connect(index)
    held = [table.lend(), table.lend()]
    table.reserve_surplus()
    for conn in held:
        table.give_back(conn)
    conn, unused = table.reserve_surplus()
    assert unused == 1
    assert conn.name == 2


def test_the_minimum_is_never_surplus() -> None:
    table = full(3)
    table.reserve_surplus()
    assert table.reserve_surplus() is None
    assert table.states() == [AVAILABLE] * 3


def test_lifo_gives_up_the_connection_idle_for_longest_not_the_busy_one() -> None:
    table = grown(1, 3, lifo=True)
    lend_at_once(table, 2)
    lend_at_once(table, 1)
    conn, unused = table.reserve_surplus()
    assert unused == 1
    assert conn.name == 2


# ---- drained, expired


def test_draining_outdates_the_connections_of_today_only() -> None:
    table = full(1, 2)
    old = table.lend()
    assert not table.is_expired(old._slot)
    table.new_epoch()
    assert table.is_expired(old._slot)
    table.connect(table.enter(2))
    new = table.lend()
    assert not table.is_expired(new._slot)


def test_a_drained_connection_is_still_outdated_after_a_return() -> None:
    table = full(1)
    table.new_epoch()
    table.give_back(table.lend())
    assert table.is_expired(table.lend()._slot)


def test_the_connection_that_replaces_a_drained_one_is_of_the_new_epoch() -> None:
    table = full(1)
    table.new_epoch()
    conn = table.reserve(0)
    table.recycle(table.evict(conn), True)
    table.fill()
    assert not table.is_expired(table.lend()._slot)


def test_a_connection_expires_at_its_time() -> None:
    table = CheckedTable(3, 3)
    table.connect(0, expires_ns=coarse_ns() - SECOND)
    table.connect(1, expires_ns=coarse_ns() + 1000 * SECOND)
    table.connect(2, expires_ns=0)
    conns = {conn.name: conn for conn in table.idle()}
    assert [table.is_expired(conns[name]._slot) for name in range(3)] == [True, False, True]


def test_the_lifetime_is_the_new_connections_own() -> None:
    table = CheckedTable(1, 1)
    table.connect(0, expires_ns=0)
    conn = table.reserve(0)
    table.recycle(table.evict(conn), True)
    table.connect(0, expires_ns=FAR)
    assert not table.is_expired(table.lend()._slot)


# ---- clocks, counters, the survey


def test_the_cheap_clock_is_never_ahead_of_the_exact_one() -> None:
    for _ in range(1000):
        assert coarse_ns() <= monotonic_ns()


def test_every_counter_is_there_from_the_start_and_is_zero() -> None:
    assert full(1).counters() == dict.fromkeys(
        (
            "requests_num",
            "requests_queued",
            "requests_wait_ms",
            "requests_errors",
            "usage_ms",
            "returns_bad",
            "connections_num",
            "connections_ms",
            "connections_errors",
            "connections_lost",
        ),
        0,
    )


@pytest.mark.parametrize(
    ("event", "key"),
    [
        (COUNT_REQUEST, "requests_num"),
        (COUNT_REQUEST_ERROR, "requests_errors"),
        (COUNT_RETURN_BAD, "returns_bad"),
        (COUNT_CONNECT, "connections_num"),
        (COUNT_CONNECT_NS, "connections_ms"),
        (COUNT_CONNECT_ERROR, "connections_errors"),
        (COUNT_LOST, "connections_lost"),
    ],
)
def test_an_event_counts_under_its_name_and_no_other(event: int, key: str) -> None:
    table = full(1)
    table.count(event)
    table.count(event, 10**12)
    counters = table.counters()
    assert counters.pop(key) == 10**12 + 1
    assert set(counters.values()) == {0}


def test_queueing_is_counted_and_timed() -> None:
    table = CheckedTable(0, 1)
    waiter = table.queue()
    table.abandon(waiter.raw)
    counters = table.counters()
    assert counters["requests_queued"] == 1
    assert counters["requests_wait_ms"] > 0  # ns, in spite of its name


def test_the_survey_shows_each_slot_as_it_is() -> None:
    table = CheckedTable(4, 7)
    for index in (0, 1, 2):
        table.connect(index)
    lent, reserved = table.lend(), table.reserve(1)
    waiting, oldest, slots = table.survey()
    assert (waiting, oldest) == (0, 0)
    assert [STATES[row[0]] for row in slots] == [IN_USE, RESERVED, AVAILABLE, CONNECTING] + (
        [EMPTY] * 3
    )
    assert [row[1] for row in slots] == [1000, 1001, 1002, None, None, None, None]
    assert [row[4] for row in slots] == [1, 0, 0, 0, 0, 0, 0]
    assert [row[5] for row in slots] == [threading.get_ident()] + [None] * 6
    assert all((row[2] is None) == (row[1] is None) for row in slots)
    assert all(0 <= row[3] < 60 * SECOND for row in slots)
    assert reserved._slot.is_at_home
    assert not lent._slot.is_at_home


def test_the_survey_counts_the_uses_of_a_connection_not_of_its_slot() -> None:
    table = full(1)
    for _ in range(3):
        table.give_back(table.lend())
    assert table.survey()[2][0][4] == 3
    conn = table.reserve(0)
    table.recycle(table.evict(conn), True)
    assert table.survey()[2][0][4] == 0
    table.fill()
    assert table.survey()[2][0][4] == 0


def test_the_survey_of_a_table_without_a_limit_shows_every_slot_taken() -> None:
    table = CheckedTable(0, 0)
    for index in (table.enter(9), table.enter(9), table.enter(9)):
        table.connect(index)
    table.recycle(table.evict(table.reserve(1)), False)
    states = [STATES[row[0]] for row in table.survey()[2]]
    assert states[:3] == [AVAILABLE, EMPTY, AVAILABLE]
    assert set(states[3:]) <= {EMPTY}


def test_the_survey_shows_a_surplus_too() -> None:
    table = full(3)
    table.resize(1, 1)
    assert len(table.survey()[2]) == 3


def test_the_survey_shows_who_waits_and_for_how_long() -> None:
    table = CheckedTable(0, 1)
    begun = monotonic_ns()
    table.queue()
    middle = monotonic_ns()
    table.queue()
    waiting, oldest, _ = table.survey()
    assert waiting == 2
    assert monotonic_ns() - middle <= oldest + SECOND
    assert 0 < oldest <= monotonic_ns() - begun


# ---- connections that are collected while they are lent


class Losses:
    """What on_lost was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int, int, bool]] = []

    def __call__(self, index: int, pid: int, owner: int, held_ns: int, closed: bool) -> None:
        self.calls.append((index, pid, owner, held_ns, closed))


def test_a_connection_dropped_while_lent_is_reported_and_its_slot_closing() -> None:
    losses = Losses()
    table = full(2, on_lost=losses)
    conn = table.lend()
    assert conn.name == 0
    del conn
    gc.collect()
    ((index, backend_pid, owner, held_ns, closed),) = losses.calls
    assert (index, backend_pid, owner, closed) == (0, 1000, threading.get_ident(), False)
    assert 0 <= held_ns < 60 * SECOND
    assert table.states() == [CLOSING, AVAILABLE]
    assert table.recycle(0, True) is True
    table.fill()
    assert table.counts() == (2, 2, 0)


def test_a_connection_that_was_closed_before_it_was_dropped_is_reported_as_such() -> None:
    class Closed:
        status = 1  # BAD, libpq's

    losses = Losses()
    table = CheckedTable(1, 1, on_lost=losses)
    table.install(0, Stub(0), Closed(), 1, FAR)
    table.lend()
    gc.collect()
    assert [call[4] for call in losses.calls] == [True]


def test_a_connection_lost_in_a_cycle_is_reported_by_the_collector() -> None:
    losses = Losses()
    table = full(1, on_lost=losses)
    conn = table.lend()
    conn.itself = conn
    del conn
    gc.collect()
    assert [call[0] for call in losses.calls] == [0]
    assert table.states() == [CLOSING]


def test_a_lost_connection_needs_nobody_to_be_told() -> None:
    table = full(1)
    table.lend()
    gc.collect()
    assert table.states() == [CLOSING]


def test_a_connection_that_was_given_back_is_never_lost() -> None:
    losses = Losses()
    table = full(1, on_lost=losses)
    table.give_back(table.lend())
    gc.collect()
    assert losses.calls == []
    assert table.states() == [AVAILABLE]


@pytest.mark.parametrize("late", [False, True])
def test_a_connection_that_was_evicted_is_never_lost(late: bool) -> None:
    losses = Losses()
    table = full(1, on_lost=losses)
    conn = table.lend()
    table.begin_return(conn)
    table.recycle(table.evict(conn, late), True)
    table.fill()
    held = table.lend()
    del conn
    gc.collect()
    assert losses.calls == []
    assert table.states() == [IN_USE]
    assert held.name == 1


@pytest.mark.parametrize("state", [RETURNING, RESERVED])
def test_a_connection_dropped_by_the_pool_itself_does_not_cost_its_slot(state: str) -> None:
    # An interrupt can end a return anywhere; then whoever had the slot is gone, as the connection.
    table, conn = table_in(state)
    del conn
    gc.collect()
    assert table.survey()[2][0][1] is None
    assert table.states() == [CLOSING]


def test_a_connection_that_never_came_into_the_table_is_not_lost() -> None:
    losses = Losses()
    table = CheckedTable(1, 1, on_lost=losses)
    table.close()
    table.connect(0)
    gc.collect()
    assert table.states() == [CONNECTING]
    assert losses.calls == []


def test_a_table_goes_before_its_lent_connections() -> None:
    losses = Losses()
    table = SlotTable(1, 1, on_lost=losses)
    table.install(0, Stub(0), None, 1, FAR)
    conn = table.checkout()
    gone = weakref.ref(table)
    del table
    assert gone() is None
    del conn
    gc.collect()
    assert losses.calls == []


def test_a_table_that_goes_lets_its_idle_connections_go() -> None:
    table = SlotTable(1, 1)
    conn = Stub(0)
    table.install(0, conn, None, 1, FAR)
    gone = weakref.ref(conn)
    del conn
    gc.collect()
    assert gone() is not None
    del table
    gc.collect()
    assert gone() is None


# ---- proxies


class Proxy:
    """Stands for a connection, as instrumentation's proxies do: by its class, and attributes."""

    def __init__(self, inner: Stub) -> None:
        object.__setattr__(self, "inner", inner)

    __class__ = property(lambda self: type(self.inner))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.inner, name, value)


def test_a_proxy_is_lent_again_though_the_connection_inside_was_returned() -> None:
    table = CheckedTable(1, 1)
    inner = Stub(0)
    proxy = Proxy(inner)
    table.install(0, proxy, None, 1, FAR)
    assert inner._slot.connection_face is proxy
    assert table.checkout() is proxy
    assert table.begin_return(inner) == RETURN_TAKEN
    table.restore(inner)
    assert table.checkout() is proxy


def test_a_proxy_dropped_while_lent_is_lost_like_a_connection() -> None:
    table = CheckedTable(1, 1)
    table.install(0, Proxy(Stub(0)), None, 1, FAR)
    table.lend()
    gc.collect()
    assert table.states() == [CLOSING]


# ---- the end


def test_only_the_first_close_is_told_so() -> None:
    table = full(1)
    assert not table.closed
    assert table.close() is True
    assert table.closed
    assert table.close() is False


def test_a_closed_table_lends_nothing() -> None:
    table = full(2)
    table.close()
    assert table.checkout() is None
    assert table.states() == [AVAILABLE] * 2


@pytest.mark.parametrize("lent", [True, False])
def test_what_comes_back_to_a_closed_table_is_to_be_closed_by_the_caller(lent: bool) -> None:
    table = full(1)
    conn = table.lend() if lent else table.reserve(0)
    table.close()
    if lent:
        assert table.begin_return(conn) == RETURN_TAKEN
    assert table.restore(conn) is True
    assert table.reserve(0) is conn


def test_what_is_closed_is_not_replaced_once_the_table_is() -> None:
    table = full(2)
    table.close()
    for index in (0, 1):
        conn = table.reserve(index)
        assert table.recycle(table.evict(conn), True) is False
    assert table.counts() == (0, 0, 0)


def test_nothing_comes_into_a_closed_table() -> None:
    table = CheckedTable(1, 4)
    table.close()
    assert table.install(0, Stub(0), None, 1, FAR) is False
    assert table.states()[0] == CONNECTING
    assert table.enter(4) == -1
    assert table.grow() == -1
    table.vacate(0)
    assert table.counts() == (0, 0, 0)


def test_a_connection_refused_by_a_closed_table_is_no_connection_of_it() -> None:
    table = CheckedTable(1, 1)
    table.close()
    conn = Stub(0)
    table.install(0, conn, None, 1, FAR)
    assert table.begin_return(conn) == RETURN_NOT_LENT
    assert table.is_retired(conn._slot)


@pytest.mark.parametrize(
    "use",
    [
        lambda table: table.resize(1, 3),
        lambda table: table.new_epoch(),
        lambda table: table.reserve_surplus(),
        lambda table: table.idle(),
        lambda table: table.serve(),
        lambda table: table.survey(),
    ],
    ids=["resize", "new_epoch", "reserve_surplus", "idle", "serve", "survey"],
)
def test_a_closed_table_can_still_be_looked_at(use: Callable[[CheckedTable], object]) -> None:
    table = full(2)
    table.close()
    use(table)
    assert table.closed
    assert table.counts()[0] == 2
