"""Random actions of many threads on one pool, with a ledger that knows who holds which session.

On a server, and on stubs, where nothing is waited for and far more is interrupted. Runs for
STRESS_SECONDS (10 unless set). The seed is printed; STRESS_SEED repeats a choice of actions, though
not how the threads interleave.
"""

from __future__ import annotations

import collections
import ctypes
import faulthandler
import gc
import itertools
import logging
import os
import queue
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from stub_server import Session, StubServer

import fastpool

SECONDS = float(os.environ.get("STRESS_SECONDS", "10"))
SEED = int(os.environ.get("STRESS_SEED", str(random.SystemRandom().randrange(2**32))))
THREADS = 24
TIMEOUT = 20.0

pytestmark = [pytest.mark.stress, pytest.mark.timeout(SECONDS + 90)]


class Killed(BaseException):
    """What is thrown into threads at any moment."""


class Entry:
    """That a thread holds a session, and how often it had been killed before."""

    def __init__(self, pid: int, name: str, kills: int) -> None:
        self.pid = pid
        self.name = name
        self.kills = kills


class Ledger:
    """Who holds which session. Two holders at once are what must never be.

    A thread that was killed may have lost its session without taking it off the ledger, so an
    entry proves nothing that was made before its holder was killed, or while that was on its way.
    Without locks, which a thread that is killed may leave locked: each step is one of a dictionary.
    """

    def __init__(self) -> None:
        self._holders: dict[int, Entry] = {}
        self.kills: collections.Counter[str] = collections.Counter()
        self.doomed: set[str] = set()  # what was thrown at them may not have struck yet
        self.faults: list[str] = []
        self._lendings = itertools.count()

    def take(self, conn: Any) -> Entry:
        """Enter that this thread holds the session; the entry, for leave()."""
        pid = conn.pgconn.backend_pid
        name = threading.current_thread().name
        mine = Entry(pid, name, self.kills[name])
        found = self._holders.setdefault(pid, mine)
        if found is not mine:
            self._holders[pid] = mine
            if found.name not in self.doomed and self.kills[found.name] == found.kills:
                self.faults.append(f"session {pid} is held by {found.name} and by {name}")
        next(self._lendings)
        return mine

    def leave(self, conn: Any, mine: Entry) -> None:
        """Before it is given back."""
        session = conn.pgconn
        if self._holders.get(mine.pid) is mine:
            del self._holders[mine.pid]
        # A server's client could not tell that from the end of its session.
        if isinstance(session, Session) and session.was_ended_by_the_client:
            self.faults.append(f"session {mine.pid} was ended while {mine.name} held it")

    @property
    def lendings(self) -> int:
        """How many there were: for the end, when nobody borrows any more."""
        return next(self._lendings)


