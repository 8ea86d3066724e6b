"""Every call ends by its deadline, whatever the server does: backends and servers that freeze,
connects that never end, callbacks that are stuck."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from shared.deadlines import takes

import fastpool
import fastpool.guard

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs POSIX signals")


@pytest.fixture
def freeze() -> Iterator[Callable[[int], None]]:
    """`freeze(pid)` stops a process of the server; it goes on when the test is over."""
    frozen: list[int] = []

    def stop(pid: int) -> None:
        frozen.append(pid)
        os.kill(pid, signal.SIGSTOP)

    yield stop
    for pid in frozen:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def freeze_idle(freeze: Callable[[int], None]) -> Callable[[Any], list[int]]:
    """`freeze_idle(pool)` stops the backends of all idle connections."""

    def stop(pool: Any) -> list[int]:
        pids = [conn.pgconn.backend_pid for conn in list(pool._pool)]
        for pid in pids:
            freeze(pid)
        return pids

    return stop


@pytest.fixture
def short_round_trips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what the pool does on its own account take half a second, not five."""
    monkeypatch.setattr(fastpool.guard, "ROUND_TRIP", 0.5)


# --- checkout ---------------------------------------------------------------------------------


def check(conn: psycopg.Connection[Any]) -> None:
    """A check of one's own."""
    conn.execute("select 1")


def swallowing(conn: psycopg.Connection[Any]) -> None:
    """A check that says nothing of what it meets."""
    with suppress(psycopg.Error):
        conn.execute("select 1")


def catching(conn: psycopg.Connection[Any]) -> None:
    """A check that makes an error of its own of what it meets."""
    try:
        conn.execute("select 1")
    except psycopg.Error:
        raise ValueError("not well") from None


@pytest.mark.parametrize(
    "function", [fastpool.ConnectionPool.check_connection, check, swallowing, catching]
)
def test_a_check_of_a_frozen_backend_makes_way_for_another_connection(
    new_pool: Callable[..., Any], freeze_idle: Callable[[Any], list[int]], function: Any
) -> None:
    pool = new_pool(check=function)
    (frozen,) = freeze_idle(pool)
    with takes(0.5, 1.0):
        conn = pool.getconn(timeout=1.0)
    assert conn.pgconn.backend_pid != frozen
    assert conn.execute("select 1").fetchone() == (1,)
    pool.putconn(conn)
    assert pool.snapshot().size == 1


def test_a_checkout_ends_in_time_when_backends_and_server_are_frozen(
    own_server: Callable[..., Any],
    new_pool: Callable[..., Any],
    freeze: Callable[[int], None],
    freeze_idle: Callable[[Any], list[int]],
) -> None:
    server = own_server()
    pool = new_pool(server.dsn, min_size=2, check=fastpool.ConnectionPool.check_connection)
    freeze_idle(pool)
    freeze(server.pid)
    for timeout in (0.4, 0.2):
        with (
            takes(timeout, timeout),
            pytest.raises(fastpool.PoolTimeout, match=f"after {timeout:.2f} sec") as caught,
        ):
            pool.getconn(timeout=timeout)
    assert "being connected" in str(caught.value)


def test_a_timeout_names_the_check_that_did_not_end(
    new_pool: Callable[..., Any],
    network: Any,
    freeze_idle: Callable[[Any], list[int]],
) -> None:
    pool = new_pool(check=check, connection_class=network.connection_class)
    network.down()
    freeze_idle(pool)
    with (
        takes(0.4, 0.4),
        pytest.raises(fastpool.PoolTimeout, match="the last check did not end in time; .*is down"),
    ):
        pool.getconn(timeout=0.4)


def test_a_checkout_that_must_not_wait_gives_the_check_a_moment(
    new_pool: Callable[..., Any], network: Any, freeze_idle: Callable[[Any], list[int]]
) -> None:
    pool = new_pool(check=check, connection_class=network.connection_class)
    pool.putconn(pool.getconn(timeout=0.0))
    network.down()
    freeze_idle(pool)
    with takes(0.0, 0.0), pytest.raises(fastpool.PoolTimeout):
        pool.getconn(timeout=0.0)


def test_a_check_has_a_limit_of_its_own_when_there_is_time(
    new_pool: Callable[..., Any],
    freeze_idle: Callable[[Any], list[int]],
    short_round_trips: None,
) -> None:
    pool = new_pool(check=check)
    freeze_idle(pool)
    with takes(0.5, 0.6), pool.connection(timeout=60.0) as conn:
        assert conn.execute("select 1").fetchone() == (1,)


def test_the_session_of_an_overdue_check_is_closed(
    new_pool: Callable[..., Any],
    freeze_idle: Callable[[Any], list[int]],
) -> None:
    pool = new_pool(check=check)
    (conn,) = list(pool._pool)
    freeze_idle(pool)
    with pool.connection(timeout=0.4):
        assert conn.closed


def test_a_check_that_ends_in_time_is_left_alone(new_pool: Callable[..., Any]) -> None:
    pool = new_pool(check=lambda conn: conn.execute("select pg_sleep(0.2)") and conn.rollback())
    with pool.connection(timeout=1.0) as one:
        pass
    with pool.connection(timeout=1.0) as other:
        assert one is other


