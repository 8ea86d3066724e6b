"""A deadlock of a program that has one thread is found out, also without a GIL."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

BORROWS_TWICE = """
import sys, threading, fastpool
with fastpool.ConnectionPool(sys.argv[1], min_size=1, open=False) as pool:
    conn = pool.getconn()
    {begin}
    try:
        again = pool.getconn(timeout=20.0)
    except fastpool.PoolTimeout as error:
        print(type(error).__name__)
    else:
        print("lent", again is conn)
    {end}
    pool.putconn(conn)
"""

# The handler gives back what its frame, or its module, holds.
RINGS = """
    import signal
    signal.signal(signal.SIGALRM, lambda *_: pool.putconn(conn))
    signal.setitimer(signal.ITIMER_REAL, 1.0)
"""
BORROWS_IN_A_FUNCTION = """
import signal, sys, fastpool

def work(pool):
    conn = pool.getconn()
    signal.signal(signal.SIGALRM, lambda *_: pool.putconn(conn))
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    again = pool.getconn(timeout=20.0)
    print("lent", again is conn)
    pool.putconn(again)

with fastpool.ConnectionPool(sys.argv[1], min_size=1, open=False) as pool:
    work(pool)
"""


def borrow_twice(script: Callable[..., Any], dsn: str, begin: str = "", end: str = "") -> str:
    done = script(BORROWS_TWICE.format(begin=begin, end=end), dsn)
    assert done.stderr == ""
    return str(done.stdout)


def test_a_script_of_one_thread_is_found_out(script: Callable[..., Any], dsn: str) -> None:
    assert borrow_twice(script, dsn) == "PoolDeadlock\n"


def test_a_thread_that_gives_the_connection_back_is_waited_for(
    script: Callable[..., Any], dsn: str
) -> None:
    # Longer than it takes to find out.
    begin = "timer = threading.Timer(1.0, pool.putconn, [conn]); timer.start()"
    assert borrow_twice(script, dsn, begin, "timer.join()") == "lent True\n"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no such timer")
@pytest.mark.parametrize(
    "code",
    [
        pytest.param(BORROWS_TWICE.format(begin=RINGS, end=""), id="in a global"),
        pytest.param(BORROWS_IN_A_FUNCTION, id="in a closure"),
    ],
)
def test_a_handler_of_signals_that_gives_the_connection_back_is_waited_for(
    script: Callable[..., Any], dsn: str, code: str
) -> None:
    done = script(code, dsn)
    assert (done.stdout, done.stderr) == ("lent True\n", "")
