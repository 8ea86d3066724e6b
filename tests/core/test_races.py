"""Races: one named interleaving a test, forced with gates; and threads let loose on one table.

Where two core calls race, neither can be stopped in its middle: a duel starts both from a barrier,
many times, and checks after each round what must hold whoever was first. Interruptions and
re-entrant calls are placed exactly. No sleeps: a wait for a condition has a deadline.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import random
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import pytest
from core.stubs import FAR, Stub, StubConnection, WokenWaiter, in_threads

from fastpool import ConnectionPool, PoolClosed, PoolTimeout
from fastpool._core import (
    LIMIT,
    RETURN_NOT_LENT,
    RETURN_TAKEN,
    STATES,
    SlotTable,
    Waiter,
    monotonic_ns,
)

PATIENT, OVERDUE = FAR, 0
MS = 1_000_000
ROUNDS = 300

both = pytest.mark.parametrize("tau_ns", [PATIENT, OVERDUE], ids=["patient", "overdue"])


@pytest.fixture(autouse=True)
def threads_switch_often() -> Iterator[None]:
    """Have a Python with a GIL change threads at almost every chance."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(autouse=True)
def collections_are_quick() -> Iterator[None]:
    """Have the collector look at what a test makes, not at all that pytest has."""
    gc.freeze()
    yield
    gc.unfreeze()


def full(size: int, **options: Any) -> SlotTable:
    table = SlotTable(size, size, **options)
    for index in table.owed():
        table.install(index, Stub(index), None, index, FAR)
    return table


def lend(table: SlotTable) -> Any:
    conn = table.checkout()
    assert conn is not None
    return conn


def give_back(table: SlotTable, conn: Any) -> bool:
    assert table.begin_return(conn) == RETURN_TAKEN
    return table.restore(conn)


def state_counts(table: SlotTable) -> dict[str, int]:
    states = [STATES[row[0]] for row in table.survey()[2]]
    return {state: states.count(state) for state in set(states)}


def sweep(table: SlotTable) -> int:
    """Close whatever is free, as the pool does once its table is closed. How many there were."""
    closed = 0
    for index in range(table.capacity()):
        conn = table.reserve(index)
        if conn is not None:
            table.recycle(table.evict(conn), False)
            closed += 1
    return closed


class Duel:
    """Two or more calls that start together, again and again.

    prepare() makes the round's ground, each duellist gets it, check() gets it and their results.
    """

    rounds = ROUNDS

    def prepare(self) -> Any:
        raise NotImplementedError

    def duellists(self) -> list[Callable[[Any], Any]]:
        raise NotImplementedError

    def check(self, ground: Any, *results: Any) -> None:
        raise NotImplementedError

    def fight(self) -> None:
        jobs = self.duellists()
        results: list[Any] = [None] * len(jobs)
        ground: Any = None

        def open_round() -> None:
            nonlocal ground
            ground = self.prepare()

        def close_round() -> None:
            self.check(ground, *results)

        begin = threading.Barrier(len(jobs), action=open_round, timeout=10)
        end = threading.Barrier(len(jobs), action=close_round, timeout=10)

        def duellist(number: int) -> None:
            try:
                for _ in range(self.rounds):
                    begin.wait()
                    results[number] = jobs[number](ground)
                    end.wait()
            except BaseException:
                begin.abort()
                end.abort()
                raise

        in_threads(*[lambda n=n: duellist(n) for n in range(len(jobs))])


# ---- duels


def test_of_two_threads_that_return_one_connection_exactly_one_wins() -> None:
    class Returns(Duel):
        table = full(1)

        def prepare(self) -> Any:
            return lend(self.table)

        def duellists(self) -> list[Callable[[Any], Any]]:
            return [self.table.begin_return] * 2

        def check(self, conn: Any, *outcomes: Any) -> None:
            assert sorted(outcomes) == sorted([RETURN_TAKEN, RETURN_NOT_LENT])
            self.table.restore(conn)
            self.table.verify()

    Returns().fight()


def test_of_two_threads_one_gets_the_last_connection() -> None:
    class Checkouts(Duel):
        def prepare(self) -> SlotTable:
            return full(1)

        def duellists(self) -> list[Callable[[Any], Any]]:
            return [lambda table: table.checkout(), lambda table: table.reserve(0)]

        def check(self, table: SlotTable, *found: Any) -> None:
            assert [conn is not None for conn in found].count(True) == 1
            table.verify()

    Checkouts().fight()


@both
def test_a_return_and_a_caller_who_queues_always_see_each_other(tau_ns: int) -> None:
    class Meeting(Duel):
        def prepare(self) -> Any:
            table = full(1, tau_ns=tau_ns)
            return table, lend(table), WokenWaiter()

        def duellists(self) -> list[Callable[[Any], Any]]:
            return [
                lambda ground: ground[0].enqueue(ground[2].raw),
                lambda ground: give_back(ground[0], ground[1]),
            ]

        def check(self, ground: Any, *results: Any) -> None:
            table, conn, waiter = ground
            if results[0] is None:
                assert waiter.wakes == 1
                assert table.resume(waiter.raw) is conn
            else:
                assert waiter.wakes == 0
            give_back(table, conn)
            table.verify()

    Meeting().fight()


