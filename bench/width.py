"""What it brings to lend fewer connections at once: python -m bench.width

Owns: the contended load with a SELECT 1, on pools of several sizes, with fastpool's pacing and
without it, in turns. Refuses: to be one of the benchmarks that `make bench` runs, where fastpool is
measured as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from functools import partial
from statistics import median
from typing import Any

from fastpool.demo.postgres import PostgresServer

from .depth import Point
from .facts import facts_of
from .interleave import interleave
from .peers import POOLS, Pool, Settings, present
from .peers.fastpools import UnpacedFastpool
from .report import units
from .report.headlines import markdown_table

SIZES = (2, 4, 8, 16)
CLIENTS = 64
PEERS: list[type[Pool]] = [
    UnpacedFastpool,
    *(POOLS[name] for name in present("fastpool", "psycopg_pool", "bare")),
]


def measure(dsn: str, size: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Return the requests a second of each peer with *size* connections, medians of *rounds*, and
    how many of them fastpool lends at once."""
    point = Point(clients=CLIENTS, connections=size, hold="SELECT 1")
    settings = Settings(dsn, size, size, autocommit=True)
    with contextlib.ExitStack() as stack:
        pools = {peer.name: peer(settings) for peer in PEERS}
        for pool in pools.values():
            stack.callback(pool.close)
        results = interleave(
            {
                name: partial(pool.contend, point, point.seconds(seconds))
                for name, pool in pools.items()
            },
            rounds,
        )
        found: dict[str, Any] = {
            name: median(each.rate for each in results[name]) for name in pools
        }
        return found | {"at once": getattr(pools["fastpool"], "lends_at_once", size)}


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.width", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="of each (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, help="a round (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    loads = len(SIZES) * len(PEERS) * options.rounds
    print(f"{loads} loads of {options.seconds:g} s each", file=sys.stderr)
    with PostgresServer() as server:
        facts = facts_of(server.dsn)
        rates = {size: measure(server.dsn, size, options.rounds, options.seconds) for size in SIZES}
    if options.json:
        json.dump({"facts": facts, "requests_a_second": rates}, sys.stdout, indent=1)
        print()
        return 0
    names = [name for name in rates[SIZES[0]] if name != "at once"]
    rows = [
        [str(size), str(found["at once"]), *(units.rate(found[name]) for name in names)]
        for size, found in rates.items()
    ]
    print(markdown_table(["connections", "lent at once", *names], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
