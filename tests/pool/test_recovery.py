"""What a pool does while its server can't be reached, and when it can be again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import fastpool
import fastpool.connector

OUTAGE = 3.2
# What two busy cores may add to a delay between two attempts.
SLACK = 0.4


# --- a server that stops and starts -----------------------------------------------------------


def test_a_pool_gets_over_a_long_outage_of_its_server(
    own_server: Callable[..., Any],
    new_pool: Callable[..., Any],
    network: Any,
    log: Any,
    eventually: Callable[..., Any],
    available: Callable[..., None],
) -> None:
    server = own_server()
    pool = new_pool(server.dsn, min_size=6, connection_class=network.connection_class)
    server.stop("immediate", keep=True)
    began = time.monotonic()
    pool.check()  # this is how it learns that its connections are dead

    # The connects under way when the first one fails fail too; from then on one slot probes.
    eventually(lambda: log.kinds()["error connecting"] >= 1)
    eventually(lambda: network.in_flight == 0)
    at_first = len(network.attempts) - 6
    assert 1 <= at_first <= 6
    with pytest.raises(fastpool.PoolTimeout, match="attempt failed with OperationalError: conn"):
        pool.getconn(timeout=OUTAGE - (time.monotonic() - began))

    probes = network.attempts[6 + at_first - 1 :]
    gaps = [later - earlier for earlier, later in pairwise(probes)]
    assert len(gaps) >= 2  # one a second
    assert max(gaps) < 1.0 + SLACK
    assert len(probes) <= OUTAGE / 0.9 + 2
    assert pool.snapshot().counts["connecting"] == 6

    server.start()
    ready = time.monotonic()
    available(pool, 6, timeout=1.0 + 2.0 + SLACK)
    first = network.successes[6]
    assert first - ready < 1.0 + SLACK
    assert network.successes[-1] - first < 1.0
    assert len(network.successes) == 12
    assert log.kinds()["error connecting"] == len(network.attempts) - len(network.successes)
    with pool.connection() as conn:
        assert conn.execute("select 1").fetchone() == (1,)


def test_a_wrong_password_is_told(
    own_server: Callable[..., Any], new_pool: Callable[..., Any]
) -> None:
    server = own_server(tcp=True)
    wrong = make_conninfo(server.dsn, host="127.0.0.1", password="wrong")
    pool = new_pool(wrong, open=False)
    with pytest.raises(
        fastpool.PoolTimeout,
        match=r"initialization incomplete after 0.7 sec: .*OperationalError.*"
        "password authentication failed",
    ):
        pool.open(wait=True, timeout=0.7)


# --- a network that goes down and comes up ----------------------------------------------------


@pytest.fixture
def cut(new_pool: Callable[..., Any], network: Any, eventually: Callable[..., Any]) -> Any:
    """`cut(**options)` builds an open pool whose every connect fails, and waits for the first
    failure."""

    def build(**options: Any) -> Any:
        network.down()
        pool = new_pool(connection_class=network.connection_class, open=False, **options)
        pool.open()
        eventually(lambda: network.attempts and network.in_flight == 0)
        return pool

    return build


def test_while_the_server_is_down_one_slot_probes_and_the_others_are_owed(
    cut: Callable[..., Any],
    network: Any,
    quick_backoff: None,
    eventually: Callable[..., Any],
    available: Callable[..., None],
) -> None:
    pool = cut(min_size=5)
    eventually(lambda: network.in_flight == 0 and len(network.attempts) >= 5)
    seen = len(network.attempts)
    network.hold()
    eventually(lambda: network.in_flight == 1)
    network.most_in_flight = 0
    network.release()
    eventually(lambda: len(network.attempts) >= seen + 10)
    assert network.most_in_flight == 1
    assert pool.snapshot().counts["connecting"] == 5
    network.up()
    available(pool, 5)


def test_all_that_is_owed_is_connected_at_the_first_success(
    cut: Callable[..., Any],
    network: Any,
    available: Callable[..., None],
) -> None:
    pool = cut(min_size=8)
    network.up()
    available(pool, 8)
    assert network.successes[-1] - network.successes[0] < 0.8  # none of them waited a backoff


def test_a_connect_that_gets_through_ends_the_backoff(
    new_pool: Callable[..., Any],
    network: Any,
    eventually: Callable[..., Any],
    available: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two connects are under way; one fails and waits, the other then succeeds."""
    monkeypatch.setattr(fastpool.base.AttemptWithBackoff, "INITIAL_DELAY", 60.0)
    monkeypatch.setattr(fastpool.base.AttemptWithBackoff, "MAX_DELAY", 60.0)
    pool = new_pool(min_size=2, connection_class=network.connection_class, open=False)
    network.hold()
    pool.open()
    eventually(lambda: network.in_flight == 2)
    network.down()
    network.let(1)
    eventually(lambda: network.in_flight == 1)
    network.up()
    network.let(1)
    network.release()
    available(pool, 2)


