"""Loads that a Pacer is told of, on a clock that the test keeps.

Owns: Load, which says how fast connections come back and how late waiters come, by how many are
lent; and pools that it is played to. Refuses: assertions, and real time.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastpool._core import monotonic_ns
from fastpool._pacing import Pacer

US = 1_000
MS = 1_000_000


@dataclass
class Load:
    """A load on so many connections. `pace`: ns from one return to the next, by how many are lent
    at once; `lag`: how late a waiter comes, as a part of the time for which connections are held.
    """

    pace: Mapping[int, int]
    lag: float
    noise: float = 0.0
    seed: int = 0

    def play(
        self, pacer: Pacer, seconds: float, *, start: int = MS, until_width: int | None = None
    ) -> tuple[int, Counter[int]]:
        """Tell *pacer* of *seconds* of it, or up to the lap in which it lends *until_width* at
        once. Return when it ended, and how many came back at each width."""
        present = max(self.pace)
        chance = random.Random(self.seed)
        served: Counter[int] = Counter()
        now = start
        while now < start + seconds * 1e9:
            width = pacer.width or present
            passed = self.pace[width] * (1 + chance.uniform(-self.noise, self.noise))
            now += int(passed)
            served[width] += 1
            pacer.came(int(self.lag * width * self.pace[width]))
            pacer.returned(now, served.total(), present)
            if until_width is not None and pacer.width == until_width:
                return now, served
        return now, served

    def best(self) -> int:
        """At which width most come back."""
        return min(self.pace, key=self.pace.__getitem__)


def crowd(best: int, present: int) -> Load:
    """Threads that wait for the GIL: twice or half as many as *best* get a third less done."""
    widths = [present]
    while widths[-1] > 1:
        widths.append((widths[-1] + 1) // 2)
    place = widths.index(best)
    return Load(
        {width: int(40 * US * 1.5 ** abs(at - place)) for at, width in enumerate(widths)}, lag=0.2
    )


def narrow(table: Any, width: int, present: int, *, ahead: float = 60.0) -> None:
    """Have *table*'s pacer find *width*, in a second of laps.

    They end *ahead* seconds from now: until then no lap of the test's is too slow, and nothing is a
    stall, however busy the machine is.
    """
    load = crowd(width, present)
    length = load.play(Pacer(), 1.0, start=MS)[0] - MS
    load.play(table.pacer, 1.0, start=monotonic_ns() - length + int(ahead * 1e9))
    assert table.pacer.width == width
