"""Connections whose close() gives back: what `pool.connect()` lends, and `close_returns`.

Owns: two classes derived from the pool's connection class, made when first needed. Refuses: to
decide what a return does, which is lending's.

A Lease is an object of its own for each lending. It shares the connection's attributes while it is
valid, and when it ends it gets those of a closed connection instead. So an old lease says
`closed`, refuses to execute, and can be closed again without touching the session, which may be
lent to somebody else by then.

A connection of a `close_returns` pool is the session's one connection object, as the driver has
it; only its close() is made to reach the pool also when the connection is broken, which the
driver's own does not.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import Connection
from psycopg.pq import PGconn

from ._fastpath import Lease

if TYPE_CHECKING:
    from .base import BasePool

# Before 3.3 the driver's close() knows nothing of pools.
DRIVER_RETURNS = tuple(int(part) for part in psycopg.__version__.split(".")[:2]) >= (3, 3)


def lease(pool: BasePool, conn: Any) -> Any:
    """Return a lease of *conn*, which the pool has just lent."""
    cls: Any = type(conn)
    lent: Any = Lease.__new__(_lease_class(cls))
    lent._begin(pool, conn, conn._slot, _closed_attributes())
    return lent


@functools.cache
def _lease_class(cls: Any) -> Any:
    body = {"__slots__": (), "__del__": Lease._dropped}
    return type(cls.__name__, (Lease, cls), body | _names_of(cls))


def return_on_close(conn: Any) -> None:
    """Make close() of *conn* reach its pool in every case, where its class allows that."""
    cls: Any = type(conn)
    is_proxy = cls is not conn.__class__
    if issubclass(cls, Connection) and not is_proxy:
        conn.__class__ = _returning_class(cls)


@functools.cache
def _returning_class(cls: Any) -> Any:
    def close(self: Any) -> None:
        """Give the connection back to the pool that lent it, or close it if there is none."""
        _close(self, cls)

    # One base, no slots: a layout to which __class__ may be assigned.
    return type(cls.__name__, (cls,), {"__slots__": (), "close": close} | _names_of(cls))


def _close(conn: Any, cls: Any) -> None:
    pool = getattr(conn, "_pool", None)
    # There are five cases: idle in its pool, where closing once more is harmless, or taken from it
    # on purpose; of a pool that does not want it back; broken; of a class that closes in its own
    # way; plain.
    if pool is None:
        if not conn._slot.is_at_home:
            cls.close(conn)
    elif not pool.close_returns:
        cls.close(conn)
    elif conn.closed:
        pool._close_broken(conn)
    elif DRIVER_RETURNS and cls.close is not Connection.close:
        cls.close(conn)
    else:
        # Not by the driver's close(): it looks at `_pool` once more, and when another thread has
        # given the connection back meanwhile, it closes what is idle, or lent again.
        try:
            pool.putconn(conn)
        except ValueError:
            if conn._pool is pool:
                raise


def _names_of(cls: type) -> dict[str, Any]:
    return {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }


@functools.cache
def _closed_attributes() -> dict[str, Any]:
    """Return the attributes of a connection that is closed, made without a server."""
    pgconn = PGconn.connect_start(b"host=/dev/null port=0")
    pgconn.finish()
    conn: Connection[Any] = Connection(pgconn)
    return conn.__dict__ | {"_closed": True}
