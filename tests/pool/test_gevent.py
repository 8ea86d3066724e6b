"""The pool for threads where gevent has made greenlets of them, each test in a process of its own.

A greenlet that waits must let the others run, and gevent.Timeout, which is no Exception, ends a
wait at any point. The driver cooperates with gevent by itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gevent") is None, reason="gevent is not installed"
)

PACKAGES = ("psycopg_pool", "fastpool")
both = pytest.mark.parametrize("package", PACKAGES)

PATCH = "from gevent import monkey; monkey.patch_all()\n"
IMPORT = """
import sys
import psycopg
import {package} as package
"""
START = """
import gevent, threading, time
from gevent.event import Event

sys.tracebacklimit = 0 if package.__name__ == "psycopg_pool" else 10

dsn = sys.argv[1]

def new_pool(**options):
    options = {{"min_size": 2, "name": "p", "open": False, **options}}
    pool = package.ConnectionPool(dsn, **options)
    pool.open(wait=True, timeout=5.0)
    return pool

def eventually(predicate):
    with gevent.Timeout(5.0, AssertionError("not within 5 s")):
        while not predicate():
            gevent.sleep(0.005)

def waiting(pool, count):
    eventually(lambda: pool.get_stats()["requests_waiting"] == count)

def all_are_there(pool):
    conns = [pool.getconn(timeout=2.0) for _ in range(pool.max_size)]
    assert len({{conn.pgconn.backend_pid for conn in conns}}) == pool.max_size
    for conn in conns:
        assert conn.execute("select 1").fetchone() == (1,)
        conn.rollback()
        pool.putconn(conn)
    return True

class Heart:
    \"\"\"A greenlet that counts how often it is let run, every 10 ms at best.\"\"\"

    def __init__(self):
        self.beats = 0
        gevent.spawn(self.beat)

    def beat(self):
        while True:
            gevent.sleep(0.01)
            self.beats += 1
"""


@pytest.fixture
def greenlets(script: Callable[..., Any], dsn: str) -> Callable[..., None]:
    """`greenlets(package, source)` runs *source* under gevent; it must print "done"."""

    def run(package: str, source: str, patch_first: bool = True) -> None:
        pytest.importorskip(package, reason="psycopg_pool, the yardstick, is not installed")
        head = PATCH + IMPORT if patch_first else IMPORT + PATCH
        # What gevent, and patching late, warn of is theirs.
        quiet = "import warnings; warnings.simplefilter('ignore')\n"
        loud = "warnings.simplefilter('error')\n"
        source = quiet + (head + START).format(package=package) + loud + source + "\nprint('done')"
        result = script(source, dsn)
        assert (result.stdout, result.returncode) == ("done\n", 0), result.stderr

    return run


@both
@pytest.mark.parametrize(
    ("callbacks", "patch_first"),
    [
        pytest.param("", True, id="patched first"),
        pytest.param("", False, id="imported first"),
        pytest.param("reset=lambda conn: None", True, id="with reset"),
        pytest.param("check=lambda conn: None", True, id="with check"),
    ],
)
def test_greenlets_share_a_small_pool(
    callbacks: str, patch_first: bool, package: str, greenlets: Callable[..., None]
) -> None:
    source = """
pool = new_pool(CALLBACKS)
held, most, served = 0, 0, []

def work(number):
    global held, most
    for _ in range(5):
        with pool.connection(timeout=10.0) as conn:
            held += 1
            most = max(most, held)
            assert conn.execute("select pg_sleep(0.005), %s", [number]).fetchone()[1] == number
            held -= 1
        served.append(number)

gevent.joinall([gevent.spawn(work, number) for number in range(20)], timeout=20.0, raise_error=True)
assert sorted(served) == sorted([*range(20)] * 5)
assert most <= 2
assert all_are_there(pool)
pool.close()
"""
    greenlets(package, source.replace("CALLBACKS", callbacks), patch_first)


@both
@pytest.mark.parametrize("patch_first", [True, False], ids=["patched first", "imported first"])
def test_the_others_run_while_one_waits(
    patch_first: bool, package: str, greenlets: Callable[..., None]
) -> None:
    source = """
