"""The result: a table for people, one JSON object for programs.

It words and arranges figures that others have measured. The JSON's keys are its interface:

    fastpool        version of fastpool
    machine         python, gil (bool), psycopg, psycopg_impl, postgresql, server (where it
                    comes from), cores, system
    settings        size, threads, seconds, warmup_seconds, query, order
    interrupted     whether a signal ended the run early
    pools           by pool name, each with
        version         of the library
        seconds         measured, from the common start to the last thread's end
        requests        queries run on a connection that was checked out and given back
        throughput      requests a second
        wait_ms         p50, p99, p999, max: milliseconds from asking for a connection to having
                        it; null when nothing was measured
        checkouts       how many waits that is
        fairness        least, most: requests of the least and the most served thread; ratio
        per_thread      requests of each thread
        errors          count, and causes: a list of {message, count}
    ratio           fastpool's figure divided by psycopg_pool's: throughput, wait_ms,
                    fairness; null when there was nothing to compare with
    notes           sentences: what was left out, and what the pools logged
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

import fastpool

from .load import LoadResult
from .text import Line, duration, paragraph, shorten

_PERCENTILES = (("p50", 50.0), ("p99", 99.0), ("p999", 99.9))
_LABELS = {"p50": "p50", "p99": "p99", "p999": "p99.9", "max": "max"}
_CAUSES_SHOWN = 3


@dataclass(frozen=True)
class Machine:
    """What the figures were measured on."""

    python: str
    gil: bool
    psycopg: str
    psycopg_impl: str
    postgresql: str
    server: str
    cores: int
    system: str

    @classmethod
    def here(cls, postgresql: str, server: str) -> Machine:
        """Return this machine's facts; *postgresql* is the version of *server*, its origin."""
        return cls(
            python=platform.python_version(),
            gil=getattr(sys, "_is_gil_enabled", lambda: True)(),
            psycopg=psycopg.__version__,
            psycopg_impl=psycopg.pq.__impl__,
            postgresql=postgresql,
            server=server,
            cores=_cores(),
            system=f"{platform.system()} {platform.machine()}",
        )

    def __str__(self) -> str:
        return (
            f"Python {self.python} (GIL {'on' if self.gil else 'off'}), "
            f"psycopg {self.psycopg} ({self.psycopg_impl}), "
            f"PostgreSQL {self.postgresql} ({self.server}), "
            f"{self.cores} {'core' if self.cores == 1 else 'cores'}, {self.system}"
        )


@dataclass(frozen=True)
class PoolResult:
    """One pool's run."""

    name: str
    version: str
    load: LoadResult

    @property
    def waits(self) -> dict[str, int | None]:
        """Percentiles and maximum of the checkout wait, in nanoseconds."""
        waits = self.load.waits
        figures = {name: waits.percentile(percent) for name, percent in _PERCENTILES}
        return {**figures, "max": waits.max_ns if waits.count else None}


