"""Which threads there are: one for timers while a pool is open, workers while there is work."""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fastpool
import fastpool.workers

EXIT_SECONDS = 2.0

pytestmark = pytest.mark.usefixtures("no_pool_threads")


def names(start: str) -> list[str]:
    """The names of the live threads that begin like this, sorted."""
    return sorted(t.name for t in threading.enumerate() if t.name.startswith(start))


@pytest.fixture
def make(dsn: str) -> Iterator[Callable[..., fastpool.ConnectionPool[Any]]]:
    """Build open pools that nothing but the test refers to. Those that stay are closed."""
    made: list[weakref.ref[Any]] = []

    def build(conninfo: str = dsn, **options: Any) -> fastpool.ConnectionPool[Any]:
        options = {"min_size": 1, "name": "p", **options}
        pool: Any = fastpool.ConnectionPool(conninfo, open=True, **options)
        made.append(weakref.ref(pool))
        return pool

    yield build
    for pool in filter(None, [ref() for ref in made]):
        pool.close()


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A connection string for a listener that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"host=127.0.0.1 port={listener.getsockname()[1]} dbname=nowhere"


# --- how many ---------------------------------------------------------------------------------


def test_idle_pools_have_one_thread_together(
    new_pool: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    before = threading.active_count()
    for _ in range(5):
        new_pool(min_size=2)
    eventually(lambda: not names("p-worker"))
    assert names("fastpool-") == ["fastpool-housekeeper"]
    assert threading.active_count() == before + 1


def test_a_pool_that_is_not_open_has_no_thread(new_pool: Callable[..., Any]) -> None:
    before = threading.active_count()
    new_pool(open=False)
    assert threading.active_count() == before


def test_the_housekeeper_ends_with_the_last_pool(
    new_pool: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    first, second = new_pool(), new_pool()
    first.close()
    with second.connection():
        assert names("fastpool-") == ["fastpool-housekeeper"]
    second.close()
    eventually(lambda: not names("fastpool-"))
    third = new_pool()
    assert names("fastpool-") == ["fastpool-housekeeper"]
    third.close()
    eventually(lambda: not names("fastpool-"))


def test_no_more_workers_than_num_workers_connect(
    new_pool: Callable[..., Any], network: Any, eventually: Callable[..., Any]
) -> None:
    pool = new_pool(
        min_size=6, num_workers=2, connection_class=network.connection_class, open=False
    )
    network.hold()
    pool.open()
    eventually(lambda: network.in_flight == 2)
    assert names("p-worker") == ["p-worker-0", "p-worker-1"]
    network.release()
    pool.wait()
    assert network.most_in_flight == 2


def test_workers_end_when_there_is_no_more_work(
    new_pool: Callable[..., Any],
    at_once: Callable[..., list[Any]],
    eventually: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many chores, and workers that often stop waiting for one just when it comes."""
    monkeypatch.setattr(fastpool.workers, "LINGER", 0.0002)
    pool = new_pool(min_size=8, num_workers=6, reset=lambda conn: None)
    deadline = time.monotonic() + 1.0

    def borrow() -> int:
        count = 0
        while time.monotonic() < deadline:
            with pool.connection(timeout=10.0):
                count += 1
            if count % 2:
                time.sleep(0.0002)
        return count

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        assert min(at_once(8, borrow)) > 0
    finally:
        sys.setswitchinterval(switch)
    eventually(lambda: not names("p-worker"))
    pool.putconn(pool.getconn())
    eventually(lambda: pool.snapshot().counts["available"] == 8)


def test_close_waits_for_the_workers(
    new_pool: Callable[..., Any],
    network: Any,
    spawn: Callable[..., Any],
    eventually: Callable[..., Any],
) -> None:
    pool = new_pool(connection_class=network.connection_class, open=False)
    network.hold()
    pool.open()
    eventually(lambda: network.in_flight == 1)
    call = spawn(pool.close, 10.0)
    while not pool.closed:
        time.sleep(0.001)
    assert not call.done
    network.release()
    call.result()
    assert not names("p-worker")
    assert pool.snapshot().size == 0


def test_close_does_not_wait_longer_than_told(
    new_pool: Callable[..., Any], network: Any, log: Any, eventually: Callable[..., Any]
) -> None:
    pool = new_pool(connection_class=network.connection_class, open=False)
    network.hold()
    pool.open()
    eventually(lambda: network.in_flight == 1)
    began = time.monotonic()
    pool.close(timeout=0.1)
    assert 0.1 <= time.monotonic() - began < 1.0
    assert "couldn't stop thread 'p-worker-0' within 0.1 seconds" in log.warnings()


# --- collected --------------------------------------------------------------------------------


def test_a_dropped_pool_is_collected_at_once(
    make: Callable[..., Any], sessions: Any, eventually: Callable[..., Any]
) -> None:
    pool = make(min_size=2, kwargs=sessions.kwargs)
    pool.wait()
    eventually(lambda: not names("p-worker"))
    gone = weakref.ref(pool)
    del pool
    assert gone() is None
    eventually(lambda: not names("fastpool-"))
    eventually(lambda: not sessions.pids())


def test_a_pool_dropped_before_it_was_open_is_collected_at_once(dsn: str) -> None:
    pool = fastpool.ConnectionPool(dsn, open=False)
    gone = weakref.ref(pool)
    del pool
    assert gone() is None


def test_a_pool_dropped_in_the_middle_of_a_backoff_is_collected_at_once(
    make: Callable[..., Any],
    unreachable: str,
    eventually: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What captures the log keeps the error, its traceback, and so the pool.
    monkeypatch.setattr(logging.getLogger("psycopg.pool"), "disabled", True)
    pool = make(unreachable, min_size=3)
    gone = weakref.ref(pool)
    eventually(lambda: gone().get_stats()["connections_errors"] >= 1)
    eventually(lambda: not names("p-worker"))
    del pool
    assert gone() is None
    eventually(lambda: not names("fastpool-"))


def test_a_pool_dropped_while_it_connects_is_collected_when_that_is_over(
    make: Callable[..., Any], network: Any, sessions: Any, eventually: Callable[..., Any]
) -> None:
    network.hold()
    pool = make(connection_class=network.connection_class, kwargs=sessions.kwargs)
    eventually(lambda: network.in_flight == 1)
    gone = weakref.ref(pool)
    del pool
    network.release()
    eventually(lambda: gone() is None)
    eventually(lambda: not names("p-worker") and not names("fastpool-"))
    eventually(lambda: not sessions.pids())


def test_a_pool_dropped_with_a_reset_queued_is_collected_when_that_is_done(
    make: Callable[..., Any], sessions: Any, eventually: Callable[..., Any]
) -> None:
    entered, leave = threading.Event(), threading.Event()
    resets: list[int] = []

    def reset(conn: Any) -> None:
        resets.append(conn.pgconn.backend_pid)
        entered.set()
        assert leave.wait(10.0)

    pool = make(min_size=2, num_workers=1, reset=reset, kwargs=sessions.kwargs)
    pool.wait()
    conns = [pool.getconn() for _ in range(2)]
    while conns:
        pool.putconn(conns.pop())
    assert entered.wait(5.0)
    gone = weakref.ref(pool)
    del pool
    leave.set()
    eventually(lambda: gone() is None)
    assert len(set(resets)) == 2
    eventually(lambda: not names("p-worker") and not names("fastpool-"))
    eventually(lambda: not sessions.pids())


def test_a_pool_in_a_cycle_is_collected_silently(
    make: Callable[..., Any], sessions: Any, eventually: Callable[..., Any]
) -> None:
    pool: Any = make(kwargs=sessions.kwargs)
    pool.wait()
    pool.itself = pool
    eventually(lambda: not names("p-worker"))
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    eventually(lambda: not sessions.pids())


def test_a_connection_outlives_its_pool(make: Callable[..., Any]) -> None:
    pool = make()
    conn = pool.getconn()
    pool.close()
    del pool
    gc.collect()
    assert conn.execute("select 1").fetchone() == (1,)
    conn._pool.putconn(conn)
    assert conn.closed


# --- a pool that is closed by its own worker --------------------------------------------------


def test_reconnect_failed_may_close_the_pool(
    new_pool: Callable[..., Any],
    unreachable: str,
    quick_backoff: None,
    log: Any,
    eventually: Callable[..., Any],
) -> None:
    def give_up(pool: Any) -> None:
        pool.close()
        closed_by.append(threading.current_thread().name)

    closed_by: list[str] = []
    pool = new_pool(
        unreachable, open=False, min_size=3, reconnect_timeout=0.1, reconnect_failed=give_up
    )
    pool.open()
    with pytest.raises(fastpool.PoolClosed):
        pool.getconn(timeout=10.0)
    eventually(lambda: closed_by)
    assert closed_by[0].startswith("p-worker")
    eventually(lambda: not names("p-worker") and not names("fastpool-"))
    assert log.kinds().keys() == {"error connecting", "reconnection attempt"}


def test_a_closed_pool_that_gave_up_repeatedly_leaves_no_timer(
    new_pool: Callable[..., Any],
    unreachable: str,
    quick_backoff: None,
    spawn: Callable[..., Any],
    eventually: Callable[..., Any],
) -> None:
    failed: list[Any] = []
    pool = new_pool(unreachable, open=False, reconnect_timeout=0.05, reconnect_failed=failed.append)
    pool.open()
    call = spawn(pool.getconn, 20.0)
    eventually(lambda: len(failed) >= 3)
    pool.close()
    with pytest.raises(fastpool.PoolClosed):
        call.result()
    eventually(lambda: not names("p-worker") and not names("fastpool-"))


# --- leaks ------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_pools_opened_and_closed_leave_no_thread_and_no_descriptor(
    make: Callable[..., Any], sessions: Any, eventually: Callable[..., Any]
) -> None:
    def cycle() -> None:
        pool = make(min_size=2, max_size=3, kwargs=sessions.kwargs)
        with pool, pool.connection(), pool.connect():
            pass

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    cycle()
    eventually(lambda: not names("fastpool-"))
    threads, files = threading.active_count(), descriptors()
    for _ in range(50):
        cycle()
    eventually(lambda: threading.active_count() == threads)
    gc.collect()
    assert descriptors() == files
    eventually(lambda: not sessions.pids())


# --- the end of the process -------------------------------------------------------------------

OPEN_POOL = """
import sys, time, fastpool
{before}
pool = fastpool.ConnectionPool(sys.argv[1], min_size=2, open=True, **{options})
{after}
print(time.monotonic(), flush=True)
"""

ENDINGS = {
    "idle": ("{}", "pool.wait()"),
    "lent": ("{}", "pool.wait(); conn = pool.getconn(); lease = pool.connect()"),
    "in a block": ("{}", "pool.wait(); block = pool.connection(); block.__enter__()"),
    "in a reset": (
        "dict(reset=lambda conn: time.sleep(60))",
        "pool.wait(); pool.putconn(pool.getconn())",
    ),
}


def end_of(result: Any) -> float:
    """How long the interpreter took to exit, in seconds, and that it said nothing about it."""
    ended = time.monotonic()
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return ended - float(result.stdout)  # one clock for all processes


@pytest.mark.skipif(sys.platform != "linux", reason="needs a clock that processes share")
@pytest.mark.parametrize("what", ENDINGS)
def test_the_interpreter_does_not_wait_for_an_open_pool(
    what: str, script: Callable[..., Any], dsn: str
) -> None:
    options, after = ENDINGS[what]
    source = OPEN_POOL.format(before="", options=options, after=after)
    assert end_of(script(source, dsn)) < EXIT_SECONDS


@pytest.mark.skipif(sys.platform != "linux", reason="needs a clock that processes share")
def test_the_interpreter_does_not_wait_for_a_connect_in_flight(
    script: Callable[..., Any], black_hole: str
) -> None:
    after = (
        "while pool.get_stats()['connections_num'] < 2: time.sleep(0.01)\n"
        "assert pool.snapshot().counts['connecting'] == 2"
    )
    source = OPEN_POOL.format(before="", options="{}", after=after)
    assert end_of(script(source, black_hole)) < EXIT_SECONDS


@pytest.mark.skipif(sys.platform != "linux", reason="needs a clock that processes share")
def test_the_interpreter_does_not_wait_for_a_backoff(
    script: Callable[..., Any], unreachable: str
) -> None:
    before = "import logging; logging.disable()"
    after = "while pool.get_stats()['connections_errors'] < 2: time.sleep(0.01)"
    source = OPEN_POOL.format(before=before, options="{}", after=after)
    assert end_of(script(source, unreachable)) < EXIT_SECONDS


def test_a_pool_may_be_used_and_closed_at_exit(script: Callable[..., Any], dsn: str) -> None:
    source = """
import atexit, sys, fastpool
pool = fastpool.ConnectionPool(sys.argv[1], min_size=1, open=True)

@atexit.register
def last():
    with pool.connection() as conn:
        print(conn.execute("select 'last words'").fetchone()[0])
    pool.close()
"""
    result = script(source, dsn)
    assert (result.returncode, result.stdout, result.stderr) == (0, "last words\n", "")