def test_a_timeout_and_a_grant_leave_the_connection_with_exactly_one() -> None:
    class TimeoutAgainstGrant(Duel):
        def prepare(self) -> Any:
            table = full(1, tau_ns=OVERDUE)
            conn = lend(table)
            waiter = WokenWaiter()
            table.enqueue(waiter.raw)
            return table, conn, waiter

        def duellists(self) -> list[Callable[[Any], Any]]:
            return [
                lambda ground: ground[0].abandon(ground[2].raw),
                lambda ground: give_back(ground[0], ground[1]),
            ]

        def check(self, ground: Any, *results: Any) -> None:
            table, conn, _ = ground
            if results[0] is not None:
                assert results[0] is conn
                assert table.counts() == (1, 0, 0)
                give_back(table, conn)
            assert table.counts() == (1, 1, 0)
            table.verify()

    TimeoutAgainstGrant().fight()


def test_a_timeout_and_a_wake_up_never_leave_the_next_in_line_asleep() -> None:
    class TimeoutAgainstWakeUp(Duel):
        def prepare(self) -> Any:
            table = full(1, tau_ns=PATIENT)
            conn = lend(table)
            leaving, staying = WokenWaiter(), WokenWaiter()
            table.enqueue(leaving.raw)
            table.enqueue(staying.raw)
            return table, conn, leaving, staying

        def duellists(self) -> list[Callable[[Any], Any]]:
            return [
                lambda ground: ground[0].abandon(ground[2].raw),
                lambda ground: give_back(ground[0], ground[1]),
            ]

        def check(self, ground: Any, *results: Any) -> None:
            table, conn, _, staying = ground
            assert results[0] is None
            assert staying.wakes == 1
            assert table.resume(staying.raw) is conn
            table.verify()
            give_back(table, conn)

    TimeoutAgainstWakeUp().fight()


def test_a_connection_returned_while_the_table_closes_is_closed_by_somebody() -> None:
    class CloseAgainstReturn(Duel):
        def prepare(self) -> Any:
            table = full(1)
            return table, lend(table)

        def duellists(self) -> list[Callable[[Any], Any]]:
            def returns(ground: Any) -> int:
                table, conn = ground
                return sweep(table) if give_back(table, conn) else 0

            def closes(ground: Any) -> int:
                assert ground[0].close() is True
                return sweep(ground[0])

            return [returns, closes]

        def check(self, ground: Any, *closed: Any) -> None:
            assert sum(closed) == 1
            assert ground[0].counts() == (0, 0, 0)
            ground[0].verify()

    CloseAgainstReturn().fight()


def test_a_connection_that_lands_while_the_table_closes_is_closed_or_refused() -> None:
    class CloseAgainstInstall(Duel):
        def prepare(self) -> SlotTable:
            return SlotTable(1, 1)

        def duellists(self) -> list[Callable[[Any], Any]]:
            def lands(table: SlotTable) -> int:
                if table.install(0, Stub(0), None, 1, FAR):
                    return 0
                table.vacate(0)
                return 1

            def closes(table: SlotTable) -> int:
                assert table.close() is True
                return sweep(table)

            return [lands, closes]

        def check(self, table: SlotTable, *ended: Any) -> None:
            assert sum(ended) == 1
            assert table.counts() == (0, 0, 0)
            table.verify()

    CloseAgainstInstall().fight()


def test_a_caller_who_queues_while_the_table_closes_is_shut_out() -> None:
    class CloseAgainstEnqueue(Duel):
        def prepare(self) -> Any:
            return SlotTable(0, 1), WokenWaiter(), WokenWaiter()

        def duellists(self) -> list[Callable[[Any], Any]]:
            return [
                lambda ground: ground[0].enqueue(ground[1].raw),
                lambda ground: ground[0].watch(ground[2].raw),
                lambda ground: ground[0].close(),
            ]

        def check(self, ground: Any, *results: Any) -> None:
            table, waiter, watcher = ground
            assert waiter.was_shut
            assert waiter.wakes <= 1
            assert watcher.is_settled
            assert table.counts()[2] == 0
            table.verify()

    CloseAgainstEnqueue().fight()


def test_of_two_threads_that_close_one_is_the_first() -> None:
    class Closes(Duel):
        def prepare(self) -> Any:
            table = SlotTable(0, 1)
            waiter = WokenWaiter()
            table.enqueue(waiter.raw)
            return table, waiter

        def duellists(self) -> list[Callable[[Any], Any]]:
            return [lambda ground: ground[0].close()] * 2

        def check(self, ground: Any, *first: Any) -> None:
            assert sorted(first) == [False, True]
            assert ground[1].wakes == 1
            ground[0].verify()

    Closes().fight()


