"""A deadlock among borrowers is found out when it is certain, and only then."""

from __future__ import annotations

import contextlib
import gc
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import fastpool
from fastpool import deadlock

# Far longer than a deadlock takes to be found out.
LONG = 20.0
# Longer than a look takes to be made.
MOMENT = 0.5
pytestmark = pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="threads are not looked at there"
)


@pytest.fixture
def at_once_or_never() -> Iterator[None]:
    """Fail a test in which somebody waited for a connection until the end of a timeout."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < LONG / 2


at_once = pytest.mark.usefixtures("at_once_or_never")


@at_once
def test_who_holds_all_and_wants_one_more_is_told(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    with pool.connection() as conn:
        with pytest.raises(fastpool.PoolDeadlock) as caught, pool.connection(timeout=LONG):
            pass
        assert isinstance(caught.value, fastpool.PoolTimeout)
        text = str(caught.value)
        assert text.startswith("couldn't get a connection: deadlock in the pool 'p', all 1 of its")
        assert f"thread {threading.current_thread().name!r}" in text
        assert f"backend {conn.pgconn.backend_pid}" in text
        assert "test_deadlock.py:" in text
        assert "in test_who_holds_all_and_wants_one_more_is_told" in text
        (note,) = caught.value.__notes__
        assert "test_deadlock.py" in note
        assert conn.execute("select 1").fetchone() == (1,)
    with pool.connection(timeout=1.0):
        pass


def by_getconn(pool: Any) -> Any:
    return pool.getconn()


def by_lease(pool: Any) -> Any:
    return pool.connect()


def by_list(pool: Any) -> Any:
    return [pool.getconn()]


@at_once
@pytest.mark.parametrize("borrow", [by_getconn, by_lease, by_list])
@pytest.mark.parametrize("method", ["getconn", "connect", "connection"])
def test_however_it_is_borrowed(
    new_pool: Callable[..., Any], borrow: Callable[[Any], Any], method: str
) -> None:
    pool = new_pool()
    held = borrow(pool)
    with pytest.raises(fastpool.PoolDeadlock):
        if method == "connection":
            with pool.connection(timeout=LONG):
                pass
        else:
            getattr(pool, method)(timeout=LONG)
    pool.putconn(held[0] if isinstance(held, list) else held)


class Service:
    """Keeps its connection in itself."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    def serve(self) -> None:
        self.conn = self.pool.getconn()
        try:
            ask_for_another(self.pool)
        finally:
            self.pool.putconn(self.conn)


def ask_for_another(pool: Any, **_: Any) -> None:
    with pool.connection(timeout=LONG):
        pass


@contextlib.contextmanager
def session(pool: Any) -> Iterator[None]:
    with pool.connection():
        yield


def in_a_block_without_a_name(pool: Any) -> None:
    with pool.connection():
        ask_for_another(pool)


def in_an_exit_stack(pool: Any) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(pool.connection())
        stack.enter_context(pool.connection(timeout=LONG))


def in_an_object(pool: Any) -> None:
    Service(pool).serve()


def in_a_context_manager_of_the_programs(pool: Any) -> None:
    with session(pool), session(pool):
        pass


def in_a_closure(pool: Any) -> None:
    with pool.connection() as conn:

        def inner() -> None:
            conn.execute("select 1")
            ask_for_another(pool)

        inner()


def in_a_cursor(pool: Any) -> None:
    with pool.connection() as conn, conn.cursor() as cursor:
        for _ in cursor.execute("select generate_series(1, 3)"):
            ask_for_another(pool)


def in_a_transaction(pool: Any) -> None:
    with pool.connection() as conn, conn.transaction():
        ask_for_another(pool)


def in_an_argument(pool: Any) -> None:
    with pool.connection() as conn:
        ask_for_another(pool, conn=conn)


def while_an_error_is_handled(pool: Any) -> None:
    with pool.connection() as conn:
        try:
            conn.execute("select 1 / 0")
        except psycopg.Error:
            ask_for_another(pool)


