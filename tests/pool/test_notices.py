"""Sessions that end while nobody looks: they leave the pool, and are replaced, before anybody
is lent one. The kernel tells; nothing is asked at a checkout."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from driver import needs_notifies

import fastpool
from fastpool import housekeeper, lending, notices
from fastpool._peek import DATA, ENDED, QUIET, look

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no epoll, no kqueue")

KINDS = (fastpool.ConnectionPool, fastpool.NullConnectionPool)


@pytest.fixture
def kill(admin: psycopg.Connection[Any]) -> Callable[..., None]:
    """`kill(*pids)` has the server end these sessions."""

    def end(*pids: int) -> None:
        for pid in pids:
            admin.execute("select pg_terminate_backend(%s)", [pid])

    return end


@pytest.fixture
def lost(eventually: Callable[..., Any]) -> Callable[[Any, int], None]:
    """`lost(pool, n)` blocks until *n* sessions were found to have ended while idle."""

    def wait(pool: Any, count: int) -> None:
        eventually(lambda: pool.get_stats()["connections_lost"] == count, what=f"{count} lost")

    return wait


def idle_pids(pool: Any) -> set[int]:
    return {conn.pgconn.backend_pid for conn in pool._pool}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd" if os.path.exists("/proc/self/fd") else "/dev/fd"))


# --- idle -------------------------------------------------------------------------------------


def test_idle_sessions_that_end_are_replaced_before_anybody_meets_them(
    new_pool: Callable[..., Any],
    kill: Callable[..., None],
    lost: Callable[[Any, int], None],
    available: Callable[..., None],
    at_rest: Callable[[Any], Any],
    log: Any,
) -> None:
    pool = new_pool(min_size=4)
    dead = idle_pids(pool)
    kill(*dead)
    lost(pool, 4)
    for _ in range(100):
        with pool.connection() as conn:
            assert conn.pgconn.backend_pid not in dead
            conn.execute("select 1")
    available(pool, 4)
    at_rest(pool)
    assert not idle_pids(pool) & dead
    assert log.kinds() == {"discarding broken": 4}
    stats = pool.get_stats()
    assert (stats["connections_lost"], stats["returns_bad"]) == (4, 0)


def test_sessions_beyond_min_size_are_replaced_too(
    new_pool: Callable[..., Any],
    kill: Callable[..., None],
    lost: Callable[[Any, int], None],
    available: Callable[..., None],
) -> None:
    pool = new_pool(min_size=0, max_size=2)
    with pool.connection(), pool.connection():
        pass
    kill(*idle_pids(pool))
    lost(pool, 2)
    available(pool, 2)


def test_with_a_check_what_was_found_broken_is_no_warning(
    new_pool: Callable[..., Any],
    kill: Callable[..., None],
    available: Callable[..., None],
    lost: Callable[[Any, int], None],
    caplog: pytest.LogCaptureFixture,
    eventually: Callable[..., Any],
) -> None:
    caplog.set_level(logging.INFO, logger="psycopg.pool")
    pool = new_pool(check=fastpool.ConnectionPool.check_connection)
    kill(*idle_pids(pool))
    lost(pool, 1)
    eventually(lambda: "not serving connection found broken" in caplog.messages)
    available(pool, 1)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_the_pool_closes_the_descriptor_of_a_session_that_ended(
    new_pool: Callable[..., Any],
    kill: Callable[..., None],
    lost: Callable[[Any, int], None],
    available: Callable[..., None],
    eventually: Callable[..., Any],
) -> None:
    pool = new_pool(min_size=3)
    eventually(lambda: not any("worker" in thread.name for thread in threading.enumerate()))
    before = descriptors()
    kill(*idle_pids(pool))
    lost(pool, 3)
    available(pool, 3)
    eventually(lambda: descriptors() == before, what=f"{before} descriptors")


def test_a_server_that_stops_is_noticed_and_one_that_starts_is_used(
    own_server: Callable[..., Any],
    new_pool: Callable[..., Any],
    lost: Callable[[Any, int], None],
    available: Callable[..., None],
    quick_backoff: None,
) -> None:
    server = own_server()
    pool = new_pool(server.dsn, min_size=3)
    server.stop(keep=True)
    lost(pool, 3)
    assert pool.snapshot().counts["available"] == 0
    server.start()
    available(pool, 3)
    with pool.connection() as conn:
        conn.execute("select 1")


def test_a_backend_that_is_killed_takes_all_sessions_along_and_all_are_replaced(
    own_server: Callable[..., Any],
    new_pool: Callable[..., Any],
    available: Callable[..., None],
    lost: Callable[[Any, int], None],
    quick_backoff: None,
) -> None:
    pool = new_pool(own_server().dsn, min_size=3)
    before = idle_pids(pool)
    os.kill(next(iter(before)), signal.SIGKILL)
    lost(pool, 3)
    available(pool, 3)
    assert not idle_pids(pool) & before


def test_the_servers_idle_session_timeout_costs_no_borrower_an_error(
    new_pool: Callable[..., Any], lost: Callable[[Any, int], None]
) -> None:
    pool = new_pool(min_size=1, kwargs={"options": "-c idle_session_timeout=50"})
    lost(pool, 1)
    with pool.connection() as conn:
        conn.execute("select 1")


# --- lent -------------------------------------------------------------------------------------


def test_a_session_that_ends_while_lent_is_replaced_while_its_borrower_still_has_it(
    new_pool: Callable[..., Any],
    kill: Callable[..., None],
    available: Callable[..., None],
    at_rest: Callable[[Any], Any],
    log: Any,
) -> None:
    pool = new_pool()
    conn = pool.getconn()
    kill(conn.pgconn.backend_pid)
    available(pool, 1)
    with pool.connection(timeout=0) as other:
        other.execute("select 1")
    assert not conn.closed, "it is not closed under him"
    assert log.warnings() == []
    pool.putconn(conn)
    assert conn.closed
    assert log.kinds() == {"discarding closed": 1}
    stats = pool.get_stats()
    assert (stats["returns_bad"], stats["connections_lost"], stats["pool_size"]) == (1, 0, 1)
    with pytest.raises(ValueError, match="can't return"):
        pool.putconn(conn)
    at_rest(pool)


def test_a_session_that_ends_in_a_block_ends_the_block_like_any_broken_one(
    new_pool: Callable[..., Any],
    kill: Callable[..., None],
    available: Callable[..., None],
    log: Any,
) -> None:
    pool = new_pool()
    with pool.connection() as conn:
        kill(conn.pgconn.backend_pid)
        available(pool, 1)
    with pytest.raises(psycopg.OperationalError), pool.connection() as conn:
        conn.execute("select 1")
        kill(conn.pgconn.backend_pid)
        available(pool, 1)
        conn.execute("select 1")
    assert pool.get_stats()["returns_bad"] == 2
    assert set(log.kinds()) == {"discarding closed"}


def test_a_session_that_ends_under_a_lease_ends_it_like_any_broken_one(
    new_pool: Callable[..., Any],
    kill: Callable[..., None],
    available: Callable[..., None],
    log: Any,
) -> None:
    pool = new_pool()
    lease = pool.connect()
    kill(lease.pgconn.backend_pid)
    available(pool, 1)
    lease.close()
    lease.close()
    assert lease.closed
    assert pool.get_stats()["returns_bad"] == 1
    assert log.kinds() == {"discarding closed": 1}


@pytest.mark.parametrize("cls", KINDS)
def test_a_connection_that_its_borrower_closes_frees_its_place_at_once(
    dsn: str, cls: Any, eventually: Callable[..., Any]
) -> None:
    with cls(dsn, min_size=0, max_size=1, open=False) as pool:
        conn = pool.getconn()
        conn.close()
        other = pool.getconn(timeout=5.0)
        assert other is not conn
        with suppress(ValueError):  # a null pool's close() gave it back
            pool.putconn(conn)
        pool.putconn(other)


@pytest.mark.parametrize("cls", KINDS)
def test_a_session_that_ends_while_lent_makes_room_for_who_waits(
    dsn: str, cls: Any, kill: Callable[..., None], spawn: Callable[..., Any], eventually: Any
) -> None:
    with cls(dsn, min_size=0, max_size=1, open=False) as pool:
        conn = pool.getconn()
        call = spawn(pool.getconn, 5.0)
        eventually(lambda: pool.snapshot().waiting == 1)
        kill(conn.pgconn.backend_pid)
        other = call.result()
        other.execute("select 1")
        pool.putconn(other)
        pool.putconn(conn)


def test_one_that_ended_and_is_never_given_back_is_counted_when_it_is_dropped(
    new_pool: Callable[..., Any],
    kill: Callable[..., None],
    available: Callable[..., None],
    lost: Callable[[Any, int], None],
) -> None:
    pool = new_pool()
    conn = pool.getconn()
    kill(conn.pgconn.backend_pid)
    available(pool, 1)
    del conn
    lost(pool, 1)
    assert pool.get_stats()["returns_bad"] == 0


def test_an_end_during_a_reset_is_acted_on_when_the_reset_is_over(
    new_pool: Callable[..., Any],
    kill: Callable[..., None],
    available: Callable[..., None],
    at_rest: Callable[[Any], Any],
    eventually: Callable[..., Any],
) -> None:
    """The slot is RETURNING, and so the worker's, when the notice comes. The worker makes it
    available, for its reset saw nothing. The notice is told again."""
    gate, resetting = threading.Event(), threading.Event()

    def reset(conn: Any) -> None:
        resetting.set()
        gate.wait(5.0)

    pool = new_pool(reset=reset)
    conn = pool.getconn()
    dead = conn.pgconn.backend_pid
    watch = next(w for w in list(notices._watches.values()) if w.belongs_to(pool))
    pool.putconn(conn)
    assert resetting.wait(5.0)
    kill(dead)
    eventually(lambda: look(watch.fd) == ENDED)
    assert pool._condemn(watch) is False
    gate.set()
    eventually(lambda: idle_pids(pool) and dead not in idle_pids(pool))
    at_rest(pool)
    assert pool.get_stats()["connections_lost"] == 1


def test_a_return_and_a_notice_at_the_same_time_free_the_slot_once(
    new_pool: Callable[..., Any], at_rest: Callable[[Any], Any]
) -> None:
    """Both go for the slot, over and over: the return's compare-and-swap from IN_USE, or the
    notice's, succeeds. The other side finds out, and nothing is refused."""
    pool = new_pool(min_size=2, max_size=2)
    for _ in range(40):
        conn = pool.getconn(5.0)
        watch = next(
            w
            for w in list(notices._watches.values())
            if w.belongs_to(pool) and w.index == conn._slot.index
        )
        barrier = threading.Barrier(2)

        def notice(barrier: Any = barrier, watch: Any = watch) -> None:
            barrier.wait()
            while not watch.closed and not pool._condemn(watch):
                pass

        thread = threading.Thread(target=notice)
        thread.start()
        barrier.wait()
        pool.putconn(conn)
        thread.join(10.0)
        assert not thread.is_alive()
        at_rest(pool)
    stats = pool.get_stats()
    assert stats["connections_lost"] + stats["returns_bad"] == 40


