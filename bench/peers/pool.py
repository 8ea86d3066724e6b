"""What a benchmark asks of a pool, whatever it is called there.

Owns: the face that every adapter shows, one for threads and one for tasks, and all that can be
done through it. Refuses: to know a pool; each adapter is a module of its own beside this one.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar

from .. import cycles, tasks, threads
from ..depth import Point
from ..rounds import Round


@dataclass(frozen=True)
class Settings:
    """What every pool is told."""

    dsn: str
    min_size: int
    max_size: int
    autocommit: bool = False
    connecting: Callable[[Callable[[], Any]], Any] | None = None
    """Called with the driver's way to connect where that would be called, to do it another way."""


class Peer:
    """What all peers have: a name, a version, settings, and some of the ways to lend."""

    name: ClassVar[str]
    module: ClassVar[str]
    """What must be importable."""
    distribution: ClassVar[str | None] = None
    """Whose version is measured; None for what comes with Python."""
    scenarios: ClassVar[Sequence[str]] = cycles.SCENARIOS
    """The cycles that it has."""
    session_of: ClassVar[Callable[[Any], Any] | None] = None
    """Finds the driver's connection in what was lent, where that is something else."""

    connect: Callable[[], Any]
    """Lends a connection whose close() gives it back; if it has the scenario connect_close."""
    connection: Callable[[], Any]
    """Lends for a with block; if it has the scenario connection_block."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @classmethod
    def clients(cls, point: Point) -> int:
        """Return how many threads or tasks use the pool at *point*."""
        return point.clients

    @classmethod
    def missing(cls) -> str | None:
        """Say why this peer is left out, or None."""
        package = cls.module.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            return f"{cls.distribution or package} is not installed"
        return _needs_gil(cls.module)

    @classmethod
    def version(cls) -> str:
        """Return the version that is measured."""
        return version(cls.distribution) if cls.distribution else sys.version.partition(" ")[0]


def _needs_gil(module: str) -> str | None:
    """Say so if importing *module* would turn the GIL on where there is none.

    Asked of another process: it can't be turned off again.
    """
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        return None
    code = f"import sys, {module}; sys.exit(sys._is_gil_enabled())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    return None if done.returncode == 0 else f"{module} needs the GIL"


class Pool(Peer):
    """A pool for threads, open and full. *settings.min_size* connections stand ready."""

    getconn: Callable[[], Any]
    putconn: Callable[[Any], object]

    def close(self) -> None:
        """Close the pool and its connections."""
        raise NotImplementedError

    @staticmethod
    def select(session: Any) -> None:
        """Ask the server for one row: with autocommit, one round trip."""
        assert session.execute("SELECT 1").fetchone() == (1,)

    def cycle(self, scenario: str, n: int) -> float:
        """Lend and give back *n* times; return the seconds for one. The pool is verified."""
        seconds = self._cycle(scenario, n)
        self.verify()
        return seconds

    def _cycle(self, scenario: str, n: int) -> float:
        if scenario == "connection_block":
            return cycles.block(self.connection, n)
        if scenario == "connect_close":
            return cycles.take_and_close(self.connect, n)
        return cycles.take_and_put(self.getconn, self.putconn, n)

    def contend(self, point: Point, seconds: float) -> Round:
        """Put the pool under the load of *point*, for *seconds*. The pool is verified."""
        result = self._contend(point, seconds)
        self.verify()
        return result

    def _contend(self, point: Point, seconds: float) -> Round:
        holds = {
            "nothing": threads.hold_nothing,
            "SELECT 1": self.select,
            "1 ms": threads.hold_millisecond,
        }
        return threads.play(
            self.getconn,
            self.putconn,
            type(self).session_of,
            holds[point.hold],
            threads=self.clients(point),
            burners=point.burners,
            seconds=seconds,
        )

    def verify(self) -> None:
        """Raise AssertionError unless all connections are there, each once."""
        size, session_of = self.settings.max_size, type(self).session_of
        lent = [self.getconn() for _ in range(size)]
        sessions = lent if session_of is None else [session_of(conn) for conn in lent]
        assert len({id(session) for session in sessions}) == size
        if self.settings.autocommit:
            for session in sessions:
                self.select(session)
        for conn in lent:
            self.putconn(conn)


class AsyncPool(Peer):
    """A pool for the tasks of one event loop. `open()` makes it ready."""

    getconn: Callable[[], Awaitable[Any]]
    putconn: Callable[[Any], Awaitable[object]]

    async def open(self) -> None:
        """Open the pool and wait until it is full."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close the pool and its connections."""
        raise NotImplementedError

    @staticmethod
    async def select(session: Any) -> None:
        """Ask the server for one row: with autocommit, one round trip."""
        cursor = await session.execute("SELECT 1")
        assert await cursor.fetchone() == (1,)

    async def cycle(self, scenario: str, n: int) -> float:
        """Lend and give back *n* times; return the seconds for one. The pool is verified."""
        seconds = await self._cycle(scenario, n)
        await self.verify()
        return seconds

    async def _cycle(self, scenario: str, n: int) -> float:
        if scenario == "connection_block":
            return await cycles.block_async(self.connection, n)
        if scenario == "connect_close":
            return await cycles.take_and_close_async(self.connect, n)
        return await cycles.take_and_put_async(self.getconn, self.putconn, n)

    async def contend(self, point: Point, seconds: float) -> Round:
        """Put the pool under the load of *point*, for *seconds*. The pool is verified."""
        result = await self._contend(point, seconds)
        await self.verify()
        return result

    async def _contend(self, point: Point, seconds: float) -> Round:
        holds = {
            "nothing": tasks.hold_nothing,
            "SELECT 1": self.select,
            "1 ms": tasks.hold_millisecond,
        }
        return await tasks.play(
            self.getconn,
            self.putconn,
            type(self).session_of,
            holds[point.hold],
            tasks=self.clients(point),
            seconds=seconds,
        )

    async def verify(self) -> None:
        """Raise AssertionError unless all connections are there, each once."""
        size, session_of = self.settings.max_size, type(self).session_of
        lent = [await self.getconn() for _ in range(size)]
        sessions = lent if session_of is None else [session_of(conn) for conn in lent]
        assert len({id(session) for session in sessions}) == size
        if self.settings.autocommit:
            for session in sessions:
                await self.select(session)
        for conn in lent:
            await self.putconn(conn)
