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
from psycopg.pq import PGconn

from ._fastpath import Lease

if TYPE_CHECKING:
    from .base import BasePool

# Before 3.3 the driver's close() knows nothing of pools.
DRIVER_RETURNS = tuple(int(part) for part in psycopg.__version__.split(".")[:2]) >= (3, 3)


class ReturnOnClose:
    """A connection whose close() gives it back, dead or alive, while its pool says so."""

    __slots__ = ()

    def close(self: Any) -> None:
        """Give the connection back to the pool that lent it, or close it if there is none."""
        pool = getattr(self, "_pool", None)
        if pool is None:
            # Idle in its pool: closing once more is harmless. Else `_pool` was unset on purpose.
            if not self._slot.is_at_home:
                super().close()  # type: ignore[misc]  # the connection class has it
        elif not pool.close_returns:
            super().close()  # type: ignore[misc]
        elif self.closed:
            pool._close_broken(self)
        elif DRIVER_RETURNS:
            super().close()  # type: ignore[misc]
        else:
            pool.putconn(self)


@functools.cache
def _derived(mixin: type, cls: type) -> type:
    """Return the class that puts *mixin* before *cls*, under the name of *cls*."""
    body: dict[str, Any] = {
        "__slots__": (),
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    if mixin is Lease:
        body["__del__"] = Lease._dropped
    return type(cls.__name__, (mixin, cls), body)


def lease(pool: BasePool, conn: Any) -> Any:
    """Return a lease of *conn*, which the pool has just lent."""
    cls: Any = type(conn)
    lent: Any = Lease.__new__(_derived(Lease, cls))
    lent._begin(pool, conn, conn._slot, _closed_attributes())
    return lent


def return_on_close(conn: Any) -> None:
    """Make close() of *conn* reach its pool in every case, where its class allows that."""
    cls: Any = type(conn)
    is_proxy = cls is not conn.__class__
    if issubclass(cls, psycopg.Connection) and not is_proxy:
        conn.__class__ = _derived(ReturnOnClose, cls)


@functools.cache
def _closed_attributes() -> dict[str, Any]:
    """Return the attributes of a connection that is closed, made without a server."""
    pgconn = PGconn.connect_start(b"host=/dev/null port=0")
    pgconn.finish()
    conn: psycopg.Connection[Any] = psycopg.Connection(pgconn)
    conn.close()
    attributes = dict(conn.__dict__)
    attributes["_closed"] = True
    return attributes
