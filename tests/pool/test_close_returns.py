"""`close_returns=True`: close() gives back, also what is broken, and nothing twice."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import psycopg
import pytest


@pytest.fixture
def pool(new_pool: Callable[..., Any], sessions: Any) -> Any:
    """An open pool of one connection whose close() gives it back."""
    return new_pool(close_returns=True, kwargs=sessions.kwargs)


def test_the_connection_is_still_one_of_the_class(pool: Any) -> None:
    with pool.connection() as conn:
        assert isinstance(conn, psycopg.Connection)
        assert type(conn).__name__ == "Connection"
        assert repr(conn).startswith("<psycopg.Connection [IDLE]")


def test_close_gives_back_and_the_session_lives_on(
    pool: Any, pid: Callable[[Any], int], sessions: Any
) -> None:
    conn = pool.getconn()
    session = pid(conn)
    conn.close()
    assert not conn.closed
    assert pool.snapshot().counts["available"] == 1
    with pool.connection() as again:
        assert again is conn
        assert pid(again) == session
    assert sessions.pids() == {session}


def test_close_rolls_back_what_is_open(pool: Any, log: Any) -> None:
    conn = pool.getconn()
    conn.execute("create temp table t ()")
    conn.close()
    assert log.kinds() == {"rolling back": 1}
    with pool.connection() as conn:
        row = conn.execute("select to_regclass('pg_temp.t')").fetchone()
        assert row == (None,)


def test_close_of_an_idle_connection_is_harmless(pool: Any) -> None:
    conn = pool.getconn()
    conn.close()
    conn.close()
    assert not conn.closed
    assert pool.snapshot().counts["available"] == 1
    with pool.connection() as again:
        assert again.execute("select 1").fetchone() == (1,)


def test_putconn_after_close_is_refused(pool: Any) -> None:
    conn = pool.getconn()
    conn.close()
    with pytest.raises(ValueError, match="can't return connection to pool 'p'"):
        pool.putconn(conn)
    assert pool.snapshot().counts["available"] == 1


def test_of_two_threads_that_close_one_returns_it(
    pool: Any, at_once: Callable[..., list[Any]]
) -> None:
    for _ in range(100):
        conn = pool.getconn()
        for outcome in at_once(2, conn.close):
            # Both may find it lent; one is first.
            assert outcome is None or isinstance(outcome, ValueError)
        assert pool.snapshot().counts["available"] == 1
        assert not conn.closed


def test_a_block_may_close_its_connection(new_pool: Callable[..., Any]) -> None:
    pool = new_pool(close_returns=True, min_size=2)
    with pool.connection() as conn:
        conn.execute("create temp table t ()")
        conn.commit()
        conn.close()
        assert pool.snapshot().counts["available"] == 2
    assert pool.snapshot().counts["available"] == 2


def test_a_block_that_closed_its_connection_leaves_the_next_borrower_alone(pool: Any) -> None:
    with pool.connection() as conn:
        conn.close()
        other = pool.getconn()
        assert other is conn
        other.execute("select 1")
    assert pool.snapshot().counts["in_use"] == 1
    assert other.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
    pool.putconn(other)


def test_with_pool_unset_close_is_the_drivers(
    pool: Any, sessions: Any, eventually: Callable[..., Any], available: Callable[..., None]
) -> None:
    conn = pool.getconn()
    session = conn.pgconn.backend_pid
    conn._pool = None
    conn.close()
    assert conn.closed
    eventually(lambda: session not in sessions.pids())
    del conn  # a borrower that closes on purpose is not warned
    gc.collect()
    available(pool, 1)
    assert pool.get_stats()["connections_lost"] == 1


def test_close_returns_may_be_switched_off(
    pool: Any, available: Callable[..., None], eventually: Callable[..., Any], log: Any
) -> None:
    conn = pool.getconn()
    pool.close_returns = False
    conn.close()
    assert conn.closed
    eventually(lambda: pool.snapshot().counts["in_use"] == 0)
    pool.putconn(conn)
    available(pool, 1)
    assert log.kinds() == {"discarding closed": 1}


def test_the_end_of_the_pool_ends_the_sessions(
    pool: Any, sessions: Any, eventually: Callable[..., Any]
) -> None:
    lent = pool.getconn()
    pool.close()
    assert lent.execute("select 1").fetchone() == (1,)
    lent.close()
    assert lent.closed
    eventually(lambda: not sessions.pids())


# --- broken -----------------------------------------------------------------------------------


@pytest.fixture
def broken(pool: Any, break_connection: Callable[[Any], None]) -> Any:
    """The pool's one connection, lent, and broken."""
    conn = pool.getconn()
    break_connection(conn)
    return conn


def test_a_broken_connection_that_is_closed_is_replaced_though_the_client_keeps_it(
    pool: Any, broken: Any, available: Callable[..., None], pid: Callable[[Any], int], log: Any
) -> None:
    session = broken.pgconn.backend_pid
    broken.close()
    available(pool, 1)
    assert log.kinds() == {"discarding closed": 1}
    assert pool.get_stats()["returns_bad"] == 1
    with pool.connection() as conn:
        assert conn is not broken
        assert pid(conn) != session


def test_closing_a_broken_connection_serves_who_waits(
    pool: Any, broken: Any, spawn: Callable[..., Any], waiting: Callable[[Any, int], None]
) -> None:
    call = spawn(lambda: pool.putconn(pool.getconn(10.0)))
    waiting(pool, 1)
    broken.close()
    call.result()


def test_the_late_return_of_a_closed_broken_connection_is_accepted_once(
    pool: Any, broken: Any, available: Callable[..., None], log: Any
) -> None:
    broken.close()
    available(pool, 1)
    pool.putconn(broken)
    with pytest.raises(ValueError, match="can't return connection to pool 'p'"):
        pool.putconn(broken)
    assert log.kinds() == {"discarding closed": 1}
    assert pool.snapshot().size == pool.snapshot().counts["available"] == 1


def test_closing_a_broken_connection_twice_is_harmless(
    pool: Any, broken: Any, available: Callable[..., None]
) -> None:
    broken.close()
    broken.close()
    available(pool, 1)
    broken.close()
    assert pool.snapshot().counts["available"] == 1
    assert pool.get_stats()["returns_bad"] == 1


def test_a_block_over_a_connection_that_breaks_and_is_closed_ends_quietly(
    pool: Any,
    break_connection: Callable[[Any], None],
    available: Callable[..., None],
) -> None:
    with pool.connection() as conn:
        break_connection(conn)
        conn.close()
    available(pool, 1)
    assert pool.get_stats()["returns_bad"] == 1


def test_a_broken_connection_kept_forever_does_not_cost_the_pool_a_slot(
    new_pool: Callable[..., Any],
    break_connection: Callable[[Any], None],
    available: Callable[..., None],
) -> None:
    pool = new_pool(close_returns=True, min_size=2)
    kept = []
    for _ in range(5):
        conn = pool.getconn()
        break_connection(conn)
        conn.close()
        kept.append(conn)
        available(pool, 2)
    assert pool.snapshot().size == 2
    del kept[:]
    gc.collect()
    assert pool.snapshot().counts["available"] == 2
    assert pool.get_stats()["connections_lost"] == 0


def test_a_closed_broken_connection_says_closed(pool: Any, broken: Any) -> None:
    broken.close()
    assert broken.closed
    with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
        broken.execute("select 1")
