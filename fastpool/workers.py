"""Threads that do a pool's chores: they start when there is work and end when there is none.

Owns: the queue of chores and how many threads work on it. Refuses: to know what a chore is.
"""

from __future__ import annotations

import queue
import threading
from time import monotonic

from ._core import Gauge
from .base import Job, logger, run

# How long a thread stays for the next chore (seconds). A `reset` callback makes every return a
# chore: without this each would start a thread.
LINGER = 0.02


class Workers:
    """At most *limit* threads at a time. Thread-safe without locks, also in a finalizer."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._running = Gauge()
        self._idle = Gauge()
        self._threads: set[threading.Thread] = set()
        self._number = 0

    def submit(self, job: Job) -> None:
        """Have *job* done by one of the threads."""
        self._jobs.put(job)
        self._start_if_short()

    def _start_if_short(self) -> None:
        """Start a thread if there are more chores than threads that wait for one."""
        if self._jobs.qsize() <= self._idle.inside or not self._running.enter(self._limit):
            return
        name = f"{self._name}-worker-{self._number % self._limit}"
        self._number += 1
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending
            self._running.leave()

    def _work(self) -> None:
        # Here, not where it is started: a thread that has not begun can't be joined.
        self._threads.add(threading.current_thread())
        while True:
            while (job := self._next()) is not None:
                _do(job)
                del job  # it may hold the last reference to the pool
            self._running.leave()
            # A job put in since may have found this thread idle, and counts on it.
            if self._jobs.empty() or not self._running.enter(self._limit):
                break
        self._threads.discard(threading.current_thread())

    def _next(self) -> Job | None:
        """Return the next chore; None when there was none for a while, or it is time to end."""
        try:
            return self._jobs.get_nowait()
        except queue.Empty:
            pass
        self._idle.enter(self._limit)
        try:
            job = self._jobs.get(timeout=LINGER)
        except queue.Empty:
            return None
        finally:
            self._idle.leave()
        # A chore put in meanwhile counted on this thread, which has another one now.
        self._start_if_short()
        return job

    def drain(self) -> None:
        """Do the chores that are queued, in this thread."""
        while not self._jobs.empty():
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is not None:
                _do(job)

    def join(self, timeout: float) -> None:
        """Wait until the threads have ended; warn of those that did not in *timeout* seconds."""
        deadline = monotonic() + timeout
        for _ in range(self._idle.inside):
            self._jobs.put(None)
        for thread in list(self._threads):
            if thread is threading.current_thread():
                continue
            thread.join(max(0.0, deadline - monotonic()))
            if thread.is_alive():
                logger.warning("couldn't stop thread %r within %s seconds", thread.name, timeout)


def _do(job: Job) -> None:
    try:
        run(job())
    except ReferenceError:
        pass  # the pool is gone, and its chores with it
    except BaseException as error:  # there is nobody above to tell, and more to do
        logger.warning("task run %s failed: %s: %s", job, type(error).__name__, error)
