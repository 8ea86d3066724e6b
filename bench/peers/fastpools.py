"""fastpool and psycopg_pool, which have one interface.

Settings of both: the defaults, but the sizes; psycopg_pool closes by returning (close_returns),
which fastpool's connect() does without being told.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar

from .driver import connection_class
from .pool import AsyncPool, Pool, Settings

_TIMEOUT = 60.0


def _check(stats: Mapping[str, int], settings: Settings) -> None:
    """Raise AssertionError unless fastpool counted no fault, and all its connections stand idle."""
    assert stats["requests_errors"] == stats["returns_bad"] == stats["connections_lost"] == 0
    assert stats["requests_waiting"] == 0
    assert stats["pool_size"] == stats["pool_available"] == settings.max_size


class PsycopgPool(Pool):
    """psycopg_pool.ConnectionPool."""

    name = "psycopg_pool"
    module = "psycopg_pool"
    distribution = "psycopg-pool"
    close_returns: ClassVar[bool] = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._pool = self._pool_class()(
            settings.dsn,
            connection_class=connection_class(settings),
            kwargs={"autocommit": settings.autocommit},
            min_size=settings.min_size,
            max_size=settings.max_size,
            open=False,
            close_returns=self.close_returns,
            timeout=_TIMEOUT,
        )
        self._pool.open(wait=True, timeout=_TIMEOUT)
        self.getconn, self.putconn = self._pool.getconn, self._pool.putconn
        self.connect, self.connection = self._pool.getconn, self._pool.connection

    def _pool_class(self) -> Any:
        return importlib.import_module(self.module).ConnectionPool

    def close(self) -> None:
        self._pool.close()


class Fastpool(PsycopgPool):
    """fastpool.ConnectionPool, which counts every lending and never misses one."""

    name = "fastpool"
    module = "fastpool"
    distribution = "fastpool"
    close_returns = False

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.connect = self._pool.connect

    @property
    def lends_at_once(self) -> int:
        """How many connections it has found best to lend at once while threads wait."""
        width: int = self._pool.snapshot().lends_at_once
        return width or self.settings.max_size

    def _cycle(self, scenario: str, n: int) -> float:
        before = self._pool.get_stats()["requests_num"]
        seconds = super()._cycle(scenario, n)
        assert self._pool.get_stats()["requests_num"] - before == n
        return seconds

    def verify(self) -> None:
        _check(self._pool.get_stats(), self.settings)
        super().verify()


class UnpacedFastpool(Fastpool):
    """fastpool.ConnectionPool without its pacing: it lends all its connections at any time."""

    name = "fastpool, all lent"

    def _pool_class(self) -> Any:
        return type("Unpaced", (super()._pool_class(),), {"_PACES": False})


class AsyncPsycopgPool(AsyncPool):
    """psycopg_pool.AsyncConnectionPool."""

    name = "psycopg_pool"
    module = "psycopg_pool"
    distribution = "psycopg-pool"
    close_returns: ClassVar[bool] = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._pool: Any = importlib.import_module(self.module).AsyncConnectionPool(
            settings.dsn,
            kwargs={"autocommit": settings.autocommit},
            min_size=settings.min_size,
            max_size=settings.max_size,
            open=False,
            close_returns=self.close_returns,
            timeout=_TIMEOUT,
        )
        self.getconn, self.putconn = self._pool.getconn, self._pool.putconn
        self.connect, self.connection = self._pool.getconn, self._pool.connection

    async def open(self) -> None:
        await self._pool.open(wait=True, timeout=_TIMEOUT)

    async def close(self) -> None:
        await self._pool.close()


class AsyncFastpool(AsyncPsycopgPool):
    """fastpool.AsyncConnectionPool."""

    name = "fastpool"
    module = "fastpool"
    distribution = "fastpool"
    close_returns = False

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.connect = self._pool.connect

    async def _cycle(self, scenario: str, n: int) -> float:
        before = self._pool.get_stats()["requests_num"]
        seconds = await super()._cycle(scenario, n)
        assert self._pool.get_stats()["requests_num"] - before == n
        return seconds

    async def verify(self) -> None:
        _check(self._pool.get_stats(), self.settings)
        await super().verify()
