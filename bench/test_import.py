"""What importing a pool takes beyond importing its driver, in a fresh interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median

import pytest

from . import child
from .conftest import Measured, Publish
from .depth import Depth, chosen
from .interleave import interleave, replayed_clock
from .peers import POOLS, present

PEERS = present("fastpool", "psycopg_pool", "sqlalchemy", "dbutils")
CODE = """
import json, sys, time
import psycopg
before, start = len(sys.modules), time.perf_counter()
__import__(sys.argv[1])
elapsed = time.perf_counter() - start
print(json.dumps({"elapsed": elapsed, "modules": len(sys.modules) - before}))
"""

pytestmark = [pytest.mark.timeout(300), pytest.mark.benchmark(timer=replayed_clock)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("peer", chosen(metafunc.config).among(PEERS))


def measure(peers: Sequence[str], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Import all peers in turns, once before it counts: the first may have to compile."""
    batches = {peer: partial(child.run, CODE, POOLS[peer].module) for peer in peers}
    interleave(batches, 1)
    return interleave(batches, rounds)


def test_import(
    measured: Measured,
    depth: Depth,
    publish: Publish,
    peer: str,
) -> None:
    """The sample of a round is the seconds that the import took."""
    rounds = measured("import", partial(measure, depth.among(PEERS), depth.imports.rounds))[peer]
    publish(
        POOLS[peer],
        "import, beyond psycopg",
        [each["elapsed"] for each in rounds],
        workload="import",
        module=POOLS[peer].module,
        modules=median(each["modules"] for each in rounds),
    )
