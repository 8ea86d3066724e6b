"""fastpool: a connection pool for psycopg 3. `import fastpool as psycopg_pool` is all it takes.

Importing it pulls in psycopg and the core, nothing else.
"""

from . import abc as abc  # programs look for these two as `psycopg_pool.abc`, `.base`
from . import base as base
from .errors import PoolClosed, PoolDeadlock, PoolTimeout, TooManyRequests
from .null_pool import NullConnectionPool
from .null_pool_async import AsyncNullConnectionPool
from .pool import ConnectionPool
from .pool_async import AsyncConnectionPool
from .snapshot import SlotInfo, Snapshot
from .standin import install
from .version import __version__ as __version__

__all__ = [
    "AsyncConnectionPool",
    "AsyncNullConnectionPool",
    "ConnectionPool",
    "NullConnectionPool",
    "PoolClosed",
    "PoolDeadlock",
    "PoolTimeout",
    "SlotInfo",
    "Snapshot",
    "TooManyRequests",
    "install",
]
