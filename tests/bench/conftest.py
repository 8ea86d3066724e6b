"""Made-up benchmark results, in the format of the real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
SYNC = ("fastpool", "psycopg_pool", "sqlalchemy", "dbutils", "psycopg2", "hikaricp", "simplequeue")
ASYNC = ("fastpool", "psycopg_pool", "asyncpg", "sqlalchemy")
# How slow a peer is, in no unit: only differences matter here.
SLOWNESS = dict(zip((*SYNC, "asyncpg", "bare"), (1.0, 12, 20, 9, 7, 0.7, 1.1, 6, 0.9), strict=True))
SHAPE = (0.97, 1.02, 0.99, 1.06, 1.0)
THREADS = (1, 2, 4, 8, 16, 64, 256)
MACHINE = {
    "machine": "Made-up Processor",
    "cores": 2,
    "python": "3.11.7",
    "gil": True,
    "postgres": "18.6",
    "psycopg": "3.3.9 (binary)",
    "commit": "0123abc",
    "command": "make bench",
    "date": "2026-11-22T16:09:03+00:00",
}
HOLDS = {"nothing": 1e-6, "SELECT 1": 7e-5, "1 ms": 1.1e-3}

MakeRun = Callable[..., Path]


def stats(samples: Sequence[float]) -> dict[str, Any]:
    """Sum up *samples* under pytest-benchmark's names."""
    ordered = sorted(samples)
    return {
        "min": ordered[0],
        "max": ordered[-1],
        "median": median(ordered),
        "q1": ordered[len(ordered) // 4],
        "q3": ordered[-1 - len(ordered) // 4],
        "iqr": ordered[-1 - len(ordered) // 4] - ordered[len(ordered) // 4],
        "rounds": len(ordered),
        "data": list(samples),
    }


def benchmark(
    workload: str, peer: str, typical: float, figures: Mapping[str, Any], **parameters: Any
) -> dict[str, Any]:
    """Make up one benchmark, whose samples lie around *typical* seconds."""
    name = "-".join(str(value) for value in (*parameters.values(), peer))
    return {
        "group": f"{workload}: {name.rpartition('-')[0]}",
        "name": f"test_{workload}[{name}]",
        "fullname": f"bench/test_{workload}.py::test_{workload}[{name}]",
        "params": {**parameters, "peer": peer},
        "extra_info": {
            "workload": workload,
            "peer": peer,
            "version": "1.0",
            **parameters,
            **figures,
            **MACHINE,
        },
        "stats": stats([typical * each for each in SHAPE]),
    }


def waits(typical: float) -> dict[str, float]:
    """Make up percentiles of a wait."""
    parts = {"p50": 1.0, "p90": 1.3, "p99": 2.0, "p999": 4.0, "max": 20.0}
    return {f"wait_{name}": typical * part for name, part in parts.items()}


def served(seconds: float, typical_wait: float, share: float) -> dict[str, Any]:
    """Make up the figures of a contended workload that needs *seconds* a request."""
    rates = [1 / (seconds * each) for each in SHAPE]
    figures = {"rate": median(rates), "rates": rates, "share": share, "cpu_per_op": seconds * 1.5}
    return figures | waits(typical_wait)


def benchmarks() -> Iterator[dict[str, Any]]:
    """Make up a benchmark of every workload, for all its peers."""
    for mode, peers in (("sync", SYNC), ("async", ASYNC)):
        for scenario in ("getconn_putconn", "connect_close", "connection_block"):
            for peer in peers:
                seconds = 2.6e-7 * SLOWNESS[peer]
                about = {"scenario": scenario, "mode": mode, "stub": False}
                yield benchmark("cycle", peer, seconds, {}, **about)
    for hold, work in HOLDS.items():
        for burners in (0, 2):
            for connections in (1, 4, 16):
                for threads in THREADS:
                    for peer in (*SYNC, "bare") if threads == connections else SYNC:
                        busy = min(threads, connections, 2)
                        seconds = (work + 1e-6 * SLOWNESS[peer]) / busy * (1 + burners / 2)
                        wait = seconds * max(1, threads - connections)
                        about = {"hold": hold, "burners": burners}
                        about |= {"connections": connections, "threads": threads}
                        figures = served(seconds, wait, 0.99 - 0.03 * SLOWNESS[peer])
                        yield benchmark("contended", peer, seconds, figures, **about)
        for tasks in (1, 64, 512, 4096):
            for peer in ASYNC:
                seconds = work + 2e-6 * SLOWNESS[peer]
                about = {"hold": hold, "connections": 4, "tasks": tasks}
                figures = served(seconds, seconds * tasks, 0.99)
                yield benchmark("contended_async", peer, seconds, figures, **about)
    for peer in SYNC[:3]:
        spike = {"clients": 50, "connect_ms": 150, "work_ms": 2, "min_size": 5, "max_size": 50}
        seconds = 0.02 * SLOWNESS[peer]
        figures = {"elapsed": seconds, "opened": 5 + SLOWNESS[peer]}
        yield benchmark("spike", peer, seconds, figures, **spike)
        for connections in (1, 16, 100):
            yield benchmark("open", peer, 0.004 * connections, {}, connections=connections)
        yield benchmark("memory", peer, 1.0, {"value": SLOWNESS[peer]}, what="threads")
        yield benchmark("memory", peer, 1.0, {"value": 9000 * SLOWNESS[peer]}, what="bytes")
        yield benchmark("import", peer, 0.003 * SLOWNESS[peer], {}, module=peer)
        for threads in (1, 2, 4, 8):
            seconds = 1e-6 * SLOWNESS[peer] / threads
            figures = {"rate": 1 / seconds}
            yield benchmark("scaling", peer, seconds, figures, threads=threads)


def slow_down(by: float, where: Callable[[dict[str, Any]], bool], data: dict[str, Any]) -> None:
    """Multiply the times of those benchmarks of *data* whose extra_info *where* accepts."""
    for each in data["benchmarks"]:
        extra = each["extra_info"]
        if where(extra):
            each["stats"] = stats([sample * by for sample in each["stats"]["data"]])
            for name in extra:
                if name.startswith("wait_"):
                    extra[name] *= by
                elif name == "rate":
                    extra[name] /= by
                elif name == "rates":
                    extra[name] = [rate / by for rate in extra[name]]


@pytest.fixture
def slowed() -> Callable[..., Callable[[dict[str, Any]], None]]:
    """Return what makes some benchmarks of a made-up run slower: slowed(by, where)."""
    return lambda by, where: partial(slow_down, by, where)


@pytest.fixture
def scattered() -> Callable[..., Callable[[dict[str, Any]], None]]:
    """Return what makes the rounds of some benchmarks differ: scattered(factors, where)."""

    def scatter(factors: Sequence[float], where: Any, data: dict[str, Any]) -> None:
        for each in data["benchmarks"]:
            if where(each["extra_info"]):
                typical = each["stats"]["median"]
                each["stats"] = stats([typical * factor for factor in factors])

    return lambda factors, where: partial(scatter, factors, where)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a made-up run into a file: make_run(name, change=...), *change* given its data."""

    def make(
        name: str = "run.json", change: Callable[[dict[str, Any]], None] | None = None
    ) -> Path:
        data: dict[str, Any] = {
            "machine_info": {
                "fastpool_bench": {"left_out": [{"peer": "asyncpg", "why": "not installed <here>"}]}
            },
            "commit_info": {"id": "0123abc"},
            "benchmarks": list(benchmarks()),
            "datetime": "2026-11-22T16:09:03.682270+00:00",
            "version": "5.1.0",
        }
        if change is not None:
            change(data)
        path = tmp_path / name
        path.write_text(json.dumps(data), encoding="utf-8")
        return path

    return make


Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def bench() -> Command:
    """Run `python -m bench.NAME ARGUMENT...` in the checkout."""

    def command(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", f"bench.{name}", *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            encoding="utf-8",
            timeout=50,
        )

    return command
