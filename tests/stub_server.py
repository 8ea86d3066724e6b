"""A PostgreSQL that is none, in this process: sessions without a network, for the stress tests.

Owns: the list of the sessions that are open; connection classes, the driver's own but for what asks
the server, whose queries are answered at once. Refuses: SQL. It knows the queries of the tests.

What takes a pool a minute with a server it does here in seconds. Whatever is lost, ended twice or
ended under its borrower's hands is the pool's doing, for nothing else can do it.
"""

from __future__ import annotations

import asyncio
import itertools
import weakref
from typing import Any

import psycopg
from psycopg.pq import ConnStatus, TransactionStatus


class Session:
    """What stands for a libpq connection, and for its backend."""

    host = hostaddr = port = user = db = options = b""
    notice_handler: Any = None
    notify_handler: Any = None

    def __init__(self, server: StubServer) -> None:
        self.backend_pid = next(server.pids)
        self.transaction_status = TransactionStatus.IDLE
        self.status = ConnStatus.OK
        self.is_doomed = False
        # Weak, for one that is freed has ended, and no finalizer that may be interrupted says so.
        server.all[self.backend_pid] = weakref.ref(self)

    @property
    def was_ended_by_the_client(self) -> bool:
        """Whether it is closed, though the server would have gone on with it."""
        return self.status == ConnStatus.BAD and not self.is_doomed

    def terminate(self) -> None:
        """End it on the server's side: the client notices when it asks next."""
        self.is_doomed = True

    def finish(self) -> None:
        """End it on the client's side."""
        self.status = ConnStatus.BAD
        self.transaction_status = TransactionStatus.UNKNOWN

    def ask(self) -> None:
        """Make a round trip. Raises OperationalError when the session has ended."""
        if self.is_doomed or self.status == ConnStatus.BAD:
            self.finish()
            raise psycopg.OperationalError("the connection is lost")

    def answer(self, query: str, params: Any, autocommit: bool) -> Any:
        """What the server says to a query."""
        self.ask()
        self.transaction_status = (
            TransactionStatus.IDLE if autocommit else TransactionStatus.INTRANS
        )
        return (self.backend_pid, *(params or ())) if "pg_backend_pid" in query else (1,)

    def end_transaction(self) -> None:
        """Commit, or roll back. Asks nothing where there is no transaction, as the driver."""
        if self.transaction_status != TransactionStatus.IDLE:
            self.ask()
            self.transaction_status = TransactionStatus.IDLE


class Cursor:
    """A row."""

    def __init__(self, row: Any) -> None:
        self._row = row

    def fetchone(self) -> Any:
        """Return it."""
        return self._row


class AsyncCursor(Cursor):
    """The same, to be awaited."""

    async def fetchone(self) -> Any:
        """Return it."""
        return self._row


class StubConnection(psycopg.Connection[Any]):
    """A connection for a thread pool."""

    server: StubServer
    pgconn: Any

    @classmethod
    def connect(cls, *args: Any, **kwargs: Any) -> Any:
        """Open a session."""
        return cls(Session(cls.server))  # type: ignore[arg-type]

    def execute(self, query: Any, params: Any = None, **kwargs: Any) -> Any:
        """Ask the server."""
        return Cursor(self.pgconn.answer(query, params, self._autocommit))

    def commit(self) -> None:
        """End the transaction."""
        self.pgconn.end_transaction()

    rollback = commit

    def set_autocommit(self, value: bool) -> None:
        """Set it."""
        self._autocommit = value

    def __repr__(self) -> str:
        return object.__repr__(self)


class AsyncStubConnection(psycopg.AsyncConnection[Any]):
    """A connection for an async pool. It suspends wherever the driver's waits for the server, and
    when it is closed, as those of programs may."""

    server: StubServer
    pgconn: Any

    @classmethod
    async def connect(cls, *args: Any, **kwargs: Any) -> Any:
        """Open a session."""
        await asyncio.sleep(0)
        conn = cls(Session(cls.server))  # type: ignore[arg-type]
        try:
            await asyncio.sleep(0)
        except BaseException:
            conn.pgconn.finish()
            raise
        return conn

    async def execute(self, query: Any, params: Any = None, **kwargs: Any) -> Any:
        """Ask the server. One that is cancelled leaves the connection in the query."""
        self.pgconn.ask()
        self.pgconn.transaction_status = TransactionStatus.ACTIVE
        await asyncio.sleep(0)
        return AsyncCursor(self.pgconn.answer(query, params, self._autocommit))

    async def commit(self) -> None:
        """End the transaction."""
        if self.pgconn.transaction_status != TransactionStatus.IDLE:
            await asyncio.sleep(0)
            self.pgconn.end_transaction()

    rollback = commit

    async def set_autocommit(self, value: bool) -> None:
        """Set it."""
        self._autocommit = value

    async def close(self) -> None:
        """End the session, or give it back."""
        await asyncio.sleep(0)
        await super().close()

    def __repr__(self) -> str:
        return object.__repr__(self)


class StubServer:
    """All sessions, by their backends, and classes that connect here."""

    def __init__(self) -> None:
        self.pids = itertools.count(1)
        self.all: dict[int, weakref.ref[Session]] = {}
        self.connection: Any = type("Stub", (StubConnection,), {"server": self})
        self.async_connection: Any = type("AsyncStub", (AsyncStubConnection,), {"server": self})

    def terminate(self, pid: int) -> None:
        """End a session on the server's side."""
        ref = self.all.get(pid)
        session = ref() if ref is not None else None
        if session is not None:
            session.terminate()

    def sessions(self) -> set[int]:
        """The backends of those that are open."""
        found = [(pid, ref()) for pid, ref in list(self.all.items())]
        return {
            pid
            for pid, session in found
            if session is not None and not session.is_doomed and session.status == ConnStatus.OK
        }
