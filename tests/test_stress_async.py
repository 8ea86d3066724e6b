"""Random actions of many tasks on one async pool, cancelled at random moments, with a ledger that
knows who holds which session.

On a server, and on stubs, where nothing is waited for and far more is cancelled. Runs for
STRESS_SECONDS (10 unless set). The seed is printed; STRESS_SEED repeats a choice of actions, though
not what the server's answers come in between of.
"""

from __future__ import annotations

import asyncio
import collections
import gc
import logging
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pytest
from pool_async.stepping import MANNERS, Cancelling
from stub_server import Session, StubServer

import fastpool
import fastpool.base
import fastpool.connector
import fastpool.tasks

SECONDS = float(os.environ.get("STRESS_SECONDS", "10"))
SEED = int(os.environ.get("STRESS_SEED", str(random.SystemRandom().randrange(2**32))))
ACTORS = 60
TIMEOUT = 20.0
MAX_SIZE = 6
# How many cancellations the pools on stubs have to cope with, all together.
CASES = int(110_000 * SECONDS / 60)

# Before Python 3.12 asyncio.wait_for(), in which the driver waits for the server, returns the
# result and forgets the cancellation when both come at once (python/cpython#86296); and what
# getconn() returned to it may be dropped.
WAIT_FOR_FORGETS = sys.version_info < (3, 12)

pytestmark = [pytest.mark.stress, pytest.mark.timeout(SECONDS + 90)]


class Ledger:
    """Who holds which session. Two holders at once are what must never be."""

    def __init__(self) -> None:
        self._holders: dict[Any, str] = {}
        self.faults: list[str] = []
        self.lendings = 0

    @contextmanager
    def hold(self, conn: Any, name: str) -> Iterator[None]:
        session = conn.pgconn
        other = self._holders.get(session)
        if other is not None:
            self.faults.append(f"session {session} is held by {other} and by {name}")
        self._holders[session] = name
        self.lendings += 1
        try:
            yield
        finally:
            if self._holders.get(session) == name:
                del self._holders[session]
            # A server's client could not tell that from the end of its session.
            if isinstance(session, Session) and session.was_ended_by_the_client:
                self.faults.append(f"the pool ended {session} while {name} held it")