def test_two_threads_that_let_a_table_grow_start_one_connect() -> None:
    class Growth(Duel):
        def prepare(self) -> SlotTable:
            table = SlotTable(0, 4)
            table.enqueue(Waiter())
            return table

        def duellists(self) -> list[Callable[[Any], Any]]:
            return [lambda table: table.grow()] * 2

        def check(self, table: SlotTable, *started: Any) -> None:
            assert sorted(started) == [-1, 0]
            table.verify()
            table.close()

    Growth().fight()


def test_a_connect_that_lands_leaves_nothing_to_grow_for() -> None:
    class GrowthAgainstInstall(Duel):
        rounds = 5000  # the gap that was is some 50 ns wide

        def prepare(self) -> Any:
            table, waiter = SlotTable(0, 4, max_connecting=4, tau_ns=PATIENT), WokenWaiter()
            table.enqueue(waiter.raw)
            assert table.grow() == 0
            return table, waiter

        def duellists(self) -> list[Callable[[Any], Any]]:
            def grows(ground: Any) -> set[int]:
                table, waiter = ground
                started = set()
                while not waiter.is_settled:
                    started.add(table.grow())
                return started

            return [lambda ground: ground[0].install(0, Stub(0), None, 1, FAR), grows]

        def check(self, ground: Any, landed: bool, started: set[int]) -> None:
            assert landed
            assert started <= {-1}
            ground[0].verify()
            ground[0].close()

    GrowthAgainstInstall().fight()


# ---- re-entrant calls


@both
def test_a_wake_up_may_use_the_table(tau_ns: int) -> None:
    # The waker returns a second connection, looks around, and queues somebody else.
    table = full(2, tau_ns=tau_ns)
    first, second = lend(table), lend(table)
    late = WokenWaiter()
    woken: list[int] = []

    def wake() -> None:
        woken.append(table.survey()[0])
        if len(woken) == 1:
            table.enqueue(late.raw)
            give_back(table, second)

    waiter = Waiter(None, wake)
    table.enqueue(waiter)
    give_back(table, first)
    assert len(woken) == 1
    assert table.resume(waiter) is first
    assert late.wakes == 1
    assert table.resume(late.raw) is second
    table.verify()


def test_a_wake_up_may_close_the_table() -> None:
    table = full(1, tau_ns=PATIENT)
    conn = lend(table)
    other = WokenWaiter()
    waiter = Waiter(None, lambda: table.close())
    table.enqueue(waiter)
    table.enqueue(other.raw)
    assert give_back(table, conn) is True
    assert waiter.was_shut
    assert other.was_shut
    assert other.wakes == 1
    table.verify()


