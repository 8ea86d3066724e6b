"""Which connection is lent next (`order`), and how many are opened at once (`max_connecting`)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import fastpool


@pytest.fixture
def grown(new_pool: Callable[..., Any]) -> Callable[..., Any]:
    """Build pools that have opened max_size connections, all idle."""

    def build(**options: Any) -> Any:
        pool = new_pool(**options)
        lent = [pool.getconn(timeout=10.0) for _ in range(pool.max_size)]
        for conn in lent:
            pool.putconn(conn)
        return pool

    return build


@pytest.fixture
def serial(pid: Callable[[Any], int]) -> Callable[[Any, int], list[int]]:
    """`serial(pool, n)` borrows and returns n times, one at a time; returns the backends lent."""

    def run(pool: Any, count: int) -> list[int]:
        lent = []
        for _ in range(count):
            with pool.connection() as conn:
                lent.append(pid(conn))
        return lent

    return run


# --- order ------------------------------------------------------------------------------------


def test_fifo_is_the_default_and_lends_all_in_turn(
    new_pool: Callable[..., Any], serial: Callable[[Any, int], list[int]]
) -> None:
    pool = new_pool(min_size=3)
    lent = serial(pool, 9)
    assert len(set(lent[:3])) == 3
    assert lent[3:6] == lent[6:9] == lent[:3]


def test_fifo_lends_in_the_order_of_the_returns(
    new_pool: Callable[..., Any], pid: Callable[[Any], int]
) -> None:
    pool = new_pool(min_size=4, order="fifo")
    conns = [pool.getconn() for _ in range(4)]
    order = [conns[number] for number in (2, 0, 3, 1)]
    for conn in order:
        pool.putconn(conn)
    again = [pool.getconn() for _ in range(4)]
    assert [pid(conn) for conn in again] == [pid(conn) for conn in order]
    for conn in again:
        pool.putconn(conn)


def test_lifo_lends_as_few_as_it_can(
    new_pool: Callable[..., Any], serial: Callable[[Any, int], list[int]]
) -> None:
    pool = new_pool(min_size=3, order="lifo")
    assert len(set(serial(pool, 9))) == 1
    with pool.connection(), pool.connection():
        pass
    assert len(set(serial(pool, 9))) == 1


@pytest.mark.parametrize("order", ["fifo", "lifo"])
def test_what_is_idle_is_listed_in_the_order_of_lending(
    order: str, new_pool: Callable[..., Any], serial: Callable[[Any, int], list[int]]
) -> None:
    pool = new_pool(min_size=3, order=order)
    serial(pool, 2)
    idle = list(pool._pool)
    lent = [pool.getconn() for _ in range(3)]
    assert lent == idle
    for conn in lent:
        pool.putconn(conn)


@pytest.mark.parametrize("order", ["fifo", "lifo"])
def test_checking_what_is_idle_does_not_change_the_order(
    order: str, new_pool: Callable[..., Any], serial: Callable[[Any, int], list[int]]
) -> None:
    pool = new_pool(min_size=3, order=order)
    serial(pool, 1)
    before = list(pool._pool)
    pool.check()
    assert list(pool._pool) == before


def test_lifo_lets_connections_grow_idle_and_keeps_the_busy_one(
    grown: Callable[..., Any],
    serial: Callable[[Any, int], list[int]],
    eventually: Callable[..., Any],
) -> None:
    pool = grown(min_size=1, max_size=4, max_idle=0.1, order="lifo")
    (busy,) = set(serial(pool, 3))

    def use_until_shrunk() -> bool:
        assert set(serial(pool, 5)) == {busy}
        return bool(pool.snapshot().size == 1)

    eventually(use_until_shrunk)
    assert pool.snapshot().slots[0].backend_pid == busy


def test_an_unknown_order_is_refused(dsn: str) -> None:
    with pytest.raises(ValueError, match="order must be 'fifo' or 'lifo', not 'random'"):
        fastpool.ConnectionPool(dsn, order="random", open=False)


# --- max_connecting ---------------------------------------------------------------------------


class Crowd:
    """Requests for a connection that each keep theirs until let go."""

    def __init__(self, pool: Any, spawn: Callable[..., Any]) -> None:
        self._pool = pool
        self._spawn = spawn
        self._leave = threading.Event()
        self._calls: list[Any] = []

    def _keep_one(self) -> None:
        with self._pool.connection(timeout=20.0):
            assert self._leave.wait(20.0)

    def come(self, count: int) -> None:
        self._calls += [self._spawn(self._keep_one) for _ in range(count)]

    def go(self) -> None:
        self._leave.set()
        for call in self._calls:
            call.result()


@pytest.fixture
def crowd(spawn: Callable[..., Any]) -> Callable[[Any], Crowd]:
    """`crowd(pool)` makes a Crowd before the pool."""
    return lambda pool: Crowd(pool, spawn)


def in_use(pool: Any) -> int:
    return int(pool.snapshot().counts["in_use"])


def test_the_pool_grows_one_connect_at_a_time_by_default(
    new_pool: Callable[..., Any],
    network: Any,
    crowd: Callable[[Any], Crowd],
    waiting: Callable[[Any, int], None],
    eventually: Callable[..., Any],
) -> None:
    pool = new_pool(min_size=0, max_size=8, connection_class=network.connection_class)
    network.hold()
    requests = crowd(pool)
    requests.come(5)
    waiting(pool, 5)
    for served in range(1, 6):
        eventually(lambda: network.in_flight == 1)
        assert pool.snapshot().counts["connecting"] == 1
        network.let(1)
        eventually(lambda served=served: in_use(pool) == served)
    requests.go()
    assert network.most_in_flight == 1
    assert len(network.attempts) == 5


def test_max_connecting_lets_as_many_connect_at_once(
    new_pool: Callable[..., Any],
    network: Any,
    crowd: Callable[[Any], Crowd],
    waiting: Callable[[Any, int], None],
    eventually: Callable[..., Any],
) -> None:
    pool = new_pool(
        min_size=0,
        max_size=8,
        max_connecting=3,
        connection_class=network.connection_class,
    )
    network.hold()
    requests = crowd(pool)
    requests.come(7)
    waiting(pool, 7)
    eventually(lambda: network.in_flight == 3)
    assert pool.snapshot().counts["connecting"] == 3
    network.let(1)
    eventually(lambda: in_use(pool) == 1)
    eventually(lambda: len(network.attempts) == 4 and network.in_flight == 3)
    network.release()
    eventually(lambda: in_use(pool) == 7)
    requests.go()
    assert network.most_in_flight == 3
    assert len(network.attempts) == 7


def test_no_more_connects_are_started_than_requests_wait(
    new_pool: Callable[..., Any],
    network: Any,
    crowd: Callable[[Any], Crowd],
    waiting: Callable[[Any, int], None],
    eventually: Callable[..., Any],
) -> None:
    pool = new_pool(
        min_size=0,
        max_size=8,
        max_connecting=8,
        num_workers=8,
        connection_class=network.connection_class,
    )
    network.hold()
    requests = crowd(pool)
    for count in (1, 2, 3):
        requests.come(1)
        waiting(pool, count)
        eventually(lambda count=count: network.in_flight == count)
        assert pool.snapshot().counts["connecting"] == count
    network.release()
    eventually(lambda: in_use(pool) == 3)
    requests.go()
    assert len(network.attempts) == 3


def test_no_connect_is_started_beyond_max_size(
    new_pool: Callable[..., Any],
    network: Any,
    crowd: Callable[[Any], Crowd],
    waiting: Callable[[Any, int], None],
    eventually: Callable[..., Any],
) -> None:
    pool = new_pool(
        min_size=1,
        max_size=3,
        max_connecting=8,
        num_workers=8,
        connection_class=network.connection_class,
    )
    network.hold()
    requests = crowd(pool)
    requests.come(6)
    waiting(pool, 5)
    eventually(lambda: network.in_flight == 2)
    assert pool.snapshot().size == 3
    network.release()
    eventually(lambda: in_use(pool) == 3)
    requests.go()
    assert len(network.attempts) == 3
    assert pool.snapshot().size == 3


def test_a_connect_survives_the_request_that_asked_for_it(
    new_pool: Callable[..., Any],
    network: Any,
    eventually: Callable[..., Any],
    available: Callable[..., None],
) -> None:
    pool = new_pool(min_size=0, max_size=4, connection_class=network.connection_class)
    network.hold()
    with pytest.raises(fastpool.PoolTimeout):
        pool.getconn(timeout=0.05)
    eventually(lambda: network.in_flight == 1)
    network.release()
    available(pool, 1)
    pool.putconn(pool.getconn(timeout=0.0))
    assert len(network.attempts) == 1


def test_max_connecting_does_not_bound_the_first_connections(
    new_pool: Callable[..., Any], network: Any, eventually: Callable[..., Any]
) -> None:
    pool = new_pool(min_size=3, connection_class=network.connection_class, open=False)
    network.hold()
    pool.open()
    eventually(lambda: network.in_flight == 3)
    network.release()
    pool.wait()


def test_a_max_connecting_below_one_is_refused(dsn: str) -> None:
    with pytest.raises(ValueError, match="max_connecting must be at least 1"):
        fastpool.ConnectionPool(dsn, max_connecting=0, open=False)
