"""What was measured: pytest-benchmark's JSON, by workload and peer.

Owns: the names in the files, and the union of several files. Refuses: to judge or to draw.

Files with the same machine, interpreter and commit are one run: where they measured the same thing,
their samples are pooled, and of their figures the medians are taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeAlias

# In this order they are shown: fastpool, what it stands in for, the others, the two yardsticks.
PEERS = {
    "fastpool": "fastpool",
    "psycopg_pool": "psycopg_pool",
    "sqlalchemy": "SQLAlchemy",
    "dbutils": "DBUtils",
    "psycopg2": "psycopg2",
    "asyncpg": "asyncpg",
    "hikaricp": "HikariCP",
    "simplequeue": "SimpleQueue",
    "bare": "no pool",
}
YARDSTICKS = {
    "simplequeue": "a queue.SimpleQueue of connections: the floor, with none of a pool's duties",
    "bare": "connections without a pool, one a thread: the ceiling of what the server gives",
}

PARAMETERS: dict[str, tuple[str, ...]] = {
    "cycle": ("scenario", "mode", "stub"),
    "contended": ("hold", "burners", "connections", "threads"),
    "contended_async": ("hold", "connections", "tasks"),
    "spike": ("clients", "connect_ms", "work_ms", "min_size", "max_size"),
    "open": ("connections",),
    "memory": ("what",),
    "import": ("module",),
    "scaling": ("threads",),
}
_WAITS = ("wait_p50", "wait_p90", "wait_p99", "wait_p999", "wait_max")
FIGURES = ("rate", *_WAITS, "share", "cpu_per_op", "elapsed", "opened", "value")
FACTS = ("machine", "cores", "python", "gil", "postgres", "psycopg", "commit", "command", "date")

Parameter: TypeAlias = str | int | float | bool


class ResultError(Exception):
    """A file is not a benchmark run."""


@dataclass(frozen=True)
class Spread:
    """How a measured number lies over the rounds."""

    median: float
    q1: float
    q3: float
    min: float
    max: float
    rounds: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Sum up *samples*, of which there is at least one."""
        if len(samples) == 1:
            (only,) = samples
            return cls(only, only, only, only, only, rounds=1)
        q1, middle, q3 = quantiles(samples, n=4, method="inclusive")
        return cls(middle, q1, q3, min(samples), max(samples), len(samples))


@dataclass(frozen=True)
class Result:
    """What one peer did at one workload with one set of parameters."""

    workload: str
    peer: str
    version: str
    parameters: Mapping[str, Parameter]
    figures: Mapping[str, float]
    """By the names of FIGURES, as far as they were measured: seconds, and counts."""
    time: Spread
    """Seconds for one operation, over the rounds."""
    rates: Spread | None
    """Requests a second, over the rounds."""

    @property
    def label(self) -> str:
        """The peer's name as it is written."""
        return PEERS.get(self.peer, self.peer)


@dataclass(frozen=True)
class Run:
    """All results of one machine, interpreter and commit."""

    facts: Mapping[str, str]
    versions: Mapping[str, str]
    left_out: Sequence[tuple[str, str]]
    """Peers that were not measured, and why."""
    results: Sequence[Result]

    def of(self, workload: str, **parameters: Parameter) -> list[Result]:
        """Find the results of *workload* that have these *parameters*, in the order of PEERS."""
        return [
            result
            for result in self.results
            if result.workload == workload and parameters.items() <= result.parameters.items()
        ]

    def values(self, workload: str, parameter: str, **parameters: Parameter) -> list[Any]:
        """List what *parameter* was: numbers ascending, words as they are met."""
        found = [each.parameters.get(parameter) for each in self.of(workload, **parameters)]
        met = list(dict.fromkeys(value for value in found if value is not None))
        return met if any(isinstance(value, str) for value in met) else sorted(met)

    @property
    def title(self) -> str:
        """The interpreter, which is what tells runs on one machine apart."""
        kind = ", free-threaded" if self.facts["gil"] == "False" else ""
        return f"Python {self.facts['python']}{kind}"


