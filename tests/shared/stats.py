"""What is read out of a pool's statistics."""

from __future__ import annotations

from typing import Any

# The figures that say how the pool is; the others count what it did.
MEASURES = {"pool_min", "pool_max", "pool_size", "pool_available", "requests_waiting"}


def count(pool: Any, key: str) -> Any:
    """Return one figure. A counter that nothing has touched may be missing."""
    return pool.get_stats().get(key, 0)


def measures(pool: Any) -> dict[str, int]:
    """Return how the pool is, without what it counts."""
    return {key: value for key, value in pool.get_stats().items() if key in MEASURES}
