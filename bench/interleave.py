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
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from pytest_benchmark.fixture import BenchmarkFixture

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

_replayed = 0.0


def interleave(batches: Mapping[K, Callable[[], T]], rounds: int) -> dict[K, list[T]]:
    """Run every batch once a round, for *rounds* rounds, and return the results by name.

    The collector runs between batches and not within them, and only over what they leave behind.
    """
    results: dict[K, list[T]] = {name: [] for name in batches}
    order = list(batches)
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for _ in range(rounds):
            for name in order:
                gc.collect()
                results[name].append(batches[name]())
            order.reverse()
    finally:
        gc.enable()
        gc.unfreeze()
    return results


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
