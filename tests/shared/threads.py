"""Fixtures for tests that are threads: calls made by others, connections that break."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest


class ThreadCall:
    """A call running in a daemon thread of its own."""

    def __init__(self, function: Callable[[], Any], name: str | None) -> None:
        self._function = function
        self._value: Any = None
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error
        finally:
            del self._function  # what it holds, a pool maybe, ends with the call

    @property
    def done(self) -> bool:
        return not self.thread.is_alive()

    def result(self, timeout: float = 5.0) -> Any:
        """Return what the call returned, or raise what it raised.

        Blocks up to *timeout* seconds, then raises TimeoutError.
        """
        self.thread.join(timeout)
        if not self.done:
            raise TimeoutError(f"still running after {timeout} s")
        if self._error is not None:
            raise self._error
        return self._value


@pytest.fixture
def break_connection(end_session: Callable[[Any], None]) -> Callable[[Any], None]:
    """`break_connection(conn)` ends the session and lets the client notice."""

    def break_(conn: Any) -> None:
        end_session(conn)
        with suppress(psycopg.OperationalError):
            conn.execute("select 1")
        assert conn.broken

    return break_
