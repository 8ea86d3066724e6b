"""A server that is stopped, for a while, and started again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from faults.subject import ALL


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("seconds", "mode"), [(35, "fast"), (5, "fast"), (1, "immediate")])
def test_all_kinds_recover_from_an_outage_however_long_it_was(
    seconds: float,
    mode: str,
    new_pool: Callable[..., Any],
    faults: Any,
    probe: Callable[[str], Any],
    recovery: Callable[..., None],
) -> None:
    """Pools that nobody uses are among them: nobody asks them, and they are full again."""
    pools = [new_pool(kind) for kind in ALL]
    unused = new_pool("threads")
    began = time.monotonic()

    def outage() -> float:
        faults.server.stop(mode, keep=True)
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        looks = probe(faults.server.dsn)
        faults.server.start()
        return float(looks.accepts_at())

    recovery(pools, outage, unused=[unused])
