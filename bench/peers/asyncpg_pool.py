"""asyncpg's pool, with asyncpg.

Settings: the sizes; connections live on when idle, as the other pools' do for ten minutes; and
what comes back is rolled back if it needs to be, which is what the others do, instead of asyncpg's
default of a round trip to forget cursors, listeners, locks and settings.
"""

from __future__ import annotations

import importlib
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from .pool import AsyncPool


async def _roll_back(conn: Any) -> None:
    if conn.is_in_transaction():
        await conn.execute("ROLLBACK")


def _session(lent: Any) -> Any:
    return lent._con


class AsyncpgPool(AsyncPool):
    """asyncpg.create_pool()."""

    name = "asyncpg"
    module = "asyncpg"
    distribution = "asyncpg"
    scenarios = ("getconn_putconn", "connection_block")
    session_of = _session

    async def open(self) -> None:
        asyncpg: Any = importlib.import_module(self.module)

        class Connection(asyncpg.Connection):  # type: ignore[misc]  # known at run time only
            """One that takes attributes, as the driver's own does not."""

        about = conninfo_to_dict(self.settings.dsn)
        self._pool = await asyncpg.create_pool(
            host=about.get("host"),
            port=about.get("port"),
            user=about.get("user"),
            password=about.get("password"),
            database=about.get("dbname"),
            min_size=self.settings.min_size,
            max_size=self.settings.max_size,
            max_inactive_connection_lifetime=600.0,
            max_queries=2**62,
            connection_class=Connection,
            reset=_roll_back,
        )
        self.getconn, self.putconn = self._pool.acquire, self._pool.release
        self.connection = self._pool.acquire

    async def close(self) -> None:
        await self._pool.close()

    @staticmethod
    async def select(session: Any) -> None:
        assert await session.fetchval("SELECT 1") == 1
