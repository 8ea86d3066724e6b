"""The stage of the fault suite: a server that is maltreated, pools of all kinds, and a verdict.

A test maltreats the server or the network through `faults`, makes pools through `new_pool`, and
says what is promised of them meanwhile. When it is over everything is healed, and each pool that
it made must be whole again: all its connections can be lent at once, are distinct, and live; its
slot table is consistent; after its end no session, descriptor and thread of it is left.

Figures are the promised ones. What the machine itself is late by is measured, and added.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from faults.subject import Loop, Metronome, Outcome, Subject
from proxy import Proxy
from psycopg.conninfo import make_conninfo

import fastpool
from fastpool.demo.postgres import PostgresServer

# After a fault has ended (seconds): the first success, and all connections, at the latest.
FIRST = 1.2
FULL = 2.5
# How many connects a second a pool may try while the same error lasts.
ATTEMPTS = 2.0
# How long the verdict waits for what must come in the end.
IN_THE_END = 10.0

# What a server that is away, or not there yet, makes a connect fail with.
_CAUSE = re.compile(
    "connection failed|connection refused|server closed|starting up|shutting down|recovery mode"
    "|not yet accepting|terminating connection|not accepting",
    re.IGNORECASE,
)

_HERE = Path(__file__).parent
# They wait longest: each begins with one of two workers.
_LONG = ("test_soak", "test_outages")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the suite, and put what takes longest where it is begun first."""
    ours = [item for item in items if _HERE in item.path.parents]
    for item in ours:
        item.add_marker("faults")
    if len(ours) == len(items):
        first, second = ([item for item in items if item.path.stem == name] for name in _LONG)
        rest = [item for item in items if item not in first and item not in second]
        middle = (len(rest) - len(first) + len(second)) // 2
        items[:] = [*first, *rest[:middle], *second, *rest[middle:]]


# --- the machine, and who works there ---------------------------------------------------------


@pytest.fixture(scope="session")
def metronome() -> Iterator[Metronome]:
    """A measure of how late the machine is."""
    metronome = Metronome()
    yield metronome
    metronome.stop()


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    """The event loop of the pools of tasks."""
    loop = Loop()
    yield loop
    loop.stop()


# --- the server -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def rough_server() -> Iterator[PostgresServer]:
    """The server of all tests that leave it as it was."""
    with PostgresServer({"max_connections": 100}, tcp=True) as server:
        yield server


class Faults:
    """What happens to a server, and how it ends."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self._frozen: set[int] = set()
        self._admin: psycopg.Connection[Any] | None = None
        self._cures: list[Callable[[], object]] = []

    @property
    def admin(self) -> psycopg.Connection[Any]:
        """A connection of the administrator's; a new one when the server was restarted."""
        if self._admin is not None:
            with contextlib.suppress(psycopg.OperationalError):
                self._admin.execute("")
                return self._admin
            self._admin.close()
        self._admin = self.session("admin")
        return self._admin

    def session(self, name: str) -> psycopg.Connection[Any]:
        """Return a new session that belongs to no pool."""
        dsn = make_conninfo(self.server.dsn, host=str(self.server.socket_dir))
        return psycopg.connect(dsn, autocommit=True, application_name=name)

    def freeze(self, pids: Iterable[int]) -> None:
        """Stop processes: they keep their sockets, and do nothing."""
        for pid in pids:
            self._frozen.add(pid)
            os.kill(pid, signal.SIGSTOP)

    def freeze_postmaster(self) -> None:
        """Have new connections accepted by the kernel, and answered by nobody."""
        self.freeze([self.server.pid])

    def thaw(self) -> None:
        """Let all frozen processes go on."""
        while self._frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._frozen.pop(), signal.SIGCONT)

    def terminate(self, pids: Iterable[int]) -> None:
        """End sessions; the server's ends are gone when this returns."""
        for pid in pids:
            self.admin.execute("select pg_terminate_backend(%s, 5000)", [pid])

    def kill(self, pid: int) -> None:
        """Kill a backend; the server then ends all sessions and recovers."""
        os.kill(pid, signal.SIGKILL)

    def cured_by(self, cure: Callable[[], object]) -> None:
        """Have the end of a fault called when the test is over."""
        self._cures.append(cure)

    def heal(self) -> None:
        """End all faults, and wait for the server to take connections."""
        self.thaw()
        while self._cures:
            self._cures.pop()()
        deadline = time.monotonic() + IN_THE_END
        while True:
            try:
                _ = self.admin
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def end(self) -> None:
        """Heal, and let go of the server."""
        self.heal()
        self.admin.close()