@dataclass
class Report:
    """Everything that a demonstration came to."""

    machine: Machine
    settings: dict[str, Any]
    results: list[PoolResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def has_errors(self) -> bool:
        """Whether a pool could not be opened or a request failed."""
        return any(result.load.errors for result in self.results)

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `--json` prints; the module's docstring lists its keys."""
        return {
            "fastpool": fastpool.__version__,
            "machine": dict(vars(self.machine)),
            "settings": self.settings,
            "interrupted": self.interrupted,
            "pools": {result.name: _pool_dict(result) for result in self.results},
            "ratio": _ratio_dict(self.results),
            "notes": self.notes,
        }

    def lines(self, width: int) -> list[Line]:
        """Return the table and what is to be said below it, in lines of up to *width* cells."""
        lines = [Line()]
        if self.results:
            lines += _tables(self.results, width)
        for result in self.results:
            lines += _error_lines(result, width)
        if len(self.results) > 1:
            text = (
                "ratio: fastpool / psycopg_pool; of the waits, less is better. The pools ran one "
                "after the other, with the same load for the same time."
            )
            lines += [Line(), *paragraph(text, width, "faint")]
        for note in self.notes:
            lines += [Line(), *paragraph(note, width, "faint")]
        return lines


def _cores() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _tables(results: Sequence[PoolResult], width: int) -> list[Line]:
    """Set the pools side by side, or one below the other where the width does not allow it."""
    lines = _table(results)
    if len(results) > 1 and max(len(line.text) for line in lines) > width:
        apart = [_table([result]) for result in results]
        lines = [line for table in apart for line in (*table, Line())][:-1]
    return lines


def _table(results: Sequence[PoolResult]) -> list[Line]:
    rows = [
        ["", *(result.name for result in results)],
        ["requests", *(f"{result.load.requests:,}" for result in results)],
        ["requests/s", *(f"{result.load.throughput:,.0f}" for result in results)],
        *(
            [f"checkout wait {label}", *(duration(result.waits[key]) for result in results)]
            for key, label in _LABELS.items()
        ),
        ["least served thread", *(f"{_least(result):,}" for result in results)],
        ["most served thread", *(f"{_most(result):,}" for result in results)],
        ["least / most", *(_quotient(result.load.fairness) for result in results)],
        ["errors", *(f"{result.load.errors.total():,}" for result in results)],
    ]
    ratio = _ratio_dict(results)
    if ratio is not None:
        figures = [ratio["throughput"], *ratio["wait_ms"].values()]
        column = ["ratio", "", *map(_quotient, figures), "", "", _quotient(ratio["fairness"]), ""]
        for row, cell in zip(rows, column, strict=True):
            row.append(cell)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = [
        "  "
        + row[0].ljust(widths[0])
        + "".join(cell.rjust(width + 3) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    return [Line(text, "" if number else "heading") for number, text in enumerate(texts)]


def _error_lines(result: PoolResult, width: int) -> list[Line]:
    lines: list[Line] = []
    for message, count in list(result.load.errors.items())[:_CAUSES_SHOWN]:
        text = f"{result.name}: {count:,} x {shorten(message, 400)}"
        lines += [Line(), *paragraph(text, width, "error", indent="  ")]
    hidden = len(result.load.errors) - _CAUSES_SHOWN
    if hidden > 0:
        lines.append(Line(f"{result.name}: and {hidden:,} other messages", "error"))
    return lines


def _pool_dict(result: PoolResult) -> dict[str, Any]:
    load = result.load
    return {
        "version": result.version,
        "seconds": round(load.seconds, 6),
        "requests": load.requests,
        "throughput": round(load.throughput, 3),
        "wait_ms": {
            key: None if ns is None else round(ns / 1e6, 6) for key, ns in result.waits.items()
        },
        "checkouts": load.waits.count,
        "fairness": {
            "least": _least(result),
            "most": _most(result),
            "ratio": None if load.fairness is None else round(load.fairness, 4),
        },
        "per_thread": list(load.per_thread),
        "errors": {
            "count": load.errors.total(),
            "causes": [
                {"message": message, "count": count} for message, count in load.errors.items()
            ],
        },
    }


def _ratio_dict(results: Sequence[PoolResult]) -> dict[str, Any] | None:
    """Divide the first pool's figures by the second one's."""
    if len(results) != 2:
        return None
    ours, theirs = results
    return {
        "throughput": _divide(ours.load.throughput, theirs.load.throughput),
        "wait_ms": {key: _divide(ours.waits[key], theirs.waits[key]) for key in _LABELS},
        "fairness": _divide(ours.load.fairness, theirs.load.fairness),
    }


def _divide(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or not theirs else round(ours / theirs, 4)


def _quotient(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value >= 0.095 else f"{value:.2g}"


def _least(result: PoolResult) -> int:
    return min(result.load.per_thread, default=0)


def _most(result: PoolResult) -> int:
    return max(result.load.per_thread, default=0)