class Actor:
    """One task: takes random actions, each in a task of its own that may be cancelled."""

    def __init__(self, stress: Stress, number: int) -> None:
        self.stress = stress
        self.pool = stress.pool
        self.name = f"actor-{number}"
        self.number = number
        self.random = random.Random(f"{SEED}-{number}")
        self.done: collections.Counter[str] = collections.Counter()
        self.cancelled: collections.Counter[str] = collections.Counter()

    async def run(self) -> None:
        actions = [action for action in ACTIONS if action not in self.stress.without]
        weights = [ACTIONS[action] for action in actions]
        action = actions[self.number % len(actions)]  # so that each is taken at least once
        while not self.stress.over:
            # A function of its own: it drops what it held, as far as the exception's frames.
            await self.take(action)
            action = self.random.choices(actions, weights)[0]

    async def take(self, action: Callable[[Actor], Coroutine[Any, Any, None]]) -> None:
        """Take an action, and cancel it in one of the ways that there are, or let it be."""
        chance = self.random
        self.cancellations = 0
        how = chance.choice(("not", "turns", "twice", *MANNERS, *MANNERS))
        coroutine = action(self)
        if how in MANNERS:
            at = min(int(chance.expovariate(0.5)), 20)
            cancelling = Cancelling(coroutine, at, how)
            task = asyncio.get_running_loop().create_task(cancelling.run(), name=self.name)
        else:
            task = asyncio.get_running_loop().create_task(coroutine, name=self.name)
            if how != "not":
                self.cancel_after(task, int(chance.expovariate(0.2)), again=how == "twice")
        await asyncio.wait({task}, timeout=TIMEOUT + 10.0)
        if how in MANNERS:
            self.cancellations = cancelling.cancellations

        self.done[action.__name__] += 1
        self.cancelled[how] += self.cancellations
        if not task.done():
            self.fault(f"{action.__name__} hangs: {task}")
        elif task.cancelled():
            self.done["cancelled"] += 1
        elif task.exception() is not None:
            error = task.exception()
            self.done["broken"] += 1
            if not self.stress.may_break(error):
                self.fault(f"{action.__name__} ended by {error!r}")
        elif self.cancellations:
            self.done["swallowed"] += 1
            in_wait_for = not self.stress.is_stub or action in WAIT_FOR
            if not (WAIT_FOR_FORGETS and in_wait_for):
                self.fault(f"{action.__name__}: {how} was swallowed")

    def cancel_after(self, task: asyncio.Task[None], turns: int, again: bool) -> None:
        """Cancel *task* when the loop has turned that often. *again*: and once more, later."""
        loop = asyncio.get_running_loop()
        if turns > 0:
            loop.call_soon(self.cancel_after, task, turns - 1, again)
            return
        self.cancellations += task.cancel()
        if again and not task.done():
            loop.call_soon(self.cancel_after, task, self.random.randrange(3), False)

    def fault(self, text: str) -> None:
        self.stress.ledger.faults.append(text)

    async def use(self, conn: Any) -> None:
        """Do with a connection what a borrower does."""
        with self.stress.ledger.hold(conn, self.name):
            match self.random.randrange(24):
                case 0:
                    token = self.random.randrange(2**31)
                    cursor = await conn.execute("select pg_backend_pid(), %s::int", [token])
                    row = await cursor.fetchone()
                    if row != (conn.pgconn.backend_pid, token):
                        self.fault(f"{row} is not the answer of {conn} to {token}")
                case 1:
                    await conn.execute("select 1")
                    if self.random.random() < 0.5:
                        await conn.rollback()
                case 2:
                    await asyncio.sleep(self.random.random() * 0.002)
                case _:
                    for _ in range(self.random.randrange(3)):
                        await asyncio.sleep(0)

    # --- the actions --------------------------------------------------------------------------

    async def get_and_put(self) -> None:
        conn = await self.pool.getconn(timeout=TIMEOUT)
        try:
            await self.use(conn)
        finally:
            await self.pool.putconn(conn)

    async def connect_and_close(self) -> None:
        lease = await self.pool.connect(timeout=TIMEOUT)
        try:
            await self.use(lease)
        finally:
            await lease.close()
        await lease.close()

    async def connect_in_a_block(self) -> None:
        async with self.pool.connect(timeout=TIMEOUT) as conn:
            await self.use(conn)

    async def block(self) -> None:
        async with self.pool.connection(timeout=TIMEOUT) as conn:
            await self.use(conn)

    async def raise_in_a_block(self) -> None:
        with suppress(ZeroDivisionError):
            async with self.pool.connection(timeout=TIMEOUT) as conn:
                await self.use(conn)
                raise ZeroDivisionError

    async def return_twice(self) -> None:
        # Only a lease knows its own lending: of a connection itself nothing can tell the second
        # return from the first by its next borrower.
        lease = await self.pool.connect(timeout=TIMEOUT)
        await lease.close()
        with suppress(ValueError):
            await self.pool.putconn(lease)
            self.fault("an ended lease was returned")

    async def hurry(self) -> None:
        timeout = self.random.choice([0.0, 0.0001, 0.001, 0.005])
        with suppress(fastpool.PoolTimeout):
            async with self.pool.connection(timeout=timeout) as conn:
                await self.use(conn)

    async def hurry_by_wait_for(self) -> None:
        timeout = self.random.choice([0.0001, 0.001, 0.005])
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.block(), timeout)

    async def wait_until_full(self) -> None:
        # Not by its own timeout, which would close the pool.
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.pool.wait(timeout=1e6), 0.005)

    async def drop(self) -> None:
        conn = await self.pool.getconn(timeout=TIMEOUT)
        if self.random.random() < 0.5:
            del conn
        else:
            cycle: list[Any] = [conn]
            cycle.append(cycle)
            del conn, cycle
            gc.collect(0)

    async def drop_a_lease(self) -> None:
        await self.pool.connect(timeout=TIMEOUT)

    async def drop_a_block(self) -> None:
        await self.pool.connection(timeout=TIMEOUT).__aenter__()

    async def destroy_a_request(self) -> None:
        """End a coroutine as the end of a loop does, wherever it is."""
        request = self.pool.getconn(timeout=TIMEOUT)
        try:
            if request.send(None) is not None:  # it waits, in the pool or for the server
                for _ in range(self.random.randrange(4)):
                    await asyncio.sleep(0)
        except StopIteration as end:
            conn = end.value
            try:
                await self.use(conn)
            finally:
                await self.pool.putconn(conn)
        finally:
            request.close()

    async def close_a_connection(self) -> None:
        conn = await self.pool.getconn(timeout=TIMEOUT)
        try:
            await conn.close()
        finally:
            if not self.pool.close_returns:
                await self.pool.putconn(conn)

    async def break_a_session(self) -> None:
        async with self.pool.connection(timeout=TIMEOUT) as conn:
            with self.stress.ledger.hold(conn, self.name):
                self.stress.server.terminate(conn.pgconn.backend_pid)
                await conn.execute("select pg_sleep(0.001)")

    async def break_any_session(self) -> None:
        pids = [slot.backend_pid for slot in self.pool.snapshot().slots if slot.backend_pid]
        if pids:
            self.stress.server.terminate(self.random.choice(pids))

    async def resize(self) -> None:
        low = 0 if self.stress.is_null else self.random.randrange(5)
        await self.pool.resize(low, self.random.randrange(max(low, 1), MAX_SIZE + 1))

    async def drain(self) -> None:
        await self.pool.drain()

    async def check(self) -> None:
        await self.pool.check()

    async def look(self) -> None:
        snapshot = self.pool.snapshot()
        if sum(snapshot.counts.values()) != len(snapshot.slots):
            self.fault(f"counts do not add up: {snapshot}")
        pids = [slot.backend_pid for slot in snapshot.slots if slot.backend_pid is not None]
        if len(set(pids)) != len(pids):
            self.fault(f"a session is in two slots: {snapshot}")
        if min(self.pool.get_stats().values()) < 0:
            self.fault(f"negative figures: {self.pool.get_stats()}")
        self.pool._table.verify()
        list(self.pool._pool)

    async def cancel_a_chore(self) -> None:
        chores = [task for task in asyncio.all_tasks() if task.get_name() == "stress-worker"]
        if chores:
            self.random.choice(chores).cancel()


