"""SQLAlchemy's QueuePool, with psycopg as its driver.

Settings: the sizes; the rest are the defaults of QueuePool: no ping before a connection is lent,
a rollback when it comes back. It opens a connection when one is first wanted.
"""

from __future__ import annotations

import importlib
from functools import partial
from operator import methodcaller
from typing import Any

from .driver import connect
from .pool import Pool, Settings


def _session(lent: Any) -> Any:
    return lent.dbapi_connection


class SQLAlchemyQueue(Pool):
    """sqlalchemy.pool.QueuePool."""

    name = "sqlalchemy"
    module = "sqlalchemy.pool"
    distribution = "SQLAlchemy"
    scenarios = ("getconn_putconn", "connect_close")
    session_of = _session

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._pool = importlib.import_module(self.module).QueuePool(
            partial(connect, settings),
            pool_size=settings.min_size,
            max_overflow=settings.max_size - settings.min_size,
            timeout=60.0,
        )
        self.getconn = self.connect = self._pool.connect
        self.putconn = methodcaller("close")
        for lent in [self.getconn() for _ in range(settings.min_size)]:
            lent.close()

    def close(self) -> None:
        self._pool.dispose()
