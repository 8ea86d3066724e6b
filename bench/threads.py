"""The contended load: threads that take a connection, hold it and give it back, until a deadline.

Owns: the loop that every pool for threads meets, and its proof that no connection is lent twice at
a time. Refuses: to know pools; to sum up (rounds.py).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

from .rounds import Round, summary


def hold_nothing(session: Any) -> None:
    """Give it back at once."""


def hold_millisecond(session: Any) -> None:
    """Keep the connection for 1 ms without using a processor."""
    time.sleep(0.001)


def play(
    take: Callable[[], Any],
    put: Callable[[Any], object],
    session_of: Callable[[Any], Any] | None,
    hold: Callable[[Any], None],
    *,
    threads: int,
    burners: int,
    seconds: float,
) -> Round:
    """Let *threads* take, hold and give back until all have for *seconds*, with *burners* beside.

    *session_of* finds what is exclusive in what was lent, and takes an attribute; None if that is
    the thing itself. Raises what a thread raised, and AssertionError if two had one session.
    """
    gate = threading.Barrier(threads + burners + 1)
    served = [0] * threads
    waits: list[list[float]] = [[] for _ in range(threads)]
    failures: list[BaseException] = []
    lock = threading.Lock()
    begun = 0
    deadline = math.inf
    over = False

    def client(index: int) -> None:
        nonlocal begun, deadline
        clock, mine, n = time.perf_counter, waits[index], 0
        try:
            gate.wait()
            gate.wait()
            # On a busy machine this takes its time; nobody's turn may be over before it came.
            with lock:
                begun += 1
                if begun == threads:
                    deadline = clock() + seconds
            while (asked := clock()) < deadline:
                conn = take()
                mine.append(clock() - asked)
                session = conn if session_of is None else session_of(conn)
                session.bench_holder = index
                hold(session)
                assert session.bench_holder == index, "one connection was lent twice at a time"
                put(conn)
                n += 1
        except BaseException as error:
            failures.append(error)
        served[index] = n

    def burner() -> None:
        gate.wait()
        gate.wait()
        while not over:
            sum(range(200))

    clients = [threading.Thread(target=client, args=(i,), daemon=True) for i in range(threads)]
    burning = [threading.Thread(target=burner, daemon=True) for _ in range(burners)]
    for thread in clients + burning:
        thread.start()
    gate.wait()
    cpu = time.process_time()
    start = time.perf_counter()
    gate.wait()
    for thread in clients:
        thread.join()
    elapsed = time.perf_counter() - start
    cpu = time.process_time() - cpu
    over = True
    for thread in burning:
        thread.join()
    if failures:
        raise failures[0]
    return summary(elapsed, cpu, served, waits)
