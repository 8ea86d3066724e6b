"""The one housekeeper thread for all pools of the process: it waits for timers and for notices.

Owns: when things happen, and the thread, which starts with the first timer or watch of a living
pool and ends when none is left. Refuses: to do things. A timer or a notice calls one method of a
pool, or of a part of one, which is quick or submits a chore; pools are held weakly.

Setting a timer wakes the thread only if it is due before the thread wakes by itself; cancelling
one does not. So both are cheap enough for a timer around each call of something, which is
cancelled nearly always.
"""

from __future__ import annotations

import heapq
import itertools
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from types import MethodType
from typing import Protocol, cast

from . import notices
from ._core import Gauge
from ._fastpath import logger
from .notices import Sentry, Watch

# How many timers are cancelled between two wakings of the thread that let go of them.
_SWEEP_EVERY = 1000

# How soon a pool is told again of a session that has ended while its slot was somebody's (seconds).
_TELL_AGAIN = 0.002


class Due(Protocol):
    """Something that is to happen at a time, unless it is idle by then."""

    @property
    def due(self) -> float:
        """When, by the monotonic clock, in seconds."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing will come of it any more."""

    def fire(self) -> object:
        """Happen: quickly, and without an exception."""


class Timer:
    """One method of one object, called once, later; not at all when the object is gone."""

    __slots__ = ("_function", "_house", "_object", "_taken", "due")

    def __init__(self, house: Housekeeper, due: float, method: Callable[[], object]) -> None:
        self.due = due
        self._house = house
        self._taken = taken = Gauge()

        def gone(_: object) -> None:
            if taken.enter():
                house.drop()

        # What weakref.WeakMethod does, in half the time.
        self._object: Callable[[], object]
        self._object = weakref.ref(cast("MethodType", method).__self__, gone)
        self._function = cast("MethodType", method).__func__

    def cancel(self) -> bool:
        """Keep it from happening. False when it is too late for that. Never blocks."""
        won = self._taken.enter()
        if won:
            self._object = _nothing  # and its end calls nobody any more
            self._house.drop()
        return won

    def fire(self) -> None:
        """Call the method, if nobody has cancelled."""
        owner = self._object()
        if owner is not None and self._taken.enter():
            _ask(partial(self._function, owner))

    @property
    def is_idle(self) -> bool:
        """Whether nothing will come of it any more."""
        return self._taken.inside > 0 or self._object() is None


def _nothing() -> None:
    return None