class Actor:
    """One thread: takes random actions until the time is over."""

    def __init__(self, stress: Stress, number: int) -> None:
        self.stress = stress
        self.pool = stress.pool
        self.number = number
        self.random = random.Random(f"{SEED}-{number}")
        self.done: collections.Counter[str] = collections.Counter()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self.run, name=f"actor-{number}", daemon=True)

    def run(self) -> None:
        actions = list(ACTIONS)
        weights = list((ACTIONS | STUB_ACTIONS if self.stress.is_stub else ACTIONS).values())
        action = actions[self.number % len(actions)]  # so that each action is taken at least once
        while not self.stress.over:
            try:
                self.stress.spare()
                action(self)
            except Killed:
                self.done["killed"] += 1
            except psycopg.OperationalError as error:
                if not self.stress.may_break(error):
                    self.error = error
                    return
                self.done["broken"] += 1
            except BaseException as error:
                self.error = error
                return
            self.done[action.__name__] += 1
            action = self.random.choices(actions, weights)[0]

    def use(self, conn: Any) -> None:
        """Do with a connection what a borrower does."""
        # Not `with`: from Python 3.14 on, who is killed between the call and the block leaves the
        # rest to a finalizer, which may come after the return.
        mine = self.stress.ledger.take(conn)
        try:
            match self.random.randrange(4):
                case 0:
                    row = conn.execute("select pg_backend_pid()").fetchone()
                    if row != (conn.pgconn.backend_pid,):
                        self.stress.ledger.faults.append(f"{row} is not of {conn}")
                case 1:
                    conn.execute("select 1")
                    if self.random.random() < 0.5:
                        conn.rollback()
                case 2:
                    time.sleep(0 if self.stress.is_stub else self.random.random() * 0.002)
        finally:
            self.stress.ledger.leave(conn, mine)

    # --- the actions --------------------------------------------------------------------------

    def get_and_put(self) -> None:
        conn = self.pool.getconn(timeout=TIMEOUT)
        try:
            self.use(conn)
        finally:
            self.pool.putconn(conn)

    def connect_and_close(self) -> None:
        conn = self.pool.connect(timeout=TIMEOUT)
        try:
            self.use(conn)
        finally:
            conn.close()
        conn.close()

    def connect_in_a_block(self) -> None:
        with self.pool.connect(timeout=TIMEOUT) as conn:
            self.use(conn)

    def block(self) -> None:
        with self.pool.connection(timeout=TIMEOUT) as conn:
            self.use(conn)

    def raise_in_a_block(self) -> None:
        with suppress(ZeroDivisionError), self.pool.connection(timeout=TIMEOUT) as conn:
            self.use(conn)
            raise ZeroDivisionError

    def return_twice(self) -> None:
        # Only a lease knows its own lending: of a connection itself nothing can tell the second
        # return by one thread from the first by its next borrower.
        lease = self.pool.connect(timeout=TIMEOUT)
        lease.close()
        with suppress(ValueError):
            self.pool.putconn(lease)
            self.stress.ledger.faults.append("an ended lease was returned")

    def hurry(self) -> None:
        timeout = self.random.choice([0.0, 0.0001, 0.001])
        with suppress(fastpool.PoolTimeout), self.pool.connection(timeout=timeout) as conn:
            self.use(conn)

    def drop(self) -> None:
        conn = self.pool.getconn(timeout=TIMEOUT)
        if self.random.random() < 0.5:
            del conn
        else:
            cycle: list[Any] = [conn]
            cycle.append(cycle)
            del conn, cycle
            gc.collect()

    def drop_a_lease(self) -> None:
        self.pool.connect(timeout=TIMEOUT)

    def break_a_session(self) -> None:
        with self.pool.connection(timeout=TIMEOUT) as conn:
            mine = self.stress.ledger.take(conn)
            try:
                self.stress.server.terminate(conn.pgconn.backend_pid)
                conn.execute("select 1")
            finally:
                self.stress.ledger.leave(conn, mine)

    def break_any_session(self) -> None:
        pids = [slot.backend_pid for slot in self.pool.snapshot().slots if slot.backend_pid]
        if pids:
            self.stress.server.terminate(self.random.choice(pids))

    def resize(self) -> None:
        low = self.random.randrange(0, 5)
        self.pool.resize(low, self.random.randrange(max(low, 1), 9))

    def drain(self) -> None:
        self.pool.drain()

    def check(self) -> None:
        self.pool.check()

    def look(self) -> None:
        snapshot = self.pool.snapshot()
        faults = self.stress.ledger.faults
        if sum(snapshot.counts.values()) != len(snapshot.slots):
            faults.append(f"counts do not add up: {snapshot}")
        pids = [slot.backend_pid for slot in snapshot.slots if slot.backend_pid is not None]
        if len(set(pids)) != len(pids):
            faults.append(f"a session is in two slots: {snapshot}")
        if min(self.pool.get_stats().values()) < 0:
            faults.append(f"negative figures: {self.pool.get_stats()}")
        list(self.pool._pool)

    def kill_another(self) -> None:
        self.stress.kill(self.random)


# Each action with its weight.
ACTIONS: dict[Callable[[Actor], None], int] = {
    Actor.block: 300,
    Actor.get_and_put: 200,
    Actor.connect_and_close: 100,
    Actor.connect_in_a_block: 100,
    Actor.raise_in_a_block: 30,
    Actor.hurry: 100,
    Actor.return_twice: 20,
    Actor.look: 20,
    Actor.check: 5,
    Actor.drop: 5,
    Actor.drop_a_lease: 5,
    Actor.break_a_session: 5,
    Actor.break_any_session: 5,
    Actor.resize: 5,
    Actor.drain: 3,
    Actor.kill_another: 20,
}
# Interrupts are what the stubs are for.
STUB_ACTIONS = {Actor.kill_another: 600}


