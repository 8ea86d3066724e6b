"""queue.SimpleQueue full of psycopg's connections: the floor, what waiting in line alone costs.

It is no pool: it opens nothing, checks nothing, and takes back whatever it is given.
"""

from __future__ import annotations

import queue
from typing import Any

from .driver import connect
from .pool import Pool, Settings


class SimpleQueue(Pool):
    """A queue.SimpleQueue of connections."""

    name = "simplequeue"
    module = "queue"
    scenarios = ("getconn_putconn",)

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.getconn, self.putconn = self._idle.get, self._idle.put
        for _ in range(settings.min_size):
            self.putconn(connect(settings))

    def close(self) -> None:
        while not self._idle.empty():
            self._idle.get().close()
