"""The load: threads that check out a connection, run a query and give it back, until a deadline.

It takes a pool as one callable that returns a context manager, so that every pool meets the same
loop. It measures and counts; it opens no pool, prints nothing, and decides nothing about errors: a
thread that fails keeps its error and ends.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import psycopg

from .histogram import Histogram

_START_TIMEOUT = 60.0

Checkout = Callable[[], AbstractContextManager[Any]]


class LoadNotStartedError(Exception):
    """The machine refused to start as many threads."""


class _Client:
    """What one thread has done."""

    __slots__ = ("abandoned", "ended_ns", "error", "requests", "thread", "waits")

    thread: threading.Thread

    def __init__(self) -> None:
        self.requests = 0
        self.waits = Histogram()
        self.error: str | None = None
        self.ended_ns: int | None = None
        self.abandoned = False


@dataclass(frozen=True)
class LoadResult:
    """What a load came to.

    *waits* counts every checkout that was begun before the deadline; a checkout that was served
    only after it runs no query, so that there are up to one more waits than requests a thread.
    """

    seconds: float
    per_thread: tuple[int, ...]
    waits: Histogram
    errors: Counter[str]
    """By message: first those that ended a thread, then the requests that had no end."""

    @property
    def requests(self) -> int:
        """Checkouts whose query ran and whose connection was given back."""
        return sum(self.per_thread)

    @property
    def throughput(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds if self.seconds else 0.0

    @property
    def fairness(self) -> float | None:
        """The least served thread's requests by the most served one's; None without requests."""
        most = max(self.per_thread, default=0)
        return min(self.per_thread) / most if most else None


class Load:
    """*threads* threads looping over *checkout* with *query*, until they are told to stop."""

    def __init__(self, checkout: Checkout, query: str, threads: int) -> None:
        self._checkout = checkout
        self._query = query
        self._clients = [_Client() for _ in range(threads)]
        self._barrier = threading.Barrier(threads + 1, action=self._begin)
        self._seconds = 0.0
        self._began_ns = 0
        self._deadline_ns = 0
        self._abandoned = False

    def start(self, seconds: float) -> None:
        """Start the threads, release them together, and give them *seconds*.

        Blocks until every thread stands ready. Raises LoadNotStartedError when one could not be
        made.
        """
        self._seconds = seconds
        width = len(str(len(self._clients)))
        try:
            for number, client in enumerate(self._clients, 1):
                client.thread = threading.Thread(
                    target=self._run, args=(client,), name=f"client-{number:0{width}}", daemon=True
                )
                client.thread.start()
            self._barrier.wait(_START_TIMEOUT)
        except (RuntimeError, MemoryError) as exc:  # BrokenBarrierError is a RuntimeError
            self._barrier.abort()
            reason = str(exc) or type(exc).__name__
            raise LoadNotStartedError(f"{len(self._clients)} threads: {reason}") from exc
        except BaseException:
            self._barrier.abort()
            raise

    @property
    def elapsed(self) -> float:
        """Seconds since the threads were released."""
        return (perf_counter_ns() - self._began_ns) / 1e9

    @property
    def requests(self) -> int:
        """Requests served so far, by all threads."""
        return sum(client.requests for client in self._clients)

    @property
    def has_errors(self) -> bool:
        """Whether a thread has failed."""
        return any(client.error is not None for client in self._clients)

    def join(self, timeout: float) -> bool:
        """Wait up to *timeout* seconds for all threads to end; return whether they have."""
        give_up_ns = perf_counter_ns() + int(timeout * 1e9)
        for client in self._clients:
            client.thread.join(max(0.0, (give_up_ns - perf_counter_ns()) / 1e9))
            if client.thread.is_alive():
                return False
        return True

    def stop(self) -> None:
        """Make the deadline now: each thread ends when its request in flight is over."""
        self._deadline_ns = 0

    def abandon(self) -> None:
        """Count requests that fail from now on as unfinished ones, with their error as a detail."""
        self._abandoned = True

    def result(self, *, count_unfinished: bool) -> LoadResult:
        """Add up what the threads did; those that still run count as unfinished.

        *count_unfinished* is False where it was the user who cut the run short.
        """
        errors: Counter[str] = Counter()
        unfinished: Counter[str] = Counter()
        waits = Histogram()
        last_ns = self._began_ns
        for client in self._clients:
            waits.merge(client.waits)
            last_ns = max(last_ns, client.ended_ns or perf_counter_ns())
            if client.ended_ns is None:
                unfinished["never ended"] += 1
            elif client.abandoned:
                unfinished[f"unfinished when time was up, ended by force ({client.error})"] += 1
            elif client.error is not None:
                errors[client.error] += 1
        if count_unfinished:
            errors.update(unfinished)
        return LoadResult(
            seconds=(last_ns - self._began_ns) / 1e9,
            per_thread=tuple(client.requests for client in self._clients),
            waits=waits,
            errors=errors,
        )

    def _begin(self) -> None:
        """Set the clock; the barrier calls this once, before it lets the threads go."""
        self._began_ns = perf_counter_ns()
        self._deadline_ns = self._began_ns + int(self._seconds * 1e9)

    def _run(self, client: _Client) -> None:
        try:
            self._barrier.wait(_START_TIMEOUT)
        except threading.BrokenBarrierError:
            return
        try:
            self._loop(client)
        except Exception as exc:  # whatever the pool, the driver or the server raised is a result
            client.abandoned = self._abandoned
            client.error = describe(exc)
        finally:
            client.ended_ns = perf_counter_ns()

    def _loop(self, client: _Client) -> None:
        checkout, query, record = self._checkout, self._query, client.waits.record
        asked = perf_counter_ns()
        while asked < self._deadline_ns:
            with checkout() as conn:
                lent = perf_counter_ns()
                in_time = lent < self._deadline_ns
                if in_time:
                    conn.execute(query)
            record(lent - asked)
            client.requests += in_time
            asked = perf_counter_ns()


def describe(exc: BaseException) -> str:
    """Return *exc* as one line: its type and its message, the server's own where it is one."""
    primary = exc.diag.message_primary if isinstance(exc, psycopg.Error) else None
    message = " ".join((primary or str(exc)).split())
    return f"{type(exc).__name__}: {message}" if message else type(exc).__name__
