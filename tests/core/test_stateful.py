"""SlotTable against the oracle: random operations, everything that can be seen compared after each.

In one thread: what happens between threads is the race tests' and the model's. The examples are
new in each run; FASTPOOL_EXAMPLES sets how many (200 for each kind of table by default). A failure
prints the steps that led to it.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from core.oracle import (
    AVAILABLE,
    CLOSING,
    CONNECTING,
    IN_USE,
    LATE,
    NOT_LENT,
    RESERVED,
    RETURNING,
    SHUT,
    TAKEN,
    WAITING,
    Oracle,
    Party,
    Refused,
)
from core.stubs import FAR, Stub, WokenWaiter
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fastpool._core import (
    RETURN_LATE,
    RETURN_NOT_LENT,
    RETURN_TAKEN,
    STATES,
    SlotTable,
)

PROFILE = settings(
    max_examples=int(os.environ.get("FASTPOOL_EXAMPLES", "200")),
    stateful_step_count=50,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)

OUTCOMES = {RETURN_TAKEN: TAKEN, RETURN_NOT_LENT: NOT_LENT, RETURN_LATE: LATE}
LARGEST = 4


def sizes() -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(0, LARGEST), st.integers(1, LARGEST)).map(
        lambda pair: (min(pair), max(pair))
    )


class TableMachine(RuleBasedStateMachine):
    """Does each operation on both, and compares. Subclasses fix the order and the patience."""

    lifo: bool
    patient: bool

    def __init__(self) -> None:
        super().__init__()
        self.lost: list[int] = []
        # The only references outside the table: a stub that is not in here is dropped.
        self.out: dict[int, Stub] = {}
        self.retired: dict[int, Stub] = {}
        self.names = 0
        self.pairs: list[tuple[WokenWaiter, Party]] = []
        self.watchers: list[tuple[WokenWaiter, Party]] = []

    # --- the two, and what is done to both ----------------------------------------------------

    @initialize(sizes=sizes(), max_connecting=st.integers(1, 3))
    def begin(self, sizes: tuple[int, int], max_connecting: int) -> None:
        lost = self.lost
        self.table = SlotTable(
            *sizes,
            lifo=self.lifo,
            max_connecting=max_connecting,
            tau_ns=FAR if self.patient else 0,
            on_lost=lambda index, *_: lost.append(index),
        )
        self.oracle = Oracle(*sizes, self.lifo, max_connecting, self.patient)

    def take(self, conn: Stub | None) -> int | None:
        """Keep a stub that came out of the table. Its name."""
        if conn is None:
            return None
        self.out[conn.name] = conn
        return conn.name

    def in_state(self, *states: str) -> list[int]:
        """The connections whose slots are in one of *states*."""
        return sorted(c for c in self.oracle.home if self.oracle.of(c).state in states)

    def held(self) -> list[int]:
        """Those in use that somebody holds; a grant that is not collected is held by nobody."""
        return [conn for conn in self.in_state(IN_USE) if conn in self.out]

    # --- lending and returning ----------------------------------------------------------------

    @rule()
    def checkout(self) -> None:
        assert self.take(self.table.checkout()) == self.oracle.checkout()

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.held()))
        self.return_(name)
        self.restore_(name, True)

    @precondition(lambda self: self.held())
    @rule(data=st.data(), generation=st.booleans())
    def begin_return(self, data: st.DataObject, generation: bool) -> None:
        name = data.draw(st.sampled_from(self.held()))
        if generation:
            conn = self.out[name]
            now = self.table.generation(conn._slot)
            assert now == self.oracle.of(name).generation
            old = data.draw(st.integers(0, now - 1))
            assert self.table.begin_return(conn, old) == RETURN_NOT_LENT
            assert self.oracle.begin_return(name, old) == NOT_LENT
        self.return_(name)

    def return_(self, name: int) -> None:
        assert OUTCOMES[self.table.begin_return(self.out[name])] == TAKEN
        assert self.oracle.begin_return(name) == TAKEN

    @precondition(lambda self: self.in_state(AVAILABLE, RETURNING, RESERVED) or self.retired)
    @rule(data=st.data())
    def return_what_is_not_lent(self, data: st.DataObject) -> None:
        known = {conn.name: conn for conn in self.table.idle()} | self.retired
        known |= {name: self.out[name] for name in self.in_state(RETURNING, RESERVED)}
        name = data.draw(st.sampled_from(sorted(known)))
        for _ in range(2):
            outcome = OUTCOMES[self.table.begin_return(known[name])]
            assert outcome == self.oracle.begin_return(name) != TAKEN

    @precondition(lambda self: self.in_state(RETURNING, RESERVED))
    @rule(data=st.data(), new_turn=st.booleans())
    def restore(self, data: st.DataObject, new_turn: bool) -> None:
        self.restore_(data.draw(st.sampled_from(self.in_state(RETURNING, RESERVED))), new_turn)

    def restore_(self, name: int, new_turn: bool) -> None:
        conn = self.out.pop(name)
        assert self.table.restore(conn, new_turn) == self.oracle.restore(name, new_turn)

    @precondition(lambda self: self.in_state(IN_USE, CLOSING, AVAILABLE))
    @rule(data=st.data())
    def restore_what_is_not_the_callers(self, data: st.DataObject) -> None:
        known = {conn.name: conn for conn in self.table.idle()} | self.retired
        known |= {name: self.out[name] for name in self.held()}
        if known:
            name = data.draw(st.sampled_from(sorted(known)))
            for refused in (self.table.restore, self.table.evict):
                with pytest.raises(RuntimeError, match="^bug: "):
                    refused(known[name])

    # --- maintenance --------------------------------------------------------------------------

    @rule(index=st.integers(0, LARGEST))
    def reserve(self, index: int) -> None:
        assert self.take(self.table.reserve(index)) == self.oracle.reserve(index)

    @rule()
    def reserve_surplus(self) -> None:
        found = self.table.reserve_surplus()
        expected = self.oracle.reserve_surplus()
        assert (found and (self.take(found[0]), found[1])) == expected

    @precondition(lambda self: self.in_state(RETURNING, RESERVED))
    @rule(data=st.data(), late=st.booleans())
    def evict(self, data: st.DataObject, late: bool) -> None:
        name = data.draw(st.sampled_from(self.in_state(RETURNING, RESERVED)))
        conn = self.out.pop(name)
        self.retired[name] = conn
        assert self.table.evict(conn, late) == self.oracle.evict(name, late)
        assert self.table.is_retired(conn._slot)

    @precondition(lambda self: self.oracle.indexes(CLOSING))
    @rule(data=st.data(), replace=st.booleans())
    def recycle(self, data: st.DataObject, replace: bool) -> None:
        index = data.draw(st.sampled_from(self.oracle.indexes(CLOSING)))
        assert self.table.recycle(index, replace) == self.oracle.recycle(index, replace)

    @rule()
    def drain(self) -> None:
        self.table.new_epoch()
        self.oracle.epoch += 1

    # --- connecting ---------------------------------------------------------------------------

    @rule()
    def grow(self) -> None:
        assert self.table.grow() == self.oracle.grow()

    @rule(below=st.integers(0, LARGEST + 1))
    def enter(self, below: int) -> None:
        assert self.table.enter(below) == self.oracle.enter(below)

    @precondition(lambda self: self.oracle.indexes(CONNECTING))
    @rule(data=st.data(), all_of_them=st.booleans())
    def install(self, data: st.DataObject, all_of_them: bool) -> None:
        owed = self.oracle.indexes(CONNECTING)
        for index in owed if all_of_them else [data.draw(st.sampled_from(owed))]:
            conn = Stub(self.names)
            self.names += 1
            installed = self.table.install(index, conn, None, conn.name, FAR)
            assert installed == self.oracle.install(index, conn.name)

    @precondition(lambda self: self.oracle.indexes(CONNECTING))
    @rule(data=st.data())
    def vacate(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(self.oracle.indexes(CONNECTING)))
        self.table.vacate(index)
        self.oracle.leave(index)

    @rule(sizes=sizes())
    def resize(self, sizes: tuple[int, int]) -> None:
        self.table.resize(*sizes)
        self.oracle.resize(*sizes)

    # --- waiting ------------------------------------------------------------------------------

    @rule(max_waiting=st.integers(0, 3))
    def enqueue(self, max_waiting: int) -> None:
        waiter, party = WokenWaiter(), Party()
        try:
            expected = self.oracle.enqueue(party, max_waiting)
        except Refused:
            with pytest.raises(OverflowError):
                self.table.enqueue(waiter.raw, max_waiting)
            return
        self.pairs.append((waiter, party))
        assert self.take(self.table.enqueue(waiter.raw, max_waiting)) == expected

    @precondition(lambda self: self.pairs)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        waiter, party = data.draw(st.sampled_from(self.pairs))
        assert self.take(self.table.resume(waiter.raw)) == self.oracle.resume(party)

    @precondition(lambda self: self.pairs)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        waiter, party = data.draw(st.sampled_from(self.pairs))
        assert self.take(self.table.abandon(waiter.raw)) == self.oracle.abandon(party)

    @rule()
    def watch(self) -> None:
        watcher, party = WokenWaiter(), Party()
        self.watchers.append((watcher, party))
        assert self.table.watch(watcher.raw) == self.oracle.watch(party)

    @precondition(lambda self: self.watchers)
    @rule(data=st.data())
    def unwatch(self, data: st.DataObject) -> None:
        watcher, party = data.draw(st.sampled_from(self.watchers))
        assert self.table.unwatch(watcher.raw) == self.oracle.unwatch(party)

    # --- the end, and losses ------------------------------------------------------------------

    @precondition(lambda self: self.out or self.retired)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        names = sorted(self.out.keys() | self.retired.keys())
        name = data.draw(st.sampled_from(names))
        self.lost.clear()
        self.out.pop(name, None)
        self.retired.pop(name, None)
        index = self.oracle.drop(name)
        assert self.lost == ([] if index is None else [index])

    @precondition(lambda self: len(self.pairs) > 2)
    @rule()
    def close(self) -> None:
        assert self.table.close() == self.oracle.close()

    # --- what holds after every step ----------------------------------------------------------

    @invariant()
    def both_look_alike(self) -> None:
        table, oracle = self.table, self.oracle
        table.verify()
        assert table.counts() == oracle.counts
        assert (table.closed, table.surplus) == (oracle.closed, oracle.surplus)
        assert table.owed() == oracle.indexes(CONNECTING)
        waiting, _, rows = table.survey()
        assert waiting == len(oracle.line)
        slots = [oracle.slot(index) for index in range(len(rows))]
        assert [STATES[row[0]] for row in rows] == [slot.state for slot in slots]
        assert [row[1] for row in rows] == [slot.conn for slot in slots]
        assert [row[4] for row in rows] == [s.uses if s.conn is not None else 0 for s in slots]
        idle = [oracle.slots[index].conn for index in oracle.idle()]
        assert [conn.name for conn in table.idle()] == idle
        for name in self.held():
            assert table.is_expired(self.out[name]._slot) == oracle.is_expired(name)
        for waiter, party in self.pairs + self.watchers:
            assert waiter.is_settled == (party.outcome != WAITING)
            assert waiter.was_shut == (party.outcome == SHUT)
            assert waiter.wakes == party.wakes
        # What the oracle says too: nobody waits asleep for what is there.
        assert not (idle and oracle.line) or oracle.line[0].woken


@pytest.mark.parametrize("lifo", [False, True], ids=["fifo", "lifo"])
@pytest.mark.parametrize("patient", [True, False], ids=["patient", "overdue"])
def test_the_table_does_what_the_oracle_says(lifo: bool, patient: bool) -> None:
    machine: Any = type("Machine", (TableMachine,), {"lifo": lifo, "patient": patient})
    run_state_machine_as_test(machine, settings=PROFILE)