@pytest.fixture
def faults(rough_server: PostgresServer) -> Iterator[Faults]:
    """The faults of the common server; they end with the test."""
    faults = Faults(rough_server)
    faults.heal()
    yield faults
    faults.end()


@pytest.fixture
def proxy(faults: Faults) -> Iterator[Proxy]:
    """A proxy before the common server; it forwards when the test is over."""
    with Proxy(("127.0.0.1", faults.server.port)) as proxy:
        faults.cured_by(proxy.forward)
        yield proxy


class Partition:
    """A proxy that stands in a network namespace of its own; the way there can be interrupted.

    Packets then go to a hardware address that nobody has, in both directions: none is refused,
    none arrives. Raises CalledProcessError where that is not allowed.
    """

    _NOBODY = "02:00:00:00:00:01"

    def __init__(self, server: PostgresServer) -> None:
        number = secrets.randbelow(1 << 14)
        self._space = f"fastpool-{number}"
        self._links = (f"fp{number}a", f"fp{number}b")
        # Addresses for tests of networks: RFC 2544.
        net = f"198.18.{number >> 6}.{(number & 63) * 4}"
        stem, last = net.rsplit(".", 1)
        self._addresses = (f"{stem}.{int(last) + 1}", f"{stem}.{int(last) + 2}")
        self._macs: tuple[str, ...] = ()
        self._target = str(server.socket_dir / f".s.PGSQL.{server.port}")
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Partition:
        here, there = self._links
        try:
            self._ip("netns", "add", self._space)
            self._stack.callback(self._ip, "netns", "delete", self._space)
            self._ip("link", "add", here, "type", "veth", "peer", there, "netns", self._space)
            for side, link in enumerate(self._links):
                self._ip("address", "add", f"{self._addresses[side]}/30", "dev", link, side=side)
                self._ip("link", "set", link, "up", side=side)
            self._macs = tuple(self._mac(side) for side in (0, 1))
            self.join()
            self._proxy = self._stack.enter_context(
                Proxy(self._target, self._addresses[1], ["ip", "netns", "exec", self._space])
            )
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()

    @property
    def address(self) -> dict[str, Any]:
        """Where the proxy listens, as parameters of a connection string."""
        return {"host": self._addresses[1], "port": self._proxy.port}

    def drop(self) -> None:
        """Lose every packet."""
        self._know([self._NOBODY, self._NOBODY])

    def join(self) -> None:
        """Deliver packets again."""
        self._know(self._macs)

    def _know(self, macs: Sequence[str]) -> None:
        for side, link in enumerate(self._links):
            peer, mac = self._addresses[1 - side], macs[1 - side]
            self._ip(
                "neigh", "replace", peer, "lladdr", mac, "dev", link, "nud", "permanent", side=side
            )

    def _mac(self, side: int) -> str:
        shown = json.loads(self._ip("-json", "link", "show", self._links[side], side=side))
        return str(shown[0]["address"])

    def _ip(self, *words: str, side: int = 0) -> str:
        where = ["-n", self._space] if side else []
        done = subprocess.run(["ip", *where, *words], capture_output=True, text=True, check=True)
        return done.stdout


@pytest.fixture
def partition(faults: Faults) -> Iterator[Partition]:
    """A way to the common server that can be interrupted, where privileges allow."""
    if shutil.which("ip") is None:
        pytest.skip("no ip(8) to make a network namespace with")
    with contextlib.ExitStack() as stack:
        try:
            way = stack.enter_context(Partition(faults.server))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespace: {error.stderr.strip()}")
        faults.cured_by(way.join)
        yield way


