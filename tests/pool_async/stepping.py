"""Running coroutines one suspension at a time: to cancel at a chosen one, or to see that there is
none.

Owns: the wrapper that counts the suspensions of a coroutine and cancels its task at one of them.
Refuses: to know what a pool is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from functools import partial
from typing import Any

# When a task is cancelled at a suspension: as soon as it waits; when what it waits for has come,
# before it goes on; at this and at every later one, as cancel scopes do that go by level.
MANNERS = ("waiting", "woken", "level")


class Cancelling:
    """Runs a coroutine, and cancels the task that does so at suspension number *at*, from 0."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: int, manner: str) -> None:
        assert manner in MANNERS
        self._coroutine = coroutine
        self._at = at
        self._manner = manner
        self.suspensions = 0
        self.cancellations = 0

    async def run(self) -> Any:
        """Run it to its end. To be made a task of."""
        return await self

    def __await__(self) -> Generator[Any, Any, Any]:
        step = partial(self._coroutine.send, None)
        while True:
            try:
                awaited = step()
            except StopIteration as end:
                return end.value
            self._suspended(awaited)
            try:
                value = yield awaited
            except BaseException as error:
                step = partial(self._coroutine.throw, error)
            else:
                step = partial(self._coroutine.send, value)

    def _suspended(self, awaited: Any) -> None:
        number = self.suspensions
        self.suspensions += 1
        if number == self._at or (number > self._at and self._manner == "level"):
            task = asyncio.current_task()
            assert task is not None
            if self._manner == "woken" and asyncio.isfuture(awaited):
                # Before the task's own callback, which goes on with it.
                awaited.add_done_callback(lambda _: self._cancel(task))
            else:
                self._cancel(task)

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        self.cancellations += task.cancel()


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, and return its value. One that suspends raises AssertionError."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise AssertionError("suspended")