# --- return -----------------------------------------------------------------------------------


def test_a_return_does_not_wait_for_a_rollback_without_end(
    new_pool: Callable[..., Any],
    freeze: Callable[[int], None],
    available: Callable[..., None],
    short_round_trips: None,
    log: Any,
) -> None:
    pool = new_pool()
    conn = pool.getconn()
    conn.execute("select 1")
    freeze(conn.pgconn.backend_pid)
    with takes(0.5, 0.5):
        pool.putconn(conn)
    assert conn.closed
    assert log.kinds() == {"rolling back": 1, "rollback failed:": 1, "discarding closed": 1}
    available(pool, 1)
    assert pool.get_stats()["returns_bad"] == 1


def test_a_reset_that_gets_no_answer_holds_no_worker(
    new_pool: Callable[..., Any],
    freeze: Callable[[int], None],
    available: Callable[..., None],
    short_round_trips: None,
) -> None:
    pool = new_pool(
        min_size=2, num_workers=1, timeout=0.5, reset=lambda conn: check(conn) or conn.rollback()
    )
    conns = [pool.getconn() for _ in range(2)]
    freeze(conns[0].pgconn.backend_pid)
    with takes(0.0, 0.0):
        for conn in conns:
            pool.putconn(conn)
    with takes(0.4, 0.6):
        available(pool, 2)
    assert conns[0].closed
    assert not conns[1].closed


def test_a_reset_that_never_returns_holds_no_worker(
    new_pool: Callable[..., Any], short_round_trips: None
) -> None:
    stuck = threading.Event()
    firsts = iter([True])

    def reset(conn: Any) -> None:
        if next(firsts, False):
            stuck.wait(10.0)

    pool = new_pool(min_size=2, num_workers=1, timeout=0.5, reset=reset)
    conns = [pool.getconn() for _ in range(2)]
    for conn in conns:
        pool.putconn(conn)
    try:
        for _ in range(3):
            pool.putconn(pool.getconn(timeout=2.0))
    finally:
        stuck.set()


# --- the pool as a whole ----------------------------------------------------------------------


def test_check_goes_on_past_frozen_backends(
    new_pool: Callable[..., Any],
    freeze_idle: Callable[[Any], list[int]],
    available: Callable[..., None],
    short_round_trips: None,
    log: Any,
) -> None:
    pool = new_pool(min_size=2)
    frozen = freeze_idle(pool)
    with takes(1.0, 1.0):
        pool.check()
    available(pool, 2)
    assert not {conn.pgconn.backend_pid for conn in pool._pool} & set(frozen)
    assert log.kinds() == {"discarding broken": 2}


@pytest.mark.parametrize("name", ["drain", "close"])
def test_frozen_backends_hold_up_neither_drain_nor_close(
    new_pool: Callable[..., Any], freeze_idle: Callable[[Any], list[int]], name: str
) -> None:
    pool = new_pool(min_size=3)
    freeze_idle(pool)
    with takes(0.0, 0.1):
        getattr(pool, name)()


def test_closing_does_not_wait_for_who_is_stuck(
    new_pool: Callable[..., Any], network: Any, eventually: Callable[..., Any], spawn: Any
) -> None:
    stuck = threading.Event()
    pool = new_pool(
        min_size=1,
        max_size=2,
        reset=lambda conn: stuck.wait(10.0),
        connection_class=network.connection_class,
    )
    network.hold()
    conn = pool.getconn()
    call = spawn(pool.getconn, timeout=10.0)
    eventually(lambda: network.in_flight == 1)
    pool.putconn(conn)
    try:
        with takes(0.3, 0.3):
            closing = spawn(pool.close, timeout=0.3)
            with pytest.raises(fastpool.PoolClosed), takes(0.0, 0.0):
                call.result()
            closing.result()
    finally:
        stuck.set()
        network.release()


def test_waiting_for_a_pool_ends_in_time_though_a_connect_is_stuck(
    new_pool: Callable[..., Any], network: Any, log: Any
) -> None:
    pool = new_pool(connection_class=network.connection_class, open=False)
    network.hold()
    pool.open()
    with takes(0.3, 0.3), pytest.raises(fastpool.PoolTimeout, match=r"incomplete after 0.3 sec"):
        pool.wait(timeout=0.3)
    assert pool.closed
    assert log.warnings() == []


def test_a_stuck_connect_keeps_no_program_from_ending(script: Any, server: Any) -> None:
    source = """
import threading, psycopg, fastpool

class Stuck(psycopg.Connection):
    @classmethod
    def connect(cls, *args, **kwargs):
        threading.Event().wait()

pool = fastpool.ConnectionPool(connection_class=Stuck, open=True)
try:
    pool.getconn(timeout=0.1)
except fastpool.PoolTimeout:
    print("timeout")
"""
    began = time.monotonic()
    ended = script(source)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "timeout\n", "")
    assert time.monotonic() - began < 10.0
