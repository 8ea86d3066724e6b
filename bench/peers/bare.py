"""Connections without a pool, one for each thread or task: the ceiling of what holds one.

There are as many clients as connections at most, so that nobody ever waits.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import psycopg

from ..depth import Point
from .driver import connect
from .pool import AsyncPool, Pool, Settings


def _keep(conn: Any) -> None:
    """It stays with its client."""


async def _keep_async(conn: Any) -> None:
    """It stays with its client."""


class Bare(Pool):
    """One connection a thread."""

    name = "bare"
    module = "psycopg"
    distribution = "psycopg"
    scenarios = ()

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._connections = [connect(settings) for _ in range(settings.min_size)]
        self.putconn = _keep
        self._begin()

    def _begin(self) -> None:
        mine, left = threading.local(), iter(self._connections)

        def own() -> Any:
            try:
                return mine.conn
            except AttributeError:
                mine.conn = next(left)
                return mine.conn

        self.getconn = own

    @classmethod
    def clients(cls, point: Point) -> int:
        return min(point.clients, point.connections)

    def verify(self) -> None:
        for conn in self._connections:
            self.select(conn)
        # The threads of the next round are new ones.
        self._begin()

    def close(self) -> None:
        for conn in self._connections:
            conn.close()


class AsyncBare(AsyncPool):
    """One connection a task."""

    name = "bare"
    module = "psycopg"
    distribution = "psycopg"
    scenarios = ()

    async def open(self) -> None:
        self._connections = [
            await psycopg.AsyncConnection.connect(
                self.settings.dsn, autocommit=self.settings.autocommit
            )
            for _ in range(self.settings.min_size)
        ]
        self.putconn = _keep_async
        self._begin()

    def _begin(self) -> None:
        mine: dict[Any, Any] = {}
        left = iter(self._connections)

        async def own() -> Any:
            task = asyncio.current_task()
            if task not in mine:
                mine[task] = next(left)
            return mine[task]

        self.getconn = own

    @classmethod
    def clients(cls, point: Point) -> int:
        return min(point.clients, point.connections)

    async def verify(self) -> None:
        for conn in self._connections:
            await self.select(conn)
        # The tasks of the next round are new ones.
        self._begin()

    async def close(self) -> None:
        for conn in self._connections:
            await conn.close()