# --- suspicion --------------------------------------------------------------------------------


def test_one_found_broken_in_use_has_the_idle_ones_looked_at(
    new_pool: Callable[..., Any],
    end_session: Callable[[Any], None],
    available: Callable[..., None],
) -> None:
    pool = new_pool(min_size=3)
    others = list(pool._pool)[1:]
    conn = pool.getconn()
    for dead in (conn, *others):  # which nobody tells the pool
        end_session(dead)
    with suppress(psycopg.OperationalError):
        conn.execute("select 1")
    dead_pids = {dead.pgconn.backend_pid for dead in others}
    pool.putconn(conn)
    assert not idle_pids(pool) & dead_pids
    assert pool.get_stats()["connections_lost"] == 2
    available(pool, 3)


# --- what costs nothing -----------------------------------------------------------------------


@needs_notifies
def test_work_on_watched_connections_wakes_nobody(
    new_pool: Callable[..., Any], admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = new_pool(min_size=2, kwargs={"autocommit": True})
    wakings = []
    slept = housekeeper.Housekeeper._sleep

    def sleep(self: Any, sentry: Any) -> Any:
        wakings.append(time.monotonic())
        return slept(self, sentry)

    monkeypatch.setattr(housekeeper.Housekeeper, "_sleep", sleep)
    with pool.connection() as conn:
        conn.execute("listen news")
        for _ in range(50):
            conn.execute("select repeat('x', 100000)").fetchall()
            admin.execute("notify news")
        with conn.cursor().copy("copy (select generate_series(1, 20000)) to stdout") as copy:
            assert sum(len(block) for block in copy) > 100_000
        assert len(list(conn.notifies(timeout=0.1))) > 0
    for _ in range(1000):
        with pool.connection():
            pass
    assert wakings == []


def test_a_notification_to_an_idle_session_is_no_end(
    new_pool: Callable[..., Any], admin: Any, eventually: Callable[..., Any]
) -> None:
    pool = new_pool(kwargs={"autocommit": True})
    with pool.connection() as conn:
        conn.execute("listen news")
        session = conn.pgconn.backend_pid
    admin.execute("notify news, 'hello'")
    (idle,) = pool._pool
    eventually(lambda: look(idle.pgconn.socket) == DATA)
    assert not lending.has_ended(idle)
    with pool.connection() as conn:
        assert conn.pgconn.backend_pid == session
        assert [notice.payload for notice in conn.notifies(timeout=1.0, stop_after=1)] == ["hello"]


def test_a_look_at_a_socket_tells_what_it_holds() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert look(ours.fileno()) == QUIET
        theirs.send(b"x")
        assert look(ours.fileno()) == DATA
        ours.recv(1)
        theirs.close()
        assert look(ours.fileno()) == ENDED


# --- the housekeeper's own --------------------------------------------------------------------


def test_descriptors_and_threads_are_as_before_when_the_last_pool_is_closed(
    dsn: str, eventually: Callable[..., Any]
) -> None:
    eventually(lambda: not notices.any_watched())
    eventually(lambda: "fastpool-housekeeper" not in {t.name for t in threading.enumerate()})
    descriptors_before, threads_before = descriptors(), threading.active_count()
    pools = [fastpool.ConnectionPool(dsn, min_size=2, open=False) for _ in range(3)]
    for pool in pools:
        pool.open(wait=True)
    lent = pools[0].getconn()
    for pool in pools:
        pool.close()
    lent.close()
    eventually(lambda: descriptors() == descriptors_before, what="as many descriptors")
    eventually(lambda: threading.active_count() == threads_before, what="as many threads")


def test_a_pool_that_is_dropped_leaves_no_watch(
    dsn: str, eventually: Callable[..., Any], makers_gone: Callable[[], None]
) -> None:
    eventually(lambda: not notices.any_watched())
    pool = fastpool.ConnectionPool(dsn, min_size=2, open=True)
    pool.wait()
    conn = pool.getconn()
    makers_gone()
    assert notices.any_watched()
    del pool
    conn._pool = None
    eventually(lambda: not notices.any_watched(), what="no watch")
    conn.close()


# A process has one housekeeper: another one beside it would take its wake-ups.
@pytest.mark.usefixtures("no_pool_threads")
def test_a_timer_that_is_due_late_wakes_nobody_and_a_cancelled_one_is_let_go(
    eventually: Callable[..., Any],
) -> None:
    class Owner:
        def act(self) -> None: ...

    owner = Owner()
    house = housekeeper.Housekeeper()
    anchor = house.later(50.0, owner.act)
    eventually(lambda: house._asleep.inside)
    for _ in range(5000):
        house.later(60.0, owner.act).cancel()
    # The thread has to come to run, which a busy machine does not let it at once.
    eventually(lambda: len(house._inbox) + len(house._due) < 2100)
    anchor.cancel()
    eventually(lambda: not house._running.inside, what="the thread's end")


def test_at_the_programs_end_watches_make_no_noise(script: Any, dsn: str) -> None:
    source = (
        "import sys, fastpool\n"
        "pool = fastpool.ConnectionPool(sys.argv[1], min_size=2, open=True)\n"
        "pool.wait()\n"
        "conn = pool.getconn()\n"
    )
    done: subprocess.CompletedProcess[str] = script(source, dsn)
    assert (done.returncode, done.stderr) == (0, "")


# --- where the kernel can't tell --------------------------------------------------------------


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no epoll and no kqueue."""
    monkeypatch.setattr(notices, "can_watch", lambda: False)


@pytest.mark.usefixtures("deaf")
def test_without_notices_each_connection_is_looked_at_before_it_is_lent(
    new_pool: Callable[..., Any],
    kill: Callable[..., None],
    available: Callable[..., None],
    log: Any,
) -> None:
    pool = new_pool(min_size=3)
    assert not notices.any_watched() or not any(
        watch.belongs_to(pool) for watch in list(notices._watches.values())
    )
    dead = list(pool._pool)
    kill(*(conn.pgconn.backend_pid for conn in dead))
    while not all(look(conn.pgconn.socket) == ENDED for conn in dead):
        time.sleep(0.001)
    for _ in range(20):
        with pool.connection() as conn:
            conn.execute("select 1")
    available(pool, 3)
    assert pool.get_stats()["connections_lost"] == 3
    assert log.kinds() == {"discarding broken": 3}


@pytest.mark.usefixtures("deaf")
def test_without_notices_a_connection_with_news_is_lent(
    new_pool: Callable[..., Any], admin: Any, eventually: Callable[..., Any]
) -> None:
    pool = new_pool(kwargs={"autocommit": True})
    with pool.connection() as conn:
        conn.execute("listen news")
        session = conn.pgconn.backend_pid
    admin.execute("notify news, 'hello'")
    (idle,) = pool._pool
    eventually(lambda: look(idle.pgconn.socket) == DATA)
    with pool.connection() as conn:
        assert conn.pgconn.backend_pid == session


def test_a_sandbox_that_forbids_epoll_makes_pools_look(
    new_pool: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden() -> Any:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(notices, "KernelSentry", forbidden)
    monkeypatch.setattr(notices, "_allowed", {})
    pool = new_pool()
    assert pool._peeks
    assert not pool._lends
    with pool.connection() as conn:
        conn.execute("select 1")


def test_a_stand_in_for_a_connection_is_neither_watched_nor_suspected() -> None:
    assert not lending.has_ended(SimpleNamespace(pgconn=SimpleNamespace(status=0)))