pool = new_pool()
conns = [pool.getconn(), pool.getconn()]
heart = Heart()
try:
    pool.getconn(timeout=0.3)
except package.PoolTimeout:
    pass
else:
    raise AssertionError("lent a third")
assert heart.beats >= 5, heart.beats
for conn in conns:
    pool.putconn(conn)
pool.close()
"""
    greenlets(package, source, patch_first)


@both
def test_a_greenlet_that_waits_is_handed_what_is_returned(
    package: str, greenlets: Callable[..., None]
) -> None:
    source = """
pool = new_pool(min_size=1)
conn = pool.getconn()
served = []
greenlets = []
for number in range(5):
    def take(number=number):
        with pool.connection(timeout=5.0):
            served.append(number)
    greenlets.append(gevent.spawn(take))
    waiting(pool, number + 1)
pool.putconn(conn)
gevent.joinall(greenlets, timeout=5.0, raise_error=True)
assert served == [0, 1, 2, 3, 4], served
pool.close()
"""
    greenlets(package, source)


@both
def test_threads_of_gevent_share_the_pool_as_well(
    package: str, greenlets: Callable[..., None]
) -> None:
    source = """
pool = new_pool()

def work():
    for _ in range(5):
        with pool.connection(timeout=10.0) as conn:
            conn.execute("select pg_sleep(0.002)")

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(10.0)
    assert not thread.is_alive()
assert all_are_there(pool)
pool.close()
"""
    greenlets(package, source)


@both
def test_greenlets_and_threads_of_the_system_share_the_pool(
    package: str, greenlets: Callable[..., None]
) -> None:
    source = """
pool = new_pool()
served = []

def work():
    for _ in range(10):
        with pool.connection(timeout=10.0) as conn:
            conn.execute("select pg_sleep(0.001)")
            served.append(threading.get_ident())

threads = gevent.get_hub().threadpool
jobs = [threads.spawn(work) for _ in range(4)] + [gevent.spawn(work) for _ in range(4)]
gevent.joinall(jobs, timeout=20.0, raise_error=True)
assert len(served) == 80
assert all_are_there(pool)
pool.close()
"""
    greenlets(package, source)


@pytest.mark.parametrize(
    "package",
    [
        # Defect 5: what is returned later is handed to one who has gone.
        pytest.param(
            "psycopg_pool", marks=pytest.mark.xfail(reason="it is lost", raises=AssertionError)
        ),
        "fastpool",
    ],
)
def test_a_gevent_timeout_while_waiting_loses_nothing(
    package: str, greenlets: Callable[..., None]
) -> None:
    source = """
pool = new_pool()
conns = [pool.getconn(), pool.getconn()]
timeouts = 0
for _ in range(20):
    try:
        with gevent.Timeout(0.01):
            pool.getconn(timeout=5.0)
    except gevent.Timeout:
        timeouts += 1
assert timeouts == 20
for conn in conns:
    pool.putconn(conn)
assert pool.get_stats()["requests_waiting"] == 0
assert all_are_there(pool)
pool.close()
"""
    greenlets(package, source)


def test_greenlets_killed_at_any_moment_lose_nothing(greenlets: Callable[..., None]) -> None:
    source = """
import random
pool = new_pool()
chance = random.Random(1)

def work():
    while True:
        with pool.connection(timeout=5.0) as conn:
            conn.execute("select pg_sleep(0.001)")

alive = [gevent.spawn(work) for _ in range(8)]
for _ in range(200):
    victim = alive.pop(chance.randrange(len(alive)))
    victim.kill(block=False)
    alive.append(gevent.spawn(work))
    gevent.sleep(chance.random() * 0.005)
gevent.killall(alive, timeout=5.0)
eventually(lambda: pool.get_stats()["pool_available"] == 2)
assert pool.get_stats()["requests_waiting"] == 0
assert all_are_there(pool)
pool._table.verify()
pool.close()
"""
    # What is killed in the middle of a query is closed, and replaced: with a warning.
    greenlets("fastpool", "import logging; logging.disable()" + source)


def test_a_lease_is_waited_for_and_given_back(greenlets: Callable[..., None]) -> None:
    source = """