# Each action with its weight.
ACTIONS: dict[Callable[[Actor], Coroutine[Any, Any, None]], int] = {
    Actor.block: 300,
    Actor.get_and_put: 200,
    Actor.connect_and_close: 100,
    Actor.connect_in_a_block: 100,
    Actor.raise_in_a_block: 30,
    Actor.hurry: 100,
    Actor.hurry_by_wait_for: 50,
    Actor.wait_until_full: 5,
    Actor.return_twice: 20,
    Actor.look: 10,
    Actor.check: 5,
    Actor.drop: 5,
    Actor.drop_a_lease: 5,
    Actor.drop_a_block: 5,
    Actor.destroy_a_request: 20,
    Actor.close_a_connection: 5,
    Actor.break_a_session: 3,
    Actor.break_any_session: 3,
    Actor.resize: 5,
    Actor.drain: 2,
    Actor.cancel_a_chore: 5,
}


# What waits in asyncio.wait_for() itself.
WAIT_FOR = {Actor.hurry_by_wait_for, Actor.wait_until_full}

# What leaves a connection to the collector. The pool copes, which would hide what else loses one.
DROPS = {Actor.drop, Actor.drop_a_lease}


class Stress:
    """The pool, the actors on it, and what they share. *without*: actions not to be taken."""

    def __init__(self, pool: Any, server: Any, without: set[Any] | frozenset[Any]) -> None:
        self.pool = pool
        self.server = server
        self.is_null = isinstance(pool, fastpool.AsyncNullConnectionPool)
        self.is_stub = isinstance(server, Stubs)
        self.without = without
        self.ledger = Ledger()
        self.over = False
        self.actors = [Actor(self, number) for number in range(ACTORS)]

    @property
    def cancellations(self) -> int:
        """How many there have been."""
        return sum(actor.cancelled.total() for actor in self.actors)

    def may_break(self, error: BaseException | None) -> bool:
        """Whether this may be what a terminated session looks like to its borrower."""
        if isinstance(error, (fastpool.PoolClosed, fastpool.PoolTimeout)):
            return False
        # A null pool's borrower is told what his own connect failed with.
        return isinstance(error, psycopg.OperationalError)

    @staticmethod
    async def collect() -> None:
        # A borrower whose connection is in a cycle leaves it to the collector, which runs when
        # somebody allocates; and so does the driver a connect that is cancelled.
        await asyncio.sleep(0.1)
        gc.collect()

    async def run(self, seconds: float, cases: int) -> None:
        """Let the actors act for that long, and until that many cancellations have been."""
        tasks = [asyncio.get_running_loop().create_task(actor.run()) for actor in self.actors]
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.ledger.faults:
            await self.collect()
        deadline += MOST * seconds
        while self.cancellations < cases and not self.ledger.faults:
            assert time.monotonic() < deadline, f"{self.cancellations} of {cases} cancellations"
            await self.collect()
        self.over = True
        deadline = time.monotonic() + TIMEOUT + 15.0
        while not all(task.done() for task in tasks) and time.monotonic() < deadline:
            await self.collect()
        done, pending = await asyncio.wait(tasks, timeout=0)
        for task in pending:
            self.ledger.faults.append(f"does not end: {task}")
            task.cancel()
        for task in done:
            task.result()