class Probe:
    """When a server takes connections, found out by connecting all the time."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._found = threading.Event()
        self._accepts_at = 0.0
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._found.is_set():
            began = time.monotonic()
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self._dsn, connect_timeout=2).close()
                self._accepts_at = began
                self._found.set()
            time.sleep(0.01)

    def accepts_at(self) -> float:
        """Return when the attempt that succeeded was begun; blocks until there is one."""
        assert self._found.wait(30.0), "the server takes no connections"
        self._thread.join()
        return self._accepts_at


@pytest.fixture
def probe() -> Callable[[str], Probe]:
    """`probe(dsn)` begins to look for the moment when a server takes connections."""
    return Probe


# --- the pools --------------------------------------------------------------------------------


def descriptors() -> Counter[str]:
    """How many descriptors of which sort this process has open; empty where there is no /proc."""
    found: Counter[str] = Counter()
    with contextlib.suppress(FileNotFoundError):
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found[os.readlink(f"/proc/self/fd/{number}").partition("[")[0]] += 1
    return found


def _table_holds(subject: Subject, eventually: Callable[..., Any]) -> None:
    """Wait until no slot is in a passing state, and see that all adds up."""
    passing = ("connecting", "returning", "reserved", "closing")
    eventually(
        lambda: not any(subject.counts[state] for state in passing),
        timeout=IN_THE_END,
        what=f"{subject} at rest",
    )
    subject.pool._table.verify()
    snapshot = subject.pool.snapshot()
    assert snapshot.size == sum(snapshot.counts.values()) - snapshot.counts["empty"]
    assert snapshot.waiting == 0
    stats = subject.pool.get_stats()
    assert stats["pool_size"] == snapshot.size
    assert stats["pool_available"] == snapshot.counts["available"]


def is_whole(subject: Subject, faults: Faults, eventually: Callable[..., Any]) -> None:
    """Assert that a pool of which nothing is lent lends all its connections, and they live."""
    count = subject.pool.max_size
    conns = subject.lend(count, timeout=IN_THE_END)
    try:
        # A connection that died in nobody's hands may be met once, where no socket is watched;
        # the pools that are promised more are held to it by tests of that.
        pids = {subject.do("query", conn) for conn in conns}
        assert len(pids) == count, f"{subject}: two borrowers of one session"
        assert pids <= subject.sessions(faults.admin)
    finally:
        subject.give_back(conns)
    _table_holds(subject, eventually)
    if subject.keeps_idle:
        eventually(
            lambda: subject.sessions(faults.admin) == subject.pids,
            timeout=IN_THE_END,
            what=f"the server has the sessions of {subject} and no others",
        )


@pytest.fixture
def whole(faults: Faults, eventually: Callable[..., Any]) -> Callable[[Subject], None]:
    """`whole(pool)` asserts that all connections of the pool can be lent at once, and live."""
    return lambda subject: is_whole(subject, faults, eventually)


@pytest.fixture
def new_pool(
    faults: Faults,
    loop: Loop,
    metronome: Metronome,
    eventually: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> Iterator[Callable[..., Subject]]:
    """Build pools, of 3 connections unless told, open and full unless `open=False`.

    When the test is over the faults are healed, and each pool is judged.
    """
    caplog.set_level(logging.WARNING, logger="psycopg.pool")
    for name in ("proxy", "partition"):  # what pools connect through outlives them
        if name in request.fixturenames:
            request.getfixturevalue(name)
    assert faults.admin
    threads = set(threading.enumerate())
    files = descriptors()
    subjects: list[Subject] = []

    def build(kind: str, dsn: str | None = None, *, open: bool = True, **options: Any) -> Subject:
        size = {"min_size": 3, "max_size": 3} | options
        subject = Subject(kind, dsn or faults.server.dsn, loop, metronome, size)
        subjects.append(subject)
        if open:
            subject.do("open")
        return subject

    yield build

    faults.heal()
    problems = []
    for subject in subjects:
        try:
            _judge(subject, faults, eventually)
        except AssertionError as error:
            problems.append(str(error))
    for subject in subjects:
        subject.crew.dismiss()

    def strays() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread not in threads]

    def leaked() -> Counter[str]:
        return descriptors() - files

    for what, left in (("threads", strays), ("descriptors", leaked)):
        with contextlib.suppress(AssertionError):
            eventually(lambda left=left: not left(), what="nothing left")
        if left():
            problems.append(f"{what} left behind: {left()}")
    problems += [
        f"asyncio complained: {record.getMessage()}"
        for record in caplog.get_records("call")
        if record.name == "asyncio" and record.levelno >= logging.WARNING
    ]
    if problems:
        pytest.fail("\n".join(problems))


def _judge(subject: Subject, faults: Faults, eventually: Callable[..., Any]) -> None:
    try:
        if not subject.pool.closed:
            eventually(lambda: not subject.counts["in_use"], what=f"nothing of {subject} is lent")
            # What a fault broke in nobody's hands may be found broken by one more use each.
            for _ in range(subject.pool.max_size):
                subject.attempt("use", timeout=IN_THE_END / 2)
            is_whole(subject, faults, eventually)
    finally:
        subject.attempt("close").succeeds()
        eventually(
            lambda: not subject.sessions(faults.admin),
            timeout=IN_THE_END,
            what=f"no session of {subject} is left",
        )


# --- recovery ---------------------------------------------------------------------------------


class Clients:
    """Clients that use a pool again and again, one at a time, until they are told to stop."""

    def __init__(self, subject: Subject, timeout: float) -> None:
        self.subject = subject
        self._timeout = timeout
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="clients", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            outcome = self.subject.attempt("use", timeout=self._timeout)
            # A null pool's error comes at once.
            self._stop.wait(0.02 if outcome.ok else 0.0 if self.subject.keeps_idle else 0.1)

    def stop(self) -> None:
        """End the client; blocks until its last call has ended."""
        self._stop.set()
        self._thread.join()


class Watch:
    """When a pool was full of connections made after a fault."""

    def __init__(self, subject: Subject, before: set[int]) -> None:
        self.subject = subject
        self._before = before
        self._stop = threading.Event()
        self.full_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            pids = self.subject.pids
            if len(pids) >= self.subject.pool.min_size and not pids & self._before:
                self.full_at = time.monotonic()
                return

    def result(self, until: float) -> float | None:
        """Return when it was full, None when it was not by *until*; blocks until then."""
        self._thread.join(max(0.0, until - time.monotonic()))
        self._stop.set()
        self._thread.join()
        return self.full_at


@pytest.fixture
def recovery(metronome: Metronome) -> Callable[..., None]:
    """`recovery(pools, outage)` lets `outage()` pass, which returns when the server accepts again,
    and asserts what is promised: nobody is lent a connection that is dead, every call ends by its
    deadline, few attempts are made, PoolTimeout names the error, the first success and the full
    pool come in time. *unused*: pools that have no clients meanwhile, yet notice."""

    def pass_through(
        pools: list[Subject], outage: Callable[[], float], unused: Iterable[Subject] = ()
    ) -> None:
        timeout = 0.7
        before = {subject.name: subject.pids for subject in (*pools, *unused)}
        began = time.monotonic()
        clients = [Clients(subject, timeout) for subject in pools]
        accepts = outage()
        watches = [
            Watch(subject, before[subject.name])
            for subject in (*pools, *unused)
            if subject.keeps_idle
        ]
        late = metronome.lateness(accepts, accepts + FULL)
        full = [(w.subject, w.result(accepts + FULL + late + 1.0)) for w in watches]
        if not watches:
            time.sleep(FIRST)
        for client in clients:
            client.stop()

        problems = []
        for subject in pools:
            mine = [o for o in subject.ledger if o.operation == "use" and o.began > began]
            first = min((o.ended for o in mine if o.ok and o.ended > accepts), default=None)
            if first is None or first - accepts > FIRST + late:
                took = None if first is None else round(first - accepts, 3)
                problems.append(f"{subject.kind}: first success after {took} s")
            problems += _wrong(subject, mine, began, accepts, timeout)
        for subject, at in full:
            if at is None or at - accepts > FULL + late:
                took = None if at is None else round(at - accepts, 3)
                problems.append(f"{subject.kind}: full after {took} s")
        for subject in (*pools, *unused):
            # What was under way as the server went has its own errors: a second later they last.
            tries = [t for t in subject.attempts if began + 1.0 < t < accepts]
            most = ATTEMPTS * max(0.0, accepts - began - 1.0) + 1
            if subject.keeps_idle and len(tries) > most:
                problems.append(
                    f"{subject.kind}: {len(tries)} attempts in {accepts - began - 1.0:.1f} s"
                )
        assert not problems, "\n".join(problems)

    return pass_through


def _wrong(
    subject: Subject, mine: list[Outcome], began: float, accepts: float, timeout: float
) -> list[str]:
    """What was wrong with uses of a pool while its server was away."""
    problems = []
    for outcome in mine:
        try:
            outcome.ends_within(timeout)
        except AssertionError as error:
            problems.append(str(error))
    if not subject.keeps_idle:
        return problems
    errors = [o for o in mine if not o.ok and o.began > began + 0.5]
    problems += [
        f"{subject.kind}: not a PoolTimeout: {o}"
        for o in errors
        if not isinstance(o.error, fastpool.PoolTimeout)
    ]
    problems += [
        f"{subject.kind}: it names no cause: {o}"
        for o in errors
        if o.ended < accepts and not _CAUSE.search(str(o.error))
    ]
    return problems
