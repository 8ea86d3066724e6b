"""Leases that last too long, and those whose thread has ended."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import fastpool


def about(log: Any, text: str) -> list[str]:
    """The warnings that say *text*."""
    return [line for line in log.warnings() if text in line]


LATE = "has not been given back"
DEAD = "has outlived its borrower"
HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()


def test_a_lease_that_lasts_too_long_is_warned_of_once(
    new_pool: Callable[..., Any], log: Any, eventually: Callable[..., Any]
) -> None:
    pool = new_pool(leak_timeout=0.05)
    with pool.connection() as conn:
        eventually(lambda: about(log, LATE))
        (line,) = about(log, LATE)
        assert f"backend {conn.pgconn.backend_pid}" in line
        assert repr(threading.current_thread().name) in line
        assert "test_leaks.py:" in line
        assert "in test_a_lease_that_lasts_too_long_is_warned_of_once" in line
        slot = pool.snapshot().slots[0]
        assert slot.is_overdue
        assert slot.call_site in line
        threading.Event().wait(0.15)
        assert len(about(log, LATE)) == 1
    assert not pool.snapshot().slots[0].is_overdue
    with pool.connection():
        eventually(lambda: len(about(log, LATE)) == 2)


def test_a_short_lease_is_not_warned_of(
    new_pool: Callable[..., Any], log: Any, eventually: Callable[..., Any]
) -> None:
    pool = new_pool(leak_timeout=0.2)
    looks = []
    look = pool._watchman.look
    pool._watchman.look = lambda: (look(), looks.append(1))
    for _ in range(20):
        with pool.connection():
            threading.Event().wait(0.02)
    eventually(lambda: len(looks) > 3)
    assert log.warnings() == []


def test_without_the_options_no_look_is_planned(
    new_pool: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[Any] = []
    monkeypatch.setattr(fastpool.ConnectionPool, "_plan_look", lambda pool: planned.append(pool))
    new_pool()
    assert planned == []
    pool = new_pool(reclaim_dead=True)
    assert planned == [pool]


@pytest.fixture
def abandoned(spawn: Callable[..., Any]) -> Callable[[Any], Any]:
    """`abandoned(pool)` has a thread borrow a connection and end; the connection is returned."""

    def make(pool: Any) -> Any:
        call = spawn(pool.getconn, thread_name="short-lived")
        conn = call.result()
        call.thread.join()
        return conn

    return make


def test_a_lease_whose_thread_has_ended_is_reported_and_kept(
    new_pool: Callable[..., Any],
    abandoned: Callable[[Any], Any],
    log: Any,
    eventually: Callable[..., Any],
) -> None:
    pool = new_pool(leak_timeout=0.04)
    conn = abandoned(pool)
    eventually(lambda: about(log, DEAD))
    assert "a thread that has ended" in about(log, DEAD)[0]
    threading.Event().wait(0.1)
    assert len(about(log, DEAD)) == 1
    assert conn.execute("select 1").fetchone() == (1,)
    pool.putconn(conn)
    assert pool.snapshot().counts["available"] == 1


def test_a_lease_whose_thread_has_ended_is_reclaimed(
    new_pool: Callable[..., Any],
    abandoned: Callable[[Any], Any],
    log: Any,
    sessions: Any,
    eventually: Callable[..., Any],
    available: Callable[..., None],
) -> None:
    pool = new_pool(leak_timeout=0.04, reclaim_dead=True, kwargs=sessions.kwargs)
    conn = abandoned(pool)
    available(pool, 1)
    assert len(about(log, DEAD)) == 1
    with pool.connection(timeout=2.0) as other:
        assert other.execute("select 1").fetchone() == (1,)
        eventually(lambda: sessions.pids() == {other.pgconn.backend_pid})
    with pytest.raises(psycopg.OperationalError):
        conn.execute("select 1")
    pool.putconn(conn)  # late, and accepted
    with pytest.raises(ValueError, match="can't return"):
        pool.putconn(conn)
    available(pool, 1)


def test_who_waits_in_vain_for_what_a_thread_has_left_reports_it_without_the_options(
    new_pool: Callable[..., Any], abandoned: Callable[[Any], Any], log: Any
) -> None:
    pool = new_pool()
    conn = abandoned(pool)
    (slot,) = (slot for slot in pool.snapshot().slots if slot.state == "in_use")
    assert slot.owner_has_ended
    for _ in range(2):
        with pytest.raises(fastpool.PoolTimeout, match="held longest by a thread that has ended"):
            pool.getconn(timeout=0)
        (line,) = about(log, DEAD)
    assert f"backend {slot.backend_pid}" in line
    assert slot.call_site in line
    assert log.warnings() == [line]
    pool.putconn(conn)


@pytest.fixture
def inherited(spawn: Callable[..., Any]) -> Callable[[Any], Any]:
    """`inherited(pool)` has a thread borrow a connection and end, and its ident be given to this
    thread, as Linux does with the next one; the connection is returned."""

    def make(pool: Any) -> Any:
        call = spawn(pool._table.checkout, threading.get_ident())
        conn = call.result()
        call.thread.join()
        conn._pool = pool
        return conn

    return make


@pytest.mark.skipif(not HAS_GIL, reason="threads are known by their idents only")
class TestAThreadWithTheIdentOfOneThatHasEnded:
    def test_is_not_named_as_the_borrower(
        self, new_pool: Callable[..., Any], inherited: Callable[[Any], Any]
    ) -> None:
        pool = new_pool()
        conn = inherited(pool)
        slot = pool.snapshot().slots[0]
        assert slot.owner_ident == threading.get_ident()
        assert slot.owner_has_ended
        assert slot.owner_name is None
        pool.putconn(conn)

    def test_is_not_in_a_deadlock_with_it(
        self, new_pool: Callable[..., Any], inherited: Callable[[Any], Any]
    ) -> None:
        pool = new_pool()
        conn = inherited(pool)
        with pytest.raises(fastpool.PoolTimeout, match="by a thread that has ended") as caught:
            pool.getconn(timeout=1.0)
        assert caught.type.__name__ == "PoolTimeout"
        pool.putconn(conn)

    def test_gets_what_is_reclaimed(
        self, new_pool: Callable[..., Any], inherited: Callable[[Any], Any]
    ) -> None:
        pool = new_pool(reclaim_dead=True, leak_timeout=0.2)
        conn = inherited(pool)
        with pool.connection(timeout=8.0) as other:
            assert other is not conn

    def test_has_not_lost_what_that_one_had(
        self, new_pool: Callable[..., Any], inherited: Callable[[Any], Any]
    ) -> None:
        pool = new_pool()
        with pytest.warns(ResourceWarning, match="lent to a thread that has ended"):
            inherited(pool)
            gc.collect()


def test_one_who_waits_gets_what_is_reclaimed(
    new_pool: Callable[..., Any], abandoned: Callable[[Any], Any]
) -> None:
    pool = new_pool(reclaim_dead=True)
    conn = abandoned(pool)
    with pool.connection(timeout=8.0) as other:
        assert other is not conn


def test_another_thread_under_the_same_ident_is_another_thread(
    new_pool: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, available: Callable[..., None]
) -> None:
    """The first look finds the thread; at the second another one has its ident."""
    pool = new_pool(leak_timeout=100.0, reclaim_dead=True)
    conn = pool.getconn()
    pool._watchman.look()
    assert pool.snapshot().counts["in_use"] == 1
    stranger = threading.Thread()
    borrowers = {**pool._borrowers(), threading.get_ident(): stranger}
    monkeypatch.setattr(pool, "_borrowers", lambda: borrowers, raising=False)
    pool._watchman.look()
    available(pool, 1)
    pool.putconn(conn)


def test_what_comes_back_before_the_look_is_nobodys_to_reclaim(
    new_pool: Callable[..., Any], abandoned: Callable[[Any], Any]
) -> None:
    pool = new_pool(leak_timeout=100.0)
    conn = abandoned(pool)
    generation = pool._table.generation(conn._slot)
    pool.putconn(conn)
    assert pool._table.reclaim(0, generation) is None
    again = pool.getconn()
    assert pool._table.reclaim(0, generation) is None
    pool.putconn(again)


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_leak_timeout_is_a_time(value: float) -> None:
    with pytest.raises(ValueError, match="leak_timeout"):
        fastpool.ConnectionPool(open=False, leak_timeout=value)


@pytest.mark.parametrize("options", [{"leak_timeout": "1"}, {"reclaim_dead": "yes"}])
def test_the_options_have_types(options: Any) -> None:
    with pytest.raises(TypeError, match=next(iter(options))):
        fastpool.ConnectionPool(open=False, **options)