def test_pools_that_fail_together_do_not_come_back_together() -> None:
    backoffs = [fastpool.base.AttemptWithBackoff(timeout=300.0) for _ in range(20)]
    longest = fastpool.base.AttemptWithBackoff.MAX_DELAY
    for now in (1.0, 2.0, 3.0):
        delays = [backoff.next_delay(now) or 0.0 for backoff in backoffs]
        assert len(set(delays)) > 10
        assert longest * 0.9 <= min(delays) <= max(delays) <= longest


def test_a_timeout_names_the_last_connection_error(cut: Callable[..., Any], network: Any) -> None:
    pool = cut()
    with pytest.raises(
        fastpool.PoolTimeout,
        match="couldn't get a connection after 0.05 sec: .*"
        "the last connection attempt failed with OperationalError: the network is down",
    ):
        pool.getconn(timeout=0.05)


def test_an_error_that_is_over_is_not_named(
    cut: Callable[..., Any], network: Any, available: Callable[..., None]
) -> None:
    pool = cut()
    network.up()
    available(pool, 1)
    with pool.connection(), pytest.raises(fastpool.PoolTimeout) as caught:
        pool.getconn(timeout=0.05)
    assert "the network is down" not in str(caught.value)


def test_wait_names_the_error_and_closes_the_pool(cut: Callable[..., Any]) -> None:
    pool = cut(min_size=2)
    with pytest.raises(
        fastpool.PoolTimeout,
        match="pool initialization incomplete after 0.05 sec: .*the network is down",
    ):
        pool.wait(timeout=0.05)
    assert pool.closed
    assert pool.snapshot().size == 0
    with pytest.raises(fastpool.PoolClosed):
        pool.getconn()


def test_wait_names_why_libpq_could_not_connect(
    new_pool: Callable[..., Any], unreachable: str
) -> None:
    pool = new_pool(unreachable, open=False)
    with pytest.raises(fastpool.PoolTimeout, match=r"No such file or directory"):
        pool.open(wait=True, timeout=0.2)


def test_close_ends_a_backoff_at_once(cut: Callable[..., Any], network: Any) -> None:
    pool = cut(min_size=4)
    began = time.monotonic()
    pool.close()
    assert time.monotonic() - began < 0.5
    assert pool.snapshot().size == 0


def test_those_who_wait_in_an_outage_are_served_when_it_ends(
    cut: Callable[..., Any],
    network: Any,
    quick_backoff: None,
    spawn: Callable[..., Any],
    waiting: Callable[[Any, int], None],
) -> None:
    pool = cut(max_size=3)
    calls = [spawn(lambda: pool.putconn(pool.getconn(10.0))) for _ in range(6)]
    waiting(pool, 6)
    network.up()
    for call in calls:
        call.result()
    assert pool.get_stats()["requests_errors"] == 0