class Stress:
    """The pool, the actors on it, and what they share."""

    def __init__(self, pool: Any, server: Any) -> None:
        self.pool = pool
        self.server = server
        self.is_stub = isinstance(server, Stubs)
        self.ledger = Ledger()
        self.over = False
        self._mortal = threading.RLock()
        self.actors = [Actor(self, number) for number in range(THREADS)]

    def unharmed(self, action: Callable[..., Any], *args: Any) -> None:
        """Do what must not be interrupted by a kill(), in one thread at a time."""
        try:
            # Not `with`: from Python 3.14 on, what is thrown may strike between the lock and the
            # block. In here it finds the lock owned, and afterwards nobody throws.
            self._mortal.acquire()
            action(*args)
        finally:
            if self._mortal._is_owned():
                self._mortal.release()

    def kill(self, chance: random.Random) -> None:
        """Throw Killed into one of the actors while it borrows."""
        self.unharmed(self._kill, chance.choice(self.actors).thread)

    def _kill(self, thread: threading.Thread) -> None:
        # Not one that has ended: another thread may have its ident by now, a worker of the pool's.
        if not self.over and thread is not threading.current_thread() and thread.is_alive():
            self.ledger.kills[thread.name] += 1
            self.ledger.doomed.add(thread.name)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(Killed)
            )

    def spare(self) -> None:
        """Take back what was thrown at this actor between two actions, if it has not struck yet."""
        self.unharmed(self._spare, threading.current_thread())

    def _spare(self, thread: threading.Thread) -> None:
        if thread.name in self.ledger.doomed:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), None)
            self.ledger.kills[thread.name] += 1
            self.ledger.doomed.discard(thread.name)

    def start(self, thread: threading.Thread, start: Callable[[threading.Thread], None]) -> None:
        """Start a thread. While it is being started it has its parent's ident for a moment: what
        is thrown into the parent then kills the child before it runs, and start() waits for it for
        ever. And what strikes in start() itself may leave threading's own lock locked."""

        def begin() -> None:
            self._spare(threading.current_thread())
            start(thread)

        self.unharmed(begin)

    def end(self) -> None:
        """From here on there are no new actions, and nobody is thrown at."""
        self.over = True

    @staticmethod
    def may_break(error: psycopg.OperationalError) -> bool:
        """Whether this may be what a terminated session looks like to its borrower."""
        pools = (fastpool.PoolClosed, fastpool.PoolTimeout, fastpool.TooManyRequests)
        return not isinstance(error, pools)

    def run(self, seconds: float) -> None:
        for actor in self.actors:
            actor.thread.start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.ledger.faults:
            self.collect()
        self.unharmed(self.end)
        deadline = time.monotonic() + TIMEOUT + 10.0
        while any(actor.thread.is_alive() for actor in self.actors):
            if time.monotonic() > deadline:
                faulthandler.dump_traceback(2)
                return
            self.collect()

    @staticmethod
    def collect() -> None:
        # An actor that is killed between making a cycle and collecting it leaves the pool's only
        # connection to the collector, which runs when somebody allocates: and all wait.
        time.sleep(0.2)
        gc.collect()


class Server:
    """A PostgreSQL, as an administrator sees it."""

    def __init__(self, dsn: str) -> None:
        self._admin = psycopg.connect(dsn, autocommit=True)
        self._doomed: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        # A thread of its own, for an actor may be killed in the middle of a query.
        self._executioner = threading.Thread(target=self._execute, daemon=True)
        self._executioner.start()

    def terminate(self, pid: int) -> None:
        """End one session on the server's side, soon."""
        self._doomed.put(pid)

    def _execute(self) -> None:
        while (pid := self._doomed.get()) is not None:
            self._admin.execute("select pg_terminate_backend(%s)", [pid])

    def sessions(self, name: str) -> set[int]:
        """The backends of the sessions with that application name."""
        rows = self._admin.execute(
            "select pid from pg_stat_activity where application_name = %s", [name]
        )
        return {pid for (pid,) in rows}

    def close(self) -> None:
        """End it all."""
        self._doomed.put(None)
        self._executioner.join(TIMEOUT)
        self._admin.close()


