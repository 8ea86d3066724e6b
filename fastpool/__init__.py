"""fastpool: a connection pool for psycopg 3. `import fastpool as psycopg_pool` is all it takes.

Importing it pulls in psycopg and the core, nothing else.
"""

from . import base as base  # programs look for `psycopg_pool.base`
from .errors import PoolClosed, PoolTimeout, TooManyRequests
from .pool import ConnectionPool
from .snapshot import SlotInfo, Snapshot
from .version import __version__ as __version__

__all__ = [
    "ConnectionPool",
    "PoolClosed",
    "PoolTimeout",
    "SlotInfo",
    "Snapshot",
    "TooManyRequests",
]