pool = new_pool(min_size=1)
served = []

def work(number):
    for _ in range(3):
        with pool.connect(timeout=10.0) as conn:
            conn.execute("select pg_sleep(0.002)")
            served.append(number)

gevent.joinall([gevent.spawn(work, number) for number in range(10)], timeout=10.0, raise_error=True)
assert sorted(served) == sorted([*range(10)] * 3)
assert all_are_there(pool)
pool.close()
"""
    greenlets("fastpool", source)


@both
def test_closing_fails_the_greenlets_that_wait(
    package: str, greenlets: Callable[..., None]
) -> None:
    source = """
pool = new_pool()
conns = [pool.getconn(), pool.getconn()]

def take():
    try:
        pool.getconn(timeout=20.0)
    except package.PoolClosed:
        return "closed"

waiters = [gevent.spawn(take) for _ in range(3)]
waiting(pool, 3)
pool.close()
gevent.joinall(waiters, timeout=5.0, raise_error=True)
assert [waiter.value for waiter in waiters] == ["closed"] * 3
for conn in conns:
    pool.putconn(conn)
    assert conn.closed
"""
    greenlets(package, source)


@both
@pytest.mark.parametrize("patch_first", [True, False], ids=["patched first", "imported first"])
def test_what_is_timed_happens(
    patch_first: bool, package: str, greenlets: Callable[..., None]
) -> None:
    # Shrinking is the housekeeper's, which is a greenlet here.
    source = """
pool = new_pool(min_size=1, max_size=3, max_idle=0.1)
conns = [pool.getconn(timeout=5.0) for _ in range(3)]
for conn in conns:
    pool.putconn(conn)
assert pool.get_stats()["pool_size"] == 3
eventually(lambda: pool.get_stats()["pool_size"] == 1)
pool.close()
"""
    greenlets(package, source, patch_first)


@both
def test_a_broken_connection_is_replaced(package: str, greenlets: Callable[..., None]) -> None:
    source = """
import logging; logging.disable()
pool = new_pool(min_size=1)
conn = pool.getconn()
try:
    conn.execute("select pg_terminate_backend(pg_backend_pid())")
except psycopg.OperationalError:
    pass
pool.putconn(conn)
assert all_are_there(pool)
pool.close()
"""
    greenlets(package, source)


@both
def test_an_outage_blocks_nobody_else(package: str, greenlets: Callable[..., None]) -> None:
    source = """
import logging; logging.disable()
heart = Heart()
pool = package.ConnectionPool("host=/nowhere", min_size=1, open=False)
try:
    pool.open(wait=True, timeout=0.5)
except package.PoolTimeout:
    pass
else:
    raise AssertionError("connected to nowhere")
assert heart.beats >= 5, heart.beats
"""
    greenlets(package, source)


def test_idle_pools_have_one_greenlet_together(greenlets: Callable[..., None]) -> None:
    source = """
pools = [new_pool() for _ in range(3)]
def names():
    return [thread.name for thread in threading.enumerate() if thread.name != "MainThread"]
eventually(lambda: names() == ["fastpool-housekeeper"])
for pool in pools:
    pool.close()
eventually(lambda: names() == [])
"""
    greenlets("fastpool", source)


@both
def test_a_program_ends_though_its_pool_was_left_open(
    package: str, greenlets: Callable[..., None]
) -> None:
    greenlets(package, "pool = new_pool()\n")


@both
@pytest.mark.parametrize("max_size", [0, 2])
def test_the_null_pool_works_too(
    max_size: int, package: str, greenlets: Callable[..., None]
) -> None:
    source = """
pool = package.NullConnectionPool(dsn, max_size=MAX_SIZE, open=False, name="p")
pool.open(wait=True, timeout=5.0)
served = []

def work(number):
    with pool.connection(timeout=10.0) as conn:
        conn.execute("select pg_sleep(0.002)")
        served.append(number)

gevent.joinall([gevent.spawn(work, number) for number in range(10)], timeout=10.0, raise_error=True)
assert sorted(served) == [*range(10)]
pool.close()
"""
    greenlets(package, source.replace("MAX_SIZE", str(max_size)))