class Stubs:
    """The same, where there is no PostgreSQL."""

    def __init__(self) -> None:
        self.stub = StubServer()
        self.terminate = self.stub.terminate

    def sessions(self, name: str) -> set[int]:
        """The backends of all sessions."""
        return self.stub.sessions()

    def close(self) -> None:
        """There is nothing to end."""


class Immortal(Actor):
    """An actor that survives being killed outside its actions too."""

    def run(self) -> None:
        while not self.stress.over:
            with suppress(Killed):
                super().run()
                if self.error is not None:
                    return


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"order": "lifo", "max_connecting": 3}, id="lifo"),
        pytest.param({"reset": lambda conn: None}, id="reset"),
        pytest.param(
            {"check": fastpool.ConnectionPool.check_connection, "close_returns": True}, id="check"
        ),
        pytest.param({"stubs": True}, id="stubs"),
        pytest.param(
            {"stubs": True, "check": fastpool.ConnectionPool.check_connection, "max_connecting": 2},
            id="stubs with check",
        ),
    ],
)
def test_random_actions_lose_no_slot_and_lend_no_session_twice(
    options: dict[str, Any],
    dsn: str,
    eventually: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What captures the log keeps the connections that it names, so none would be collected.
    # Nor the driver's: its records hold the connections that they tell of.
    for name in ("psycopg", "psycopg.pool"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)
    # And what is thrown into a finalizer is reported with its frames, which hold them too.
    # Not by a function in Python: it would be interrupted too.
    monkeypatch.setattr(sys, "unraisablehook", collections.deque(maxlen=0).append)
    print(f"STRESS_SEED={SEED} STRESS_SECONDS={SECONDS:g}", file=sys.stderr)
    name = f"stress-{os.getpid()}"
    options = dict(options)
    server: Any = Stubs() if options.pop("stubs", False) else Server(dsn)
    if isinstance(server, Stubs):
        options["connection_class"] = server.stub.connection
    pool: Any = fastpool.ConnectionPool(
        dsn,
        kwargs={"application_name": name},
        min_size=2,
        max_size=6,
        max_idle=0.5,
        max_lifetime=2.0,
        name="stress",
        open=True,
        **options,
    )
    stress = Stress(pool, server)
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: stress.start(thread, start))
    stress.actors = [Immortal(stress, number) for number in range(THREADS)]
    gc.collect()
    gc.freeze()  # so that collecting is quick
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        stress.run(SECONDS / 6)
    finally:
        sys.setswitchinterval(switch)
        gc.unfreeze()

    # Nobody died of anything else, nobody hangs, and nobody saw what must not be.
    assert stress.ledger.faults == []
    assert [actor.error for actor in stress.actors if actor.error is not None] == []
    assert [actor.thread.name for actor in stress.actors if actor.thread.is_alive()] == []
    done: collections.Counter[str] = sum(
        (actor.done for actor in stress.actors), collections.Counter()
    )
    print(f"{stress.ledger.lendings} lendings; {dict(done)}", file=sys.stderr)
    assert {action.__name__ for action in ACTIONS} <= done.keys()

    # At rest each slot is idle or empty, min_size are there, and the server has the same sessions.
    pool.resize(3, 5)
    gc.collect()
    pool.check()  # also replaces what was terminated while it was idle

    def at_rest() -> bool:
        counts = pool.snapshot().counts
        return bool(counts["available"] == pool.snapshot().size >= 3)

    eventually(at_rest, timeout=20.0, what="all connections idle")
    pool._table.verify()
    snapshot = pool.snapshot()
    assert snapshot.waiting == 0
    pids = {slot.backend_pid for slot in snapshot.slots if slot.backend_pid is not None}
    eventually(lambda: server.sessions(name) == pids, what="the server's sessions to be the pool's")
    for _ in range(2):
        with pool.connection(timeout=5.0) as conn:
            assert conn.execute("select 1").fetchone() == (1,)
    assert stress.ledger.lendings > 100

    pool.close()
    pool._table.verify()
    assert pool.snapshot().size == 0
    eventually(lambda: not server.sessions(name))
    server.close()
