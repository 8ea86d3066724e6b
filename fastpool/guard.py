"""Calls to the server that end by a time, whatever the server does.

Owns: how the driver's wait for an answer is ended from outside. At the deadline the guard shuts
the connection's socket down, both ways: the wait then ends at once, in an error, and the
connection is of no more use. Under TLS too. A task that waits for something else is cancelled
then; a thread that does can't be ended, and nobody but its caller waits for it.
Refuses: to decide how long a call may take, and what follows when it took too long.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from time import monotonic
from typing import Any, Protocol

from psycopg.errors import ConnectionTimeout

from . import housekeeper
from ._core import Gauge

# What one round trip may take that the pool makes on its own account: a rollback, a check (s).
ROUND_TRIP = 5.0
# What a call may take whose deadline is over, or almost (s): a server that is well answers.
LEAST = 0.03
# How long after its socket was shut down a task still may take (s), before it is cancelled.
GRACE = 0.01


class Overdue(ConnectionTimeout):
    """A call to the server did not end in time."""


class Guard:
    """The deadline of one call. No locks: the call's end, or the deadline, is first.

    It never looks at the driver's connection after its making. What it shuts down is a duplicate
    of the descriptor, and only if that is still the same socket: the call may close the
    connection at that moment, and any thread may be given the number next.
    """

    __slots__ = ("_descriptor", "_identity", "_on_alarm", "_over", "_who")

    def __init__(self, conn: Any, who: int, on_alarm: Callable[[int], object]) -> None:
        """*who*: the one who makes the call. *on_alarm(who)*: called when the deadline is first."""
        self._over = Gauge()
        self._on_alarm = on_alarm
        self._who = who
        try:
            self._descriptor = conn.pgconn.socket
            self._identity = _identity(self._descriptor)
        except Exception:  # it is closed: the call will say so
            self._descriptor = -1
            self._identity = 0

    def fire(self) -> bool:
        """The deadline has come: end the wait, if the call has not ended. In any thread."""
        first = self._over.enter()
        if first:
            if self._descriptor >= 0:
                with suppress(OSError):
                    _shut_down(self._descriptor, self._identity)
            self._on_alarm(self._who)
        return first

    def end(self) -> bool:
        """The call has ended. Return whether the deadline came first."""
        return not self._over.enter()

    def is_to_blame(self, error: BaseException) -> bool:
        """Whether *error*, which the overdue call raised, comes of the deadline."""
        return isinstance(error, Exception)

    def was_cancelled(self) -> bool:
        """Whether somebody else has cancelled who makes the call, and it has ended all the same."""
        return False


class ThreadGuard(Guard):
    """The deadline of one call by a thread. Itself what the housekeeper is given: a timer made for
    each call would cost as much again."""

    __slots__ = ("due",)

    def __init__(
        self, conn: Any, seconds: float, who: int, on_alarm: Callable[[int], object]
    ) -> None:
        super().__init__(conn, who, on_alarm)
        self.due = monotonic() + seconds
        housekeeper.put(self)

    @property
    def is_idle(self) -> bool:
        """Whether the call has ended, or the deadline has come."""
        return self._over.inside > 0

    def end(self) -> bool:
        """The call has ended. Return whether the deadline came first."""
        if self._over.enter():
            housekeeper.drop()
            return False
        return True


class TaskGuard(Guard):
    """The deadline of one call by a task."""

    __slots__ = ("_cancelled", "_levels", "_loop", "_task", "_timer")

    def __init__(
        self,
        conn: Any,
        seconds: float,
        who: int,
        on_alarm: Callable[[int], object],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(conn, who, on_alarm)
        self._loop = loop
        self._task = asyncio.current_task(loop)
        self._levels = _cancellations(self._task)
        self._cancelled = False
        self._timer = loop.call_later(seconds, self.fire, context=Context())

    def fire(self) -> bool:
        """The deadline has come, in the loop's thread."""
        first = super().fire()
        if first:
            self._timer = self._loop.call_later(GRACE, self._cancel, context=Context())
        return first

    def _cancel(self) -> None:
        if self._task is not None:
            self._cancelled = True
            self._task.cancel(self)

    def end(self) -> bool:
        """The call has ended. Return whether the deadline came first."""
        self._timer.cancel()
        return super().end()

    def is_to_blame(self, error: BaseException) -> bool:
        """Whether *error* comes of the deadline, and of nobody else's cancellation."""
        if not self._cancelled:
            return isinstance(error, Exception)
        if sys.version_info >= (3, 11):
            assert self._task is not None
            others = self._task.uncancel() > self._levels
        else:
            # Nothing tells of another cancellation in the same turn of the loop as the guard's.
            others = error.args != (self,)
        return isinstance(error, Exception) or (
            isinstance(error, asyncio.CancelledError) and not others
        )

    def was_cancelled(self) -> bool:
        return _cancellations(self._task) > self._levels


def _cancellations(task: asyncio.Task[Any] | None) -> int:
    """How many have cancelled *task* so far and not taken it back."""
    if sys.version_info >= (3, 11):
        return 0 if task is None else task.cancelling()
    return 0


if sys.platform == "win32":

    def _identity(descriptor: int) -> int:
        return 0

    def _shut_down(descriptor: int, identity: int) -> None:
        sock = socket.socket(fileno=descriptor)
        try:
            sock.shutdown(socket.SHUT_RDWR)
        finally:
            sock.detach()

else:

    def _identity(descriptor: int) -> int:
        """What tells a socket from all others, though its descriptor's number be used again."""
        return os.fstat(descriptor).st_ino

    def _shut_down(descriptor: int, identity: int) -> None:
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            if _identity(sock.fileno()) == identity:
                sock.shutdown(socket.SHUT_RDWR)


def shut_down(pgconn: Any) -> None:
    """End a session from outside, whatever is being done with it. Harmless when it is closed."""
    with suppress(Exception):
        descriptor = pgconn.socket
        _shut_down(descriptor, _identity(descriptor))


class Caller(Protocol):
    """What is asked here of a pool."""

    timeout: float

    def _guard(self, conn: Any, seconds: float) -> Guard: ...
    async def _call(self, function: Callable[..., Any], *args: Any) -> Any: ...


def callback_limit(pool: Caller) -> float:
    """What a callback may take that nobody waits for (s): reset, or configure in a worker."""
    return max(ROUND_TRIP, pool.timeout)


async def call(
    pool: Caller, conn: Any, seconds: float, function: Callable[..., Any], *args: Any
) -> Any:
    """Call *function*, which talks to the server over *conn*, and return what it returns.

    When it has not ended after *seconds*, close *conn* and raise Overdue, as soon as it ends.
    """
    guard = pool._guard(conn, max(seconds, LEAST))
    try:
        result = await pool._call(function, *args)
    except BaseException as error:
        is_overdue = False
        if guard.end():
            conn.pgconn.finish()
            is_overdue = guard.is_to_blame(error)
        if isinstance(error, Exception) and guard.was_cancelled():
            # Who is cancelled in the middle of a query waits for its end, and raises what it finds
            # there. To the pool that would be one error of many, after which it goes on.
            raise asyncio.CancelledError from error
        if is_overdue:
            raise _overdue(seconds) from None
        raise
    if guard.end():
        conn.pgconn.finish()
        raise _overdue(seconds)
    return result


def _overdue(seconds: float) -> Overdue:
    return Overdue(f"not done within {max(seconds, LEAST):.2f} sec")