@at_once
@pytest.mark.parametrize(
    "work",
    [
        in_a_block_without_a_name,
        in_an_exit_stack,
        in_an_object,
        in_a_context_manager_of_the_programs,
        in_a_closure,
        in_a_cursor,
        in_a_transaction,
        in_an_argument,
        while_an_error_is_handled,
    ],
)
def test_wherever_the_connections_are_kept(
    new_pool: Callable[..., Any], spawn: Callable[..., Any], work: Callable[[Any], None]
) -> None:
    pool = new_pool()
    call = spawn(work, pool)
    with pytest.raises(fastpool.PoolDeadlock):
        call.result()
    with pool.connection(timeout=1.0):
        pass


@at_once
def test_a_thread_that_waits_for_the_deadlocked_ones_to_end_helps_nobody(
    new_pool: Callable[..., Any],
) -> None:
    pool = new_pool()
    held, told = [], []

    def work() -> None:
        held.append(pool.getconn())
        try:
            pool.getconn(timeout=LONG)
        except fastpool.PoolDeadlock as error:
            told.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert told
    pool.putconn(held.pop())


@at_once
def test_one_thread_may_hold_many(new_pool: Callable[..., Any]) -> None:
    pool = new_pool(min_size=4)
    held = [pool.getconn() for _ in range(4)]
    with pytest.raises(fastpool.PoolDeadlock):
        pool.getconn(timeout=LONG)
    for conn in held:
        pool.putconn(conn)


@at_once
def test_a_caller_with_a_connection_is_in_it_too(new_pool: Callable[..., Any]) -> None:
    def inner(conn: Any) -> None:
        conn.execute("select 1")
        with pool.connection(timeout=LONG):
            pass

    pool = new_pool()
    with pool.connection() as conn, pytest.raises(fastpool.PoolDeadlock):
        inner(conn)


@at_once
def test_four_who_hold_one_each_and_want_a_second_are_all_told(
    new_pool: Callable[..., Any], spawn: Callable[..., Any]
) -> None:
    pool = new_pool(min_size=4)
    barrier = threading.Barrier(4)

    def work() -> None:
        with pool.connection() as first:
            first.execute("select 1")
            barrier.wait(5.0)
            with pool.connection(timeout=LONG):
                pass

    calls = [spawn(work, thread_name=f"worker {number}") for number in range(4)]
    for call in calls:
        with pytest.raises(fastpool.PoolDeadlock, match="worker 3") as caught:
            call.result()
        assert len(caught.value.__notes__) == 4
    stats = pool.get_stats()
    assert (stats["requests_waiting"], stats["requests_errors"]) == (0, 4)
    held = [pool.getconn(timeout=1.0) for _ in range(4)]
    for conn in held:
        pool.putconn(conn)


