"""Measure several implementations of one thing in turns, so that a drifting machine hits all alike.

Owns: the order of rounds, and the hand-over of their times to pytest-benchmark. Refuses: to know
what is measured.

pytest-benchmark measures one function after the other; on a shared machine a slow minute then
looks like a slow implementation. Here every round runs each implementation once, the next round
in the opposite order, and the samples are recorded afterwards: pytest-benchmark reads a clock
that stands still but for the sample that is being recorded, and so keeps statistics, table, JSON
and comparison of its own.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pytest_benchmark.fixture import BenchmarkFixture

T = TypeVar("T")

_replayed = 0.0


@dataclass(frozen=True)
class Depth:
    """How much is measured: rounds, and seconds in each, of the two kinds of benchmark."""

    cycle_rounds: int
    cycle_seconds: float
    contended_rounds: int
    contended_seconds: float


def interleave(batches: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Run every batch once a round, for *rounds* rounds, and return the results by name.

    The collector runs between batches and not within them.
    """
    results: dict[str, list[T]] = {name: [] for name in batches}
    order = list(batches)
    for _ in range(rounds):
        for name in order:
            gc.collect()
            gc.disable()
            try:
                results[name].append(batches[name]())
            finally:
                gc.enable()
        order.reverse()
    return results


def seconds_per_call(call_many: Callable[[int], None], n: int) -> float:
    """Time *call_many*, which does its work *n* times, and return the seconds for one."""
    start = time.perf_counter()
    call_many(n)
    return (time.perf_counter() - start) / n


def calls_for(call_many: Callable[[int], None], seconds: float) -> int:
    """Find how many calls take about *seconds*; warms up as it does so."""
    seconds_per_call(call_many, 200)
    return max(50, int(seconds / seconds_per_call(call_many, 200)))


def replayed_clock() -> float:
    """Tell the sum of the samples recorded so far, in seconds: the timer of every benchmark."""
    return _replayed


def record(benchmark: BenchmarkFixture, samples: Sequence[float], **extra: object) -> None:
    """Hand *samples*, in seconds, to pytest-benchmark, and *extra* to its extra_info."""
    pending = iter(samples)

    def advance() -> None:
        global _replayed
        _replayed += next(pending)

    benchmark.extra_info.update(extra)
    benchmark.pedantic(advance, rounds=len(samples))
