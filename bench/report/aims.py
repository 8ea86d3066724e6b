"""What fastpool aims at, and how far a run says that it is: the table of docs/performance.md.

Owns: which aims there are, and how each is read off the results. Refuses: to leave out one that is
missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import units
from .headlines import about, elapsed, figure, markdown_table, per_operation
from .results import PEERS, Parameter, Result, Run

BEGIN, END = "<!-- aims: written by make bench-readme -->\n", "<!-- end of aims -->\n"

Measure = Callable[[Result], "float | None"]

_HOLDS = {"nothing": "no work", "SELECT 1": "SELECT 1", "1 ms": "1 ms"}


@dataclass(frozen=True)
class Aim:
    """One figure of fastpool, alone or against a peer's, and what it should be."""

    what: str
    measured: str
    """Which figure, in words."""
    source: str
    """The benchmark that it comes from."""
    workload: str
    parameters: dict[str, Parameter]
    get: Measure
    wanted: float
    against: str | None = None
    """The peer whose figure is divided by fastpool's."""
    inverse: bool = False
    """fastpool's figure is divided by the peer's instead."""
    at_most: bool = False
    form: units.Format = units.factor
    free_threaded: bool = False

    def reached(self, run: Run) -> float | None:
        """Read it off *run*; None where the run does not have it."""
        found = {each.peer: each for each in run.of(self.workload, **self.parameters)}
        ours = self.get(found["fastpool"]) if "fastpool" in found else None
        if self.against is None or ours is None:
            return ours
        theirs = self.get(found[self.against]) if self.against in found else None
        if not theirs or not ours:
            return None
        return ours / theirs if self.inverse else theirs / ours

    def is_met_by(self, value: float) -> bool:
        """Whether *value* is what is wanted."""
        return value <= self.wanted if self.at_most else value >= self.wanted


def _aims() -> Iterator[Aim]:
    """Yield all aims, in the order of the table."""

    def cycle(scenario: str, mode: str, what: str, wanted: float, **more: Any) -> Aim:
        parameters: dict[str, Parameter] = {"scenario": scenario, "mode": mode, "stub": False}
        options: dict[str, Any] = {"against": "psycopg_pool", **more}
        return Aim(
            what,
            f"{PEERS[str(options['against'])]}'s time over fastpool's",
            "bench/test_cycle.py",
            "cycle",
            parameters,
            per_operation,
            wanted,
            **options,
        )

    yield cycle("getconn_putconn", "sync", "getconn() + putconn(), one thread", 18)
    yield cycle("getconn_putconn", "sync", "the same against HikariCP", 1, against="hikaricp")
    yield cycle("connection_block", "sync", "with connection(), one thread", 12)

    def contended(
        hold: str, measured: str, get: Measure, wanted: float, threads: int = 64, **more: Any
    ) -> Aim:
        return Aim(
            f"{threads} threads on 4 connections, {_HOLDS[hold]}",
            measured,
            "bench/test_contended.py",
            "contended",
            {"hold": hold, "connections": 4, "threads": threads, "burners": 0},
            get,
            wanted,
            **more,
        )

    rate, p99, p999, share = (figure(name) for name in ("rate", "wait_p99", "wait_p999", "share"))
    ours: dict[str, Any] = {"against": "psycopg_pool", "inverse": True}
    slower: dict[str, Any] = {**ours, "at_most": True}
    times = "requests, against psycopg_pool"
    wait = "wait {}, against psycopg_pool".format
    least = "least over most served"
    yield Aim(
        "64 threads on 4 connections, SELECT 1",
        "requests, against 4 threads without a pool",
        "bench/test_contended.py",
        "contended",
        {"hold": "SELECT 1", "connections": 4, "threads": 64, "burners": 0},
        rate,
        0.8,
        against="bare",
        inverse=True,
    )
    yield contended("SELECT 1", times, rate, 1.4, **ours)
    yield contended("SELECT 1", wait("p99"), p99, 0.8, **slower)
    yield contended("SELECT 1", least, share, 0.9, form=units.share)
    yield contended("nothing", times, rate, 20, **ours)
    yield contended("nothing", wait("p99.9"), p999, 1, **slower)
    yield contended("1 ms", times, rate, 1.03, **ours)
    yield contended("1 ms", wait("p99"), p99, 1, **slower)
    yield contended("1 ms", least, share, 0.95, form=units.share)
    yield cycle("getconn_putconn", "async", "await getconn() + putconn(), one task", 10)
    yield cycle("connection_block", "async", "async with connection(), one task", 8)
    yield Aim(
        "64 tasks on 4 connections, SELECT 1",
        times,
        "bench/test_contended_async.py",
        "contended_async",
        {"hold": "SELECT 1", "connections": 4, "tasks": 64},
        rate,
        1.1,
        against="psycopg_pool",
        inverse=True,
    )
    yield cycle(
        "getconn_putconn",
        "sync",
        "getconn() + putconn(), one thread, no GIL",
        15,
        free_threaded=True,
    )
    yield contended("nothing", times, rate, 10, threads=8, free_threaded=True, **ours)
    yield contended("nothing", wait("p99.9"), p999, 1, threads=8, free_threaded=True, **slower)
    yield Aim(
        "an idle open pool",
        "threads in the process, for all pools",
        "bench/test_memory.py",
        "memory",
        {"what": "threads"},
        figure("value"),
        1,
        at_most=True,
        form=units.count,
    )
    yield Aim(
        "an idle open pool",
        "bytes in memory, besides its connections",
        "bench/test_memory.py",
        "memory",
        {"what": "bytes"},
        figure("value"),
        16 * 1024,
        at_most=True,
        form=units.size,
    )
    yield Aim(
        "opening 100 connections",
        "time, against psycopg_pool with as many workers",
        "bench/test_open.py",
        "open",
        {"connections": 100},
        elapsed,
        1,
        against="psycopg_pool",
        inverse=True,
        at_most=True,
    )


AIMS = tuple(_aims())


def markdown(runs: Sequence[Run]) -> str:
    """Render the aims as *runs* show them, and on what those were measured."""
    lines = []
    for aim in AIMS:
        fitting = [run for run in runs if (run.facts["gil"] == "False") is aim.free_threaded]
        values = [value for run in fitting if (value := aim.reached(run)) is not None]
        bound = "at most" if aim.at_most else "at least"
        reached = units.NOTHING
        if values:
            reached = aim.form(values[0]) + ("" if aim.is_met_by(values[0]) else ": missed")
        what = aim.what if not aim.free_threaded or "GIL" in aim.what else f"{aim.what}, no GIL"
        lines.append([what, aim.measured, f"`{aim.source}`", f"{bound} {aim.form(aim.wanted)}"])
        lines[-1].append(reached)
    header = ["workload", "figure", "from", "aim", "reached"]
    measured = "".join(f"\n{about(run)}\n" for run in runs)
    return markdown_table(header, lines) + measured
