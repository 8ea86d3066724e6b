"""The one housekeeper thread for all thread pools of the process: timers.

Owns: when things happen. Refuses: to do them. A timer calls one quick method of a pool, which
submits a chore. Pools are held weakly; the thread starts with the first timer and ends when no
timer of a living pool is left.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
import weakref
from collections.abc import Callable
from functools import partial
from time import monotonic

from ._core import Gauge

# The one way in, for a finalizer in the middle of anything too. Made when it is first needed, not
# on import: gevent may patch queues in between.
_inboxes: dict[str, queue.SimpleQueue[Timer | None]] = {}


def _inbox() -> queue.SimpleQueue[Timer | None]:
    return _inboxes.get("") or _inboxes.setdefault("", queue.SimpleQueue())


class Timer:
    """One method of one object, called once, later; not at all when the object is gone."""

    def __init__(self, due: float, method: Callable[[], object]) -> None:
        self.due = due
        self._taken = Gauge()
        # A closure, for at the interpreter's end the module's names are gone.
        self._nudge = partial(_inbox().put, None)
        nudge = self._nudge
        self._method = weakref.WeakMethod(method, lambda _: nudge())

    def cancel(self) -> bool:
        """Keep it from happening. False when it is too late for that."""
        won = bool(self._taken.enter())
        if won:
            self._nudge()
        return won

    def fire(self) -> None:
        """Call the method, if nobody has cancelled."""
        method = self._method()
        if method is not None and self._taken.enter():
            method()

    @property
    def is_idle(self) -> bool:
        """Whether nothing will come of it any more."""
        return self._taken.inside > 0 or self._method() is None


_running = Gauge()
_order = itertools.count()


def later(delay: float, method: Callable[[], object]) -> Timer:
    """Call the bound *method* in *delay* seconds, from the housekeeper's thread.

    Never blocks. Thread-safe, also in a finalizer.
    """
    timer = Timer(monotonic() + max(0.0, delay), method)
    _inbox().put(timer)
    if _running.enter():
        thread = threading.Thread(target=_keep_house, name="fastpool-housekeeper", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending: nothing happens later any more
            _running.leave()
    return timer


def _keep_house() -> None:
    due: list[tuple[float, int, Timer]] = []
    inbox = _inbox()
    while True:
        due = [row for row in due if not row[2].is_idle]
        heapq.heapify(due)
        if not due and inbox.empty():
            _running.leave()
            # A timer put in since the look found the thread running, and counts on it.
            if inbox.empty() or not _running.enter():
                return
        _receive(inbox, due)
        while due and due[0][0] <= monotonic():
            heapq.heappop(due)[2].fire()


def _receive(inbox: queue.SimpleQueue[Timer | None], due: list[tuple[float, int, Timer]]) -> None:
    """Take in what came, waiting for it until the next timer is due."""
    timeout = max(0.0, due[0][0] - monotonic()) if due else 0.0
    try:
        # threading.TIMEOUT_MAX: a longer wait overflows, and an earlier look does no harm.
        timer = inbox.get(timeout=min(timeout, threading.TIMEOUT_MAX))
        while True:
            if timer is not None:
                heapq.heappush(due, (timer.due, next(_order), timer))
            timer = inbox.get_nowait()
    except queue.Empty:
        pass