class Housekeeper:
    """The timers and the thread. Thread-safe without locks: a finalizer may come in anywhere."""

    def __init__(self) -> None:
        self._running = Gauge()
        self._inbox: deque[Due] = deque()
        # The thread's own; others only look.
        self._due: list[tuple[float, int, Due]] = []
        self._order = itertools.count()
        self._swept_to = 0
        self._ended: list[Watch] = []
        # When the thread wakes by itself, if it sleeps. Who puts something in looks at this
        # afterwards; the thread sets it before it looks at the inbox for the last time.
        self._asleep = Gauge()
        self._until = 0.0
        self._drops = itertools.count(1)

    def later(self, delay: float, method: Callable[[], object]) -> Timer:
        """Do what the module's later() says."""
        timer = Timer(self, monotonic() + max(0.0, delay), method)
        self.put(timer)
        return timer

    def put(self, due: Due) -> None:
        """Do what the module's put() says."""
        self._inbox.append(due)
        self._start()
        if self._asleep.inside and due.due < self._until:
            notices.wake()

    def watch(self, fd: int, index: int, method: Callable[[Watch], bool]) -> Watch:
        """Do what the module's watch() says."""
        watch = Watch(fd, index, method, self._watch_ended)
        self._start()
        return watch

    def drop(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        """Do what the module's drop() says."""
        # At the interpreter's end the module's names may be gone.
        if not is_finalizing() and (next(self._drops) % _SWEEP_EVERY == 0 or self._is_idle()):
            notices.wake()

    def _watch_ended(self) -> None:
        if self._is_idle():
            notices.wake()

    def _is_idle(self) -> bool:
        """Whether there is nothing to wait for. Found out at the first thing that there is."""
        if notices.any_watched():
            return False
        for _, _, timer in self._due.copy():
            if not timer.is_idle:
                return False
        for timer in _copy(self._inbox):  # noqa: SIM110  # an interrupt in a generator goes unseen
            if not timer.is_idle:
                return False
        return True

    # --- the thread -------------------------------------------------------------------------

    def _start(self) -> None:
        if self._running.enter():
            thread = threading.Thread(target=self._run, name="fastpool-housekeeper", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter is ending: nothing happens later any more
                self._running.leave()

    def _run(self) -> None:
        while True:
            sentry = notices.come_on_duty()
            try:
                while not self._is_idle():
                    self._take_in()
                    self._fire()
                    self._ended = [watch for watch in self._ended if not _ask(watch.tell)]
                    self._ended += notices.ended(self._sleep(sentry))
            finally:
                notices.go_off_duty(sentry)
            self._running.leave()
            # What was put in since the look found the thread running, and counts on it.
            if self._is_idle() or not self._running.enter():
                return

    def _take_in(self) -> None:
        due = self._due
        while self._inbox:
            timer = self._inbox.popleft()
            if not timer.is_idle:
                heapq.heappush(due, (timer.due, next(self._order), timer))
        if len(due) > 2 * self._swept_to + _SWEEP_EVERY:
            due[:] = [row for row in due if not row[2].is_idle]
            heapq.heapify(due)
            self._swept_to = len(due)

    def _fire(self) -> None:
        due = self._due
        while due and (due[0][2].is_idle or due[0][0] <= monotonic()):
            heapq.heappop(due)[2].fire()

    def _sleep(self, sentry: Sentry) -> list[int]:
        """Wait for what comes next. Return the descriptors that were reported."""
        now = monotonic()
        self._until = self._due[0][0] if self._due else now + threading.TIMEOUT_MAX
        if self._ended:
            self._until = min(self._until, now + _TELL_AGAIN)
        self._asleep.enter()
        try:
            is_due = self._inbox or self._is_idle()
            return sentry.wait(0.0 if is_due else max(0.0, self._until - now))
        finally:
            self._asleep.leave()


def _copy(timers: deque[Due]) -> list[Due]:
    """Copy what others add to meanwhile: without a GIL that may strike the iteration."""
    while True:
        with suppress(RuntimeError):
            return list(timers)


def _ask(method: Callable[[], object]) -> bool:
    """Call a pool's method. What it raises must not end the thread, which is everybody's."""
    try:
        return bool(method())
    except ReferenceError:
        return True  # the pool is gone meanwhile
    except Exception as error:
        logger.warning("housekeeping failed: %s: %s", type(error).__name__, error)
        return True


_house = Housekeeper()


def later(delay: float, method: Callable[[], object]) -> Timer:
    """Call the bound *method* in *delay* seconds, from the housekeeper's thread.

    Never blocks. Thread-safe, also in a finalizer.
    """
    return _house.later(delay, method)


def put(due: Due) -> None:
    """Have *due* happen at its time, in the housekeeper's thread: a timer of the caller's own kind.
    It is held until then, or until some time after it has become idle.

    Never blocks. Thread-safe, also in a finalizer.
    """
    _house.put(due)


def drop() -> None:
    """Say that something that was put in has become idle. Never blocks. Thread-safe."""
    _house.drop()


def watch(fd: int, index: int, method: Callable[[Watch], bool]) -> Watch:
    """Watch a connection's socket: see notices.Watch, which says what the arguments are.

    *method* is called from the housekeeper's thread within milliseconds of the server's closing,
    again and again until it returns True or the watch is closed. Raises OSError where
    that can't be had. Never blocks. Thread-safe.
    """
    return _house.watch(fd, index, method)


def forget_in_child() -> None:
    """After fork(), in the child: start anew, with no timer, no watch and no thread.

    For what handles forks. The parent's timers and watches notice nothing; the child's copies of
    the descriptors are closed, and what pools had planned for later is not done in the child.
    """
    global _house
    _house = Housekeeper()
    notices.forget_in_child()
