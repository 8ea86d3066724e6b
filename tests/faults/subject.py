"""A pool of any of the four kinds, driven from outside in the same way, with a ledger.

Owns: how an operation is started on a pool of threads or of tasks, how long it took, and what came
of it. Refuses: to know which faults there are, and what is right.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

import fastpool

KINDS: dict[str, type[Any]] = {
    "threads": fastpool.ConnectionPool,
    "tasks": fastpool.AsyncConnectionPool,
    "null-threads": fastpool.NullConnectionPool,
    "null-tasks": fastpool.AsyncNullConnectionPool,
}
POOLS = ("threads", "tasks")
NULL_POOLS = ("null-threads", "null-tasks")
ALL = (*POOLS, *NULL_POOLS)

# What a call may take beyond its deadline, in seconds.
GRACE = 0.05
# Whatever hangs is given up after so many seconds: far beyond all that is promised.
HANGS = 12.0
_TICK = 0.005
_MOST_LATE = 1.0
_LIVING = "select pid from pg_stat_activity where application_name = %s"


# --- the machine ------------------------------------------------------------------------------


class Metronome:
    """How late the machine wakes a thread that sleeps: what no pool can be blamed for."""

    def __init__(self) -> None:
        self._late: list[tuple[float, float]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metronome", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.is_set():
            due = time.monotonic() + _TICK
            time.sleep(_TICK)
            late = time.monotonic() - due
            if late > _TICK:
                self._late.append((due, late))

    def lateness(self, began: float, ended: float) -> float:
        """By how much (seconds) a sleep that was due in that time came too late, at worst."""
        worst = (late for due, late in self._late if began - _MOST_LATE <= due <= ended)
        return min(max(worst, default=0.0), _MOST_LATE)

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()


# --- who runs operations ----------------------------------------------------------------------


class Crew:
    """Threads that live on: what a thread borrowed must not seem to be a dead thread's."""

    def __init__(self) -> None:
        self._idle: list[queue.SimpleQueue[Callable[[], None] | None]] = []
        self._threads: list[threading.Thread] = []

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """Call *function* in a thread that does nothing else meanwhile."""
        future: Future[Any] = Future()

        def job() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        try:
            work = self._idle.pop()
        except IndexError:
            work = queue.SimpleQueue()
            thread = threading.Thread(target=self._run, args=[work], name="client", daemon=True)
            self._threads.append(thread)
            thread.start()
        work.put(job)
        return future

    def _run(self, work: queue.SimpleQueue[Callable[[], None] | None]) -> None:
        while (job := work.get()) is not None:
            job()
            del job
            self._idle.append(work)

    def dismiss(self) -> None:
        """End the threads that have nothing to do."""
        while self._idle:
            self._idle.pop().put(None)
        for thread in self._threads:
            thread.join(2.0)


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="loop", daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine as a task."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def stop(self) -> None:
        """End the loop and its thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5.0)
        self.loop.close()


def step(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits to its end."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waited")


def without_frames(error: Exception) -> Exception:
    """Cut an error off the frames it went through. Thousands of them in a ledger would have the
    collector stop all threads for half a second, and the pool look late."""
    chained: BaseException | None = error
    while chained is not None:
        chained.__traceback__ = None
        chained = chained.__context__
    return error


# --- what came of it --------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """One operation: who did what, when, how long it took (seconds), and what came of it."""

    who: str
    operation: str
    began: float
    ended: float
    late: Callable[[float, float], float]
    value: Any = None
    error: BaseException | None = None

    def __repr__(self) -> str:
        result = repr(self.value) if self.error is None else repr(self.error)
        return f"<{self.who}: {self.operation} in {self.took:.3f} s: {result}>"

    @property
    def took(self) -> float:
        return self.ended - self.began

    @property
    def ok(self) -> bool:
        return self.error is None

    def ends_within(self, seconds: float) -> Outcome:
        """Assert that it took no longer than *seconds*, 50 ms, and what the machine was late."""
        late = self.late(self.began, self.ended)
        assert self.took <= seconds + GRACE + late, (
            f"{self} was to end within {seconds} s; the machine was late by {late:.3f} s"
        )
        return self

    def fails_with(self, error: type[BaseException], naming: str = "") -> Outcome:
        """Assert that it raised *error*, with *naming* in its text."""
        assert isinstance(self.error, error), f"{self} was to fail with {error.__name__}"
        assert naming in str(self.error), f"{self} was to name {naming!r}"
        return self

    def succeeds(self) -> Outcome:
        """Assert that it raised nothing."""
        assert self.error is None, f"{self} was to succeed"
        return self


class Subject:
    """A pool under test. Every operation runs in a thread or a task of its own.

    Operations by name: getconn, putconn, use, query, begin, open, wait, close, check. `dsn` may be
    changed at any time: each attempt to connect reads it anew, and is noted in `attempts`.
    """

    _numbers = itertools.count()

    def __init__(self, kind: str, dsn: str, loop: Loop, metronome: Metronome, options: Any) -> None:
        self.kind = kind
        self.is_async = "tasks" in kind
        self.keeps_idle = kind in POOLS
        self.dsn = dsn
        self.name = f"faults-{os.getpid()}-{next(self._numbers)}"
        self.attempts: list[float] = []
        self.ledger: list[Outcome] = []
        self._loop = loop
        self._metronome = metronome
        self.crew = Crew()
        cls = KINDS[kind]
        if options.get("check") is True:
            options["check"] = cls.check_connection
        if not self.keeps_idle:
            options["min_size"] = 0
        options.setdefault("kwargs", {})["autocommit"] = True
        self.pool = cls(self._conninfo, open=False, name=kind, **options)

    def __repr__(self) -> str:
        return f"<{self.kind}: {dict(self.counts)}>"

    def _conninfo(self) -> str:
        self.attempts.append(time.monotonic())
        return make_conninfo(self.dsn, application_name=self.name)

    # --- operations: coroutines that never wait where the pool is one for threads

    async def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    async def _getconn(self, timeout: float | None = None) -> Any:
        return await self._call(self.pool.getconn, timeout=timeout)

    async def _putconn(self, conn: Any) -> None:
        await self._call(self.pool.putconn, conn)

    async def _query(self, conn: Any, sql: str = "select pg_backend_pid()") -> Any:
        cursor = await self._call(conn.execute, sql)
        row = await self._call(cursor.fetchone)
        return row[0]

    async def _begin(self, conn: Any) -> None:
        await self._call(conn.execute, "begin")

    async def _use(self, timeout: float | None = None, sql: str = "select pg_backend_pid()") -> Any:
        if self.is_async:
            async with self.pool.connection(timeout=timeout) as conn:
                return await self._query(conn, sql)
        with self.pool.connection(timeout=timeout) as conn:
            return await self._query(conn, sql)

    async def _work(self, stop: threading.Event, timeout: float, sql: str, pause: float) -> int:
        """Use the pool until *stop* is set; what fails is in the ledger. Return the uses."""
        uses = 0
        while not stop.is_set():
            uses += 1
            began = time.monotonic()
            outcome = await self._outcome("use", began, (timeout, sql), {})
            if not outcome.ok:
                self.ledger.append(outcome)
            await self._call(asyncio.sleep if self.is_async else time.sleep, pause)
        return uses

    async def _open(self, wait: bool = True, timeout: float = 10.0) -> None:
        await self._call(self.pool.open, wait=wait, timeout=timeout)

    async def _wait(self, timeout: float) -> None:
        await self._call(self.pool.wait, timeout=timeout)

    async def _close(self, timeout: float = 5.0) -> None:
        await self._call(self.pool.close, timeout=timeout)

    async def _check(self) -> None:
        await self._call(self.pool.check)

    async def _record(self, operation: str, began: float, args: Any, kwargs: Any) -> Outcome:
        outcome = await self._outcome(operation, began, args, kwargs)
        self.ledger.append(outcome)
        return outcome

    async def _outcome(self, operation: str, began: float, args: Any, kwargs: Any) -> Outcome:
        value = error = None
        try:
            value = await getattr(self, f"_{operation}")(*args, **kwargs)
        except Exception as raised:
            error = without_frames(raised)
        ended = time.monotonic()
        return Outcome(self.kind, operation, began, ended, self._metronome.lateness, value, error)

    def start(self, operation: str, *args: Any, **kwargs: Any) -> Future[Outcome]:
        """Start an operation; the future's result is its Outcome."""
        coroutine = self._record(operation, time.monotonic(), args, kwargs)
        if self.is_async:
            return self._loop.submit(coroutine)
        return self.crew.submit(lambda: step(coroutine))

    def attempt(self, operation: str, *args: Any, **kwargs: Any) -> Outcome:
        """Carry out an operation, and return what came of it. Fails when it hangs."""
        return self.outcome(self.start(operation, *args, **kwargs), operation)

    def outcome(self, future: Future[Outcome], operation: str = "an operation") -> Outcome:
        """Return what came of an operation that was started. Fails when it hangs."""
        try:
            return future.result(HANGS)
        except FutureTimeoutError:
            raise AssertionError(f"{self.kind}: {operation} hangs for {HANGS:g} s") from None

    def do(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """Carry out an operation that succeeds, and return its value."""
        return self.attempt(operation, *args, **kwargs).succeeds().value

    # --- what is known

    @property
    def counts(self) -> Any:
        """How many slots are in each state."""
        return self.pool.snapshot().counts

    @property
    def pids(self) -> set[int]:
        """The backends of the connections that can be lent, and of those that are."""
        return {
            slot.backend_pid
            for slot in self.pool.snapshot().slots
            if slot.state in ("available", "in_use")
        }

    @property
    def is_full(self) -> bool:
        """Whether every connection that there is to be stands available."""
        return bool(self.counts["available"] == self.pool.max_size)

    def sessions(self, admin: psycopg.Connection[Any]) -> set[int]:
        """The backends that the server has for this pool."""
        return {pid for (pid,) in admin.execute(_LIVING, [self.name])}

    def errors(self, since: float = 0.0) -> Counter[str]:
        """How often which error was raised by what ended after *since*."""
        return Counter(type(o.error).__name__ for o in self.ledger if o.error and o.ended > since)

    # --- many at once

    def lend(self, count: int, timeout: float = 10.0) -> list[Any]:
        """Lend *count* connections at once; they are left with the caller."""
        started = [self.start("getconn", timeout=timeout) for _ in range(count)]
        outcomes = [self.outcome(future, "getconn") for future in started]
        conns = [o.value for o in outcomes if o.ok]
        if failed := [o for o in outcomes if not o.ok]:
            self.give_back(conns)
            raise AssertionError(f"{len(failed)} of {count} can't be lent: {failed[0]}")
        return conns

    def give_back(self, conns: Iterable[Any]) -> None:
        """Give connections back."""
        for conn in conns:
            self.do("putconn", conn)