class Trash:
    """Garbage that does something in its finalizer, whenever the collector comes."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act
        self.itself = self

    def __del__(self) -> None:
        self.act()


def test_a_finalizer_may_use_the_table() -> None:
    table = full(2)
    conn = lend(table)
    seen: list[dict[str, int]] = []

    def act() -> None:
        give_back(table, conn)
        other = lend(table)
        give_back(table, other)
        waiter = WokenWaiter()
        table.enqueue(waiter.raw)
        table.abandon(waiter.raw)
        seen.append(state_counts(table))

    Trash(act)
    gc.collect()
    assert seen[0]["available"] >= 1
    table.verify()


def test_a_weak_references_callback_may_use_the_table() -> None:
    table = full(2)
    lost = lend(table)
    seen: list[dict[str, int]] = []
    ref = weakref.ref(lost, lambda _: seen.append(state_counts(table)))
    lost.itself = lost
    del lost
    gc.collect()
    assert ref() is None
    assert seen[0]["available"] == 1
    assert state_counts(table) == {"available": 1, "closing": 1}


def test_the_collector_may_come_at_any_moment_and_use_the_table() -> None:
    # At each of these allocations garbage is collected whose finalizer comes back into the table.
    # If it met a thread of its own that holds the mutex this would hang.
    table = full(3, tau_ns=OVERDUE)
    runs = 0

    def act() -> None:
        nonlocal runs
        runs += 1
        table.survey()
        conn = table.checkout()
        if conn is not None:
            give_back(table, conn)
        table.serve()

    def use() -> None:
        for _ in range(300):
            Trash(act)
            conns = [table.checkout() for _ in range(3)]
            Trash(act)
            waiter = WokenWaiter()
            granted = table.enqueue(waiter.raw)
            for conn in conns:
                if conn is not None:
                    give_back(table, conn)
            Trash(act)
            granted = granted or table.abandon(waiter.raw)
            if granted is not None:
                give_back(table, granted)
            table.idle()
            reserved = table.reserve(1)
            Trash(act)
            index = table.evict(reserved)
            table.recycle(index, True)
            table.install(index, Stub(1), None, 1, FAR)

    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        in_threads(use)
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert runs > 0
    table.verify()
    assert table.counts() == (3, 3, 0)


def test_a_waiter_that_only_the_queue_holds_is_not_collected() -> None:
    table = full(1, tau_ns=OVERDUE)
    conn = lend(table)
    woken: list[str] = []
    for name in ("first", "second"):
        table.enqueue(Waiter(None, partial(woken.append, name)))
    gc.collect()
    table.verify()
    assert table.counts()[2] == 2
    table.close()
    assert woken == ["first", "second"]
    assert conn.name == 0


def test_waiters_that_are_queued_when_their_table_goes_go_with_it() -> None:
    class Gate:
        pass

    gate = Gate()
    gone = weakref.ref(gate)
    table = SlotTable(0, 1)
    table.enqueue(Waiter(gate, int))
    del gate
    gc.collect()
    assert gone() is not None
    del table
    gc.collect()
    assert gone() is None


def test_a_waiter_dropped_after_its_wake_up_may_use_the_table_when_it_is_freed() -> None:
    # Woken while it was young, and never came; granted a connection when it is overdue. The
    # queue's reference is the last one, and what it holds has a finalizer.
    table = full(1, tau_ns=5 * MS)
    conn = lend(table)
    freed: list[int] = []

    class Gate:
        def __del__(self) -> None:
            freed.append(table.survey()[0])

    def play() -> None:
        table.enqueue(Waiter(Gate(), int))
        since = monotonic_ns()
        give_back(table, conn)
        if monotonic_ns() - since < 5 * MS:
            table.checkout()
        while monotonic_ns() - since < 6 * MS:
            pass
        if state_counts(table) == {"in_use": 1}:
            table.begin_return(conn)
            table.restore(conn)

    in_threads(play, timeout=5)
    gc.collect()
    assert freed == [0]


# ---- connections that are lost


def test_a_finalizer_that_fails_to_report_a_loss_loses_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ignored: list[type[BaseException] | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: ignored.append(args.exc_type))

    def on_lost(*args: object) -> None:
        raise ZeroDivisionError

    table = full(2, on_lost=on_lost)
    lend(table)
    gc.collect()
    assert ignored == [ZeroDivisionError]
    assert state_counts(table) == {"available": 1, "closing": 1}
    table.verify()
    assert table.recycle(0, True) is True


def test_a_connection_lent_in_one_thread_and_dropped_in_another_is_the_borrowers_loss() -> None:
    losses: list[tuple[Any, ...]] = []
    table = full(1, on_lost=lambda *args: losses.append(args))
    box = [lend(table)]
    in_threads(box.clear)
    gc.collect()
    ((index, _, owner, _, _),) = losses
    assert (index, owner) == (0, threading.get_ident())
    assert state_counts(table) == {"closing": 1}


def test_a_connection_lent_in_one_thread_may_be_returned_in_another() -> None:
    table = full(1)
    (conn,) = in_threads(lambda: lend(table))
    in_threads(lambda: give_back(table, conn))
    assert table.counts() == (1, 1, 0)


def test_losing_connections_while_others_look_on_is_safe() -> None:
    lost: list[int] = []
    table = SlotTable(4, 4, on_lost=lambda index, *_: lost.append(index))
    done = threading.Event()

    def lose() -> None:
        deadline = time.monotonic() + 10
        number = 0
        # All are made in this thread: without a GIL only their maker frees objects at once.
        for index in table.owed():
            table.install(index, Stub(index), None, index, FAR)
        try:
            while number < 2000 or len(looks) < 50:
                assert time.monotonic() < deadline
                number += 1
                lend(table)
                while lost:
                    index = lost.pop()
                    assert table.recycle(index, True)
                    table.install(index, Stub(number), None, number, FAR)
        finally:
            done.set()

    looks: list[int] = []

    def look() -> None:
        while not done.is_set():
            waiting, _, rows = table.survey()
            assert [row[1] is None for row in rows] == [
                STATES[row[0]] in ("empty", "connecting", "closing") for row in rows
            ]
            looks.append(waiting)

    in_threads(lose, look)
    table.verify()


# ---- resize under readers


def test_a_table_grows_under_its_readers() -> None:
    table = full(2)
    done = threading.Event()

    def resize() -> None:
        try:
            for size in range(2, LIMIT, 97):
                table.resize(2, size)
            table.resize(2, 2)
        finally:
            done.set()

    def read() -> int:
        reads = 0
        while not done.is_set():
            rows = table.survey()[2]
            assert len(rows) >= 2
            assert {row[0] for row in rows[2:]} <= {0}
            assert table.counts()[0] == 2
            assert len(table.idle()) <= 2
            reads += 1
        return reads

    def borrow() -> None:
        while not done.is_set():
            conn = table.checkout()
            if conn is not None:
                give_back(table, conn)

    in_threads(resize, read, borrow)
    table.verify()
    assert table.counts() == (2, 2, 0)


# ---- a pool without a server


@pytest.fixture
def make_pool() -> Iterator[Callable[..., ConnectionPool[Any]]]:
    """Make an open pool whose connections are stubs."""
    pools: list[ConnectionPool[Any]] = []

    def make(size: int = 1, max_size: int | None = None, **options: Any) -> ConnectionPool[Any]:
        options.setdefault("connection_class", StubConnection)
        cls = options.pop("cls", ConnectionPool)
        pool: ConnectionPool[Any] = cls(min_size=size, max_size=max_size, open=True, **options)
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()


def soon(predicate: Callable[[], object], timeout: float = 10.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout
    while not predicate():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.0005)


def is_whole(pool: ConnectionPool[Any], size: int = 1) -> bool:
    stats = pool.get_stats()
    return (stats["pool_available"], stats["pool_size"], stats["requests_waiting"]) == (
        size,
        size,
        0,
    )


class Interrupt(BaseException):
    """What a signal handler or another thread may raise in the midst of anything."""


@pytest.mark.parametrize(
    "options", [{}, {"max_waiting": 9}, {"check": bool}], ids=["direct", "max_waiting", "check"]
)
def test_an_exception_sent_to_a_waiting_thread_loses_no_connection(
    make_pool: Callable[..., ConnectionPool[Any]], options: dict[str, Any]
) -> None:
    # It arrives when the wait ends, that is, together with the connection.
    pool = make_pool(**options)
    pool.wait()
    held = [pool.getconn()]
    idents: list[int] = []
    caught: list[BaseException] = []

    def wait() -> None:
        idents.append(threading.get_ident())
        try:
            pool.putconn(pool.getconn(10))
            # Bytecode, for the interpreter delivers it between two instructions.
            for _ in range(1000):
                pass
        except Interrupt as error:
            caught.append(error.with_traceback(None))

    def interrupt() -> None:
        soon(lambda: pool.get_stats()["requests_waiting"] == 1)
        sent = ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(idents[0]), ctypes.py_object(Interrupt)
        )
        assert sent == 1
        pool.putconn(held.pop())

    with warnings.catch_warnings():
        # If it arrives when the connection is a local variable that is lost, and replaced.
        warnings.simplefilter("ignore", ResourceWarning)
        # If it arrives before the first step of the coroutine that waits.
        warnings.filterwarnings("ignore", ".* was never awaited", RuntimeWarning)
        in_threads(wait, interrupt)
        assert len(caught) == 1
        gc.collect()
        soon(lambda: is_whole(pool))


@pytest.mark.skipif(sys.platform == "win32", reason="no signal can be sent to a thread there")
@pytest.mark.parametrize(
    "options", [{}, {"max_waiting": 9}, {"check": bool}], ids=["direct", "max_waiting", "check"]
)
def test_ctrl_c_ends_a_wait_at_once_and_loses_no_connection(
    make_pool: Callable[..., ConnectionPool[Any]], options: dict[str, Any]
) -> None:
    pool = make_pool(**options)
    conn = pool.getconn()
    main = threading.main_thread().ident
    assert main is not None

    def press() -> None:
        soon(lambda: pool.get_stats()["requests_waiting"] == 1)
        signal.pthread_kill(main, signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pool.getconn(30)
    assert time.monotonic() - begun < 15
    presser.join()
    assert pool.get_stats()["requests_waiting"] == 0
    pool.putconn(conn)
    assert is_whole(pool)


def test_a_signal_handler_that_returns_does_not_end_a_wait(
    make_pool: Callable[..., ConnectionPool[Any]],
) -> None:
    pool = make_pool()
    conn = pool.getconn()
    ran = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def press() -> None:
        soon(lambda: pool.get_stats()["requests_waiting"] == 1)
        signal.pthread_kill(main, signal.SIGINT)
        assert ran.wait(10)
        pool.putconn(conn)

    before = signal.signal(signal.SIGINT, lambda *_: ran.set())
    try:
        presser = threading.Thread(target=press)
        presser.start()
        assert pool.getconn(30) is conn
        presser.join()
    finally:
        signal.signal(signal.SIGINT, before)
    pool.putconn(conn)


class Saboteur:
    """Raises Interrupt at the nth line of fastpool's Python that a call runs."""

    def __init__(self, nth: int) -> None:
        self.left = nth
        self.struck = ""

    def trace(self, frame: FrameType, event: str, arg: object) -> Any:
        if "fastpool" not in frame.f_globals.get("__name__", ""):
            return None
        if event in ("call", "line"):
            self.left -= 1
            if self.left == 0:
                self.struck = f"{frame.f_code.co_name}:{frame.f_lineno}"
                raise Interrupt
        return self.trace

    def during(self, call: Callable[[], Any]) -> Any:
        """Return what *call* returns, None when it was struck."""
        before = sys.gettrace()
        sys.settrace(self.trace)
        try:
            return call()
        except (Interrupt, PoolTimeout):
            return None
        finally:
            sys.settrace(before)