class Server:
    """A PostgreSQL, as an administrator sees it. Use it in an `async with` block."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._doomed: asyncio.Queue[int | None] = asyncio.Queue()

    async def __aenter__(self) -> Server:
        self._admin = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
        self._executioner = asyncio.get_running_loop().create_task(self._execute())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._doomed.put_nowait(None)
        await self._executioner
        await self._admin.close()

    def terminate(self, pid: int) -> None:
        """End one session on the server's side, soon."""
        self._doomed.put_nowait(pid)

    async def _execute(self) -> None:
        while (pid := await self._doomed.get()) is not None:
            await self._admin.execute("select pg_terminate_backend(%s)", [pid])

    async def sessions(self, name: str) -> set[int]:
        """The backends of the sessions with that application name."""
        cursor = await self._admin.execute(
            "select pid from pg_stat_activity where application_name = %s", [name]
        )
        return {pid for (pid,) in await cursor.fetchall()}


class Stubs:
    """The same, where there is no PostgreSQL."""

    def __init__(self) -> None:
        self.stub = StubServer()
        self.terminate = self.stub.terminate

    async def __aenter__(self) -> Stubs:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass

    async def sessions(self, name: str) -> set[int]:
        """The backends of all sessions."""
        return self.stub.sessions()


async def eventually(predicate: Callable[[], Any], timeout: float = 10.0, what: str = "") -> None:
    """Let the loop run until *predicate*, or what awaiting it gives, is true."""
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() > deadline
        value = predicate()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return
        if late:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        await asyncio.sleep(0.01)


async def pause(conn: Any) -> None:
    """A callback that suspends, and asks the server."""
    await asyncio.sleep(0)
    if random.random() < 0.1:
        await conn.execute("select 1")
        await conn.rollback()
    await asyncio.sleep(0)


async def fail_at_times(conn: Any) -> None:
    """The same, and one in fifty fails, with its transaction open."""
    await pause(conn)
    if random.random() < 0.02:
        await conn.execute("select 1")
        raise ValueError("at random")


CALLBACKS = {"configure": pause, "reset": fail_at_times, "check": pause}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"drops": True},
    "lifo": {"order": "lifo", "max_connecting": 3},
    "callbacks": CALLBACKS,
    "close_returns": {"drops": True, "close_returns": True},
    "null": {"null": True},
    "null with callbacks": {"drops": True, "null": True, **CALLBACKS},
    "stubs": {"stubs": True, "drops": True},
    "stubs with callbacks": {"stubs": True, "max_connecting": 2, **CALLBACKS},
    "stubs that return": {"stubs": True, "drops": True, "close_returns": True, "order": "lifo"},
    "null stubs": {"stubs": True, "null": True},
}
STUBS = sum("stubs" in options for options in OPTIONS.values())
# Half of the time is the stubs'; the server's share it with uvloop and eager tasks.
SHARE = SECONDS / 2 / (len(OPTIONS) - STUBS + 2)
STUBS_SHARE = SECONDS / 2 / STUBS
# How many times its share a pool may take to its number of cancellations.
MOST = 12
NULL = fastpool.AsyncNullConnectionPool


