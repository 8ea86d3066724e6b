"""How much is measured: rounds, seconds, and which points of each matrix.

Owns: the two depths, FULL (make bench, under 10 minutes on 2 cores) and QUICK (make bench-quick,
under one). Refuses: to know how anything is measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

HOLDS = ("nothing", "SELECT 1", "1 ms")
THREADS = (1, 2, 4, 8, 16, 64, 256)
CONNECTIONS = (1, 4, 16)
# The pools that are measured wherever anything is.
COMPARED = ("fastpool", "psycopg_pool")

# The shortest time that a connection is held, in seconds: how soon a client's turn can come.
HOLD_SECONDS = {"nothing": 0.0, "SELECT 1": 0.0001, "1 ms": 0.0011}
# As many turns does every client get in a round at least, if all are served alike.
TURNS = 4


@dataclass(frozen=True)
class Point:
    """One point of a contended matrix: *clients* (threads or tasks) on *connections*."""

    clients: int
    connections: int
    hold: str
    burners: int = 0
    """CPU-bound threads beside them."""

    def __str__(self) -> str:
        beside = f"+{self.burners}" if self.burners else ""
        return f"{self.clients}{beside}x{self.connections}-{self.hold}"

    def seconds(self, wanted: float) -> float:
        """Lengthen a round of *wanted* seconds until everybody's turn comes a few times."""
        turn = self.clients / self.connections * HOLD_SECONDS[self.hold]
        return max(wanted, TURNS * turn)


@dataclass(frozen=True)
class Sampling:
    """*rounds* for each peer, of *seconds* each."""

    rounds: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Depth:
    """What one run measures."""

    cycle: Sampling
    cycle_async: Sampling
    headline: Sampling
    """The points at which all peers are measured."""
    matrix: Sampling
    """The other ones."""
    burdened: Sampling
    """Those with CPU-bound threads beside."""
    tasks: Sampling
    scaling: Sampling
    spike: Sampling
    open: Sampling
    memory: Sampling
    imports: Sampling

    headline_points: tuple[Point, ...]
    matrix_points: tuple[Point, ...]
    """For fastpool and psycopg_pool."""
    diagonal_points: tuple[Point, ...]
    """For the other peers, besides the headline."""
    burdened_points: tuple[Point, ...]
    task_points: tuple[Point, ...]
    open_sizes: tuple[int, ...]
    everyone: bool
    """Whether all peers take part where each takes seconds, not fastpool and psycopg_pool only."""

    def among(self, peers: Iterable[str]) -> list[str]:
        """Return those of *peers* that take part where each takes seconds."""
        return [peer for peer in peers if self.everyone or peer in COMPARED]


HEADLINE = tuple(Point(64, 4, hold) for hold in HOLDS)

FULL = Depth(
    cycle=Sampling(30, 0.02),
    cycle_async=Sampling(30, 0.02),
    headline=Sampling(5, 0.8),
    matrix=Sampling(3, 0.2),
    burdened=Sampling(3, 1.0),
    tasks=Sampling(3, 0.3),
    scaling=Sampling(5, 0.3),
    spike=Sampling(3),
    open=Sampling(5),
    memory=Sampling(3),
    imports=Sampling(7),
    headline_points=HEADLINE,
    matrix_points=tuple(
        point
        for threads, connections, hold in product(THREADS, CONNECTIONS, HOLDS)
        if (point := Point(threads, connections, hold)) not in HEADLINE
    ),
    diagonal_points=tuple(
        Point(threads, connections, hold)
        for (threads, connections), hold in product([(1, 1), (8, 4), (256, 16)], HOLDS)
    ),
    burdened_points=tuple(Point(64, 4, hold, burners=2) for hold in HOLDS),
    task_points=tuple(
        point
        for tasks, hold in product([1, 64, 512, 4096], HOLDS)
        if (point := Point(tasks, 4, hold)).seconds(0) < 1
    ),
    open_sizes=(1, 16, 100),
    everyone=True,
)
QUICK = Depth(
    cycle=Sampling(8, 0.008),
    cycle_async=Sampling(8, 0.008),
    headline=Sampling(3, 0.1),
    matrix=Sampling(2, 0.1),
    burdened=Sampling(1, 0.5),
    tasks=Sampling(2, 0.15),
    scaling=Sampling(3, 0.1),
    spike=Sampling(1),
    open=Sampling(1),
    memory=Sampling(1),
    imports=Sampling(2),
    headline_points=HEADLINE,
    matrix_points=tuple(
        Point(threads, connections, hold)
        for (threads, connections), hold in product([(1, 1), (8, 4), (256, 16)], HOLDS)
    ),
    diagonal_points=(),
    burdened_points=(Point(64, 4, "SELECT 1", burners=2),),
    task_points=(*HEADLINE, Point(512, 4, "nothing"), Point(4096, 4, "nothing")),
    open_sizes=(1, 16, 100),
    everyone=False,
)


def chosen(config: pytest.Config) -> Depth:
    """Return the depth that the command line asks for."""
    return QUICK if config.getoption("--quick") else FULL