def at_each_line(pool: ConnectionPool[Any], play: Callable[[Saboteur], object], least: int) -> None:
    """Play once for each line at which it can be struck; the pool has to recover each time."""
    logger = logging.getLogger("psycopg.pool")
    level = logger.level
    logger.setLevel(logging.ERROR)
    # What strikes a finalizer is reported with its frames, which hold the connection.
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    lines = 0
    try:
        with warnings.catch_warnings():
            # Of connections that were lost, and of coroutines struck before their first line.
            warnings.simplefilter("ignore")
            while True:
                saboteur = Saboteur(lines + 1)
                play(saboteur)
                gc.collect()
                try:
                    soon(lambda: is_whole(pool), 2.0)
                except AssertionError:
                    pytest.fail(f"struck at {saboteur.struck}: {pool.snapshot()}")
                if not saboteur.struck:
                    break
                lines += 1
    finally:
        logger.setLevel(level)
        sys.unraisablehook = hook
    assert lines >= least


@pytest.mark.parametrize("timeout", [10.0, 0.001], ids=["granted", "timed out"])
@pytest.mark.parametrize("options", [{"max_waiting": 9}, {"check": bool}], ids=str)
def test_an_interrupt_at_any_line_of_a_checkout_loses_nothing(
    make_pool: Callable[..., ConnectionPool[Any]], options: dict[str, Any], timeout: float
) -> None:
    pool = make_pool(**options)

    def play(saboteur: Saboteur) -> None:
        conn = pool.getconn()
        done = threading.Event()

        def borrow() -> None:
            try:
                found = saboteur.during(lambda: pool.getconn(timeout))
                if found is not None:
                    pool.putconn(found)
            finally:
                done.set()

        def lender() -> None:
            if timeout > 1:
                soon(lambda: done.is_set() or pool.get_stats()["requests_waiting"])
            else:
                done.wait(10)
            pool.putconn(conn)

        in_threads(borrow, lender)

    at_each_line(pool, play, least=20)


