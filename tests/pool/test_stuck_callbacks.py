"""A callback that never returns holds its own connection, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import fastpool


@pytest.fixture
def stuck() -> Iterator[Any]:
    """A callback that blocks, from when it is `armed` until the test's end."""

    class Stuck:
        def __init__(self) -> None:
            self.armed = False
            self.reached = threading.Event()
            self.released = threading.Event()

        def __call__(self, conn: Any) -> None:
            if self.armed:
                self.armed = False
                self.reached.set()
                assert self.released.wait(20.0)

    callback = Stuck()
    yield callback
    callback.released.set()


def test_others_borrow_while_a_check_is_stuck(
    new_pool: Callable[..., Any], stuck: Any, spawn: Callable[..., Any]
) -> None:
    pool = new_pool(min_size=2, check=stuck)
    stuck.armed = True
    call = spawn(pool.getconn)
    assert stuck.reached.wait(5.0)
    with pool.connection(timeout=1.0) as conn:
        assert conn.execute("select 1").fetchone() == (1,)
        with pytest.raises(fastpool.PoolTimeout):
            pool.getconn(timeout=0.01)
    stuck.released.set()
    pool.putconn(call.result())


def test_others_borrow_while_a_reset_is_stuck(
    new_pool: Callable[..., Any], stuck: Any, available: Callable[..., None]
) -> None:
    pool = new_pool(min_size=2, reset=stuck)
    stuck.armed = True
    with pool.connection():
        pass
    assert stuck.reached.wait(5.0)
    with pool.connection(timeout=1.0) as conn:
        assert conn.execute("select 1").fetchone() == (1,)
    stuck.released.set()
    available(pool, 2)


def test_others_borrow_while_a_configure_is_stuck(
    new_pool: Callable[..., Any], stuck: Any, available: Callable[..., None]
) -> None:
    pool = new_pool(open=False, min_size=2, configure=stuck)
    stuck.armed = True
    pool.open()
    assert stuck.reached.wait(5.0)
    with pool.connection(timeout=2.0) as conn:
        assert conn.execute("select 1").fetchone() == (1,)
    stuck.released.set()
    available(pool, 2)


@pytest.mark.parametrize("name", ["configure", "reset"])
def test_close_does_not_wait_for_a_stuck_callback(
    new_pool: Callable[..., Any], stuck: Any, eventually: Callable[..., Any], name: str
) -> None:
    pool = new_pool(open=False, **{name: stuck})
    stuck.armed = True
    pool.open()
    if name == "reset":
        with pool.connection(timeout=5.0):
            pass
    assert stuck.reached.wait(5.0)
    pool.close(timeout=0.05)
    assert pool.closed
    stuck.released.set()
    eventually(lambda: pool.snapshot().size == 0)
