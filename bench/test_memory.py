"""What an idle pool adds to a process, besides its connections: threads, and bytes in memory."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from . import child
from .conftest import Measured, Publish
from .depth import Depth, chosen
from .interleave import interleave, replayed_clock
from .peers import POOLS, present

# Those that can be given connections which are there already.
PEERS = present("fastpool", "psycopg_pool", "sqlalchemy", "dbutils", "simplequeue")

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.benchmark(timer=replayed_clock),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this needs Linux's /proc"),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("peer", chosen(metafunc.config).among(PEERS))


def footprint(peer: str, dsn: str) -> dict[str, float]:
    """Measure in a process of its own."""
    start = time.perf_counter()
    result: dict[str, float] = child.run_main("footprint", peer, dsn)
    return result | {"elapsed": time.perf_counter() - start}


@pytest.mark.parametrize("what", ["threads", "bytes"])
def test_memory(
    measured: Measured,
    dsn: str,
    depth: Depth,
    publish: Publish,
    what: str,
    peer: str,
) -> None:
    """The figure is `value`; the sample of a round is the seconds that measuring it took."""
    batches = {peer: partial(footprint, peer, dsn) for peer in depth.among(PEERS)}
    rounds = measured("memory", lambda: interleave(batches, depth.memory.rounds))[peer]
    values = [each[what] for each in rounds]
    extra: dict[str, Any] = {"value": median(values), "values": values}
    if what == "threads":
        extra["pools"] = rounds[0]["many"]
        extra["value_of_all_pools"] = median(each["threads_of_many"] for each in rounds)
    publish(
        POOLS[peer],
        f"memory: {what} of an idle pool",
        [each["elapsed"] for each in rounds],
        workload="memory",
        what=what,
        **extra,
    )
