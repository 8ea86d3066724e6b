"""Servers that answer, and refuse: no place, no such password."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from faults.conftest import ATTEMPTS, FIRST, FULL, Faults
from faults.subject import ALL, NULL_POOLS, POOLS
from psycopg import sql
from psycopg.conninfo import make_conninfo

import fastpool
from fastpool.demo.postgres import PostgresServer

# How long a refusal lasts here, in seconds.
LASTS = 4.0


# --- a server that is full --------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_server() -> Iterator[PostgresServer]:
    """A server with few places, all of which are open to everybody who is a superuser."""
    with PostgresServer({"max_connections": 12}, tcp=True) as server:
        yield server


class Strangers:
    """Sessions of others, who take all the places that are left."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._conns: list[psycopg.Connection[Any]] = []

    def fill(self) -> None:
        """Take every place."""
        while True:
            try:
                self._conns.append(self._faults.session("stranger"))
            except psycopg.OperationalError as error:
                if "too many clients" not in str(error):
                    raise
                return

    def leave(self) -> None:
        """Give all places up; they are free when this returns."""
        pids = [conn.info.backend_pid for conn in self._conns]
        while self._conns:
            self._conns.pop().close()
        left = "select 1 from pg_stat_activity where pid = any(%s)"
        while self._faults.admin.execute(left, [pids]).fetchone():
            time.sleep(0.005)


class TestFull:
    """A server at its max_connections."""

    @pytest.fixture
    def faults(self, small_server: PostgresServer) -> Iterator[Faults]:
        """The faults of the small server."""
        faults = Faults(small_server)
        faults.heal()
        yield faults
        faults.end()

    @pytest.fixture
    def strangers(self, faults: Faults) -> Strangers:
        """Who takes the places, until the test is over."""
        strangers = Strangers(faults)
        faults.cured_by(strangers.leave)
        return strangers

    @pytest.mark.parametrize("kind", POOLS)
    def test_a_pool_lives_with_what_it_has_and_grows_when_there_is_room(
        self, kind: str, new_pool: Callable[..., Any], strangers: Strangers
    ) -> None:
        pool = new_pool(kind, min_size=2, max_size=5)
        lent = pool.lend(2)
        strangers.fill()
        began, tried = time.monotonic(), len(pool.attempts)
        while time.monotonic() < began + LASTS:
            pool.attempt("getconn", timeout=0.7).ends_within(0.7).fails_with(
                fastpool.PoolTimeout, naming="too many clients"
            )
            for conn in lent:
                pool.do("query", conn)
        tries = len(pool.attempts) - tried
        assert tries <= ATTEMPTS * (time.monotonic() - began) + 1
        # What it has is lent and taken back as ever.
        pool.do("putconn", lent.pop())
        pool.attempt("use", timeout=0.7).ends_within(0.0).succeeds()
        lent += pool.lend(1)
        waits = [pool.start("getconn", timeout=10.0) for _ in range(3)]
        strangers.leave()
        left = time.monotonic()
        conns = [pool.outcome(future).succeeds() for future in waits]
        assert min(o.ended for o in conns) - left < FIRST
        assert max(o.ended for o in conns) - left < FULL
        pool.give_back([*lent, *(o.value for o in conns)])

    @pytest.mark.parametrize("kind", POOLS)
    def test_a_pool_that_opens_on_a_full_server_is_full_when_there_is_room(
        self,
        kind: str,
        new_pool: Callable[..., Any],
        strangers: Strangers,
        eventually: Callable[..., Any],
    ) -> None:
        pool = new_pool(kind, open=False)
        strangers.fill()
        pool.do("open", wait=False)
        began = time.monotonic()
        pool.attempt("getconn", timeout=2.2).ends_within(2.2).fails_with(
            fastpool.PoolTimeout, naming="too many clients"
        )
        # The connects that were under way side by side have each been refused.
        assert len(pool.attempts) <= ATTEMPTS * (time.monotonic() - began) + 3
        strangers.leave()
        eventually(lambda: pool.is_full, timeout=FULL)

    @pytest.mark.parametrize("kind", NULL_POOLS)
    def test_a_null_pool_passes_the_servers_error_on_and_loses_nothing(
        self, kind: str, new_pool: Callable[..., Any], strangers: Strangers
    ) -> None:
        pool = new_pool(kind)
        strangers.fill()
        for _ in range(5):
            pool.attempt("getconn", timeout=0.7).ends_within(0.7).fails_with(
                psycopg.OperationalError, naming="too many clients"
            )
        assert pool.counts["empty"] == sum(pool.counts.values())
        strangers.leave()
        pool.do("use", timeout=FIRST)


# --- a password that is wrong, and then right -------------------------------------------------


class Account:
    """A role with a password of its own, and the server's word on who tried it in vain."""

    def __init__(self, faults: Faults, name: str) -> None:
        self._faults = faults
        self.name = name
        role = sql.Identifier(name)
        faults.admin.execute(sql.SQL("drop role if exists {}").format(role))
        faults.admin.execute(sql.SQL("create role {} login password 'right'").format(role))

    def dsn(self, password: str) -> str:
        """How to connect as this role."""
        return make_conninfo(self._faults.server.dsn, user=self.name, password=password)

    def refused(self) -> int:
        """How many attempts the server has refused."""
        log = self._faults.server.log.read_text(errors="replace")
        return len(re.findall(f'password authentication failed for user "{self.name}"', log))


@pytest.fixture
def account(faults: Faults, request: pytest.FixtureRequest) -> Account:
    """An account of this test's own."""
    return Account(faults, re.sub(r"\W+", "_", request.node.name)[-60:])


