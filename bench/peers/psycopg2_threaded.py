"""psycopg2's ThreadedConnectionPool, with psycopg2.

Settings: the sizes. It refuses where others wait, so that under a load a semaphore stands before
it, which is what its users do.
"""

from __future__ import annotations

import importlib
import threading
from functools import partial
from typing import Any

from ..depth import Point
from ..rounds import Round
from .pool import Pool, Settings


class Psycopg2Threaded(Pool):
    """psycopg2.pool.ThreadedConnectionPool."""

    name = "psycopg2"
    module = "psycopg2.pool"
    distribution = "psycopg2-binary"
    scenarios = ("getconn_putconn",)

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        driver = importlib.import_module("psycopg2.extensions").connection
        connecting = settings.connecting or (lambda usual: usual())

        class Connection(driver):  # type: ignore[misc, valid-type]  # known at run time only
            """One that takes attributes, as the driver's own does not."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                connecting(partial(super().__init__, *args, **kwargs))
                self.autocommit = settings.autocommit

        self._pool = importlib.import_module(self.module).ThreadedConnectionPool(
            settings.min_size, settings.max_size, settings.dsn, connection_factory=Connection
        )
        self.getconn, self.putconn = self._pool.getconn, self._pool.putconn

    def close(self) -> None:
        self._pool.closeall()

    def _contend(self, point: Point, seconds: float) -> Round:
        room = threading.Semaphore(self.settings.max_size)
        getconn, putconn = self._pool.getconn, self._pool.putconn

        def take() -> Any:
            room.acquire()
            return getconn()

        def put(conn: Any) -> None:
            putconn(conn)
            room.release()

        self.getconn, self.putconn = take, put
        try:
            return super()._contend(point, seconds)
        finally:
            self.getconn, self.putconn = getconn, putconn

    @staticmethod
    def select(session: Any) -> None:
        with session.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == (1,)