@pytest.mark.parametrize("options", [{}, {"reset": bool}], ids=["plain", "reset"])
def test_an_interrupt_at_any_line_of_a_return_loses_nothing(
    make_pool: Callable[..., ConnectionPool[Any]], options: dict[str, Any]
) -> None:
    pool = make_pool(**options)

    def play(saboteur: Saboteur) -> None:
        conn = pool.getconn()
        conn.pgconn.transaction_status = 2  # INTRANS: to be rolled back
        saboteur.during(lambda: pool.putconn(conn))
        if conn._slot.is_at_home or conn._pool is None:
            return
        # Struck before it was the pool's: the borrower still has it, and returns it again.
        pool.putconn(conn)

    at_each_line(pool, play, least=10)


UPKEEP: dict[str, Callable[[ConnectionPool[Any]], object]] = {
    "wait": lambda pool: pool.wait(10.0),
    "check": lambda pool: pool.check(),
    "drain": lambda pool: pool.drain(),
    "resize": lambda pool: pool.resize(1, 1),
    "look": lambda pool: (pool.snapshot(), pool.get_stats(), list(pool._pool)),
}


class AnswersChecks(StubConnection):
    """What check() can check."""

    autocommit = True

    def execute(self, query: str) -> None:
        """Make no round trip."""


@pytest.mark.parametrize("what", UPKEEP)
def test_an_interrupt_at_any_line_of_upkeep_loses_nothing(
    make_pool: Callable[..., ConnectionPool[Any]], what: str
) -> None:
    pool = make_pool(connection_class=AnswersChecks)
    soon(lambda: is_whole(pool))

    def play(saboteur: Saboteur) -> None:
        saboteur.during(lambda: UPKEEP[what](pool))

    at_each_line(pool, play, least=8)


def use_a_block(pool: ConnectionPool[Any]) -> None:
    with pool.connection():
        pass


def use_a_lease(pool: ConnectionPool[Any]) -> None:
    with pool.connect():
        pass


@pytest.mark.parametrize("use", [use_a_block, use_a_lease])
def test_an_interrupt_at_any_line_of_a_block_loses_nothing(
    make_pool: Callable[..., ConnectionPool[Any]], use: Callable[[Any], None]
) -> None:
    pool = make_pool(check=bool, reset=bool)

    def play(saboteur: Saboteur) -> None:
        saboteur.during(lambda: use(pool))

    at_each_line(pool, play, least=20)


