"""A table that lends fewer connections at once than it has, while some wait: who gets what, when.

How many, a Pacer finds out, and test_pacing.py looks at that. Here it has found it: see narrow().
The waiters are threads', for others look after no stall; they park only where a test says so.
"""

from __future__ import annotations

import gc
import sysconfig

import pytest
from core.loads import narrow
from core.stubs import FAR, CheckedTable, Stub, full, in_threads

from fastpool._core import RETURN_TAKEN, Waiter

pytestmark = pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="such a table holds nothing back"
)


def crowded(size: int, width: int) -> tuple[CheckedTable, list[Stub], list[Waiter]]:
    """A table with all its connections lent, 8 waiters for them, and the width found."""
    table = full(size, tau_ns=0, paces=True)
    lent = [table.lend() for _ in range(size)]
    narrow(table, width, size)
    return table, lent, [queue(table) for _ in range(8)]


def queue(table: CheckedTable) -> Waiter:
    waiter = Waiter()
    assert table.enqueue(waiter) is None
    return waiter


def borrow(table: CheckedTable, waiter: Waiter) -> None:
    """Wait, as a thread does, and give the connection back."""
    conn = table.raw.wait(waiter, 20.0)
    table.raw.begin_return(conn)
    table.raw.restore(conn)


def looks_out(table: CheckedTable, lookout: Waiter, others: list[Waiter]) -> bool:
    """Whether all is lent after a stall if of these waiters one thread alone is awake to see it.
    The others, in their order, are served by whatever is given back."""

    def serve_the_others() -> bool:
        conn = table.raw.wait(others[0], 20.0)
        ended = table.width == 0
        table.raw.begin_return(conn)
        table.raw.restore(conn)
        for waiter in others[1:]:
            borrow(table, waiter)
        return ended

    found, _ = in_threads(serve_the_others, lambda: borrow(table, lookout))
    table.verify()
    return bool(found)


def settled(waiters: list[Waiter]) -> int:
    """How many have been served: always the first ones."""
    flags = [waiter.is_settled for waiter in waiters]
    assert flags == sorted(flags, reverse=True)
    return sum(flags)


def test_what_comes_back_is_held_back_until_fewer_are_lent() -> None:
    table, lent, waiters = crowded(4, 2)
    served = []
    for conn in lent:
        table.give_back(conn)
        served.append(settled(waiters))
    assert served == [0, 0, 1, 2]
    assert table.counts() == (4, 2, 6)


def test_each_return_serves_the_first_in_line_from_then_on() -> None:
    table, lent, waiters = crowded(4, 2)
    for conn in lent:
        table.give_back(conn)
    for number in range(2, 8):
        conn = table.resume(waiters[number - 2])
        table.give_back(conn)
        assert settled(waiters) == number + 1
        assert table.counts() == (4, 2, 7 - number)


def test_a_newcomer_queues_while_connections_are_held_back() -> None:
    table, lent, waiters = crowded(4, 1)
    for conn in lent:
        table.give_back(conn)
    assert table.counts() == (4, 3, 7)
    assert table.checkout() is None
    late = queue(table)
    assert settled([*waiters, late]) == 1


def test_all_are_lent_to_those_who_need_not_wait() -> None:
    table, lent, waiters = crowded(4, 1)
    for conn in lent:
        table.give_back(conn)
    for waiter in waiters:
        table.give_back(table.resume(waiter))
    assert table.counts() == (4, 4, 0)
    assert table.width == 1
    assert None not in [table.checkout() for _ in range(4)]


def test_who_gives_up_waiting_takes_what_is_held_back() -> None:
    table, lent, waiters = crowded(4, 2)
    for conn in lent:
        table.give_back(conn)
    assert table.abandon(waiters[5]) is not None
    assert table.abandon(waiters[6]) is not None
    assert table.abandon(waiters[7]) is None
    assert table.counts() == (4, 0, 3)


def test_a_waiter_that_was_woken_to_compete_finds_nothing_while_enough_are_lent() -> None:
    table = full(3, tau_ns=FAR, paces=True)
    lent = [table.lend() for _ in range(3)]
    narrow(table, 1, 3)
    waiter = queue(table)
    assert table.begin_return(lent[0]) == RETURN_TAKEN
    table.restore(lent[0], new_turn=False)  # as the maintenance does: it wakes, and paces nothing
    table.give_back(lent[1])
    assert table.width == 1
    assert table.resume(waiter) is None
    table.give_back(lent[2])
    assert waiter.is_settled


def test_it_does_not_grow_for_those_for_whom_one_is_held_back() -> None:
    table = full(4, 100, tau_ns=0, paces=True)
    lent = [table.lend() for _ in range(4)]
    narrow(table, 1, 4)
    waiters = [queue(table) for _ in range(5)]
    for conn in lent:
        table.give_back(conn)
    assert settled(waiters) == 1
    assert table.counts() == (4, 3, 4)
    debt = table.grow()
    assert debt != -1  # for the fourth
    table.connect(debt)
    assert table.counts() == (5, 4, 4)
    assert table.grow() == -1


def test_a_connection_that_leaves_the_table_makes_room_for_one_held_back() -> None:
    table, lent, waiters = crowded(4, 2)
    for conn in lent[:3]:
        table.give_back(conn)
    assert settled(waiters) == 1
    assert table.begin_return(lent[3]) == RETURN_TAKEN
    table.evict(lent[3])
    assert settled(waiters) == 2


