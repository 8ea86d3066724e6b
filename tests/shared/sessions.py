"""Fixtures about the server's sessions, seen and ended from beside a pool.

Owns: a connection that belongs to no pool, and what it can do to the sessions of one. Refuses: to
know what kind of pool that is.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest


@pytest.fixture
def admin(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection that belongs to no pool, in autocommit mode. Its calls block the loop."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def pid() -> Callable[[Any], int]:
    """`pid(conn)` names the session behind a connection, known without a query."""
    return lambda conn: int(conn.pgconn.backend_pid)


@pytest.fixture
def end_session(admin: psycopg.Connection[Any]) -> Callable[[Any], None]:
    """`end_session(conn)` ends the server's side; the client has yet to notice."""

    def end(conn: Any) -> None:
        # Unnoticed: what is tested is what becomes of a broken connection when it is used, checked
        # or given back. That fastpool learns of its end before that, test_notices.py tests.
        if (slot := getattr(conn, "_slot", None)) is not None:
            slot.unwatch()
        pid = conn.pgconn.backend_pid
        assert admin.execute("select pg_terminate_backend(%s, 5000)", [pid]).fetchone() == (True,)

    return end


class Sessions:
    """The server's view of the sessions of one test."""

    _numbers = itertools.count()

    def __init__(self, admin: psycopg.Connection[Any]) -> None:
        self._admin = admin
        self.name = f"test-{os.getpid()}-{next(self._numbers)}"
        self.kwargs = {"application_name": self.name}

    def pids(self) -> set[int]:
        """The backends of this test's sessions."""
        rows = self._admin.execute(
            "select pid from pg_stat_activity where application_name = %s", [self.name]
        )
        return {pid for (pid,) in rows}


@pytest.fixture
def sessions(admin: psycopg.Connection[Any]) -> Sessions:
    """Give a pool `kwargs=sessions.kwargs`; `sessions.pids()` asks the server for them."""
    return Sessions(admin)