# --- giving up --------------------------------------------------------------------------------


def test_reconnect_failed_is_called_once_when_all_attempts_fail(
    cut: Callable[..., Any],
    network: Any,
    quick_backoff: None,
    log: Any,
    eventually: Callable[..., Any],
) -> None:
    failed: list[Any] = []
    opened = time.monotonic()
    pool = cut(min_size=4, reconnect_timeout=0.3, reconnect_failed=lambda p: failed.append(p))
    eventually(lambda: pool.snapshot().size == 0)
    assert time.monotonic() - opened >= 0.3
    eventually(lambda: failed)
    assert pool.snapshot().size == 0
    assert failed == [pool]
    assert log.kinds()["reconnection attempt"] == 1
    assert "reconnection attempt in pool 'p' failed after 0.3 sec" in log.warnings()

    attempts = len(network.attempts)
    with pytest.raises(fastpool.PoolTimeout), pool.connection(timeout=0.05):
        pass
    assert len(network.attempts) > attempts  # whoever asks makes it try again


def test_min_size_is_restored_without_a_request_after_giving_up(
    cut: Callable[..., Any],
    network: Any,
    quick_backoff: None,
    monkeypatch: pytest.MonkeyPatch,
    available: Callable[..., None],
) -> None:
    monkeypatch.setattr(fastpool.connector, "REVIVAL_PERIOD", 0.2)
    gave_up = threading.Event()
    pool = cut(min_size=3, reconnect_timeout=0.1, reconnect_failed=lambda p: gave_up.set())
    assert gave_up.wait(5.0)
    network.up()
    available(pool, 3)
    assert pool.get_stats()["requests_num"] == 0


def test_the_pool_goes_on_reviving_however_often_it_gives_up(
    cut: Callable[..., Any],
    network: Any,
    quick_backoff: None,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., Any],
    available: Callable[..., None],
) -> None:
    monkeypatch.setattr(fastpool.connector, "REVIVAL_PERIOD", 0.05)
    failed: list[Any] = []
    pool = cut(min_size=2, reconnect_timeout=0.05, reconnect_failed=failed.append)
    eventually(lambda: len(failed) >= 3)
    network.up()
    available(pool, 2)


def test_growth_resumes_after_giving_up(
    cut: Callable[..., Any],
    network: Any,
    quick_backoff: None,
    eventually: Callable[..., Any],
    available: Callable[..., None],
) -> None:
    failed: list[Any] = []
    pool = cut(min_size=2, max_size=4, reconnect_timeout=0.1, reconnect_failed=failed.append)
    eventually(lambda: failed)
    network.up()
    conns = [pool.getconn(timeout=5.0) for _ in range(4)]
    for conn in conns:
        pool.putconn(conn)
    assert pool.snapshot().counts["available"] == 4


def test_one_request_after_giving_up_restores_min_size(
    cut: Callable[..., Any],
    network: Any,
    quick_backoff: None,
    eventually: Callable[..., Any],
    available: Callable[..., None],
) -> None:
    failed: list[Any] = []
    pool = cut(min_size=3, reconnect_timeout=0.1, reconnect_failed=failed.append)
    eventually(lambda: failed)
    network.up()
    pool.putconn(pool.getconn(timeout=5.0))
    available(pool, 3)


def test_a_request_that_waits_through_giving_up_is_served_later(
    cut: Callable[..., Any],
    network: Any,
    quick_backoff: None,
    spawn: Callable[..., Any],
    waiting: Callable[[Any, int], None],
    eventually: Callable[..., Any],
) -> None:
    failed: list[Any] = []
    pool = cut(reconnect_timeout=0.1, reconnect_failed=failed.append)
    call = spawn(lambda: pool.putconn(pool.getconn(20.0)))
    waiting(pool, 1)
    eventually(lambda: len(failed) >= 2)
    network.up()
    call.result()


