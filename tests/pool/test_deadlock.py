"""A deadlock among borrowers is found out when it is certain, and only then."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import fastpool

# Far longer than a deadlock takes to be found out.
LONG = 20.0
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


class Service:
    """Keeps its connection in itself, where anybody may find it."""

    def __init__(self, pool: Any) -> None:
        self.conn = pool.getconn()


def test_a_connection_that_is_kept_in_an_object_is_no_deadlock(
    new_pool: Callable[..., Any],
) -> None:
    pool = new_pool()
    service = Service(pool)
    conn = service.conn
    wait_in_vain(pool)
    pool.putconn(conn)


def test_a_connection_in_a_closure_is_no_deadlock(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    conn = pool.getconn()
    timer = threading.Timer(0.05, lambda: pool.putconn(conn))
    timer.start()
    again = pool.getconn(timeout=LONG)
    timer.join()
    pool.putconn(again)


def test_a_connection_in_a_timers_arguments_is_no_deadlock(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    conn = pool.getconn()
    timer = threading.Timer(0.05, pool.putconn, [conn])
    timer.start()
    again = pool.getconn(timeout=LONG)
    timer.join()
    assert again is conn
    pool.putconn(again)


def test_a_list_that_others_have_too_is_no_deadlock(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    conns = [pool.getconn()]
    timer = threading.Timer(0.05, lambda held: pool.putconn(held.pop()), (conns,))
    timer.start()
    again = pool.getconn(timeout=LONG)
    timer.join()
    pool.putconn(again)


def test_a_block_that_others_can_leave_is_no_deadlock(new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    stack = contextlib.ExitStack()
    conn = stack.enter_context(pool.connection())
    timer = threading.Timer(0.05, stack.close)
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
    timer = threading.Timer(0.05, block.__exit__, (None, None, None))
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


SCRIPT = """
import sys, fastpool
with fastpool.ConnectionPool(sys.argv[1], min_size=1, open=False) as pool:
    with pool.connection() as conn:
        try:
            pool.getconn(timeout=5.0)
        except fastpool.PoolTimeout as error:
            print(type(error).__name__)
"""


def test_a_script_of_one_thread_is_found_out(script: Callable[..., Any], dsn: str) -> None:
    done = script(SCRIPT, dsn)
    assert (done.stdout, done.stderr) == ("PoolDeadlock\n", "")
