"""Whole pools, of all four kinds, under random operations; what must hold is checked after each.

One caller, on stubs: between two operations the pool's own chores come to rest, so an example does
the same each time. FASTPOOL_POOL_EXAMPLES sets how many there are (30 for each kind by default). A
failure prints the steps that led to it.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import time
import warnings
from contextlib import nullcontext, suppress
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from stub_server import StubServer

import fastpool
import fastpool.base

PROFILE = settings(
    max_examples=int(os.environ.get("FASTPOOL_POOL_EXAMPLES", "30")),
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)
LARGEST = 4
SOON = 3.0
PASSING = ("connecting", "returning", "reserved", "closing")


def sizes() -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(0, LARGEST), st.integers(1, LARGEST)).map(
        lambda pair: (min(pair), max(pair))
    )


class PoolMachine(RuleBasedStateMachine):
    """Borrows, returns, misuses and upsets a pool. Subclasses say which."""

    kind: Any
    options: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.is_async = issubclass(self.kind, fastpool.AsyncConnectionPool)
        self.is_null = issubclass(
            self.kind, (fastpool.NullConnectionPool, fastpool.AsyncNullConnectionPool)
        )
        self.loop = asyncio.new_event_loop() if self.is_async else None
        self.server = StubServer()
        self.lent: list[Any] = []
        self.leases: list[Any] = []
        self.returned: list[Any] = []
        self.is_closed = False
        self.most = 0
        self.lendings = 0

    def do(self, value: Any) -> Any:
        """Await what an async pool's methods return."""
        if not inspect.isawaitable(value):
            return value

        async def wait() -> Any:
            return await value

        assert self.loop is not None
        return self.loop.run_until_complete(wait())

    def until(self, holds: Any, what: str) -> None:
        """Let the pool's chores run until *holds()*."""
        deadline = time.monotonic() + SOON
        while not holds():
            assert time.monotonic() < deadline, f"not in time: {what}; {self.pool.snapshot()}"
            if self.loop is not None:
                self.do(asyncio.sleep(0.0005))
            else:
                time.sleep(0.0005)

    def is_at_rest(self) -> bool:
        counts = self.pool.snapshot().counts
        wanted = 0 if self.is_closed else self.pool.min_size
        return not any(counts[state] for state in PASSING) and self.pool.snapshot().size >= wanted

    @initialize(sizes=sizes())
    def begin(self, sizes: tuple[int, int]) -> None:
        least = 0 if self.is_null else sizes[0]
        self.pool = self.kind(
            min_size=least,
            max_size=sizes[1],
            connection_class=(
                self.server.async_connection if self.is_async else self.server.connection
            ),
            open=False,
            **self.options,
        )
        self.do(self.pool.open())
        self.most = sizes[1]

    # --- lending and returning ----------------------------------------------------------------

    def has_one(self) -> bool:
        """Whether a connection can be had."""
        return not self.is_closed and len(self.lent) + len(self.leases) < self.pool.max_size

    def is_new(self, conn: Any) -> None:
        """Nobody has what was lent just now."""
        self.lendings += 1
        held = [other.pgconn.backend_pid for other in self.lent + self.leases]
        assert conn.pgconn.backend_pid not in held
        assert conn._pool is self.pool

    @precondition(has_one)
    @rule(timeout=st.sampled_from([None, SOON]))
    def getconn(self, timeout: float | None) -> None:
        conn = self.do(self.pool.getconn(timeout=timeout))
        self.is_new(conn)
        self.lent.append(conn)

    @precondition(has_one)
    @rule()
    def connect(self) -> None:
        lease = self.do(self.pool.connect(timeout=SOON))
        self.is_new(lease)
        self.leases.append(lease)

    @precondition(lambda self: not self.has_one())
    @rule()
    def ask_in_vain(self) -> None:
        wanted = fastpool.PoolClosed if self.is_closed else fastpool.PoolTimeout
        if self.idle():  # beyond a maximum that has been lowered
            return
        for timeout in (0, 0.001):
            with pytest.raises(wanted):
                self.do(self.pool.getconn(timeout=timeout))

    def choose(self, data: Any, among: list[Any]) -> Any:
        return among.pop(data.draw(st.integers(0, len(among) - 1)))

    @precondition(lambda self: self.lent)
    @rule(data=st.data(), busy=st.booleans())
    def putconn(self, data: Any, busy: bool) -> None:
        conn = self.choose(data, self.lent)
        if busy:
            with suppress(psycopg.OperationalError):
                self.do(conn.execute("select 1"))  # leaves its transaction open
        self.do(self.pool.putconn(conn))
        self.returned.append(conn)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), times=st.integers(1, 2))
    def close_a_lease(self, data: Any, times: int) -> None:
        lease = self.choose(data, self.leases)
        for _ in range(times):
            self.do(lease.close())
        assert lease.closed
        with pytest.raises(ValueError, match="can't return connection"):
            self.do(self.pool.putconn(lease))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def return_what_a_lease_stands_for(self, data: Any) -> None:
        lease = self.choose(data, self.leases)
        conn = lease._lent[1]
        with pytest.raises(ValueError, match="can't return connection"):
            self.do(self.pool.putconn(conn))
        self.leases.append(lease)

    @precondition(lambda self: self.returned)
    @rule(data=st.data())
    def return_again(self, data: Any) -> None:
        conn = self.choose(data, self.returned)
        if not any(conn is other for other in self.lent) and not conn._slot.leased:
            with pytest.raises(ValueError, match="can't return connection"):
                self.do(self.pool.putconn(conn))

    @precondition(has_one)
    @rule(fails=st.booleans())
    def block(self, fails: bool) -> None:
        def use(conn: Any) -> None:
            self.is_new(conn)
            if fails:
                raise KeyError

        async def use_async() -> None:
            async with self.pool.connection(timeout=SOON) as conn:
                use(conn)

        with pytest.raises(KeyError) if fails else nullcontext():
            if self.is_async:
                self.do(use_async())
            else:
                with self.pool.connection(timeout=SOON) as conn:
                    use(conn)

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def drop(self, data: Any) -> None:
        conn = self.choose(data, self.lent)
        self.returned = [other for other in self.returned if other is not conn]
        del conn
        gc.collect(1)

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def close_a_connection(self, data: Any) -> None:
        conn = self.choose(data, self.lent)
        self.do(conn.close())
        # Where closing it has not given it back already, its borrower does.
        with suppress(ValueError):
            self.do(self.pool.putconn(conn))

    # --- faults and upkeep --------------------------------------------------------------------

    @rule(number=st.integers(0, LARGEST - 1))
    def end_a_session(self, number: int) -> None:
        # How many there are is the chores' doing, so nothing that is drawn depends on it.
        if sessions := sorted(self.server.sessions()):
            self.server.terminate(sessions[number % len(sessions)])

    @rule(sizes=sizes())
    def resize(self, sizes: tuple[int, int]) -> None:
        self.do(self.pool.resize(0 if self.is_null else sizes[0], sizes[1]))

    @rule()
    def drain(self) -> None:
        before = {slot.backend_pid for slot in self.idle()}
        self.do(self.pool.drain())
        self.until(self.is_at_rest, "at rest")
        if not self.is_closed:
            assert not before & {slot.backend_pid for slot in self.idle()}

    @rule()
    def check(self) -> None:
        size = self.pool.snapshot().size
        self.do(self.pool.check())
        self.until(self.is_at_rest, "at rest")
        if not self.is_closed:
            assert self.pool.snapshot().size <= max(size, self.pool.min_size)
            assert all(slot.backend_pid in self.server.sessions() for slot in self.idle())

    @precondition(lambda self: self.lendings > 3)
    @rule()
    def close(self) -> None:
        self.do(self.pool.close())
        self.is_closed = True

    # --- what holds after every step ----------------------------------------------------------

    def idle(self) -> list[Any]:
        return [slot for slot in self.pool.snapshot().slots if slot.state == "available"]

    @invariant()
    def all_is_accounted_for(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.until(self.is_at_rest, "at rest")
        self.pool._table.verify()
        snapshot = self.pool.snapshot()
        held = self.lent + self.leases
        assert snapshot.counts["in_use"] == len(held)
        assert snapshot.waiting == 0
        # The maximum, or what a resize has left beyond it, which only falls.
        self.most = max(self.pool.max_size, min(self.most, snapshot.size))
        assert snapshot.size <= self.most
        idle = {slot.backend_pid for slot in self.idle()}
        mine = {conn.pgconn.backend_pid for conn in held}
        assert len(mine) == len(held)
        assert not idle & mine
        assert not (idle and (self.is_null or self.is_closed))
        # Nothing is open that is neither idle nor lent; and nothing was closed that is lent.
        self.until(lambda: self.server.sessions() <= idle | mine, "no other session")
        assert not any(conn.pgconn.was_ended_by_the_client for conn in held if not conn.closed)
        stats = self.pool.get_stats()
        assert (stats["pool_size"], stats["pool_available"]) == (snapshot.size, len(idle))

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        for conn in self.lent:
            self.do(self.pool.putconn(conn))
        for lease in self.leases:
            self.do(lease.close())
        self.do(self.pool.close())
        self.lent.clear()
        self.leases.clear()
        self.is_closed = True
        self.until(lambda: self.pool.snapshot().size == 0, "empty")
        assert self.server.sessions() == set()
        if self.loop is not None:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()


KINDS = [
    fastpool.ConnectionPool,
    fastpool.NullConnectionPool,
    fastpool.AsyncConnectionPool,
    fastpool.AsyncNullConnectionPool,
]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("options", [{}, {"order": "lifo", "max_connecting": 2}], ids=["", "lifo"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pool_accounts_for_every_connection_after_every_step(
    kind: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("psycopg", "psycopg.pool"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)
    monkeypatch.setattr(fastpool.base.AttemptWithBackoff, "MAX_DELAY", 0.01)
    machine: Any = type("Machine", (PoolMachine,), {"kind": kind, "options": options})
    gc.collect()
    gc.freeze()  # so that collecting is quick
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # of what is dropped on purpose
            run_state_machine_as_test(machine, settings=PROFILE)
    finally:
        gc.unfreeze()