def test_an_interrupt_at_any_line_of_a_close_leaves_nothing_that_a_second_close_does_not_end(
    make_pool: Callable[..., ConnectionPool[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where it ends a generator it is told of, and goes no further.
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    lines = 0
    while True:
        made: weakref.WeakSet[StubConnection] = weakref.WeakSet()

        class Noted(StubConnection):
            def __init__(self, made: weakref.WeakSet[StubConnection] = made) -> None:
                super().__init__()
                made.add(self)

        pool = make_pool(2, connection_class=Noted)
        soon(lambda pool=pool: is_whole(pool, 2))
        saboteur = Saboteur(lines + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of coroutines struck before their first line
            saboteur.during(pool.close)
        pool.close()
        gc.collect()
        try:
            soon(lambda pool=pool: pool.get_stats()["pool_size"] == 0, 3.0)
        except AssertionError:
            pytest.fail(f"struck at {saboteur.struck}: {pool.snapshot()}")
        # One that was lost on its way to be closed is collected, and the driver closes it then.
        assert all(conn.closed for conn in made), saboteur.struck
        pool._table.verify()
        if not saboteur.struck:
            break
        lines += 1
    assert lines >= 15


def test_an_interrupt_in_the_finalizer_that_ends_a_watch_loses_no_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A connection is collected; its entry's end ends the watch on its socket; an interrupt arrives
    there, and ends in the finalizer: the slot has to be nobody's by then."""
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)

    class Watch:
        def close(self) -> None:
            raise Interrupt

    table = SlotTable(1, 1)
    table.install(table.owed()[0], Stub(0), None, 1, FAR, watch=Watch())
    conn = table.checkout()
    del conn
    gc.collect()
    assert table.state_name(0) == "closing"
    assert table.orphans() == [0]


@pytest.mark.parametrize("interrupts", [0, 1, 100])
def test_an_interrupt_in_the_finalizer_that_tells_of_a_loss_loses_no_slot(
    interrupts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection is collected; its finalizer tells the pool; an interrupt arrives there, and
    ends in the finalizer, so nobody knows of it. The table remembers the slot until somebody has
    taken it over, and again when whoever did so is interrupted in his turn."""
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    told: list[int] = []

    def on_owed(index: int) -> None:
        told.append(index)
        if len(told) <= interrupts:
            raise Interrupt

    table = SlotTable(2, 2, on_owed=on_owed)
    for index in table.owed():
        table.install(index, Stub(int(index)), None, 1, FAR)
    conn = table.checkout()
    assert conn is not None
    lost = conn.name
    del conn
    gc.collect()
    assert told == [lost] * {0: 1, 1: 2, 100: 8}[interrupts]
    told.clear()
    debts = table.orphans()
    assert debts == [lost]
    assert table.orphans() == []
    del debts
    assert told
    (debt,) = table.orphans()
    assert table.recycle(debt, False) is False
    del debt
    assert table.orphans() == []
    assert table.counts() == (1, 1, 0)
    table.verify()


@pytest.mark.parametrize("options", [{}, {"max_waiting": 9}, {"check": bool}], ids=str)
def test_who_waits_after_a_drain_is_not_granted_what_came_back_while_it_swept(
    make_pool: Callable[..., ConnectionPool[Any]], options: dict[str, Any]
) -> None:
    """The return finds its connection new enough; drain() sweeps, and ends; a caller queues; the
    return makes the connection available, and it is granted to that caller."""
    pool = make_pool(**options)
    table = pool._table
    old = pool.getconn()
    assert table.begin_return(old) == RETURN_TAKEN
    assert not table.is_expired(old._slot)
    pool.drain()
    found: list[Any] = []
    caller = threading.Thread(target=lambda: found.append(pool.getconn(10.0)))
    caller.start()
    soon(lambda: pool.get_stats()["requests_waiting"] == 1)
    table.restore(old)
    caller.join(10.0)
    (conn,) = found
    assert conn is not old
    assert old.closed
    assert not table.is_expired(conn._slot)
    assert pool.get_stats()["requests_num"] == 2
    pool.putconn(conn)
    del conn, found[:]
    soon(lambda: is_whole(pool))


def test_a_caller_that_found_no_room_and_queues_after_a_connect_was_given_up_is_served(
    make_pool: Callable[..., ConnectionPool[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "psycopg.pool")
    fail, up = threading.Event(), threading.Event()

    class Late(StubConnection):
        @classmethod
        def connect(cls, conninfo: str = "", **kwargs: Any) -> Late:
            if not up.is_set():
                assert fail.wait(10)
                raise OSError("no server")
            return cls()

    class Pool(ConnectionPool[Any]):
        def _new_waiter(self) -> Waiter:
            # Between the look for room and the queue: the only connect is given up.
            if not fail.is_set():
                fail.set()
                soon(lambda: self.get_stats()["pool_size"] == 0)
                up.set()
            return super()._new_waiter()

    pool = make_pool(1, cls=Pool, connection_class=Late, reconnect_timeout=0.0)
    pool.putconn(pool.getconn(5))


def test_waiters_are_told_of_a_close_while_a_connect_is_stuck(
    make_pool: Callable[..., ConnectionPool[Any]],
) -> None:
    begun, release = threading.Event(), threading.Event()

    class Stuck(StubConnection):
        @classmethod
        def connect(cls, conninfo: str = "", **kwargs: Any) -> Stuck:
            begun.set()
            assert release.wait(20)
            return cls()

    pool = make_pool(1, connection_class=Stuck)

    def wait() -> None:
        with pytest.raises(PoolClosed):
            pool.getconn(20)
        release.set()

    def close() -> None:
        assert begun.wait(10)
        soon(lambda: pool.get_stats()["requests_waiting"] == 1)
        pool.close()

    in_threads(wait, close)
    assert pool.get_stats()["pool_size"] == 0


# ---- threads let loose


class Ledger:
    """Who holds what: a stub has one lock, and whoever is lent it must be able to take that."""

    def __init__(self) -> None:
        self.names = 0

    def stub(self) -> Stub:
        self.names += 1
        stub = Stub(self.names)
        stub.held = threading.Lock()  # type: ignore[attr-defined]
        return stub


def borrow(table: SlotTable, patience: float) -> Any:
    """Check out as the thread pools do: None when *patience* (seconds) is over."""
    conn = table.checkout()
    if conn is None:
        waiter = Waiter()
        conn = table.enqueue(waiter)
        if conn is None:
            conn = table.wait(waiter, patience)
    return conn


@pytest.mark.parametrize("lifo", [False, True], ids=["fifo", "lifo"])
@pytest.mark.parametrize("tau_ns", [FAR, MS, 0], ids=["patient", "1ms", "overdue"])
def test_threads_let_loose_never_hold_what_another_holds(tau_ns: int, lifo: bool) -> None:
    size, borrowers, seconds = 3, 6, 0.7
    ledger = Ledger()
    lost: list[int] = []
    table = SlotTable(
        size, size, lifo=lifo, tau_ns=tau_ns, on_lost=lambda index, *_: lost.append(index)
    )
    for index in table.owed():
        table.install(index, ledger.stub(), None, index, FAR)
    end = time.monotonic() + seconds
    seed = random.randrange(1 << 30)
    ended: list[int] = []

    def replace(index: int) -> None:
        if table.recycle(index, True):
            table.install(index, ledger.stub(), None, index, FAR)

    def borrower(number: int) -> int:
        dice = random.Random(seed + number)
        served = 0
        while time.monotonic() < end:
            conn = borrow(table, dice.choice((0.0, 0.001, 5.0)))
            if conn is None:
                continue
            served += 1
            assert conn.held.acquire(blocking=False), f"held twice, seed {seed}"
            fate = dice.random()
            if fate < 0.01:
                del conn  # lost
                continue
            conn.held.release()
            assert table.begin_return(conn) == RETURN_TAKEN
            assert table.begin_return(conn) == RETURN_NOT_LENT
            if fate < 0.03:
                replace(table.evict(conn, True))
            else:
                table.restore(conn)
        ended.append(number)
        return served

    def keeper() -> None:
        dice = random.Random(seed)
        # To the last: a borrower that waits for a lost connection needs it replaced.
        while len(ended) < borrowers and time.monotonic() < end + 10:
            while lost:
                replace(lost.pop())
            conn = table.reserve(dice.randrange(size))
            if conn is not None:
                assert conn.held.acquire(blocking=False), f"held twice, seed {seed}"
                conn.held.release()
                table.restore(conn, dice.random() < 0.5)
            waiting, _, rows = table.survey()
            assert len(rows) == size
            table.idle()
            if waiting and waiting + len(ended) >= borrowers:
                # Without a GIL an object is freed when the thread that made it comes round, and
                # all may be parked here; or by the collector.
                gc.collect()

    *served, _ = in_threads(*[lambda n=n: borrower(n) for n in range(borrowers)], keeper)
    gc.collect()
    while lost:
        replace(lost.pop())
    assert min(served) > 0
    table.verify()
    assert table.counts() == (size, size, 0), f"seed {seed}: {table.survey()}"


def test_threads_let_loose_on_a_pool_never_hold_what_another_holds(
    make_pool: Callable[..., ConnectionPool[Any]],
) -> None:
    pool = make_pool(2, 3)
    pool.wait()
    end = time.monotonic() + 0.7
    seed = random.randrange(1 << 30)

    def borrower(number: int) -> int:
        dice = random.Random(seed + number)
        served = 0
        while time.monotonic() < end:
            try:
                conn = pool.getconn(dice.choice((0.001, 5.0)))
            except PoolTimeout:
                continue
            assert conn.held.acquire(blocking=False), f"held twice, seed {seed}"
            served += 1
            if dice.random() < 0.02:
                conn.pgconn.transaction_status = 2
            conn.held.release()
            pool.putconn(conn)
            with pytest.raises(ValueError, match="can't return connection"):
                pool.putconn(Stub(0))
        return served

    logger = logging.getLogger("psycopg.pool")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        served = in_threads(*[lambda n=n: borrower(n) for n in range(6)])
    finally:
        logger.setLevel(level)
    assert min(served) > 0
    stats = pool.get_stats()
    assert stats["pool_available"] == stats["pool_size"] <= 3
    assert stats["requests_waiting"] == 0
