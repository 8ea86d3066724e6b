"""Threads that do a pool's chores: they start when there is work and end when there is none.

Owns: the queue of chores and how many threads work on it. Refuses: to know what a chore is.
"""

from __future__ import annotations

import itertools
import threading
from contextlib import suppress
from time import monotonic

from ._core import Gauge
from .base import Job, log_failed_chore, logger, run

# How long a thread stays for the next chore (seconds). A `reset` callback makes every return a
# chore: without this each would start a thread.
LINGER = 0.02


class Workers:
    """A few threads at a time. Thread-safe without locks, also in a finalizer.

    Idle threads wait for a bell, a lock that is released to ring. Not for a queue with a timeout:
    `SimpleQueue.get(timeout)` with several takers can block for ever in Python 3.10 and 3.11.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._limit = 1
        self._jobs: list[Job] = []  # not a deque, which takes 600 bytes when empty
        self._bell = threading.Lock()
        self._bell.acquire()
        self._running = Gauge()
        self._idle = Gauge()
        self._ending = False
        self._threads: set[threading.Thread] = set()
        # By ident of the thread: has it given up its place, or was that given to another?
        self._places: dict[int, Gauge] = {}

    def submit(self, job: Job, limit: int) -> None:
        """Have *job* done by one of at most *limit* threads."""
        self._limit = limit
        # A thread first: if an interrupt ends this call after the next line, it finds the job.
        self._start_if_short(1)
        self._jobs.append(job)
        self._ring()
        self._start_if_short(0)

    def _ring(self) -> None:
        with suppress(RuntimeError):  # it is ringing already
            self._bell.release()

    def _start_if_short(self, coming: int) -> None:
        """Start a thread if there are more chores, *coming* included, than threads that wait."""
        short = len(self._jobs) + coming > self._idle.inside
        if not short or self._running.inside >= self._limit:
            return
        thread = threading.Thread(target=self._work, name=f"{self._name}-worker", daemon=True)
        with suppress(RuntimeError):  # the interpreter is ending
            thread.start()

    def _work(self) -> None:
        # The thread counts itself, for an interrupt may end the call that starts it at any point;
        # one too many that was started finds no place.
        if not self._running.enter(self._limit):
            return
        thread = threading.current_thread()
        taken = {other.name for other in list(self._threads)}
        names = (f"{self._name}-worker-{number}" for number in itertools.count())
        thread.name = next(name for name in names if name not in taken)
        self._threads.add(thread)
        ident = threading.get_ident()
        while True:
            place = self._places[ident] = Gauge()
            while not place.inside and (job := self._next()) is not None:
                _do(job)
                del job  # it may hold the last reference to the pool
            if not place.enter():
                break
            self._running.leave()
            # A job put in since may have found this thread idle, and counts on it.
            if not self._jobs or not self._running.enter(self._limit):
                break
        del self._places[ident]
        self._threads.discard(thread)
        if self._ending:
            self._ring()  # for the next idle thread to end

    def replace(self, ident: int) -> None:
        """Let another thread have the place of one whose chore does not end; that one ends with
        its chore. Does nothing when it is no thread of these."""
        place = self._places.get(ident)
        if place is not None and place.enter():
            self._running.leave()
            self._start_if_short(0)

    def _next(self) -> Job | None:
        """Return the next chore; None when there was none for a while, or it is time to end."""
        job = self._take()
        if job is None and not self._ending:
            self._idle.enter(self._limit)
            try:
                self._bell.acquire(True, LINGER)
            finally:
                self._idle.leave()
            job = self._take()
            if self._jobs:
                # They counted on this thread, which has another one now, and on one bell.
                self._ring()
                self._start_if_short(0)
        return job

    def _take(self) -> Job | None:
        try:
            return self._jobs.pop(0)
        except IndexError:
            return None

    def drain(self) -> None:
        """Do the chores that are queued, in this thread."""
        while (job := self._take()) is not None:
            _do(job)

    def join(self, timeout: float) -> None:
        """Wait until the threads have ended; warn of those that did not in *timeout* seconds,
        unless that is none."""
        deadline = monotonic() + timeout
        self._ending = True
        self._ring()
        for thread in list(self._threads):
            if thread is threading.current_thread():
                continue
            thread.join(min(max(0.0, deadline - monotonic()), threading.TIMEOUT_MAX))
            if thread.is_alive() and timeout > 0.0:
                logger.warning("couldn't stop thread %r within %s seconds", thread.name, timeout)


def _do(job: Job) -> None:
    try:
        run(job())
    except ReferenceError:
        pass  # the pool is gone, and its chores with it
    except BaseException as error:  # there is nobody above to tell, and more to do
        log_failed_chore(job, error)