async def stress_a_pool(
    dsn: str, null: bool = False, drops: bool = False, stubs: bool = False, **options: Any
) -> Stress:
    """Let the actors loose on a pool, then count its slots."""
    server: Any = Stubs() if stubs else Server(dsn)
    if stubs:
        options["connection_class"] = server.stub.async_connection
    name = f"stress-async-{os.getpid()}"
    pool: Any = (NULL if null else fastpool.AsyncConnectionPool)(
        dsn,
        kwargs={"application_name": name},
        min_size=0 if null else 2,
        max_size=MAX_SIZE,
        max_idle=0.5,
        max_lifetime=2.0,
        name="stress",
        open=False,
        **options,
    )
    await pool.open()
    async with server:
        stress = Stress(pool, server, without=frozenset() if drops else DROPS)
        await stress.run(STUBS_SHARE if stubs else SHARE, CASES // STUBS if stubs else 0)
        assert stress.ledger.faults == []
        await count_slots(stress, name)
    await eventually(lambda: len(asyncio.all_tasks()) == 1, what=f"{asyncio.all_tasks()} one")
    return stress


async def count_slots(stress: Stress, name: str) -> None:
    """Let the pool come to rest, see that nothing of it is lost, and close it."""
    pool = stress.pool

    # At rest each slot is idle or empty, and the server has the same sessions.
    least = 0 if stress.is_null else 3
    await pool.resize(least, 5)
    gc.collect()
    await pool.check()  # also replaces what was terminated while it was idle

    def at_rest() -> bool:
        counts = pool.snapshot().counts
        return bool(5 >= counts["available"] == pool.snapshot().size >= least)

    await eventually(at_rest, 20.0, f"{pool.snapshot()} idle")
    pool._table.verify()
    assert pool.snapshot().waiting == 0
    assert pool.get_stats()["requests_waiting"] == 0

    async def agrees() -> bool:
        gc.collect()
        pids = {slot.backend_pid for slot in pool.snapshot().slots if slot.backend_pid is not None}
        return await stress.server.sessions(name) == pids

    await eventually(agrees, what="the server's sessions to be the pool's")
    conns = [await pool.getconn(timeout=5.0) for _ in range(5)]
    with pytest.raises(fastpool.PoolTimeout):
        await pool.getconn(timeout=0)
    for conn in conns:
        cursor = await conn.execute("select pg_backend_pid()")
        assert await cursor.fetchone() == (conn.pgconn.backend_pid,)
        await conn.rollback()
        await pool.putconn(conn)
    conns.clear()

    await pool.close()
    pool._table.verify()
    assert pool.snapshot().size == 0

    async def gone() -> bool:
        return not await stress.server.sessions(name)

    await eventually(gone, what="no session left")


def loop_factory(kind: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the loops of that kind."""
    if kind == "uvloop":
        factory: Any = pytest.importorskip("uvloop", reason="uvloop is not installed")
        return factory.new_event_loop  # type: ignore[no-any-return]
    if kind == "asyncio":
        return asyncio.new_event_loop
    if sys.version_info < (3, 12):
        pytest.skip("eager tasks came with Python 3.12")

    def eager() -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        return loop

    return eager


@pytest.mark.parametrize(
    ("options", "kind"),
    [(options, "asyncio") for options in OPTIONS] + [("plain", "uvloop"), ("plain", "eager")],
)
def test_random_cancellation_loses_no_slot_and_lends_no_session_twice(
    options: str, kind: str, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"STRESS_SEED={SEED} STRESS_SECONDS={SECONDS:g}", file=sys.stderr)
    # What captures the log keeps the connections that it names, so none would be collected.
    # Nor the driver's: its records hold the connections that they tell of.
    for logger in ("psycopg", "psycopg.pool"):
        monkeypatch.setattr(logging.getLogger(logger), "disabled", True)
    complaints: list[str] = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda args: complaints.append(f"{args.exc_value!r}: {args.err_msg}")
    )
    # Chores are cancelled here all the time, and not because a loop ends.
    monkeypatch.setattr(fastpool.tasks, "CANCELLED_DELAY", 0.001)
    monkeypatch.setattr(fastpool.connector, "INTERRUPTED_DELAY", 0.001)
    monkeypatch.setattr(fastpool.base.AttemptWithBackoff, "MAX_DELAY", 0.05)
    random.seed(SEED)

    gc.collect()
    gc.freeze()  # so that collecting is quick
    loop = loop_factory(kind)()
    loop.set_exception_handler(lambda loop, context: complaints.append(str(context)))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            stress = loop.run_until_complete(stress_a_pool(dsn, **OPTIONS[options]))
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
            gc.unfreeze()
        gc.collect()

    # Nothing complained, but of the connections that were dropped on purpose.
    told = [str(warning.message) for warning in warned]
    if not stress.without:
        told = [text for text in told if "was collected without being given back" not in text]
    complaints += told
    assert complaints == []
    actors = stress.actors
    done = sum((actor.done for actor in actors), collections.Counter[str]())
    cancelled = sum((actor.cancelled for actor in actors), collections.Counter[str]())
    print(
        f"{stress.ledger.lendings} lendings; {cancelled.total()} cancellations {dict(cancelled)};"
        f" {dict(done)}",
        file=sys.stderr,
    )
    assert {action.__name__ for action in ACTIONS if action not in stress.without} <= done.keys()
    assert stress.ledger.lendings > SECONDS  # few, for a busy machine gets little done in its share
    assert cancelled.total() > max(SECONDS, CASES // STUBS if stress.is_stub else 0) - 1
