"""A connect that its caller can leave: a null pool's borrower has a deadline, the driver another.

Owns: one connect in a thread or task of its own, in the caller's context, and whose its outcome
is: the caller's, or, when that has left, of who was named to look after it.
Refuses: to end a connect, which the driver does in its own time.
"""

from __future__ import annotations

import _thread
import asyncio
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from ._core import Gauge
from .guard import Overdue

# Who is to look after the outcome: (connection, None) or (None, error).
Heir = Callable[[Any, "BaseException | None"], object]


class LeftBehind(Overdue):
    """A connect did not end in time. It goes on; name an heir to its outcome."""

    def __init__(self, seconds: float, name_heir: Callable[[Heir], object]) -> None:
        super().__init__(f"no connection within {max(seconds, 0.0):.2f} sec")
        self.name_heir = name_heir


def drop(conn: Any, error: BaseException | None) -> None:
    """Close a connection that nobody wants any more."""
    if conn is not None:
        conn._pool = None
        conn.pgconn.finish()


class Dial:
    """One connect in a thread of its own. Without locks but the gate: of two, one is first."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect: Callable[[], Any] | None = connect
        self._context = copy_context()
        self._gate = _thread.allocate_lock()
        self._gate.acquire()
        self._decided = Gauge()  # by its end, or by the caller's leaving
        self._inherited = Gauge()  # by its end, or by the heir's naming: the second acts
        self._conn: Any = None
        self._error: BaseException | None = None
        self._heir: Heir = drop

    def _run(self) -> None:
        connect, self._connect = self._connect, None
        assert connect is not None
        try:
            self._conn = self._context.run(connect)
        except BaseException as error:
            self._error = error
        del connect
        if self._decided.enter():
            self._gate.release()
        else:
            self._inherit()

    def name_heir(self, heir: Heir) -> None:
        """Have the outcome looked after by *heir*, now or when it is there. Once."""
        self._heir = heir
        self._inherit()

    def _inherit(self) -> None:
        if not self._inherited.enter():
            self._heir(self._conn, self._error)
            self._conn = self._error = None

    def result(self, seconds: float, name: str) -> Any:
        """Connect; return the connection or raise the error. Raises LeftBehind after *seconds*."""
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # there can be no more threads: connect in this one
            self._run()
        try:
            self._gate.acquire(True, min(max(seconds, 0.0), threading.TIMEOUT_MAX))
        except BaseException:
            self._leave()
            raise
        if self._decided.enter():
            raise LeftBehind(seconds, self.name_heir)
        conn, error = self._conn, self._error
        self._conn = self._error = None
        if error is not None:
            try:
                raise error
            finally:
                del error  # which holds this frame now
        return conn

    def _leave(self) -> None:
        """The caller was interrupted: nobody wants the outcome."""
        if self._decided.enter():
            self.name_heir(drop)
        else:
            drop(self._conn, self._error)


async def dial_in_task(connect: Callable[[], Any], seconds: float, name: str) -> Any:
    """Connect in a task; return the connection or raise the error. Raises LeftBehind after
    *seconds*. Cancelled, it cancels the connect."""
    task = asyncio.get_running_loop().create_task(connect(), name=name)
    try:
        await asyncio.wait({task}, timeout=max(seconds, 0.0))
    except BaseException:
        _bequeath(task, drop)
        task.cancel()
        raise
    if task.done():
        return task.result()
    _tasks.add(task)  # the loop holds it weakly
    task.add_done_callback(_tasks.discard)
    raise LeftBehind(seconds, lambda heir: _bequeath(task, heir))


_tasks: set[asyncio.Task[Any]] = set()


def _bequeath(task: asyncio.Task[Any], heir: Heir) -> None:
    def ended(task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            heir(None, asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            heir(None, error)
        else:
            heir(task.result(), None)

    task.add_done_callback(ended)