@pytest.mark.parametrize("kind", POOLS)
def test_a_wrong_password_is_named_and_not_tried_too_often_and_the_right_one_heals(
    kind: str, new_pool: Callable[..., Any], account: Account, eventually: Callable[..., Any]
) -> None:
    pool = new_pool(kind, account.dsn("wrong"), open=False, min_size=4, max_size=8)
    began = time.monotonic()
    pool.do("open", wait=False)
    clients = [pool.start("getconn", timeout=LASTS) for _ in range(20)]
    for client in clients:
        pool.outcome(client).ends_within(LASTS).fails_with(
            fastpool.PoolTimeout, naming="password authentication failed"
        )
    took = time.monotonic() - began
    # One may be under way.
    assert 1 <= account.refused() <= len(pool.attempts) <= ATTEMPTS * took + 2
    waits = pool.start("getconn", timeout=10.0)
    pool.dsn = account.dsn("right")
    mended = time.monotonic()
    granted = pool.outcome(waits).succeeds()
    assert granted.ended - mended < FIRST
    pool.do("putconn", granted.value)
    eventually(lambda: pool.counts["available"] >= 4, timeout=FULL)
    assert time.monotonic() - mended < FULL


@pytest.mark.parametrize("kind", POOLS)
def test_a_password_that_was_changed_harms_the_new_connections_only(
    kind: str, new_pool: Callable[..., Any], account: Account
) -> None:
    pool = new_pool(kind, account.dsn("right"), min_size=2, max_size=4)
    pool.dsn = account.dsn("wrong")
    lent = pool.lend(2)
    pool.attempt("getconn", timeout=0.7).ends_within(0.7).fails_with(
        fastpool.PoolTimeout, naming="password authentication failed"
    )
    for conn in lent:
        pool.do("query", conn)
    pool.give_back(lent)
    pool.attempt("use", timeout=0.7).ends_within(0.0).succeeds()
    assert account.refused() <= ATTEMPTS + 1
    pool.dsn = account.dsn("right")


@pytest.mark.parametrize("kind", ALL)
def test_wait_says_that_the_password_was_wrong(
    kind: str, new_pool: Callable[..., Any], account: Account
) -> None:
    pool = new_pool(kind, account.dsn("wrong"), open=False)
    pool.do("open", wait=False)
    pool.attempt("wait", timeout=0.7).ends_within(0.7).fails_with(
        fastpool.PoolTimeout, naming="password authentication failed"
    )
    assert pool.pool.closed


@pytest.mark.parametrize("kind", NULL_POOLS)
def test_a_null_pool_passes_a_wrong_password_on_to_its_caller(
    kind: str, new_pool: Callable[..., Any], account: Account
) -> None:
    pool = new_pool(kind, account.dsn("wrong"), open=False)
    pool.do("open", wait=False)
    for _ in range(3):
        pool.attempt("getconn", timeout=0.7).ends_within(0.7).fails_with(
            psycopg.OperationalError, naming="password authentication failed"
        )
    pool.dsn = account.dsn("right")
    pool.attempt("use", timeout=0.7).ends_within(0.7).succeeds()


@pytest.mark.parametrize("kind", NULL_POOLS)
def test_the_borrowers_of_a_null_pool_try_no_wrong_password_too_often(
    kind: str, new_pool: Callable[..., Any], account: Account
) -> None:
    clients = 8
    pool = new_pool(kind, account.dsn("wrong"), open=False, max_size=clients)
    pool.do("open", wait=False)
    stop = threading.Event()
    began = time.monotonic()
    working = [pool.start("work", stop, 2.0, "select 1", 0.01) for _ in range(clients)]
    time.sleep(LASTS)
    tried = time.monotonic() - began
    # The first ones were under way side by side.
    assert LASTS <= account.refused() <= ATTEMPTS * tried + clients
    failed = [outcome for outcome in pool.ledger if outcome.operation == "use"]
    for outcome in failed:
        outcome.ends_within(1.2).fails_with(psycopg.OperationalError, naming="password")
    # Others were told of an attempt, too, that was made while they waited.
    assert len(failed) >= 1.5 * account.refused()
    pool.dsn = account.dsn("right")
    pool.do("use", timeout=FIRST)
    stop.set()
    for future in working:
        pool.outcome(future).succeeds()


@pytest.mark.parametrize("kind", NULL_POOLS)
def test_who_waits_for_a_turn_to_connect_ends_by_his_deadline_and_learns_of_the_close(
    kind: str, new_pool: Callable[..., Any], account: Account
) -> None:
    pool = new_pool(kind, account.dsn("wrong"), open=False)
    pool.do("open", wait=False)
    pool.attempt("getconn", timeout=5.0).fails_with(psycopg.OperationalError)
    pool.attempt("getconn", timeout=0.1).ends_within(0.1).fails_with(
        fastpool.PoolTimeout, naming="password authentication failed"
    )
    waits = pool.start("getconn", timeout=5.0)
    time.sleep(0.1)
    closed = time.monotonic()
    pool.do("close")
    told = pool.outcome(waits).fails_with(fastpool.PoolClosed)
    assert told.ended - closed < 0.1
    assert account.refused() == len(pool.attempts) == 1


@pytest.mark.parametrize("kind", NULL_POOLS)
def test_a_null_pool_that_gets_in_at_times_makes_nobody_wait(
    kind: str, new_pool: Callable[..., Any], account: Account
) -> None:
    pool = new_pool(kind, account.dsn("right"), max_size=4)
    lent = pool.lend(1)
    pool.dsn = account.dsn("wrong")
    for _ in range(3):
        pool.attempt("getconn", timeout=5.0).ends_within(0.1).fails_with(psycopg.OperationalError)
    pool.give_back(lent)
    pool.dsn = account.dsn("right")