def test_a_failing_configure_is_retried_and_its_session_closed(
    new_pool: Callable[..., Any],
    sessions: Any,
    quick_backoff: None,
    eventually: Callable[..., Any],
    available: Callable[..., None],
) -> None:
    fails = threading.Event()
    fails.set()
    calls: list[Any] = []

    def configure(conn: Any) -> None:
        calls.append(conn.pgconn.backend_pid)
        if fails.is_set():
            raise ValueError("not today")

    pool = new_pool(open=False, configure=configure, kwargs=sessions.kwargs)
    pool.open()
    eventually(lambda: len(calls) >= 3)
    with pytest.raises(fastpool.PoolTimeout, match="ValueError: not today"):
        pool.getconn(timeout=0.05)
    fails.clear()
    available(pool, 1)
    eventually(lambda: sessions.pids() == {calls[-1]})


def test_parameters_are_asked_at_every_attempt(
    new_pool: Callable[..., Any], dsn: str, unreachable: str, quick_backoff: None
) -> None:
    answers = iter([unreachable, unreachable])
    pool = new_pool(lambda: next(answers, dsn), open=False)
    pool.open(wait=True, timeout=5.0)
    assert pool.get_stats()["connections_errors"] == 2


# --- a network that answers nothing -----------------------------------------------------------


class BlackHole:
    """A network that swallows connects: one that began while it was `open` never gets through."""

    def __init__(self) -> None:
        self.open = False
        self.slow = 0.0
        self.began: list[float] = []
        self.kwargs: list[dict[str, Any]] = []
        self._over = threading.Event()
        hole = self

        class Connection(psycopg.Connection[Any]):
            @classmethod
            def connect(cls, *args: Any, **kwargs: Any) -> Any:
                hole.began.append(time.monotonic())
                hole.kwargs.append(kwargs)
                if hole.open:
                    hole._over.wait(30.0)
                    raise psycopg.errors.ConnectionTimeout("connection timeout expired")
                time.sleep(hole.slow)
                return psycopg.Connection.connect.__func__(cls, *args, **kwargs)  # type: ignore

        self.connection_class = Connection

    def end(self) -> None:
        """Let all that were swallowed fail."""
        self.open = False
        self._over.set()


@pytest.fixture
def black_hole(new_pool: Any) -> Iterator[BlackHole]:
    """A BlackHole; pass its `connection_class` to a pool."""
    hole = BlackHole()
    yield hole
    hole.end()


@pytest.mark.parametrize("outage", [0.1, 2.3, 3.4])
def test_a_pool_recovers_soon_after_a_partition_of_whatever_length(
    new_pool: Callable[..., Any],
    black_hole: BlackHole,
    available: Callable[..., None],
    outage: float,
) -> None:
    pool = new_pool(min_size=5, connection_class=black_hole.connection_class)
    black_hole.open = True
    pool.drain()
    began = time.monotonic()
    with pytest.raises(fastpool.PoolTimeout) as caught:
        pool.getconn(timeout=outage)
    if outage > 1.0:
        assert "ConnectionTimeout: no answer within 1 sec" in str(caught.value)
    assert len(black_hole.began) - 5 <= 3 + 2 * (time.monotonic() - began)
    black_hole.open = False
    healed = time.monotonic()
    pool.putconn(pool.getconn(timeout=1.2 + SLACK))
    available(pool, 5, timeout=healed + 2.5 - time.monotonic())


def test_an_attempt_without_an_answer_holds_no_worker(
    new_pool: Callable[..., Any], black_hole: BlackHole, eventually: Callable[..., Any]
) -> None:
    pool = new_pool(
        max_size=2,
        num_workers=1,
        reset=lambda conn: None,
        connection_class=black_hole.connection_class,
    )
    black_hole.open = True
    conn = pool.getconn()
    with pytest.raises(fastpool.PoolTimeout):
        pool.getconn(timeout=0.1)
    pool.putconn(conn)
    pool.putconn(pool.getconn(timeout=1.0 + SLACK))


