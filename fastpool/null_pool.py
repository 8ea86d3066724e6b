"""The null pool for threads: limits and queues, but keeps no connection open.

Owns: NullConnectionPool. Refuses: to differ from ConnectionPool in anything but what null_base
says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .annotations import CT
from .null_base import BaseNullPool, with_defaults
from .pool import ConnectionPool


class NullConnectionPool(BaseNullPool, ConnectionPool[CT]):
    """A pool that opens a connection for each lending, and closes it when it comes back.

    For use beside an external pooler such as PgBouncer: same surface, statistics and limits as
    ConnectionPool, no idle connection. The parameters are ConnectionPool's. *min_size* must be 0;
    *max_size*: how many connections may be lent at once, None or 0 for any number. At the maximum
    callers wait, and a connection that comes back goes to the first of them, reset, instead of
    being closed. `conn.close()` closes, and frees the place.

    `getconn()` blocks while it connects, side by side with other threads; while that fails, one
    after the other, two a second. It passes the time that it has left to the driver as
    connect_timeout, unless you set that. Raises what connecting raises, and PoolTimeout when that
    takes too long. The class's `connect()` runs in a thread of its own, with the caller's context
    variables, so that the caller need not wait for it; the other callbacks run in the caller's.
    Thread-safe.
    """

    if not TYPE_CHECKING:
        __init__ = with_defaults(ConnectionPool.__init__, "NullConnectionPool", min_size=0)
