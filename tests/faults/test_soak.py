"""A minute of load on all kinds of pools while their backends are killed, twice a second each."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from faults.conftest import descriptors

SECONDS = float(os.environ.get("FAULTS_SOAK_SECONDS", "60"))
PERIOD = 0.5
CLIENTS = 8
WORK = "select pg_sleep(0.01)"
PAUSE = 0.01
TIMEOUT = 5.0


@pytest.mark.timeout(120 + SECONDS)
def test_nothing_is_lost_while_backends_are_killed_under_load(
    new_pool: Callable[..., Any],
    faults: Any,
    whole: Callable[[Any], None],
    eventually: Callable[..., Any],
) -> None:
    seed = int(os.environ.get("FAULTS_SEED", random.randrange(1 << 32)))
    print(f"FAULTS_SEED={seed}")
    dice = random.Random(seed)
    pools = [
        new_pool("threads", min_size=4, max_size=4),
        new_pool("tasks", min_size=4, max_size=4),
        new_pool("null-threads", max_size=3),
    ]
    for pool in pools:
        whole(pool)
        pool.crew.dismiss()
    eventually(lambda: not any("worker" in thread.name for thread in threading.enumerate()))
    sessions = [len(pool.sessions(faults.admin)) for pool in pools]
    threads, files = sorted(t.name for t in threading.enumerate()), descriptors()

    stop = threading.Event()
    began = time.monotonic()
    clients = [
        (pool, pool.start("work", stop, TIMEOUT, WORK, PAUSE))
        for pool in pools
        for _ in range(CLIENTS)
    ]
    kills = dict.fromkeys(pools, 0)
    rounds = 0
    while time.monotonic() < began + SECONDS:
        rounds += 1
        for pool in pools:
            alive = sorted(pool.sessions(faults.admin))
            if alive:
                faults.admin.execute("select pg_terminate_backend(%s)", [dice.choice(alive)])
                kills[pool] += 1
        time.sleep(max(0.0, began + rounds * PERIOD - time.monotonic()))
    stop.set()
    uses = dict.fromkeys(pools, 0)
    for pool, client in clients:
        uses[pool] += pool.outcome(client).succeeds().value

    for pool in pools:
        failed = [o for o in pool.ledger if o.operation == "use" and not o.ok]
        # Nobody but the client whose connection was killed under its hands knows of it.
        others = [o for o in failed if not isinstance(o.error, psycopg.OperationalError)]
        assert not others, f"{pool}: {others[:3]}"
        assert not [o for o in failed if "PoolTimeout" in repr(o.error)], f"{pool}: {failed[:3]}"
        assert len(failed) <= kills[pool], f"{pool}: {len(failed)} errors of {kills[pool]} kills"
        assert kills[pool] >= SECONDS
        assert uses[pool] > SECONDS * 50
        print(f"{pool.kind}: {uses[pool]} uses, {kills[pool]} kills, {len(failed)} errors")

    for pool in pools:
        whole(pool)
        pool.crew.dismiss()
    eventually(lambda: sorted(t.name for t in threading.enumerate()) == threads)
    eventually(lambda: descriptors() == files, what=f"descriptors as before: {files}")
    eventually(lambda: [len(pool.sessions(faults.admin)) for pool in pools] == sessions)