def test_only_an_attempt_after_one_without_an_answer_is_limited(
    new_pool: Callable[..., Any],
    black_hole: BlackHole,
    eventually: Callable[..., Any],
    available: Callable[..., None],
) -> None:
    pool = new_pool(kwargs={"application_name": "me"}, connection_class=black_hole.connection_class)
    black_hole.open = True
    pool.drain()
    eventually(lambda: len(black_hole.began) >= 3)
    black_hole.open = False
    available(pool, 1)
    pool.drain()
    available(pool, 1)
    limits = [kwargs.get("connect_timeout") for kwargs in black_hole.kwargs]
    assert limits[:3] == [None, None, 10]
    assert limits[-1] is None
    assert pool.kwargs == {"application_name": "me"}


def test_a_server_that_is_slow_to_connect_fills_the_pool(
    new_pool: Callable[..., Any],
    black_hole: BlackHole,
    sessions: Any,
    available: Callable[..., None],
    eventually: Callable[..., Any],
) -> None:
    """Each attempt is overdue before it succeeds; none of them is in vain while slots wait."""
    black_hole.slow = 1.6
    pool = new_pool(
        min_size=3,
        open=False,
        kwargs=sessions.kwargs,
        connection_class=black_hole.connection_class,
    )
    pool.open()
    available(pool, 3, timeout=3.0)  # a second round would take 3.2
    # What comes later is too many, and is closed.
    eventually(lambda: pool.get_stats()["connections_ms"] >= 1600 * len(black_hole.began))
    eventually(lambda: len(sessions.pids()) == 3)
    assert len(black_hole.began) <= 7
    assert pool.snapshot().size == 3


def test_what_comes_late_takes_the_slot_of_an_attempt_that_is_queued(
    new_pool: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    """Two attempts come late at once. The first fills the probe's slot and releases the other,
    whose attempt waits for a worker; the second has that slot, or would be closed in vain."""
    pool = new_pool(min_size=1, max_size=2, num_workers=1)
    at_work, done = threading.Event(), threading.Event()

    async def keep_the_worker() -> None:
        at_work.set()
        done.wait(10.0)

    pool._submit(keep_the_worker)
    assert at_work.wait(5.0)
    connector = pool._connector
    debt = connector.take_room()
    connector.start(debt)
    assert connector._take_any() is debt
    connects = pool.get_stats()["connections_num"]
    done.set()
    eventually(lambda: not connector._queued)
    assert pool.get_stats()["connections_num"] == connects
    pool._table.vacate(debt)


def test_attempts_that_never_end_do_not_pile_up(
    new_pool: Callable[..., Any],
    black_hole: BlackHole,
    eventually: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    quick_backoff: None,
) -> None:
    monkeypatch.setattr(fastpool.connector, "PATIENCE", 0.02)
    monkeypatch.setattr(fastpool.connector, "MOST_LATE", 4)
    pool = new_pool(connection_class=black_hole.connection_class)
    black_hole.open = True
    pool.drain()
    eventually(lambda: len(black_hole.began) == 5)
    time.sleep(0.3)
    assert len(black_hole.began) == 5
    black_hole.end()
    pool.putconn(pool.getconn(timeout=1.0))


def test_a_pool_that_gives_up_at_once_makes_two_attempts_a_second(
    cut: Callable[..., Any], network: Any, spawn: Callable[..., Any], eventually: Any
) -> None:
    failed: list[Any] = []
    pool = cut(reconnect_timeout=0.0, reconnect_failed=failed.append)
    eventually(lambda: failed)
    calls = [spawn(pool.getconn, timeout=2.5) for _ in range(5)]
    for call in calls:
        with pytest.raises(fastpool.PoolTimeout, match="the network is down"):
            call.result()
    assert 4 <= len(network.attempts) <= 8
    assert len(failed) >= 2
