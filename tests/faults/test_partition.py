"""A network that loses every packet, in a network namespace of its own, and then joins again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from faults.conftest import FIRST
from faults.subject import ALL, POOLS
from psycopg.conninfo import make_conninfo

import fastpool

T = 0.7
OWN_DEADLINE = 5.0


@pytest.fixture
def distant(partition: Any, faults: Any, new_pool: Callable[..., Any]) -> Callable[..., Any]:
    """`distant(kind, **options)` builds a pool that reaches the server through the partition."""
    dsn = make_conninfo(faults.server.dsn, **partition.address)
    return lambda kind, **options: new_pool(kind, dsn, **options)


@pytest.mark.parametrize("kind", POOLS)
def test_a_checkout_that_checks_ends_by_its_deadline(
    kind: str, distant: Callable[..., Any], partition: Any
) -> None:
    pool = distant(kind, check=True)
    partition.drop()
    for _ in range(3):
        pool.attempt("getconn", timeout=T).ends_within(T).fails_with(fastpool.PoolTimeout)


@pytest.mark.parametrize("kind", ALL)
def test_a_checkout_that_must_connect_ends_by_its_deadline(
    kind: str, distant: Callable[..., Any], partition: Any
) -> None:
    pool = distant(kind, min_size=1)
    held = pool.do("getconn", timeout=T)
    partition.drop()
    pool.attempt("getconn", timeout=T).ends_within(T).fails_with(fastpool.PoolTimeout)
    pool.do("putconn", held)


@pytest.mark.parametrize("kind", ALL)
def test_a_return_ends_by_a_deadline_of_its_own(
    kind: str, distant: Callable[..., Any], partition: Any
) -> None:
    pool = distant(kind)
    conn = pool.do("getconn", timeout=T)
    pool.do("begin", conn)
    partition.drop()
    pool.attempt("putconn", conn).ends_within(OWN_DEADLINE).succeeds()


@pytest.mark.parametrize("kind", ALL)
def test_wait_and_close_end_by_their_deadlines(
    kind: str, distant: Callable[..., Any], partition: Any
) -> None:
    pool, late = distant(kind), distant(kind, open=False)
    partition.drop()
    late.do("open", wait=False)
    late.attempt("wait", timeout=T).ends_within(T).fails_with(fastpool.PoolTimeout)
    pool.attempt("close", timeout=T).ends_within(T).succeeds()


@pytest.mark.parametrize("seconds", [0.5, 3.0])
@pytest.mark.parametrize("kind", POOLS)
def test_a_pool_that_checks_works_again_soon_after_the_network_does(
    kind: str,
    seconds: float,
    distant: Callable[..., Any],
    partition: Any,
    whole: Callable[[Any], None],
) -> None:
    pool = distant(kind, check=True)
    partition.drop()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pool.attempt("use", timeout=T).ends_within(T).fails_with(fastpool.PoolTimeout)
    partition.join()
    joined = time.monotonic()
    first = pool.attempt("use", timeout=10.0).succeeds()
    assert first.ended - joined < FIRST
    whole(pool)
