"""An exception that arrives while a thread waits, at any moment, loses no connection."""

from __future__ import annotations

import ctypes
import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import fastpool
from fastpool import lending
from fastpool._core import RETURN_TAKEN

INTERRUPTS = 200


class Interrupter:
    """Raises KeyboardInterrupt in the main thread, as Ctrl-C does; only while it may."""

    def __init__(self) -> None:
        self.may = False
        self.count = 0

    def handle(self, *args: object) -> None:
        if self.may:
            self.may = False
            self.count += 1
            raise KeyboardInterrupt

    def fire(self) -> None:
        """Send the signal. Call it in another thread, or in the main one."""
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


@pytest.fixture
def interrupter() -> Iterator[Interrupter]:
    interrupter = Interrupter()
    before = signal.signal(signal.SIGUSR1, interrupter.handle)
    yield interrupter
    interrupter.may = False
    signal.signal(signal.SIGUSR1, before)


class Killed(BaseException):
    """What is thrown into another thread."""


def throw(thread: threading.Thread, error: type[BaseException] = Killed) -> None:
    """Raise *error* in *thread* at the next moment at which it runs Python code."""
    ident = ctypes.c_ulong(thread.ident or 0)
    count = ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(error))
    assert count == 1


@pytest.fixture
def all_there(
    at_rest: Callable[[Any], fastpool.Snapshot], available: Callable[..., None]
) -> Callable[[Any], None]:
    """`all_there(pool)` asserts that every connection is idle and can be lent, and none waits."""

    def check(pool: Any) -> None:
        gc.collect()
        available(pool, pool.max_size)
        assert at_rest(pool).waiting == 0
        conns = [pool.getconn(timeout=0.0) for _ in range(pool.max_size)]
        for conn in conns:
            pool.putconn(conn)

    return check


# --- KeyboardInterrupt ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["getconn", "connect", "connection"])
def test_an_interrupted_wait_ends_at_once_and_leaves_the_queue(
    how: str,
    new_pool: Callable[..., Any],
    spawn: Callable[..., Any],
    waiting: Callable[[Any, int], None],
    interrupter: Interrupter,
    all_there: Callable[[Any], None],
) -> None:
    pool = new_pool()
    conn = pool.getconn()

    def interrupt() -> None:
        waiting(pool, 1)
        interrupter.fire()

    call = spawn(interrupt)
    interrupter.may = True
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        if how == "connection":
            with pool.connection(timeout=20.0):
                pass
        else:
            getattr(pool, how)(timeout=20.0)
    assert time.monotonic() - began < 5.0
    call.result()
    assert pool.snapshot().waiting == 0
    assert pool.get_stats()["requests_errors"] == 1
    pool.putconn(conn)
    all_there(pool)


