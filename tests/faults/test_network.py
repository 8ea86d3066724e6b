"""A network that freezes, resets, delays and refuses, at each step of a lending."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest
from faults.conftest import FIRST, FULL
from faults.subject import ALL, NULL_POOLS, POOLS
from psycopg.conninfo import make_conninfo

import fastpool

T = 0.7
OWN_DEADLINE = 5.0
DELAY = 0.05
DEAD = ("reset", "refuse")
DIED = (psycopg.OperationalError, psycopg.InterfaceError)


@pytest.fixture
def distant(proxy: Any, faults: Any, new_pool: Callable[..., Any]) -> Callable[..., Any]:
    """`distant(kind, **options)` builds a pool that reaches the server through the proxy."""
    dsn = make_conninfo(faults.server.dsn, port=proxy.port)
    return lambda kind, **options: new_pool(kind, dsn, **options)


def turn(proxy: Any, mode: str) -> float:
    """Put the proxy into a mode, and say when."""
    if mode == "delay":
        proxy.delay(DELAY)
    else:
        getattr(proxy, mode)()
    return time.monotonic()


def heals(proxy: Any, pool: Any, whole: Callable[[Any], None]) -> None:
    """Let the traffic pass again, and assert that the pool is soon as it was."""
    healed = turn(proxy, "forward")
    first = pool.attempt("use", timeout=FIRST).succeeds()
    assert first.ended - healed < FIRST
    whole(pool)
    assert time.monotonic() - healed < FULL + 1.0  # it lends and asks all of them, too


# --- in a checkout ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["freeze", *DEAD])
@pytest.mark.parametrize("kind", POOLS)
def test_a_checkout_that_checks_ends_by_its_deadline(
    kind: str,
    mode: str,
    distant: Callable[..., Any],
    proxy: Any,
    whole: Callable[[Any], None],
) -> None:
    pool = distant(kind, check=True)
    turn(proxy, mode)
    outcome = pool.attempt("getconn", timeout=T).ends_within(T).fails_with(fastpool.PoolTimeout)
    if mode in DEAD:
        assert "connection failed" in str(outcome.error) or "closed" in str(outcome.error)
    heals(proxy, pool, whole)


@pytest.mark.parametrize("kind", POOLS)
def test_a_slow_network_makes_a_checkout_slower_and_no_more(
    kind: str, distant: Callable[..., Any], proxy: Any
) -> None:
    pool = distant(kind, check=True)
    before = pool.pids
    turn(proxy, "delay")
    # The check is one round trip; so is the query of the use.
    for _ in range(3):
        pool.attempt("use", timeout=T).ends_within(2 * 2 * DELAY + 0.1).succeeds()
    assert pool.pids == before


@pytest.mark.parametrize("mode", DEAD)
@pytest.mark.parametrize("kind", POOLS)
def test_nobody_meets_a_connection_that_was_reset_while_it_was_idle(
    kind: str, mode: str, distant: Callable[..., Any], proxy: Any
) -> None:
    pool = distant(kind)
    before = pool.pids
    turn(proxy, mode)
    time.sleep(0.2)
    turn(proxy, "forward")
    for _ in range(6):
        assert pool.attempt("use", timeout=5.0).ends_within(FIRST).succeeds().value not in before


# --- in a connect -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["freeze", *DEAD])
@pytest.mark.parametrize("kind", POOLS)
def test_a_checkout_that_waits_for_a_connect_ends_by_its_deadline(
    kind: str,
    mode: str,
    distant: Callable[..., Any],
    proxy: Any,
    whole: Callable[[Any], None],
) -> None:
    pool = distant(kind, min_size=1)
    held = pool.do("getconn", timeout=T)
    turn(proxy, mode)
    outcome = pool.attempt("getconn", timeout=T).ends_within(T).fails_with(fastpool.PoolTimeout)
    if mode in DEAD:
        assert "connection failed" in str(outcome.error)
    pool.do("putconn", held)
    heals(proxy, pool, whole)


@pytest.mark.parametrize("kind", NULL_POOLS)
def test_a_null_pools_connect_ends_by_its_callers_deadline_in_a_frozen_network(
    kind: str, distant: Callable[..., Any], proxy: Any, whole: Callable[[Any], None]
) -> None:
    pool = distant(kind)
    turn(proxy, "freeze")
    pool.attempt("getconn", timeout=T).ends_within(T).fails_with(fastpool.PoolTimeout)
    heals(proxy, pool, whole)


@pytest.mark.parametrize("mode", DEAD)
@pytest.mark.parametrize("kind", NULL_POOLS)
def test_a_null_pool_passes_the_error_of_a_connect_on(
    kind: str,
    mode: str,
    distant: Callable[..., Any],
    proxy: Any,
    whole: Callable[[Any], None],
) -> None:
    pool = distant(kind)
    turn(proxy, mode)
    pool.attempt("getconn", timeout=T).ends_within(T).fails_with(
        psycopg.OperationalError, naming="connection failed"
    )
    heals(proxy, pool, whole)


@pytest.mark.parametrize("kind", ALL)
def test_a_connect_over_a_slow_network_succeeds(
    kind: str, distant: Callable[..., Any], proxy: Any
) -> None:
    pool = distant(kind, min_size=1)
    held = pool.do("getconn", timeout=T)
    turn(proxy, "delay")
    other = pool.attempt("getconn", timeout=3.0).succeeds().value
    pool.give_back([held, other])


@pytest.mark.parametrize("kind", ALL)
def test_a_connect_slower_than_its_callers_patience_ends_by_the_deadline(
    kind: str, distant: Callable[..., Any], proxy: Any, whole: Callable[[Any], None]
) -> None:
    pool = distant(kind, min_size=1)
    held = pool.do("getconn", timeout=T)
    proxy.delay(0.5)  # several round trips are needed
    pool.attempt("getconn", timeout=T).ends_within(T).fails_with(fastpool.PoolTimeout)
    proxy.forward()
    pool.do("putconn", held)
    whole(pool)


@pytest.mark.parametrize("mode", ["freeze", *DEAD])
@pytest.mark.parametrize("kind", ALL)
def test_wait_and_close_end_by_their_deadlines(
    kind: str, mode: str, distant: Callable[..., Any], proxy: Any
) -> None:
    pool = distant(kind, open=False)
    turn(proxy, mode)
    pool.do("open", wait=False)
    outcome = pool.attempt("wait", timeout=T).ends_within(T).fails_with(fastpool.PoolTimeout)
    if mode in DEAD:
        assert "connection failed" in str(outcome.error)
    pool.attempt("close", timeout=T).ends_within(0.0).succeeds()

    late = distant(kind, open=False)
    late.do("open", wait=False)
    late.attempt("close", timeout=T).ends_within(T).succeeds()


# --- in a query -------------------------------------------------------------------------------


def in_a_query(pool: Any, faults: Any, eventually: Callable[..., Any]) -> Future[Any]:
    """Start a query that takes half a second, and see that the server runs it."""
    running: Future[Any] = pool.start("use", timeout=T, sql="select pg_sleep(0.5)")
    query = "select 1 from pg_stat_activity where application_name = %s and state = 'active'"
    eventually(lambda: faults.admin.execute(query, [pool.name]).fetchone())
    return running


@pytest.mark.parametrize("mode", DEAD)
@pytest.mark.parametrize("kind", ALL)
def test_a_reset_in_a_query_is_the_drivers_error_and_no_slot_is_lost(
    kind: str,
    mode: str,
    distant: Callable[..., Any],
    proxy: Any,
    faults: Any,
    eventually: Callable[..., Any],
    whole: Callable[[Any], None],
) -> None:
    pool = distant(kind)
    running = in_a_query(pool, faults, eventually)
    turn(proxy, mode)
    pool.outcome(running).ends_within(0.5).fails_with(psycopg.OperationalError)
    if pool.keeps_idle:  # those that were idle were reset too
        pool.attempt("getconn", timeout=T).ends_within(T).fails_with(
            fastpool.PoolTimeout, naming="connection failed"
        )
    heals(proxy, pool, whole)


@pytest.mark.parametrize("mode", ["freeze", "delay"])
@pytest.mark.parametrize("kind", ALL)
def test_a_query_that_is_held_up_goes_on_as_if_nothing_had_been(
    kind: str,
    mode: str,
    distant: Callable[..., Any],
    proxy: Any,
    faults: Any,
    eventually: Callable[..., Any],
    whole: Callable[[Any], None],
) -> None:
    pool = distant(kind)
    before = pool.pids
    running = in_a_query(pool, faults, eventually)
    turn(proxy, mode)
    time.sleep(T)
    heals(proxy, pool, whole)
    pool.outcome(running).succeeds()
    if pool.keeps_idle:
        assert pool.pids == before


# --- in a return ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", DEAD)
@pytest.mark.parametrize("kind", ALL)
def test_a_return_of_a_connection_that_was_reset_takes_no_time(
    kind: str,
    mode: str,
    distant: Callable[..., Any],
    proxy: Any,
    whole: Callable[[Any], None],
) -> None:
    pool = distant(kind)
    conn = pool.do("getconn", timeout=T)
    pool.do("begin", conn)
    turn(proxy, mode)
    pool.attempt("putconn", conn).ends_within(0.1).succeeds()
    heals(proxy, pool, whole)


@pytest.mark.parametrize("kind", ALL)
def test_a_return_into_a_frozen_network_ends_by_a_deadline_of_its_own(
    kind: str, distant: Callable[..., Any], proxy: Any, whole: Callable[[Any], None]
) -> None:
    pool = distant(kind, min_size=1)
    conn = pool.do("getconn", timeout=T)
    pool.do("begin", conn)
    turn(proxy, "freeze")
    pool.attempt("putconn", conn).ends_within(OWN_DEADLINE).succeeds()
    heals(proxy, pool, whole)


@pytest.mark.parametrize("kind", ALL)
def test_a_return_over_a_slow_network_is_one_round_trip(
    kind: str, distant: Callable[..., Any], proxy: Any
) -> None:
    pool = distant(kind)
    before = pool.pids
    conn = pool.do("getconn", timeout=T)
    pool.do("begin", conn)
    turn(proxy, "delay")
    pool.attempt("putconn", conn).ends_within(2 * DELAY + 0.1).succeeds()
    if pool.keeps_idle:
        assert pool.pids == before


@pytest.mark.parametrize("kind", POOLS)
def test_close_in_a_frozen_network_ends_by_its_deadline(
    kind: str, distant: Callable[..., Any], proxy: Any
) -> None:
    pool = distant(kind)
    conn = pool.do("getconn", timeout=T)
    pool.do("begin", conn)
    turn(proxy, "freeze")
    returns = pool.start("putconn", conn)
    pool.attempt("close", timeout=T).ends_within(T).succeeds()
    pool.outcome(returns).ends_within(OWN_DEADLINE).succeeds()
