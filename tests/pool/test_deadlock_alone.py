"""A deadlock of a program that has one thread is found out, also without a GIL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