def test_an_interrupt_after_a_return_leaves_the_connection_to_its_next_borrower(
    new_pool: Callable[..., Any],
    all_there: Callable[[Any], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = new_pool()
    conn = pool.getconn()
    conn.execute("select 1")
    restore = lending.restore

    async def restore_and_be_interrupted(*args: Any) -> None:
        await restore(*args)
        # The next borrower is in the middle of its return when the interrupt comes.
        assert pool.getconn(timeout=0.0) is conn
        assert pool._table.begin_return(conn) == RETURN_TAKEN
        raise KeyboardInterrupt

    monkeypatch.setattr(lending, "restore", restore_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.putconn(conn)
    assert not conn.closed
    assert pool._table.restore(conn) is False
    all_there(pool)


def test_a_handler_that_returns_does_not_end_the_wait(
    new_pool: Callable[..., Any],
    spawn: Callable[..., Any],
    waiting: Callable[[Any, int], None],
    interrupter: Interrupter,
) -> None:
    pool = new_pool()
    conn = pool.getconn()

    def nudge() -> None:
        waiting(pool, 1)
        for _ in range(20):
            interrupter.fire()
            time.sleep(0.001)
        assert pool.snapshot().waiting == 1
        pool.putconn(conn)

    call = spawn(nudge)
    pool.putconn(pool.getconn(timeout=20.0))
    call.result()


def test_a_handler_that_returns_does_not_prolong_the_wait(
    new_pool: Callable[..., Any],
    spawn: Callable[..., Any],
    waiting: Callable[[Any, int], None],
    interrupter: Interrupter,
) -> None:
    pool = new_pool()
    over = threading.Event()

    def nudge() -> None:
        waiting(pool, 1)
        while not over.wait(0.01):
            interrupter.fire()

    with pool.connection():
        call = spawn(nudge)
        began = time.monotonic()
        with pytest.raises(fastpool.PoolTimeout):
            pool.getconn(timeout=0.2)
        elapsed = time.monotonic() - began
        over.set()
        call.result()
    assert 0.19 <= elapsed < 1.0


def test_two_hundred_interrupted_waits_lose_nothing(
    new_pool: Callable[..., Any],
    spawn: Callable[..., Any],
    interrupter: Interrupter,
    all_there: Callable[[Any], None],
) -> None:
    pool = new_pool()
    conn = spawn(pool.getconn).result()  # by another thread: with its own it would be a deadlock
    over = threading.Event()

    def interrupt() -> None:
        while not over.is_set():
            if interrupter.may and pool.snapshot().waiting:
                interrupter.fire()
            time.sleep(0)

    call = spawn(interrupt)
    for _ in range(INTERRUPTS):
        try:
            interrupter.may = True
            pool.getconn(timeout=20.0)
        except KeyboardInterrupt:
            continue
        pytest.fail("a connection that is lent was lent again")
    over.set()
    call.result()
    assert interrupter.count == INTERRUPTS
    assert pool.snapshot().waiting == 0
    pool.putconn(conn)
    all_there(pool)


# An interrupt may come when the connection is on its way from getconn() to a variable. It is
# collected then, which the pool warns of, and makes good.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("how", ["getconn", "connect", "connection"])
def test_an_interrupt_that_races_with_the_hand_off_loses_nothing(
    how: str,
    new_pool: Callable[..., Any],
    spawn: Callable[..., Any],
    interrupter: Interrupter,
    all_there: Callable[[Any], None],
) -> None:
    pool = new_pool(min_size=2)
    over = threading.Event()

    def hammer() -> None:
        while not over.is_set():
            with pool.connection(timeout=20.0):
                time.sleep(0)

    def interrupt() -> None:
        while not over.is_set():
            interrupter.fire()
            time.sleep(0.0005)

    calls = [spawn(hammer) for _ in range(4)] + [spawn(interrupt)]
    deadline = time.monotonic() + 20.0
    while interrupter.count < INTERRUPTS and time.monotonic() < deadline:
        conn = None
        try:
            try:
                interrupter.may = True
                if how == "connection":
                    with pool.connection(timeout=20.0):
                        pass
                else:
                    conn = getattr(pool, how)(timeout=20.0)
            finally:
                interrupter.may = False
        except KeyboardInterrupt:
            pass
        if conn is not None:
            pool.putconn(conn)
    over.set()
    for call in calls:
        call.result()
    del conn
    assert interrupter.count == INTERRUPTS
    all_there(pool)


# --- exceptions thrown into other threads -----------------------------------------------------


def test_a_thread_killed_while_it_waits_hands_on_what_it_is_given(
    new_pool: Callable[..., Any],
    spawn: Callable[..., Any],
    waiting: Callable[[Any, int], None],
    all_there: Callable[[Any], None],
    pid: Callable[[Any], int],
) -> None:
    """A thread runs no Python code while it waits: what kills it arrives with the connection."""
    pool = new_pool()

    def borrow() -> None:
        with pool.connection(timeout=10.0):
            pass

    conn = pool.getconn()
    session = pid(conn)
    first = spawn(borrow)
    waiting(pool, 1)
    second = spawn(borrow)
    waiting(pool, 2)
    throw(first.thread)
    pool.putconn(conn)
    with pytest.raises(Killed):
        first.result()
    second.result()
    all_there(pool)
    assert pool.snapshot().slots[0].backend_pid == session


def test_a_thread_killed_while_it_waits_in_vain_leaves_the_queue(
    new_pool: Callable[..., Any],
    spawn: Callable[..., Any],
    waiting: Callable[[Any, int], None],
    all_there: Callable[[Any], None],
) -> None:
    pool = new_pool()
    with pool.connection():
        call = spawn(pool.getconn, 0.3)
        waiting(pool, 1)
        throw(call.thread)
        with pytest.raises(Killed):
            call.result()
        assert pool.snapshot().waiting == 0
    all_there(pool)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_threads_killed_at_any_moment_lose_nothing(
    new_pool: Callable[..., Any],
    spawn: Callable[..., Any],
    all_there: Callable[[Any], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What is thrown into a connection's finalizer is reported with its frames, which hold it.
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    pool = new_pool(min_size=3)
    deadline = time.monotonic() + 1.5
    deaths = [0]

    def live() -> None:
        while time.monotonic() < deadline:
            try:
                while time.monotonic() < deadline:
                    with pool.connection(timeout=20.0):
                        time.sleep(0)
            except Killed:
                deaths[0] += 1

    def survive() -> None:
        # What kills may come in the middle of what copes with it.
        while time.monotonic() < deadline:
            try:
                live()
            except Killed:
                deaths[0] += 1

    calls = [spawn(survive) for _ in range(6)]
    number = 0
    while time.monotonic() < deadline - 0.3:
        throw(calls[number % 6].thread)
        number += 1
        time.sleep(0.002)
    for call in calls:
        try:
            call.result(30.0)
        except Killed:
            deaths[0] += 1
    assert deaths[0] > 50
    all_there(pool)


# --- exceptions that meet a misuse ------------------------------------------------------------


@pytest.mark.parametrize("way", ["direct", "overridden"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, KeyError])
def test_an_exception_on_its_way_is_not_replaced_by_the_refusal_of_a_second_return(
    error: type[BaseException],
    way: str,
    new_pool: Callable[..., Any],
    all_there: Callable[[Any], None],
) -> None:
    pool = new_pool()
    if way == "overridden":
        pool.putconn = pool.putconn
    raised = error("on its way")
    with pytest.raises(error) as caught:
        with pool.connection() as conn:
            pool.putconn(conn)
            raise raised
    assert caught.value is raised
    del conn, caught
    all_there(pool)


def test_without_an_exception_the_second_return_of_a_block_is_refused(
    new_pool: Callable[..., Any], all_there: Callable[[Any], None]
) -> None:
    pool = new_pool()
    with pytest.raises(ValueError, match="can't return connection"):
        with pool.connection() as conn:
            pool.putconn(conn)
    all_there(pool)


def test_a_block_left_by_an_exception_leaves_the_next_borrower_its_connection(
    new_pool: Callable[..., Any], pid: Callable[[Any], int]
) -> None:
    pool = new_pool()
    with pytest.raises(KeyboardInterrupt):
        with pool.connection() as conn:
            pool.putconn(conn)
            other = pool.getconn(timeout=0.0)
            other.execute("select 1")
            raise KeyboardInterrupt
    assert pool.snapshot().counts["in_use"] == 1
    assert pid(other) == pool.snapshot().slots[0].backend_pid
    assert other.info.transaction_status.name == "INTRANS"
    pool.putconn(other)


# --- generators -------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "throw", "drop", "drop in a cycle"])
@pytest.mark.parametrize("how", ["connect", "connection"])
def test_a_generator_that_is_ended_in_its_block_gives_back(
    how: str, end: str, new_pool: Callable[..., Any], all_there: Callable[[Any], None]
) -> None:
    pool = new_pool()

    def rows() -> Iterator[Any]:
        with getattr(pool, how)() as conn:
            yield from conn.execute("select generate_series(1, 3)")

    lines: Any = rows()
    assert next(lines) == (1,)
    assert pool.snapshot().counts["in_use"] == 1
    if end == "close":
        lines.close()
    elif end == "throw":
        with pytest.raises(Killed):
            lines.throw(Killed())
    else:
        if end == "drop in a cycle":
            cycle = [lines]
            cycle.append(cycle)  # type: ignore[arg-type]
            del cycle
        del lines
        gc.collect()
    all_there(pool)


# ---- from Python 3.14 on, an interrupt may leave a lock locked that a `with` block takes


def in_a_block(pool: Any, use: Callable[[Any], None]) -> None:
    with pool.connection() as conn:
        use(conn)


def in_the_block_of_a_lease(pool: Any, use: Callable[[Any], None]) -> None:
    with pool.connect() as conn:
        use(conn)


def before_putconn(pool: Any, use: Callable[[Any], None]) -> None:
    conn = pool.getconn()
    try:
        use(conn)
    finally:
        pool.putconn(conn)


def before_close(pool: Any, use: Callable[[Any], None]) -> None:
    conn = pool.connect()
    try:
        use(conn)
    finally:
        conn.close()


def interrupted_while_idle(conn: Any) -> None:
    conn.lock.acquire()
    raise KeyboardInterrupt


def interrupted_in_a_transaction(conn: Any) -> None:
    conn.execute("select 1")
    interrupted_while_idle(conn)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="no interrupt leaves a lock locked there")
@pytest.mark.parametrize("use", [interrupted_while_idle, interrupted_in_a_transaction])
@pytest.mark.parametrize(
    "borrow", [in_a_block, in_the_block_of_a_lease, before_putconn, before_close]
)
def test_a_connection_that_an_interrupt_left_locked_is_not_lent_again(
    borrow: Callable[[Any, Callable[[Any], None]], None],
    use: Callable[[Any], None],
    new_pool: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = new_pool()
    with pytest.raises(KeyboardInterrupt):
        borrow(pool, use)
    assert "which an interrupt left locked" in caplog.text
    with pool.connection(timeout=5.0) as conn:
        assert conn.execute("select 1").fetchone() == (1,)
