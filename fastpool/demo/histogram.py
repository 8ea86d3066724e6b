"""A histogram of durations: exact count and maximum, percentiles within 0.4 %, fixed memory.

Every power of two is cut into 128 buckets of equal width, so that a recording costs a shift and
an increment, however long the run. One thread writes a histogram; it takes no lock. It knows
nothing of what it measures, and keeps no single value but the largest.
"""

from __future__ import annotations

import math
from array import array

_BITS = 7
_SPLIT = 1 << _BITS
_LONGEST_BIT_LENGTH = 48  # 2**48 ns are three days, longer than any run
_BUCKETS = (_LONGEST_BIT_LENGTH - _BITS + 1) * _SPLIT


class Histogram:
    """Durations in nanoseconds, counted by logarithmic bucket."""

    __slots__ = ("_counts", "max_ns")

    def __init__(self) -> None:
        self._counts = array("q", bytes(8 * _BUCKETS))
        self.max_ns = 0

    @property
    def count(self) -> int:
        """How many durations were recorded."""
        return sum(self._counts)

    def record(self, ns: int) -> None:
        """Count one duration of *ns* nanoseconds, from 0 to three days."""
        if ns > self.max_ns:
            self.max_ns = ns
        shift = ns.bit_length() - _BITS - 1
        if shift > 0:
            self._counts[(shift << _BITS) + (ns >> shift)] += 1
        else:
            self._counts[ns] += 1

    def merge(self, other: Histogram) -> None:
        """Add everything that *other* has counted."""
        self.max_ns = max(self.max_ns, other.max_ns)
        self._counts = array("q", map(int.__add__, self._counts, other._counts))

    def percentile(self, percent: float) -> int | None:
        """Return the nearest-rank percentile in nanoseconds; None when nothing was recorded.

        The answer is the middle of the bucket of that rank, and never above the maximum.
        """
        count = self.count
        if not count:
            return None
        rank = max(1, math.ceil(count * percent / 100))
        seen = 0
        for index, here in enumerate(self._counts):
            seen += here
            if seen >= rank:
                return min(_middle(index), self.max_ns)
        raise AssertionError("bug: the buckets do not add up to the count")


def _middle(index: int) -> int:
    if index < 2 * _SPLIT:
        return index
    shift = (index >> _BITS) - 1
    lowest = ((index & (_SPLIT - 1)) + _SPLIT) << shift
    return lowest + (1 << shift) // 2
