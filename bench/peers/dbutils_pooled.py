"""DBUtils' PooledDB, with psycopg as its driver.

Settings: the sizes, waiting where there is no connection (blocking), and no ping, for psycopg's
connections have none; the default rollback when a connection comes back.
"""

from __future__ import annotations

import importlib
from functools import partial
from operator import methodcaller
from typing import Any

import psycopg

from .driver import connect
from .pool import Pool, Settings


def _session(lent: Any) -> Any:
    # PooledDB lends a wrapper around its own wrapper around the driver's connection.
    return lent._con._con


class DBUtilsPooled(Pool):
    """dbutils.pooled_db.PooledDB."""

    name = "dbutils"
    module = "dbutils.pooled_db"
    distribution = "DBUtils"
    session_of = _session

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        creator: Any = partial(connect, settings)
        # Where the driver's exceptions are to be found, and that a connection is one thread's.
        creator.dbapi, creator.threadsafety = psycopg, 1
        self._pool = importlib.import_module(self.module).PooledDB(
            creator,
            mincached=settings.min_size,
            maxcached=settings.max_size,
            maxconnections=settings.max_size,
            blocking=True,
            ping=0,
            failures=psycopg.OperationalError,
        )
        self.getconn = self.connect = self.connection = self._pool.connection
        self.putconn = methodcaller("close")

    def close(self) -> None:
        self._pool.close()
