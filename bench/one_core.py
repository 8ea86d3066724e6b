"""What threads get on all cores, and on one: python -m bench.one_core

Owns: one point of the contended load, with its threads on every core and on a single one, in turns.
The server, and the pools' own threads, have all cores in either case. Refuses: to be one of the
benchmarks that `make bench` runs, for it says more of Python's lock than of a pool.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from statistics import median

from fastpool.demo.postgres import PostgresServer

from .depth import Point
from .facts import facts_of
from .interleave import interleave
from .peers import POOLS, Pool, Settings, present
from .report import units
from .report.headlines import markdown_table
from .rounds import Round

POINT = Point(clients=64, connections=4, hold="SELECT 1")
PEERS = ("bare", "fastpool", "psycopg_pool")


@contextlib.contextmanager
def only_on(cores: Iterable[int]) -> Iterator[None]:
    """Run this thread on *cores*, and those that it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def contend_on(cores: Iterable[int], pool: Pool, seconds: float) -> Round:
    """Put *pool* under load from threads on *cores*."""
    with only_on(cores):
        return pool.contend(POINT, POINT.seconds(seconds))


def measure(dsn: str, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Return the requests a second of each peer, on all cores and on one: medians of *rounds*."""
    every = sorted(os.sched_getaffinity(0))
    choices = {"all cores": every, "one core": every[:1]}
    settings = Settings(dsn, POINT.connections, POINT.connections, autocommit=True)
    with contextlib.ExitStack() as stack:
        loads: dict[tuple[str, str], Callable[[], Round]] = {}
        for peer in present(*PEERS):
            for name, cores in choices.items():
                # A pool of its own, for fastpool learns from its load.
                pool = POOLS[peer](settings)
                stack.callback(pool.close)
                loads[peer, name] = partial(contend_on, cores, pool, seconds)
        results = interleave(loads, rounds)
    return {
        peer: {name: median(each.rate for each in results[peer, name]) for name in choices}
        for peer in present(*PEERS)
    }


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.one_core", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="of each (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, help="a round (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if not hasattr(os, "sched_setaffinity"):
        parser.error("this system does not let a program choose its cores")
    loads = 2 * len(present(*PEERS)) * options.rounds
    print(f"{loads} loads of {options.seconds:g} s each", file=sys.stderr)
    with PostgresServer() as server:
        facts = facts_of(server.dsn)
        rates = measure(server.dsn, options.rounds, options.seconds)
    if options.json:
        json.dump({"facts": facts, "requests_a_second": rates}, sys.stdout, indent=1)
        print()
        return 0
    rows = []
    for peer, mine in rates.items():
        ratio = mine["one core"] / mine["all cores"]
        rows.append([peer, *map(units.rate, mine.values()), units.factor(ratio)])
    print(markdown_table(["requests a second", "all cores", "one core", "ratio"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
