"""Connections whose close() gives back: what `pool.connect()` lends, and `close_returns`.

Owns: classes derived from the pool's connection class, made when first needed. Refuses: to decide
what a return does, which is lending's.

A Lease is an object of its own for each lending. It shares the connection's attributes while it is
valid, and when it ends it gets those of a closed connection instead. So an old lease says
`closed`, refuses to execute, and can be closed again without touching the session, which may be
lent to somebody else by then.

A connection of a `close_returns` pool, or of a null pool, is the session's one connection object,
as the driver has it; only its close() is made to reach the pool in every case, which the driver's
own does not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.pq import PGconn

from . import _calls
from ._blocks import Lease, LeaseKind
from ._core import skip_frames_of
from ._fastpath import FastPath

skip_frames_of(globals())

# Before 3.3 the driver's close() knows nothing of pools.
DRIVER_RETURNS = tuple(int(part) for part in psycopg.__version__.split(".")[:2]) >= (3, 3)


# --- leases -----------------------------------------------------------------------------------


class AsyncLease(Lease):
    """One lending by an async pool's `connect()`."""

    __slots__ = ()

    @_calls.runs(_calls.close_async)
    async def close(self) -> None:  # type: ignore[override]  # as the driver's two classes do
        """Give the connection back to the pool. Harmless when that has been done already."""
        await _calls.close_async(self)

    @_calls.runs(_calls.exit_async)
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await _calls.exit_async(self, exc_type, exc, traceback)

    async def _exit(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        lent = self._lent
        try:
            if lent is not None:
                await self._driver_exit(lent[1], "__aexit__")(exc_type, exc, traceback)
        finally:
            await self.close()


class _ProxyLease:
    """What makes a lease of a proxy: it goes through the proxy, so that what that records is
    recorded. Not derived from the connection's class, but an instance of it to isinstance().
    """

    __slots__ = ()
    _lent: Any

    if not TYPE_CHECKING:

        @property
        def __class__(self) -> Any:
            return self._target().__class__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__dict__":
            object.__setattr__(self, name, value)
        else:
            setattr(self._target(), name, value)

    def __repr__(self) -> str:
        return repr(self._target())

    def _target(self) -> Any:
        own_class: Any = type(self)
        return _closed_connection(own_class) if self._lent is None else self._lent[1]


class SyncProxyLease(_ProxyLease, Lease):
    """One lending of a proxy."""

    def __enter__(self) -> Any:
        return self


class AsyncProxyLease(_ProxyLease, AsyncLease):
    """One lending of a proxy of an async connection."""

    async def __aenter__(self) -> Any:
        return self


def lease(pool: FastPath, conn: Any) -> Any:
    """Return a lease of *conn*, which the pool has just lent."""
    cls: Any = type(conn)
    return _lease_kind(cls, conn.__class__)(pool, conn)


@functools.cache
def _lease_kind(cls: Any, face: Any) -> LeaseKind:
    lease_class = _lease_class(cls, face)
    return LeaseKind(lease_class, _closed_connection(lease_class).__dict__)


def _lease_class(cls: Any, face: Any) -> Any:
    """Return the class of leases of a *cls* that says it is a *face*: another one for a proxy."""
    is_async = issubclass(face, AsyncConnection)
    if cls is not face:
        return AsyncProxyLease if is_async else SyncProxyLease
    body = {"__slots__": (), "__del__": Lease._dropped}
    return type(cls.__name__, (AsyncLease if is_async else Lease, cls), body | _names_of(cls))


@functools.cache
def _closed_connection(lease_class: type) -> Any:
    """Return a connection that is closed, made without a server."""
    pgconn = PGconn.connect_start(b"host=/dev/null port=0")
    pgconn.finish()
    is_async = issubclass(lease_class, AsyncLease)
    conn: Any = AsyncConnection(pgconn) if is_async else Connection(pgconn)
    conn._closed = True
    return conn


# --- close() that reaches the pool ------------------------------------------------------------


def return_on_close(conn: Any) -> None:
    """Make close() of *conn* reach its pool in every case, where its class allows that."""
    inner = conn
    if type(conn) is not conn.__class__:  # a proxy: what it stands for
        inner = getattr(conn.close, "__self__", conn)
    cls: Any = type(inner)
    if issubclass(cls, (Connection, AsyncConnection)) and cls is inner.__class__:
        inner.__class__ = _returning_class(cls)


@functools.cache
def _returning_class(cls: Any) -> Any:
    def close(self: Any) -> None:
        """Give the connection back to the pool that lent it, or close it if there is none."""
        act = _closing(self, cls)
        if act is not None:
            act(self)

    async def close_async(self: Any) -> None:
        """Give the connection back to the pool that lent it, or close it if there is none."""
        act = _closing(self, cls)
        if act is not None:
            await act(self)

    # One base, no slots: a layout to which __class__ may be assigned.
    is_async = issubclass(cls, AsyncConnection)
    body = {
        "__slots__": (),
        "close": close_async if is_async else close,
        "_close_session": cls.close,  # for the pool, which means it
    }
    return type(cls.__name__, (cls,), body | _names_of(cls))


def _closing(conn: Any, cls: Any) -> Callable[[Any], Any] | None:
    """What close() of *conn* does: one of the driver's or the pool's methods, None for nothing."""
    pool: Any = getattr(conn, "_pool", None)
    act: Callable[[Any], Any] | None
    # There are six cases: idle in its pool, where closing once more is harmless, or taken from it
    # on purpose; of a pool that keeps none; of one that does not want it back; broken; of a class
    # that closes in its own way; plain.
    if pool is None:
        act = None if conn._slot.is_at_home else cls.close
    elif not pool._KEEPS_IDLE:
        act = pool._close_lent
    elif not pool.close_returns:
        act = cls.close
    elif conn.closed:
        act = pool._close_lent
    elif DRIVER_RETURNS and cls.close not in (Connection.close, AsyncConnection.close):
        act = cls.close
    else:
        # Not the driver's close(): it looks at `_pool` once more, and when another thread has
        # given the connection back meanwhile, it closes what is idle, or lent again.
        act = pool._take_back
    return act


def _names_of(cls: type) -> dict[str, Any]:
    return {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
