"""Processes that are stopped, as in a machine that swaps or hangs: sockets stay, nobody answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from faults.subject import ALL, POOLS

import fastpool

T = 0.7
# What a call that takes no timeout of its own may take: the pool's own deadline for a rollback,
# a reset or a check.
OWN_DEADLINE = 5.0


@pytest.mark.parametrize("kind", POOLS)
def test_a_checkout_that_checks_ends_by_its_deadline(
    kind: str, new_pool: Callable[..., Any], faults: Any
) -> None:
    pool = new_pool(kind, check=True)
    faults.freeze_postmaster()
    faults.freeze(pool.pids)
    for _ in range(2):
        pool.attempt("getconn", timeout=T).ends_within(T).fails_with(fastpool.PoolTimeout)


@pytest.mark.parametrize("kind", POOLS)
def test_all_of_many_checkouts_that_check_end_by_their_deadlines(
    kind: str, new_pool: Callable[..., Any], faults: Any
) -> None:
    pool = new_pool(kind, check=True)
    faults.freeze_postmaster()
    faults.freeze(pool.pids)
    for started in [pool.start("getconn", timeout=T) for _ in range(12)]:
        pool.outcome(started).ends_within(T).fails_with(fastpool.PoolTimeout)


@pytest.mark.parametrize("kind", POOLS)
def test_a_checkout_that_checks_lends_no_frozen_connection(
    kind: str, new_pool: Callable[..., Any], faults: Any
) -> None:
    """The server still takes connections: a checkout may end with one, or by its deadline."""
    pool = new_pool(kind, check=True)
    frozen = pool.pids
    faults.freeze(frozen)
    for started in [pool.start("use", timeout=T) for _ in range(12)]:
        outcome = pool.outcome(started).ends_within(T)
        if outcome.ok:
            assert outcome.value not in frozen
        else:
            outcome.fails_with(fastpool.PoolTimeout)
    # What was found frozen was replaced.
    assert pool.attempt("use", timeout=6.0).succeeds().value not in frozen


@pytest.mark.parametrize("kind", POOLS)
def test_a_plain_checkout_costs_no_round_trip_and_a_wait_ends_by_its_deadline(
    kind: str, new_pool: Callable[..., Any], faults: Any
) -> None:
    pool = new_pool(kind)
    faults.freeze(pool.pids)
    conns = []
    for _ in range(3):
        conns.append(pool.attempt("getconn", timeout=T).ends_within(0.0).succeeds().value)
    pool.attempt("getconn", timeout=T).ends_within(T).fails_with(fastpool.PoolTimeout)
    pool.give_back(conns)


@pytest.mark.parametrize("kind", ALL)
def test_a_return_ends_by_a_deadline_of_its_own_and_who_waits_by_his(
    kind: str, new_pool: Callable[..., Any], faults: Any, eventually: Callable[..., Any]
) -> None:
    pool = new_pool(kind, max_size=1, min_size=1)
    conn = pool.do("getconn", timeout=T)
    pool.do("begin", conn)
    faults.freeze([conn.pgconn.backend_pid])
    waits = pool.start("getconn", timeout=T)
    eventually(lambda: pool.pool.snapshot().waiting == 1)
    returns = pool.start("putconn", conn)
    pool.outcome(waits).ends_within(T).fails_with(fastpool.PoolTimeout)
    pool.outcome(returns).ends_within(OWN_DEADLINE).succeeds()


@pytest.mark.parametrize("kind", POOLS)
def test_check_ends_by_a_deadline_of_its_own(
    kind: str, new_pool: Callable[..., Any], faults: Any
) -> None:
    pool = new_pool(kind, min_size=1, max_size=1)
    faults.freeze(pool.pids)
    pool.attempt("check").ends_within(OWN_DEADLINE).succeeds()


@pytest.mark.parametrize("kind", ALL)
def test_a_checkout_that_must_connect_ends_by_its_deadline(
    kind: str, new_pool: Callable[..., Any], faults: Any
) -> None:
    pool = new_pool(kind, min_size=1)
    lent = [pool.do("getconn", timeout=T)]
    faults.freeze_postmaster()
    pool.attempt("getconn", timeout=T).ends_within(T).fails_with(fastpool.PoolTimeout)
    pool.give_back(lent)


@pytest.mark.parametrize("kind", ALL)
def test_wait_ends_by_its_deadline(kind: str, new_pool: Callable[..., Any], faults: Any) -> None:
    pool = new_pool(kind, open=False)
    faults.freeze_postmaster()
    pool.do("open", wait=False)
    pool.attempt("wait", timeout=T).ends_within(T).fails_with(
        fastpool.PoolTimeout, naming="pool initialization incomplete"
    )


@pytest.mark.parametrize("kind", ALL)
def test_close_ends_by_its_deadline_and_tells_who_waits_at_once(
    kind: str, new_pool: Callable[..., Any], faults: Any, eventually: Callable[..., Any]
) -> None:
    pool = new_pool(kind, min_size=2, max_size=3)
    lent = [pool.do("getconn", timeout=T) for _ in range(2)]
    pool.do("putconn", lent.pop())
    faults.freeze_postmaster()
    faults.freeze(pool.pids)
    if pool.keeps_idle:
        lent.append(pool.do("getconn", timeout=T))
    # One has a connect under way that nobody answers.
    waits = pool.start("getconn", timeout=20.0)
    eventually(lambda: pool.counts["connecting"] == 1)
    closing = pool.attempt("close", timeout=T).ends_within(T).succeeds()
    if pool.keeps_idle:
        refused = pool.outcome(waits).fails_with(fastpool.PoolClosed)
        assert refused.ended - closing.began < 0.1
    pool.give_back(lent)
    if not pool.keeps_idle:
        faults.thaw()
        pool.outcome(waits).fails_with(fastpool.PoolClosed)


@pytest.mark.parametrize("kind", POOLS)
def test_the_connections_are_as_good_as_before_when_the_server_goes_on(
    kind: str, new_pool: Callable[..., Any], faults: Any
) -> None:
    pool = new_pool(kind)
    before = pool.pids
    faults.freeze(before)
    faults.freeze_postmaster()
    started = [pool.start("use", timeout=T) for _ in range(3)]
    faults.thaw()
    for future in started:
        pool.outcome(future).ends_within(T).succeeds()
    assert pool.pids == before
