"""Sessions that the server ends: by command, by a limit, by a crash of all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from faults.subject import ALL, NULL_POOLS, POOLS
from psycopg.conninfo import make_conninfo

# How soon a death is noticed that the server announced, in seconds: far more than it takes.
NOTICED = 0.2
# What a client may see of a session that is ended under its hands.
DIED = (psycopg.OperationalError, psycopg.InterfaceError)


@pytest.mark.parametrize("kind", POOLS)
def test_nobody_meets_a_connection_that_died_idle(
    kind: str, new_pool: Callable[..., Any], faults: Any
) -> None:
    pool = new_pool(kind)
    before = pool.pids
    faults.terminate(before)
    time.sleep(NOTICED)  # for the notice; what follows may be as quick as it likes
    for _ in range(6):
        assert pool.attempt("use", timeout=5.0).ends_within(1.2).succeeds().value not in before


def test_all_idle_connections_are_replaced_before_anyone_asks(
    new_pool: Callable[..., Any], faults: Any, eventually: Callable[..., Any]
) -> None:
    pool = new_pool("threads")
    before = pool.pids
    faults.terminate(before)
    eventually(lambda: pool.is_full and not pool.pids & before, timeout=1.2)
    assert pool.pids == pool.sessions(faults.admin)
    assert not pool.errors()


@pytest.mark.parametrize("kind", POOLS)
def test_one_dead_among_many_costs_nobody_an_error(
    kind: str, new_pool: Callable[..., Any], faults: Any
) -> None:
    pool = new_pool(kind, min_size=5, max_size=5)
    dead = min(pool.pids)
    faults.terminate([dead])
    time.sleep(NOTICED)
    for _ in range(10):
        assert pool.attempt("use", timeout=5.0).ends_within(0.5).succeeds().value != dead


def test_the_slot_of_a_connection_that_dies_while_it_is_lent_is_free_at_once(
    new_pool: Callable[..., Any], faults: Any, whole: Callable[[Any], None]
) -> None:
    pool = new_pool("threads", min_size=2, max_size=2)
    held = pool.do("getconn", timeout=1.0)
    faults.terminate([held.pgconn.backend_pid])
    # Its borrower does nothing, and yet all others get what the pool may open.
    conns = pool.lend(2, timeout=1.2)
    assert len({pool.do("query", conn) for conn in conns}) == 2
    pool.give_back(conns)
    # The late return is accepted.
    pool.do("putconn", held)


@pytest.mark.parametrize("kind", ALL)
def test_the_death_of_a_session_in_the_middle_of_a_query_is_the_drivers_error(
    kind: str, new_pool: Callable[..., Any], faults: Any, eventually: Callable[..., Any]
) -> None:
    pool = new_pool(kind)
    running = pool.start("use", timeout=1.0, sql="select pg_sleep(30)")
    sleeps = "select pid from pg_stat_activity where query = 'select pg_sleep(30)'"
    (pid,) = eventually(lambda: faults.admin.execute(sleeps).fetchone())
    faults.terminate([pid])
    pool.outcome(running).fails_with(psycopg.errors.AdminShutdown)
    assert pool.do("use", timeout=1.2) != pid


@pytest.mark.parametrize("kind", ALL)
def test_the_death_of_an_idle_session_in_use_is_the_drivers_error(
    kind: str, new_pool: Callable[..., Any], faults: Any
) -> None:
    pool = new_pool(kind)
    conn = pool.do("getconn", timeout=1.0)
    faults.terminate([conn.pgconn.backend_pid])
    pool.attempt("query", conn).fails_with(psycopg.OperationalError)
    pool.attempt("putconn", conn).ends_within(0.1).succeeds()
    pool.do("use", timeout=1.2)


@pytest.mark.parametrize("kind", POOLS)
def test_sessions_that_end_by_idle_session_timeout_are_met_by_nobody(
    kind: str, new_pool: Callable[..., Any], faults: Any
) -> None:
    unlimited = faults.server.dsn
    limited = make_conninfo(unlimited, options="-c idle_session_timeout=300")
    pool = new_pool(kind, limited)
    before = pool.pids
    pool.dsn = unlimited  # for those that replace them
    time.sleep(0.3 + NOTICED)
    for _ in range(6):
        assert pool.attempt("use", timeout=5.0).ends_within(1.2).succeeds().value not in before


def test_connections_come_back_as_often_as_they_are_killed(
    new_pool: Callable[..., Any], faults: Any, eventually: Callable[..., Any]
) -> None:
    pool = new_pool("threads")
    for _ in range(10):
        before = pool.pids
        faults.terminate(before)
        eventually(lambda before=before: pool.is_full and not pool.pids & before, timeout=1.2)
    assert pool.pids == pool.sessions(faults.admin)


def test_all_kinds_get_over_a_backend_that_crashes(
    new_pool: Callable[..., Any],
    faults: Any,
    probe: Callable[[str], Any],
    recovery: Callable[..., None],
) -> None:
    pools = [new_pool(kind) for kind in ALL]
    victim = min(pools[0].pids)

    def crash() -> float:
        died = threading.Event()
        sleeper = faults.session("crash")

        def watch() -> None:
            try:
                sleeper.execute("select pg_sleep(60)")
            except DIED:
                died.set()
            finally:
                sleeper.close()

        watcher = threading.Thread(target=watch)
        watcher.start()
        faults.kill(victim)
        assert died.wait(10.0)
        watcher.join()
        return float(probe(faults.server.dsn).accepts_at())

    recovery(pools, crash)


@pytest.mark.parametrize("kind", NULL_POOLS)
def test_a_null_pool_forgets_a_session_that_died_in_use(
    kind: str, new_pool: Callable[..., Any], faults: Any
) -> None:
    pool = new_pool(kind, max_size=1)
    for _ in range(3):
        conn = pool.do("getconn", timeout=1.0)
        faults.terminate([conn.pgconn.backend_pid])
        pool.do("putconn", conn)
    assert pool.counts["empty"] == 1 == sum(pool.counts.values())
