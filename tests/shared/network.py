"""What lies between a pool of either kind and its server, in a test's hands."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg
import pytest
from shared.tasks import POLL


class Attempt(NamedTuple):
    """One connect: when it began, and what it was called with."""

    when: float
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Network:
    """What happens between a pool and its server: connects pass, fail, or wait at a gate."""

    def __init__(self, kind: str) -> None:
        self._lock = threading.Lock()
        self._gate = threading.Event()
        self._gate.set()
        self.error: BaseException | None = None
        self.attempts: list[Attempt] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.connection_class = self._for_threads() if kind == "threads" else self._for_tasks()

    def _for_threads(self) -> Any:
        network = self

        class Connection(psycopg.Connection[Any]):
            @classmethod
            def connect(cls, *args: Any, **kwargs: Any) -> Any:
                network._enter(args, kwargs)
                try:
                    network._gate.wait(20.0)
                    network._pass()
                    return super().connect(*args, **kwargs)
                finally:
                    network._leave()

        return Connection

    def _for_tasks(self) -> Any:
        network = self

        class Connection(psycopg.AsyncConnection[Any]):
            @classmethod
            async def connect(cls, *args: Any, **kwargs: Any) -> Any:
                network._enter(args, kwargs)
                try:
                    while not network._gate.is_set():
                        await asyncio.sleep(POLL)
                    network._pass()
                    return await super().connect(*args, **kwargs)
                finally:
                    network._leave()

        return Connection

    def _enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with self._lock:
            self.attempts.append(Attempt(time.monotonic(), args, kwargs))
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def _pass(self) -> None:
        if self.error is not None:
            raise self.error

    def _leave(self) -> None:
        with self._lock:
            self.in_flight -= 1

    def down(self, error: BaseException | None = None) -> None:
        """Let every connect fail from now on."""
        self.error = error or psycopg.OperationalError("the network is down")

    def up(self) -> None:
        """Let connects pass."""
        self.error = None

    def hold(self) -> None:
        """Let every connect wait until release()."""
        self._gate.clear()

    def release(self) -> None:
        """Open the gate."""
        self._gate.set()


@pytest.fixture
def network(new_pool: object, kind: str) -> Iterator[Network]:
    """A Network; pass its `connection_class` to a pool. Open again before the pools close."""
    network = Network(kind)
    yield network
    network.release()
