"""What one round of a contended load comes to, and what several rounds come to.

Owns: the definition of each figure. Refuses: to measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Round:
    """What one round gave. Times are in seconds."""

    rate: float
    """Requests a second."""
    share: float
    """The least served client's requests, as a part of the most served one's."""
    cpu_per_op: float
    """Processor time of the whole process, for one request."""
    wait_p50: float
    wait_p90: float
    wait_p99: float
    wait_p999: float
    wait_max: float


def summary(
    elapsed: float, cpu: float, served: Sequence[int], waits: Sequence[Sequence[float]]
) -> Round:
    """Sum up what *served* tells by client, and *waits* by client and request.

    *elapsed*, *cpu*: how long all took together, by the clock and of the processors.
    """
    requests = sum(served)
    assert requests, "nobody was served"
    ordered = sorted(wait for mine in waits for wait in mine)

    def quantile(part: float) -> float:
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]

    return Round(
        rate=requests / elapsed,
        share=min(served) / max(served),
        cpu_per_op=cpu / requests,
        wait_p50=quantile(0.5),
        wait_p90=quantile(0.9),
        wait_p99=quantile(0.99),
        wait_p999=quantile(0.999),
        wait_max=ordered[-1],
    )


def figures(rounds: Sequence[Round]) -> dict[str, Any]:
    """Sum up *rounds*: the median of each figure, but the longest wait of all, and every rate."""
    medians = {
        field.name: median(asdict(each)[field.name] for each in rounds) for field in fields(Round)
    }
    return medians | {
        "wait_max": max(each.wait_max for each in rounds),
        "rates": [each.rate for each in rounds],
    }
