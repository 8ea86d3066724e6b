"""Tasks that do an async pool's chores: they start when there is work and end when there is none.

Owns: the queue of chores and how many tasks work on it. Refuses: to know what a chore is. All of
it happens in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from contextvars import Context

from .base import Job, log_failed_chore, logger

# How long after a cancellation (seconds) a task takes up what that left to do. A loop that ends
# cancels all tasks, and one that was started then would be destroyed with it.
CANCELLED_DELAY = 0.1
# Longer than any program runs (seconds): loops overflow with infinity.
FOREVER = 1e9


class Tasks:
    """A few tasks at a time, of the event loop that they were first given."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._name = name
        self._loop = loop
        self._limit = 1
        self._jobs: deque[Job] = deque()
        # The loop has only weak references to its tasks.
        self._tasks: set[asyncio.Task[None]] = set()
        self._replaced: set[asyncio.Task[None]] = set()

    def submit(self, job: Job, limit: int) -> None:
        """Have *job* done by one of at most *limit* tasks."""
        self._limit = limit
        self._jobs.append(job)
        self._start_soon(cancelled=isinstance(sys.exc_info()[1], asyncio.CancelledError))

    def _start_soon(self, cancelled: bool) -> None:
        # Not created here: an eager task would begin the chore in the middle of the caller's work.
        # And in a context of its own: a chore is no part of the request that gave rise to it.
        delay = CANCELLED_DELAY if cancelled else 0.0
        self._loop.call_later(delay, self._start, context=Context())

    def _start(self) -> None:
        if getattr(self._loop, "_asyncgens_shutdown_called", False):
            return  # asyncio.run() is past the cancelling of tasks: a new one would be destroyed
        if self._jobs and len(self._tasks) - len(self._replaced) < self._limit:
            task = self._loop.create_task(self._work(), name=f"{self._name}-worker")
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    async def _work(self) -> None:
        while self._jobs and asyncio.current_task() not in self._replaced:
            await _do(self._jobs.popleft())

    def _ended(self, task: asyncio.Task[None]) -> None:
        # Not in _work(): a task that is cancelled before its first step never comes there.
        self._tasks.discard(task)
        self._replaced.discard(task)
        if self._jobs:
            self._start_soon(task.cancelled())

    def replace(self, ident: int) -> None:
        """Let another task have the place of one whose chore does not end; that one ends with its
        chore. Does nothing when it is no task of these."""
        self._replaced.update(task for task in self._tasks if id(task) == ident)
        if self._jobs:
            self._start_soon(cancelled=False)

    async def drain(self) -> None:
        """Do the chores that are queued, in this task."""
        while self._jobs:
            await _do(self._jobs.popleft())

    async def join(self, timeout: float) -> None:
        """Wait until the tasks have ended; warn of those that did not in *timeout* seconds,
        unless that is none, and cancel them."""
        tasks = {task for task in self._tasks if task is not asyncio.current_task()}
        if not tasks:
            return
        _, pending = await asyncio.wait(tasks, timeout=min(timeout, FOREVER))
        for task in pending:
            if timeout > 0.0:
                logger.warning("couldn't stop task %r within %s seconds", task.get_name(), timeout)
            task.cancel()


async def _do(job: Job) -> None:
    try:
        await job()
    except ReferenceError:
        pass  # the pool is gone, and its chores with it
    except Exception as error:  # there is nobody above to tell, and more to do
        log_failed_chore(job, error)