def read(paths: Iterable[Path]) -> list[Run]:
    """Read the result files at *paths* as runs, in the order in which they are met.

    Raises ResultError, with the reason, when one of them is no such file.
    """
    runs: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for path in paths:
        data = load(path)
        facts = facts_of(data)
        key = tuple(facts.get(name, "") for name in ("machine", "python", "gil", "commit"))
        runs.setdefault(key, []).append(data)
    return [_run(files) for files in runs.values()]


def load(path: Path) -> dict[str, Any]:
    """Read the file at *path*, and see that it is pytest-benchmark's and has results.

    Raises ResultError.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("benchmarks"), list):
        raise ResultError(f"{path}: not a file of pytest-benchmark")
    if not any("peer" in each.get("extra_info", {}) for each in data["benchmarks"]):
        raise ResultError(f"{path}: no results in it")
    return data


def facts_of(data: Mapping[str, Any]) -> dict[str, str]:
    """Tell on what the file's benchmarks ran, by the names of FACTS."""
    facts = dict.fromkeys(FACTS, "unknown") | {"date": str(data.get("datetime")), "command": ""}
    for each in data["benchmarks"]:
        info = each.get("extra_info", {})
        facts |= {name: str(info[name]) for name in FACTS if name in info}
    return facts


def samples_of(benchmark: Mapping[str, Any]) -> list[float]:
    """Return a benchmark's samples; where a file leaves them out, its quartiles stand for them."""
    stats = benchmark["stats"]
    names = ("min", "q1", "median", "q3", "max")
    return list(stats.get("data") or [stats[name] for name in names if name in stats])


def describe(extra: Mapping[str, Any]) -> tuple[str, dict[str, Parameter]]:
    """Tell a benchmark's workload and parameters by its extra_info."""
    workload = extra.get("workload") or ("cycle" if "scenario" in extra else "contended")
    # What a file does not say was so before there was a choice.
    unsaid = {"mode": "sync", "stub": False, "connections": 4, "burners": 0}
    names = PARAMETERS.get(workload, ())
    said = {name: extra.get(name, unsaid.get(name)) for name in names}
    return workload, {name: value for name, value in said.items() if value is not None}


def _run(files: Sequence[Mapping[str, Any]]) -> Run:
    """Unite *files*, which are of one run."""
    same: dict[tuple[object, ...], list[Mapping[str, Any]]] = {}
    left_out: dict[str, str] = {}
    for data in files:
        about = data.get("machine_info", {}).get("fastpool_bench", {})
        left_out |= {each["peer"]: each["why"] for each in about.get("left_out", [])}
        for benchmark in data["benchmarks"]:
            extra = benchmark.get("extra_info", {})
            if "peer" in extra and benchmark.get("stats"):
                workload, parameters = describe(extra)
                key = (workload, extra["peer"], *parameters.items())
                same.setdefault(key, []).append(benchmark)
    results = [_result(each) for each in same.values()]
    order = list(PEERS)
    results.sort(key=lambda each: order.index(each.peer) if each.peer in order else len(order))
    return Run(
        facts=facts_of(files[-1]),
        versions={each.peer: each.version for each in results},
        left_out=sorted(left_out.items()),
        results=results,
    )


def _result(benchmarks: Sequence[Mapping[str, Any]]) -> Result:
    """Unite *benchmarks* of one peer, workload and set of parameters."""
    extras = [each["extra_info"] for each in benchmarks]
    figures = {}
    for name in FIGURES:
        values = [extra[name] for extra in extras if extra.get(name) is not None]
        if values:
            figures[name] = max(values) if name == "wait_max" else median(values)
    rates = [rate for extra in extras for rate in extra.get("rates", [])]
    workload, parameters = describe(extras[0])
    return Result(
        workload=workload,
        peer=extras[0]["peer"],
        version=str(extras[0].get("version", "")),
        parameters=parameters,
        figures=figures,
        time=Spread.of([sample for each in benchmarks for sample in samples_of(each)]),
        rates=Spread.of(rates) if rates else None,
    )
