"""`pool.snapshot()`: an immutable picture whose counts add up, whatever the pool does meanwhile."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import fastpool

STATES = {"empty", "connecting", "available", "in_use", "returning", "reserved", "closing"}
LOAD_SECONDS = 1.0
LOAD_THREADS = 16


def only(pool: Any, state: str) -> fastpool.SlotInfo:
    """The one slot of *pool* that is in *state*."""
    (slot,) = (slot for slot in pool.snapshot().slots if slot.state == state)
    return slot


def check_sums(snapshot: fastpool.Snapshot) -> None:
    """Assert what holds in every snapshot of a pool with a limit that was never lowered."""
    slots, counts = snapshot.slots, snapshot.counts
    assert set(counts) == STATES
    assert [slot.index for slot in slots] == list(range(len(slots)))
    assert sum(counts.values()) == len(slots)
    for state in STATES:
        assert counts[state] == sum(slot.state == state for slot in slots)
    assert snapshot.size == len(slots) - counts["empty"]
    assert snapshot.size <= snapshot.max_size
    assert snapshot.waiting >= 0
    assert snapshot.oldest_wait >= 0.0
    for slot in slots:
        assert slot.time_in_state >= 0.0
        assert (slot.owner_ident is not None) == (slot.state == "in_use")
        assert (slot.age is None) == (slot.backend_pid is None)
        if slot.state in ("available", "in_use", "returning", "reserved"):
            assert slot.backend_pid is not None
        if slot.state in ("empty", "connecting"):
            assert slot.backend_pid is None


# --- shape ------------------------------------------------------------------------------------


def test_a_snapshot_names_the_pool_and_its_sizes(new_pool: Callable[..., Any]) -> None:
    pool = new_pool(min_size=2, max_size=5)
    snapshot = pool.snapshot()
    assert isinstance(snapshot, fastpool.Snapshot)
    assert (snapshot.name, snapshot.min_size, snapshot.max_size) == ("p", 2, 5)
    assert (snapshot.size, snapshot.waiting, snapshot.oldest_wait) == (2, 0, 0.0)
    assert dict(snapshot.counts) == dict.fromkeys(STATES, 0) | {"available": 2, "empty": 3}
    assert len(snapshot.slots) == 5
    check_sums(snapshot)


def test_a_snapshot_follows_resize(new_pool: Callable[..., Any]) -> None:
    pool = new_pool(max_size=2)
    pool.resize(1, 7)
    snapshot = pool.snapshot()
    assert (snapshot.min_size, snapshot.max_size, len(snapshot.slots)) == (1, 7, 7)
    check_sums(snapshot)


def test_a_snapshot_shows_connections_beyond_a_lowered_maximum(
    new_pool: Callable[..., Any],
) -> None:
    pool = new_pool(min_size=3)
    pool.resize(1, 1)
    snapshot = pool.snapshot()
    assert snapshot.max_size == 1
    assert snapshot.size == snapshot.counts["available"] == 3


def test_the_slots_of_a_pool_that_is_not_open_are_connecting(new_pool: Callable[..., Any]) -> None:
    snapshot = new_pool(min_size=2, max_size=3, open=False).snapshot()
    assert snapshot.counts["connecting"] == 2
    assert snapshot.counts["empty"] == 1
    check_sums(snapshot)


def test_the_slots_of_a_closed_pool_are_empty(new_pool: Callable[..., Any]) -> None:
    pool = new_pool(min_size=2)
    pool.close()
    snapshot = pool.snapshot()
    assert snapshot.size == 0
    assert snapshot.counts["empty"] == 2


def test_a_snapshot_is_immutable(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    before = pool.snapshot()
    copy = before.as_dict()
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.size = 9
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.slots[0].state = "closing"
    with pytest.raises(TypeError):
        before.counts["empty"] = 9
    with pool.connection():
        assert before.as_dict() == copy
        assert pool.snapshot().as_dict() != copy
    assert isinstance(before.slots, tuple)


def test_as_dict_is_what_json_can_write(new_pool: Callable[..., Any]) -> None:
    pool = new_pool(max_size=2)
    with pool.connection():
        snapshot = pool.snapshot()
    whole = snapshot.as_dict()
    assert json.loads(json.dumps(whole)) == whole
    fields = [field.name for field in dataclasses.fields(fastpool.Snapshot)]
    assert list(whole) == fields
    assert whole["slots"][0] == snapshot.slots[0].as_dict()
    assert list(whole["slots"][0]) == [
        field.name for field in dataclasses.fields(fastpool.SlotInfo)
    ]
    assert whole["counts"] == dict(snapshot.counts)


# --- the facts of a slot ----------------------------------------------------------------------


def test_a_lent_slot_names_the_thread_that_borrowed_it(
    new_pool: Callable[..., Any], spawn: Callable[..., Any]
) -> None:
    pool = new_pool(min_size=2)
    entered, leave = threading.Event(), threading.Event()

    def borrow() -> int:
        with pool.connection():
            entered.set()
            assert leave.wait(10.0)
        return threading.get_ident()

    call = spawn(borrow, thread_name="borrower")
    assert entered.wait(10.0)
    slot = only(pool, "in_use")
    leave.set()
    assert slot.owner_name == "borrower"
    assert slot.owner_ident == call.result()
    assert {slot.owner_name for slot in pool.snapshot().slots} == {None}


def test_a_waiter_is_the_owner_of_what_it_was_handed(
    new_pool: Callable[..., Any],
    spawn: Callable[..., Any],
    waiting: Callable[[Any, int], None],
) -> None:
    pool = new_pool()
    leave = threading.Event()
    conn = pool.getconn()

    def borrow() -> None:
        with pool.connection(timeout=10.0):
            assert leave.wait(10.0)

    call = spawn(borrow, thread_name="waiter")
    waiting(pool, 1)
    pool.putconn(conn)
    waiting(pool, 0)
    assert only(pool, "in_use").owner_name == "waiter"
    leave.set()
    call.result()


def test_the_owner_of_a_lending_that_outlives_its_thread_has_no_name(
    new_pool: Callable[..., Any], spawn: Callable[..., Any]
) -> None:
    pool = new_pool()
    call = spawn(pool.getconn, thread_name="gone")
    conn = call.result()
    slot = only(pool, "in_use")
    assert slot.owner_name is None
    assert slot.owner_ident is not None
    pool.putconn(conn)


def test_a_slot_names_its_backend(new_pool: Callable[..., Any], sessions: Any) -> None:
    pool = new_pool(min_size=3, kwargs=sessions.kwargs)
    assert {slot.backend_pid for slot in pool.snapshot().slots} == sessions.pids()
    with pool.connection() as conn:
        assert only(pool, "in_use").backend_pid == conn.info.backend_pid


def test_uses_count_the_lendings_of_one_connection(
    new_pool: Callable[..., Any],
    break_connection: Callable[[Any], None],
    available: Callable[..., None],
) -> None:
    pool = new_pool()
    assert pool.snapshot().slots[0].uses == 0
    for count in range(1, 4):
        with pool.connection() if count % 2 else pool.connect() as conn:
            assert pool.snapshot().slots[0].uses == count
    pool.check()
    assert pool.snapshot().slots[0].uses == 3

    conn = pool.getconn()
    break_connection(conn)
    pool.putconn(conn)
    available(pool, 1)
    assert pool.snapshot().slots[0].uses == 0


def test_ages_and_times_grow(new_pool: Callable[..., Any], eventually: Callable[..., Any]) -> None:
    pool = new_pool()
    began = time.monotonic()
    first = pool.snapshot().slots[0]
    eventually(lambda: pool.snapshot().slots[0].age > first.age + 0.02)
    eventually(lambda: pool.snapshot().slots[0].time_in_state > first.time_in_state + 0.02)
    with pool.connection():
        lent = pool.snapshot().slots[0]
        assert lent.time_in_state < lent.age
        eventually(lambda: pool.snapshot().slots[0].time_in_state > 0.02)
    last = pool.snapshot().slots[0]
    elapsed = time.monotonic() - began
    assert last.age is not None
    assert first.age is not None
    assert 0.03 < last.age - first.age < elapsed + 0.05


def test_waiters_and_the_oldest_wait_are_shown(
    new_pool: Callable[..., Any],
    spawn: Callable[..., Any],
    waiting: Callable[[Any, int], None],
    eventually: Callable[..., Any],
) -> None:
    pool = new_pool()
    conn = pool.getconn()
    calls = []
    for count in (1, 2, 3):
        calls.append(spawn(lambda: pool.putconn(pool.getconn(10.0))))
        waiting(pool, count)
    eventually(lambda: pool.snapshot().oldest_wait > 0.05)
    assert pool.snapshot().oldest_wait < 10.0
    pool.putconn(conn)
    for call in calls:
        call.result()
    assert (pool.snapshot().waiting, pool.snapshot().oldest_wait) == (0, 0.0)


@pytest.mark.parametrize("state", ["connecting", "returning", "reserved"])
def test_a_slot_that_is_worked_on_says_so(
    state: str, new_pool: Callable[..., Any], spawn: Callable[..., Any]
) -> None:
    reached, leave = threading.Event(), threading.Event()

    def stop_here(conn: Any) -> None:
        reached.set()
        assert leave.wait(10.0)

    options = {"connecting": {"configure": stop_here}, "returning": {"reset": stop_here}}
    pool = new_pool(open=False, **options.get(state, {}))
    pool.check_connection = stop_here
    pool.open()
    if state == "returning":
        pool.putconn(pool.getconn())
    call = None
    if state == "reserved":
        pool.wait()
        call = spawn(pool.check)
    assert reached.wait(10.0)
    slot = only(pool, state)
    assert slot.owner_ident is None
    assert (slot.backend_pid is None) == (state == "connecting")
    leave.set()
    if call is not None:
        call.result()


# --- under load -------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["fifo", "lifo"])
def test_the_counts_of_every_snapshot_add_up_under_load(
    order: str, new_pool: Callable[..., Any], spawn: Callable[..., Any]
) -> None:
    def refuse_some(conn: Any) -> None:
        if conn.pgconn.backend_pid % 3 == 0 and deadline - time.monotonic() > LOAD_SECONDS / 2:
            raise ValueError

    pool = new_pool(min_size=2, max_size=5, order=order, max_connecting=2, reset=refuse_some)
    deadline = time.monotonic() + LOAD_SECONDS
    busy = threading.Barrier(LOAD_THREADS + 1)

    def load(number: int) -> int:
        lendings = 0
        busy.wait(10.0)
        while time.monotonic() < deadline:
            with pool.connection(timeout=10.0) if number % 2 else pool.connect(10.0) as conn:
                if number % 4 == 0:
                    conn.execute("select 1")
            lendings += 1
        return lendings

    calls = [spawn(load, number) for number in range(LOAD_THREADS)]
    busy.wait(10.0)
    seen: set[str] = set()
    most_waiting = count = 0
    while time.monotonic() < deadline:
        snapshot = pool.snapshot()
        check_sums(snapshot)
        pids = [slot.backend_pid for slot in snapshot.slots if slot.backend_pid is not None]
        assert len(set(pids)) == len(pids)
        seen.update(slot.state for slot in snapshot.slots)
        most_waiting = max(most_waiting, snapshot.waiting)
        count += 1
    assert min(call.result() for call in calls) > 0
    assert count > 100
    assert {"in_use", "returning"} <= seen
    assert most_waiting > 0
    check_sums(pool.snapshot())