@at_once
def test_what_stands_in_the_way_of_the_proof_may_pass(
    new_pool: Callable[..., Any], spawn: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    def borrow_a_look(conns: list[Any]) -> int:
        conn = conns.pop()
        eventually(lambda: pool._deadlocks._doubt[0] is not None)
        return int(conn.pgconn.backend_pid)

    pool = new_pool()
    with pool.connection() as conn:
        call = spawn(borrow_a_look, [conn])
        with pytest.raises(fastpool.PoolDeadlock):
            pool.getconn(timeout=LONG)
        assert call.result() == conn.pgconn.backend_pid


class Clock:
    """A pool in which the same lending always looks like a deadlock, and the time that passes."""

    _OWNERS_ARE = "thread"
    # What a look takes (s).
    COST = 0.3

    def __init__(self) -> None:
        self._table = self
        self.time = 1000.0
        self.looks = 0
        self.timers: list[Alarm] = []

    def now(self) -> float:
        return self.time

    def deadlock_suspects(self, brief: float) -> list[tuple[int, int, int]]:
        return [(0, 1, 7)]

    def look_in_vain(self, *_: Any) -> bool:
        self.looks += 1
        self.time += self.COST
        return False

    def _later(self, delay: float, method: Callable[[], object]) -> Alarm:
        self.timers.append(Alarm(self, self.time + delay, method))
        return self.timers[-1]

    def run_until(self, end: float) -> None:
        while due := [alarm for alarm in self.timers if alarm.due <= max(self.time, end)]:
            first = min(due, key=lambda alarm: alarm.due)
            self.timers.remove(first)
            self.time = max(self.time, first.due)
            first.method()
        self.time = max(self.time, end)


class Alarm:
    """Something planned."""

    def __init__(self, clock: Clock, due: float, method: Callable[[], object]) -> None:
        self.clock, self.due, self.method = clock, due, method

    def cancel(self) -> None:
        if self in self.clock.timers:
            self.clock.timers.remove(self)


class Suspect:
    """A waiter that holds a connection."""

    is_suspect = True
    patience = LONG
    gate = None


def test_looks_that_prove_nothing_take_a_twentieth_of_the_time_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where a holder tries again and again."""
    clock: Any = Clock()
    waiter: Any = Suspect()
    monkeypatch.setattr(deadlock, "now", clock.now)
    monkeypatch.setattr(deadlock, "thread_time", clock.now)
    monkeypatch.setattr(deadlock, "_is_proved", clock.look_in_vain)
    detector = deadlock.Detector(clock)
    began = clock.time
    for _ in range(1000):
        detector.suspect(waiter)
        clock.run_until(clock.time + 0.3)
        assert len(clock.timers) <= 2
    passed = clock.time - began
    assert clock.looks > 10
    assert clock.looks * clock.COST <= 0.05 * passed + clock.COST


@at_once
def test_who_waits_for_a_moment_only_gives_back_what_the_others_wait_for(
    new_pool: Callable[..., Any], spawn: Callable[..., Any]
) -> None:
    pool = new_pool(min_size=2)
    barrier = threading.Barrier(2)

    def work(timeout: float) -> str:
        with pool.connection() as first:
            first.execute("select 1")
            barrier.wait(5.0)
            try:
                with pool.connection(timeout=timeout):
                    return "lent"
            except fastpool.PoolTimeout as error:
                return type(error).__name__

    calls = [spawn(work, timeout) for timeout in (0.2, LONG)]
    assert [call.result() for call in calls] == ["PoolTimeout", "lent"]


@at_once
def test_a_deadlock_is_found_as_often_as_there_is_one(
    new_pool: Callable[..., Any], spawn: Callable[..., Any]
) -> None:
    """What a look has seen it must not keep alive: a second one would find it there."""
    pool = new_pool(min_size=2)
    barrier = threading.Barrier(2)

    def work() -> str:
        with pool.connection() as first:
            first.execute("select 1")
            barrier.wait(5.0)
            try:
                pool.getconn(timeout=LONG)
            except fastpool.PoolTimeout as error:
                return type(error).__name__
        return "lent"

    gc.disable()
    try:
        for _ in range(3):
            calls = [spawn(work) for _ in range(2)]
            assert [call.result() for call in calls] == ["PoolDeadlock"] * 2
    finally:
        gc.enable()


@at_once
def test_one_who_holds_nothing_is_served(
    new_pool: Callable[..., Any], spawn: Callable[..., Any], waiting: Callable[[Any, int], None]
) -> None:
    pool = new_pool()
    go = threading.Event()

    def nested() -> None:
        with pool.connection() as first:
            first.execute("select 1")
            assert go.wait(5.0)
            with pool.connection(timeout=LONG):
                pass

    inner = spawn(nested)
    outer = spawn(pool.getconn, LONG)
    waiting(pool, 1)
    go.set()
    with pytest.raises(fastpool.PoolDeadlock):
        inner.result()
    pool.putconn(outer.result())


# --- what is none -------------------------------------------------------------------------------


def wait_in_vain(pool: Any, timeout: float = 1.05) -> None:
    """Wait for a connection of a pool until the timeout: that is no deadlock."""
    with pytest.raises(fastpool.PoolTimeout) as caught:
        pool.getconn(timeout=timeout)
    assert not isinstance(caught.value, fastpool.PoolDeadlock)


def test_a_connection_that_another_thread_gives_back_is_no_deadlock(
    new_pool: Callable[..., Any], spawn: Callable[..., Any], waiting: Callable[[Any, int], None]
) -> None:
    """As a web framework does: borrowed in one thread, used and given back in others."""
    pool = new_pool()
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def one_request_after_the_other() -> Any:
        requests.put(pool.getconn())
        return pool.getconn(timeout=LONG)

    call = spawn(one_request_after_the_other)
    conn = requests.get(timeout=5.0)
    waiting(pool, 1)
    pool.putconn(conn)
    del conn
    pool.putconn(call.result())


def test_a_connection_that_another_thread_has_too_is_no_deadlock(
    new_pool: Callable[..., Any], spawn: Callable[..., Any], waiting: Callable[[Any, int], None]
) -> None:
    pool = new_pool()
    go = threading.Event()

    def give_back(conn: Any) -> None:
        assert go.wait(10.0)
        pool.putconn(conn)

    def work() -> Any:
        conn = pool.getconn()
        helper = spawn(give_back, conn)
        again = pool.getconn(timeout=LONG)
        helper.result()
        assert conn is again
        return again

    call = spawn(work)
    waiting(pool, 1)
    go.set()
    pool.putconn(call.result())


class Shared:
    conn: Any = None


def keep_in_an_object(conn: Any) -> Callable[[], Any]:
    shared = Shared()
    shared.conn = conn
    return lambda: shared.conn


def keep_in_a_class(conn: Any) -> Callable[[], Any]:
    Shared.conn = conn
    return lambda: Shared.__dict__["conn"]


def keep_in_a_cursor(conn: Any) -> Callable[[], Any]:
    cursor = conn.cursor()
    return lambda: cursor.connection


@at_once
@pytest.mark.parametrize("keep", [keep_in_an_object, keep_in_a_class, keep_in_a_cursor])
def test_a_connection_in_something_that_others_have_is_no_deadlock(
    new_pool: Callable[..., Any], keep: Callable[[Any], Callable[[], Any]]
) -> None:
    pool = new_pool()
    find = keep(pool.getconn())
    timer = threading.Timer(MOMENT, lambda: pool.putconn(find()))
    timer.start()
    again = pool.getconn(timeout=LONG)
    timer.join()
    Shared.conn = None
    pool.putconn(again)


def from_a_list(pool: Any, inbox: queue.SimpleQueue[Any]) -> None:
    for conn in [None, inbox.get(timeout=5.0)]:
        if conn is not None:
            pool.putconn(conn)
        else:
            time.sleep(MOMENT)


def from_a_generator(pool: Any, inbox: queue.SimpleQueue[Any]) -> None:
    def conns() -> Iterator[Any]:
        conn = inbox.get(timeout=5.0)
        yield None
        yield conn

    for conn in conns():
        if conn is not None:
            pool.putconn(conn)
        else:
            time.sleep(MOMENT)


def at_the_end_of_a_block(pool: Any, inbox: queue.SimpleQueue[Any]) -> None:
    with contextlib.ExitStack() as stack:
        stack.callback(pool.putconn, inbox.get(timeout=5.0))
        del stack
        time.sleep(MOMENT)


@at_once
@pytest.mark.parametrize("give_back", [from_a_list, from_a_generator, at_the_end_of_a_block])
def test_a_connection_that_is_in_no_variable_of_who_has_it_is_no_deadlock(
    new_pool: Callable[..., Any],
    spawn: Callable[..., Any],
    give_back: Callable[[Any, Any], None],
) -> None:
    pool = new_pool()
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    call = spawn(give_back, pool, inbox)
    inbox.put(pool.getconn())
    again = pool.getconn(timeout=LONG)
    call.result()
    pool.putconn(again)


def test_a_connection_in_a_closure_is_no_deadlock(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    conn = pool.getconn()
    timer = threading.Timer(MOMENT, lambda: pool.putconn(conn))
    timer.start()
    again = pool.getconn(timeout=LONG)
    timer.join()
    pool.putconn(again)


def test_a_connection_in_a_timers_arguments_is_no_deadlock(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    conn = pool.getconn()
    timer = threading.Timer(MOMENT, pool.putconn, [conn])
    timer.start()
    again = pool.getconn(timeout=LONG)
    timer.join()
    assert again is conn
    pool.putconn(again)


def test_a_list_that_others_have_too_is_no_deadlock(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    conns = [pool.getconn()]
    timer = threading.Timer(MOMENT, lambda held: pool.putconn(held.pop()), (conns,))
    timer.start()
    again = pool.getconn(timeout=LONG)
    timer.join()
    pool.putconn(again)


def test_a_block_that_others_can_leave_is_no_deadlock(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    stack = contextlib.ExitStack()
    conn = stack.enter_context(pool.connection())
    timer = threading.Timer(MOMENT, stack.close)
    timer.start()
    again = pool.getconn(timeout=LONG)
    timer.join()
    assert again is conn
    pool.putconn(again)


def test_a_block_in_a_variable_that_others_have_is_no_deadlock(
    new_pool: Callable[..., Any],
) -> None:
    pool = new_pool()
    block = pool.connection()
    conn = block.__enter__()
    timer = threading.Timer(MOMENT, block.__exit__, (None, None, None))
    timer.start()
    again = pool.getconn(timeout=LONG)
    timer.join()
    assert again is conn
    pool.putconn(again)


def test_to_try_for_a_moment_is_no_deadlock(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    with pool.connection() as conn:
        conn.execute("select 1")
        began = time.monotonic()
        wait_in_vain(pool, timeout=0.1)
        assert time.monotonic() - began >= 0.1


def test_a_pool_that_may_grow_is_not_deadlocked(new_pool: Callable[..., Any]) -> None:
    pool = new_pool(min_size=1, max_size=2)
    with pool.connection() as one, pool.connection(timeout=LONG) as other:
        assert one is not other


def test_a_pool_whose_connection_somebody_uses_is_not_deadlocked(
    new_pool: Callable[..., Any], spawn: Callable[..., Any]
) -> None:
    pool = new_pool(min_size=2)
    taken, go = threading.Event(), threading.Event()

    def use() -> None:
        with pool.connection() as conn:
            conn.execute("select 1")
            taken.set()
            assert go.wait(10.0)

    call = spawn(use)
    assert taken.wait(5.0)
    with pool.connection() as conn:
        wait_in_vain(pool)
        go.set()
        call.result()
        with pool.connection(timeout=LONG) as other:
            assert other is not conn


def test_two_pools_that_wait_for_each_other_are_not_looked_through(
    new_pool: Callable[..., Any], spawn: Callable[..., Any]
) -> None:
    one, two = new_pool(name="one"), new_pool(name="two")
    barrier = threading.Barrier(2)

    def work(first: Any, second: Any) -> None:
        with first.connection() as conn:
            conn.execute("select 1")
            barrier.wait(5.0)
            wait_in_vain(second)
            barrier.wait(5.0)  # who gave back at once would serve the other, if that began later

    calls = [spawn(work, one, two), spawn(work, two, one)]
    for call in calls:
        call.result()


def test_a_null_pool_at_its_maximum_can_be_deadlocked(dsn: str) -> None:
    with fastpool.NullConnectionPool(dsn, max_size=1, open=False) as pool:
        with pool.connection() as conn:
            conn.execute("select 1")
            with pytest.raises(fastpool.PoolDeadlock):
                pool.getconn(timeout=LONG)
        with pool.connection(timeout=LONG):
            pass


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_connection_in_garbage_comes_back(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    gc.disable()
    try:
        cycle: list[Any] = [pool.getconn()]
        cycle.append(cycle)
        del cycle
        with pool.connection(timeout=LONG):
            pass
    finally:
        gc.enable()
