"""Callbacks and finalizers that come back into the pool, at the worst moments."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from driver import needs_compiled

import fastpool


@pytest.fixture
def callbacks() -> Any:
    """A place for callbacks that are defined after the pool that they are about."""

    class Callbacks:
        def __init__(self) -> None:
            self.calls: list[Any] = []
            self.then: Callable[[Any], Any] = lambda conn: None
            self._local = threading.local()

        def __call__(self, what: Any) -> None:
            """Be a callback: do `then`, but not again when that comes back here."""
            if getattr(self._local, "inside", False):
                return
            self._local.inside = True
            try:
                self.then(what)
                self.calls.append(what)
            finally:
                self._local.inside = False

    return Callbacks()


# --- configure --------------------------------------------------------------------------------


def test_configure_may_look_at_the_pool_and_resize_it(
    new_pool: Callable[..., Any], callbacks: Any, available: Callable[..., None]
) -> None:
    pool = new_pool(open=False, configure=callbacks)

    def look(conn: Any) -> None:
        assert pool.snapshot().counts["connecting"] >= 1
        assert pool.get_stats()["pool_min"] in (1, 3)
        pool.resize(3, 4)

    callbacks.then = look
    pool.open(wait=True, timeout=5.0)
    available(pool, 3)
    assert len(callbacks.calls) == 3


def test_configure_may_borrow_another_connection(
    new_pool: Callable[..., Any],
    callbacks: Any,
    spawn: Callable[..., Any],
    waiting: Callable[[Any, int], None],
    available: Callable[..., None],
) -> None:
    pool = new_pool(max_size=2, configure=callbacks)
    rows: list[Any] = []

    def borrow(conn: Any) -> None:
        with pool.connection(timeout=10.0) as other:
            assert other is not conn
            rows.append(other.execute("select 1").fetchone())

    callbacks.then = borrow
    with pool.connection():
        call = spawn(lambda: pool.putconn(pool.getconn(10.0)))
        waiting(pool, 2)  # that one, and the configure of the connection that grows for it
    call.result()
    available(pool, 2)
    assert rows == [(1,)]


def test_configure_may_close_the_pool(
    new_pool: Callable[..., Any],
    callbacks: Any,
    sessions: Any,
    eventually: Callable[..., Any],
    log: Any,
) -> None:
    pool = new_pool(open=False, min_size=3, configure=callbacks, kwargs=sessions.kwargs)
    callbacks.then = lambda conn: pool.close()
    pool.open()
    with pytest.raises(fastpool.PoolClosed):
        pool.wait(timeout=5.0)
    eventually(lambda: pool.snapshot().size == 0)
    eventually(lambda: not sessions.pids())
    assert log.warnings() == []


# --- check ------------------------------------------------------------------------------------


def test_check_may_borrow_another_connection(new_pool: Callable[..., Any], callbacks: Any) -> None:
    pool = new_pool(min_size=2, check=callbacks)

    def borrow(conn: Any) -> None:
        with pool.connection(timeout=5.0) as other:
            assert other is not conn
        with pool.connect(timeout=5.0) as lease:
            lease.execute("select 1")
        assert pool.get_stats()["pool_available"] == 1

    callbacks.then = borrow
    for _ in range(5):
        with pool.connection():
            pass
    assert len(callbacks.calls) == 5
    assert pool.snapshot().counts["available"] == 2


def test_check_may_close_the_pool(
    new_pool: Callable[..., Any], callbacks: Any, sessions: Any, eventually: Callable[..., Any]
) -> None:
    pool = new_pool(min_size=2, check=callbacks, kwargs=sessions.kwargs)
    callbacks.then = lambda conn: pool.close()
    with pool.connection() as conn:
        assert conn.execute("select 1").fetchone() == (1,)
    eventually(lambda: not sessions.pids())
    with pytest.raises(fastpool.PoolClosed):
        pool.getconn()


def test_check_that_fails_may_resize_and_drain_the_pool(
    new_pool: Callable[..., Any], callbacks: Any, eventually: Callable[..., Any]
) -> None:
    pool = new_pool(min_size=2, check=callbacks)

    def refuse(conn: Any) -> None:
        callbacks.then = lambda conn: None
        pool.resize(3, 5)
        pool.drain()
        pool.check()
        raise ValueError("not this one")

    callbacks.then = refuse
    with pool.connection(timeout=5.0):
        pass
    eventually(lambda: pool.snapshot().counts["available"] == pool.snapshot().size >= 3)


# --- reset ------------------------------------------------------------------------------------


def test_reset_may_borrow_another_connection(
    new_pool: Callable[..., Any],
    callbacks: Any,
    eventually: Callable[..., Any],
    available: Callable[..., None],
) -> None:
    pool = new_pool(min_size=2, reset=callbacks)
    borrowed: list[Any] = []

    def borrow(conn: Any) -> None:
        if len(borrowed) < 5:  # what is returned is reset too
            borrowed.append(conn)
            with pool.connection(timeout=5.0) as other:
                assert other is not conn

    callbacks.then = borrow
    pool.putconn(pool.getconn())
    eventually(lambda: len(borrowed) == 5)
    available(pool, 2)


def test_reset_may_close_the_pool(
    new_pool: Callable[..., Any],
    callbacks: Any,
    sessions: Any,
    eventually: Callable[..., Any],
    log: Any,
) -> None:
    pool = new_pool(min_size=2, reset=callbacks, kwargs=sessions.kwargs)
    callbacks.then = lambda conn: pool.close()
    lent = pool.getconn()
    pool.putconn(pool.getconn())
    eventually(lambda: pool.closed)
    pool.putconn(lent)
    eventually(lambda: not sessions.pids())
    eventually(lambda: pool.snapshot().size == 0)
    assert log.warnings() == []


def test_reset_may_not_return_its_own_connection(
    new_pool: Callable[..., Any], callbacks: Any, available: Callable[..., None], log: Any
) -> None:
    pool = new_pool(reset=callbacks)
    refusals: list[str] = []

    def return_it(conn: Any) -> None:
        with pytest.raises(ValueError, match="can't return connection") as caught:
            pool.putconn(conn)
        refusals.append(str(caught.value))

    callbacks.then = return_it
    pool.putconn(pool.getconn())
    available(pool, 1)
    assert len(refusals) == 1
    assert log.warnings() == []


# --- reconnect_failed -------------------------------------------------------------------------


def test_reconnect_failed_may_use_the_pool(
    new_pool: Callable[..., Any],
    callbacks: Any,
    network: Any,
    quick_backoff: None,
    eventually: Callable[..., Any],
    available: Callable[..., None],
) -> None:
    network.down()
    pool = new_pool(
        open=False,
        min_size=2,
        reconnect_timeout=0.1,
        reconnect_failed=callbacks,
        connection_class=network.connection_class,
    )

    def use(failed: Any) -> None:
        assert failed is pool
        assert pool.get_stats()["pool_size"] == 0
        with pytest.raises(fastpool.PoolTimeout, match="the network is down"):
            pool.getconn(timeout=0.05)
        pool.resize(1, 3)
        network.up()
        with pool.connection(timeout=5.0) as conn:
            conn.execute("select 1")

    callbacks.then = use
    pool.open()
    eventually(lambda: callbacks.calls)
    available(pool, 1)


# --- finalizers -------------------------------------------------------------------------------


class Borrower:
    """Keeps a connection, in a cycle; gives it back when it is collected."""

    def __init__(self, pool: Any, how: str) -> None:
        self.itself = self
        self.pool = pool
        self.conn = getattr(pool, how)(timeout=10.0)

    def __del__(self) -> None:
        self.pool.putconn(self.conn)


@pytest.fixture
def all_idle(
    at_rest: Callable[[Any], fastpool.Snapshot], eventually: Callable[..., Any]
) -> Callable[[Any], None]:
    """`all_idle(pool)` asserts that every connection comes back, once all garbage is collected."""

    def check(pool: Any) -> None:
        def idle() -> bool:
            gc.collect()  # does nothing while another thread collects
            snapshot = at_rest(pool)
            return snapshot.counts["available"] == snapshot.size >= snapshot.min_size

        eventually(idle, timeout=10.0, what="all connections idle")

    return check


@pytest.fixture
def collect_often() -> Iterator[None]:
    """Have the collector run after almost every allocation, in the middle of anything."""
    before = gc.get_threshold()
    gc.set_threshold(5, 2, 2)
    yield
    gc.set_threshold(*before)


@needs_compiled
@pytest.mark.parametrize("how", ["getconn", "connect"])
def test_a_finalizer_may_give_back(how: str, new_pool: Callable[..., Any]) -> None:
    pool = new_pool()
    gc.collect()
    gc.disable()
    try:
        Borrower(pool, how)
        assert pool.snapshot().counts["in_use"] == 1
        gc.collect()
    finally:
        gc.enable()
    assert pool.snapshot().counts["available"] == 1


@needs_compiled
def test_what_a_finalizer_gave_back_is_lent_and_lost_like_any_other(
    new_pool: Callable[..., Any], available: Callable[..., None], pid: Callable[[Any], int]
) -> None:
    pool = new_pool()
    with pool.connection() as conn:
        session = pid(conn)
    del conn
    Borrower(pool, "getconn")
    gc.collect()
    with pool.connection() as conn:
        assert pid(conn) == session
    assert pool.get_stats()["connections_lost"] == 0
    with pytest.warns(ResourceWarning, match="collected without being given back"):
        conn = pool.getconn()
        del conn
        gc.collect()
    available(pool, 1)
    assert pool.get_stats()["connections_lost"] == 1


def test_a_finalizer_may_give_back_to_a_pool_that_is_collected_with_it(
    dsn: str, break_connection: Callable[[Any], None]
) -> None:
    pool: Any = fastpool.ConnectionPool(dsn, min_size=1, name="p", open=True)
    pool.wait()
    errors: list[Exception] = []

    class Last(Borrower):
        def __del__(self) -> None:
            try:
                super().__del__()
            except Exception as error:
                errors.append(error)

    last = Last(pool, "getconn")
    break_connection(last.conn)
    pool.last = last
    gone = weakref.ref(last)
    del pool, last
    gc.collect()
    assert gone() is None
    assert errors == []


@pytest.fixture
def collector(spawn: Callable[..., Any]) -> Iterator[None]:
    """Collect garbage all the time. A gc.collect() that meets one under way in another thread does
    nothing, so that what is garbage then might hold every connection with all others waiting."""
    done = threading.Event()

    def collect() -> None:
        while not done.wait(0.005):
            gc.collect()

    call = spawn(collect)
    yield
    done.set()
    call.result(10.0)


@needs_compiled
@pytest.mark.parametrize("reset", [False, True], ids=["plain", "reset"])
def test_finalizers_that_give_back_while_others_hammer_lose_nothing(
    reset: bool,
    new_pool: Callable[..., Any],
    spawn: Callable[..., Any],
    collect_often: None,
    collector: None,
    all_idle: Callable[[Any], None],
    pid: Callable[[Any], int],
) -> None:
    options = {"reset": lambda conn: None} if reset else {}
    pool = new_pool(min_size=2, max_size=4, max_connecting=2, **options)
    deadline = time.monotonic() + 0.8
    holders: dict[int, int] = {}

    def hammer() -> int:
        count = 0
        while time.monotonic() < deadline:
            with pool.connection(timeout=10.0) as conn:
                holders[pid(conn)] = threading.get_ident()
                [[] for _ in range(10)]
                assert holders[pid(conn)] == threading.get_ident()
            count += 1
        return count

    def borrow_and_forget() -> int:
        count = 0
        while time.monotonic() < deadline:
            for how in ("getconn", "connect"):
                Borrower(pool, how)
                count += 1
            gc.collect()
        return count

    calls = [spawn(hammer) for _ in range(3)] + [spawn(borrow_and_forget) for _ in range(2)]
    assert sum(call.result(30.0) for call in calls) > 10
    all_idle(pool)
    assert pool.get_stats()["connections_lost"] == 0


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_connections_collected_in_the_middle_of_anything_are_replaced(
    new_pool: Callable[..., Any],
    spawn: Callable[..., Any],
    collect_often: None,
    collector: None,
    all_idle: Callable[[Any], None],
) -> None:
    pool = new_pool(min_size=2, max_size=3)
    over, losses = threading.Event(), 20

    class Cycle:
        def __init__(self, conn: Any) -> None:
            self.itself, self.conn = self, conn

    def hammer() -> None:
        while not over.is_set():
            with pool.connection(timeout=10.0):
                [[] for _ in range(10)]

    def lose() -> None:
        for count in range(losses):
            Cycle(pool.connect(timeout=10.0) if count % 2 else pool.getconn(timeout=10.0))
            gc.collect()

    calls = [spawn(hammer) for _ in range(3)]
    try:
        spawn(lose).result(30.0)
    finally:
        over.set()
    for call in calls:
        call.result(30.0)
    all_idle(pool)
    assert pool.get_stats()["connections_lost"] == losses
    conns = [pool.getconn(timeout=5.0) for _ in range(3)]
    for conn in conns:
        pool.putconn(conn)