def test_a_lent_session_that_ends_makes_room_for_one_held_back() -> None:
    table = full(0, 3, tau_ns=0, paces=True)
    watches = [object(), object(), object()]
    for watch in watches:
        table.install(table.enter(3).index, Stub(0), None, 1, FAR, 0, watch)
    lent = [table.lend() for _ in range(3)]
    narrow(table, 2, 3)
    waiters = [queue(table) for _ in range(3)]
    table.give_back(lent[0])
    assert settled(waiters) == 0
    assert table.condemn(1, watches[1])[0]
    assert settled(waiters) == 1


def test_the_last_in_the_queue_looks_after_a_stall() -> None:
    # One is lent, and never comes back. Nothing happens but that time passes: 1 ms, and what the
    # others would have needed. Those that queued before anything was held back sleep: it is woken.
    table, lent, waiters = crowded(2, 1)
    table.give_back(lent[0])
    assert settled(waiters) == 0
    assert looks_out(table, waiters[7], waiters[:7])


def test_the_others_sleep_through_a_stall() -> None:
    table, lent, waiters = crowded(2, 1)
    table.give_back(lent[0])
    [conn] = in_threads(lambda: table.raw.wait(waiters[6], 0.1))
    assert conn is lent[0]  # when its time was over
    assert table.width == 1


def test_a_lookout_that_is_served_hands_that_on_to_the_last_in_the_queue() -> None:
    table, lent, waiters = crowded(2, 1)
    table.give_back(lent[0])
    waiters += [queue(table) for _ in range(3)]
    table.give_back(lent[1])
    for waiter in waiters[:7]:
        table.give_back(table.resume(waiter))
    assert settled(waiters) == 8
    kept = table.resume(waiters[7])
    assert kept is not None
    assert looks_out(table, waiters[10], waiters[8:10])


def test_the_next_that_queues_takes_the_place_of_a_lookout_that_is_served() -> None:
    table, lent, waiters = crowded(2, 1)
    table.give_back(lent[0])
    waiters += [queue(table) for _ in range(3)]
    table.give_back(lent[1])
    for waiter in waiters[:7]:
        table.give_back(table.resume(waiter))
    waiters += [queue(table) for _ in range(2)]
    kept = table.resume(waiters[7])
    assert kept is not None
    assert looks_out(table, waiters[11], [*waiters[8:11], waiters[12]])


def test_a_lookout_that_gives_up_hands_that_on() -> None:
    table, lent, waiters = crowded(3, 2)
    table.give_back(lent[0])
    table.give_back(lent[1])
    kept = table.resume(waiters[0])
    assert kept is not None
    taken = table.abandon(waiters[7])
    assert taken is not None
    table.give_back(taken)
    assert settled(waiters[:7]) == 1
    assert looks_out(table, waiters[6], waiters[1:6])


def test_a_lookout_that_is_interrupted_after_its_grant_hands_that_on() -> None:
    table, lent, waiters = crowded(2, 1)
    table.give_back(lent[0])
    late = queue(table)
    table.give_back(lent[1])
    for waiter in waiters[:7]:
        table.give_back(table.resume(waiter))
    kept = table.abandon(waiters[7])
    assert kept is not None
    assert settled([late]) == 0
    [conn] = in_threads(lambda: table.raw.wait(late, 20.0))
    assert conn is not kept
    assert table.width == 0


def test_a_wait_that_is_not_a_stall_goes_on() -> None:
    # Returns go on coming, so what is held back stays so, and waiters are served in their order.
    table, lent, waiters = crowded(2, 1)
    table.give_back(lent[0])
    table.give_back(lent[1])
    in_threads(*(lambda waiter=waiter: borrow(table, waiter) for waiter in waiters))
    table.verify()
    assert table.counts() == (2, 2, 0)


def test_a_waiter_that_parks_elsewhere_ends_the_pacing() -> None:
    # gevent's: nobody would look after a stall while it waits.
    table, lent, waiters = crowded(2, 1)
    table.give_back(lent[0])
    assert settled(waiters) == 0
    assert table.enqueue(Waiter(object(), lambda: None)) is None
    assert table.pacer is None
    assert settled(waiters) == 1


def test_a_connection_collected_while_it_is_lent_is_not_counted_as_lent() -> None:
    table, lent, waiters = crowded(3, 1)
    table.give_back(lent.pop())
    lent.clear()
    gc.collect()
    assert table.counts()[1:] == (1, 8)
    assert table.width == 1
    # Nothing comes back: the lookout finds nothing lent, and a connection held back.
    assert looks_out(table, waiters[7], waiters[:7])


def test_closing_ends_all_waits() -> None:
    table, lent, waiters = crowded(2, 1)
    table.give_back(lent[0])
    assert table.close()
    assert all(waiter.was_shut for waiter in waiters)


def test_a_child_s_table_finds_its_own_width() -> None:
    table, _, _ = crowded(2, 1)
    heir = table.raw.heir()
    assert heir.pacer is not None
    assert heir.width == 0


@pytest.mark.parametrize("timeout", [0.0, 0.0005])
def test_a_wait_shorter_than_a_stall_ends_with_what_is_held_back(timeout: float) -> None:
    table, lent, waiters = crowded(2, 1)
    table.give_back(lent[0])
    [conn] = in_threads(lambda: table.raw.wait(waiters[3], timeout))
    assert conn is lent[0]
    assert not waiters[0].is_settled
