"""What idle pools add to a process, besides their connections. Runs in a process of its own.

Owns: the measurement. Refuses: to be run where something else has used memory before.

The connections are there before; to "connect", a pool takes one of them. Many pools are opened, for
memory comes in pages, after one that is not counted: it pays for what is loaded once.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psycopg

from .peers import POOLS, Pool, Settings

MANY = 30
SIZE = 2
# For how long no thread must come or go: before the next pool is opened, and before it counts.
_BRIEFLY, _SETTLED = 0.02, 0.4
_DEADLINE_SECONDS = 10.0


def threads() -> int:
    """Count the threads of this process."""
    return len(os.listdir("/proc/self/task"))


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def settle(seconds: float) -> None:
    """Wait until the pools have done what they had to: no thread came or went for *seconds*."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    last, since = threads(), time.monotonic()
    while time.monotonic() - since < seconds and time.monotonic() < deadline:
        time.sleep(0.005)
        if (now := threads()) != last:
            last, since = now, time.monotonic()


def main() -> None:
    """Measure the peer of the first argument, at the DSN of the second; print JSON."""
    peer, dsn = POOLS[sys.argv[1]], sys.argv[2]
    ready: list[Any] = [psycopg.connect(dsn) for _ in range((MANY + 1) * SIZE)]
    connections = list(ready)
    settings = Settings(dsn, SIZE, SIZE, connecting=lambda connect: ready.pop())

    alone = threads()
    pools: list[Pool] = [peer(settings)]
    settle(_SETTLED)
    first = threads()
    before = resident()
    for _ in range(MANY):
        pools.append(peer(settings))
        # All at once would leave behind the memory of many threads that connect.
        settle(_BRIEFLY)
    settle(_SETTLED)
    after = resident()
    every = threads()
    assert not ready
    for pool in pools:
        pool.verify()
        pool.close()
    for conn in connections:
        conn.close()
    result = {
        "bytes": (after - before) / MANY,
        "threads": first - alone,
        "threads_of_many": every - alone,
        "many": MANY + 1,
    }
    print(json.dumps(result))
