"""A pool for threads that share a GIL lends fewer connections at once when that serves more.

How many is found, and what is held back is lent, in test_pacing.py and test_holding_back.py of the
core; here is what a borrower sees of it, on real connections.
"""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from core.loads import narrow
from core.stubs import in_threads

import fastpool

pytestmark = pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="such a pool holds nothing back"
)

JOIN = 30.0


@pytest.fixture
def crowded(new_pool: Callable[..., Any]) -> Callable[..., Any]:
    """`crowded(size, width, ahead=60.0)`: a pool that has found out how many of its connections to
    lend, and takes nothing for a stall for *ahead* seconds."""

    def build(size: int, width: int, ahead: float = 60.0) -> Any:
        pool = new_pool(min_size=size, max_size=size)
        pool.wait(JOIN)
        narrow(pool._table, width, size, ahead=ahead)
        return pool

    return build


def test_threads_that_query_get_what_they_asked_for(new_pool: Callable[..., Any]) -> None:
    # Long enough to find a width: whether one is found, and which, is the machine's affair.
    pool = new_pool(min_size=4, max_size=4)
    pool.wait(JOIN)
    until = time.monotonic() + 1.0
    most = [0]
    busy = set()

    def work(number: int) -> int:
        count = 0
        while time.monotonic() < until:
            with pool.connection(JOIN) as conn:
                assert conn not in busy
                busy.add(conn)
                most[0] = max(most[0], len(busy))
                assert conn.execute("select %s::int", (number,)).fetchone() == (number,)
                busy.remove(conn)
            count += 1
        return count

    counts = in_threads(*(lambda number=number: work(number) for number in range(32)))
    assert min(counts) > 0
    assert most[0] <= 4
    stats = pool.get_stats()
    assert stats["requests_num"] == sum(counts)
    assert stats.get("requests_errors", 0) == 0
    assert pool.snapshot().counts["available"] == 4
    pool._table.verify()


def test_the_snapshot_says_how_many_are_lent_at_once(crowded: Callable[..., Any]) -> None:
    pool = crowded(2, 1)
    assert pool.snapshot().lends_at_once == 0  # nobody has waited yet
    with ThreadPoolExecutor(4) as threads:
        conns = [pool.getconn(), pool.getconn()]
        waits = [threads.submit(pool.getconn, JOIN) for _ in range(4)]
        while pool.snapshot().waiting < 4:
            time.sleep(0.001)
        pool.putconn(conns[0])
        assert pool.snapshot().lends_at_once == 1
        assert pool.snapshot().as_dict()["lends_at_once"] == 1
        pool.putconn(conns[1])
        for wait in waits:
            pool.putconn(wait.result(JOIN))


def test_who_waits_behind_one_that_holds_for_long_gets_what_is_held_back(
    crowded: Callable[..., Any],
) -> None:
    pool = crowded(2, 1, ahead=0.5)
    first, second = pool.getconn(), pool.getconn()
    with ThreadPoolExecutor(3) as threads:
        waits = [threads.submit(pool.getconn, JOIN) for _ in range(3)]
        while pool.snapshot().waiting < 3:
            time.sleep(0.001)
        pool.putconn(first)  # held back, for the second is lent
        for wait in waits:
            served = wait.result(JOIN)
            assert served is first
            pool.putconn(served)
    pool.putconn(second)
    assert pool.snapshot().lends_at_once == 0


def test_a_borrower_that_borrows_again_gets_what_is_held_back(
    crowded: Callable[..., Any],
) -> None:
    pool = crowded(4, 1, ahead=0.5)

    def work() -> None:
        for _ in range(20):
            with pool.connection(JOIN) as outer, pool.connection(JOIN) as inner:
                assert outer is not inner

    in_threads(work, work, work)
    assert pool.snapshot().counts["available"] == 4


def test_null_pools_and_async_pools_hold_nothing_back(dsn: str) -> None:
    with fastpool.NullConnectionPool(dsn) as pool:
        assert pool._table.pacer is None
    assert fastpool.AsyncConnectionPool(dsn, open=False)._table.pacer is None
    assert fastpool.AsyncNullConnectionPool(dsn, open=False)._table.pacer is None
