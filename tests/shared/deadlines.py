"""How long something may take in a test, on a machine with other work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

# What a call may take beyond its deadline (seconds), and what for other work on the machine.
LATE = 0.05
SLACK = 0.15


@contextmanager
def takes(least: float, most: float) -> Iterator[None]:
    """Assert that the block takes from *least* to *most* seconds."""
    began = time.monotonic()
    try:
        yield
    finally:
        took = time.monotonic() - began
    assert least - 0.01 <= took <= most + LATE + SLACK
