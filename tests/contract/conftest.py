"""What the contract tests share: the two implementations, and ways to put a pool into a state.

Every test in this directory runs once on psycopg_pool and once on fastpool, so the contract is
checked and not only believed. Owns no assertion about a pool. All of it is fixtures, for in
importlib mode a test cannot import its neighbours.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import psycopg
import pytest

IMPLEMENTATIONS = ("psycopg_pool", "fastpool")


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request: pytest.FixtureRequest) -> ModuleType:
    """The package under test. psycopg_pool may be missing, fastpool may not."""
    if request.param == "psycopg_pool":
        reason = "psycopg_pool, the yardstick, is not installed"
        module: ModuleType = pytest.importorskip("psycopg_pool", reason=reason)
        return module
    return importlib.import_module(request.param)


@pytest.fixture(autouse=True)
def threads_end_with_their_test(eventually: Callable[..., Any]) -> Iterator[None]:
    """Let the threads of a test's pools end, for one that lingers would log into the next test.

    All pools are closed by then. A thread that does not end is for the test to find, not for this.
    """
    before = set(threading.enumerate())

    def ended() -> bool:
        new = set(threading.enumerate()) - before
        return all(thread.name == "fastpool-housekeeper" for thread in new)

    yield
    with suppress(AssertionError):
        eventually(ended, timeout=2.0)


@pytest.fixture
def base(impl: ModuleType) -> ModuleType:
    """The package's module `base`."""
    return importlib.import_module(f"{impl.__name__}.base")


@pytest.fixture
def quick_backoff(base: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the first delay between two attempts to connect 20 ms instead of a second."""
    monkeypatch.setattr(base.AttemptWithBackoff, "INITIAL_DELAY", 0.02)


@pytest.fixture
def new_pool(impl: ModuleType, dsn: str) -> Iterator[Callable[..., Any]]:
    """Build pools that are not open, of one connection unless told; close them at the end."""
    pools: list[Any] = []

    def build(conninfo: Any = dsn, *, cls: Any = None, **options: Any) -> Any:
        options = {"min_size": 1, "open": False, "name": "p", **options}
        pool = (cls or impl.ConnectionPool)(conninfo, **options)
        pools.append(pool)
        return pool

    yield build
    for pool in pools:
        pool.close(timeout=1.0)


@pytest.fixture
def open_pool(new_pool: Callable[..., Any]) -> Callable[..., Any]:
    """Build pools that are open and full."""

    def build(*args: Any, **options: Any) -> Any:
        pool = new_pool(*args, **options)
        pool.open(wait=True, timeout=5.0)
        return pool

    return build


@pytest.fixture
def full_pool(open_pool: Callable[..., Any]) -> Callable[..., Any]:
    """Build pools that have grown to max_size, every connection idle."""

    def build(*args: Any, **options: Any) -> Any:
        pool = open_pool(*args, **options)
        lent = [pool.getconn(timeout=5.0) for _ in range(pool.max_size)]
        for conn in lent:
            pool.putconn(conn)
        return pool

    return build


@pytest.fixture
def waiting(eventually: Callable[..., Any]) -> Callable[..., None]:
    """`waiting(pool, n)` blocks until *n* requests are queued in *pool*."""

    def wait(pool: Any, count: int) -> None:
        eventually(lambda: pool.get_stats()["requests_waiting"] == count, what=f"{count} waiting")

    return wait


class Call:
    """A call running in a daemon thread of its own."""

    def __init__(self, function: Callable[[], Any], name: str | None) -> None:
        self._function = function
        self._value: Any = None
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error

    @property
    def done(self) -> bool:
        return not self.thread.is_alive()

    def result(self, timeout: float = 5.0) -> Any:
        """Return what the call returned, or raise what it raised.

        Blocks up to *timeout* seconds, then raises TimeoutError.
        """
        self.thread.join(timeout)
        if not self.done:
            raise TimeoutError(f"still running after {timeout} s")
        if self._error is not None:
            raise self._error
        return self._value


@pytest.fixture
def spawn() -> Iterator[Callable[..., Call]]:
    """`spawn(function, *args, thread_name=None, **kwargs)` starts a call in a thread."""
    calls: list[Call] = []

    def start(
        function: Callable[..., Any], *args: Any, thread_name: str | None = None, **kwargs: Any
    ) -> Call:
        call = Call(lambda: function(*args, **kwargs), thread_name)
        calls.append(call)
        return call

    yield start
    for call in calls:
        call.thread.join(5.0)


class Network:
    """What happens between a pool and its server: connects pass, fail, or wait at a gate."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gate = threading.Event()
        self._gate.set()
        self.error: BaseException | None = None
        self.attempts: list[tuple[float, tuple[Any, ...], dict[str, Any]]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        network = self

        class Connection(psycopg.Connection[Any]):
            @classmethod
            def connect(cls, *args: Any, **kwargs: Any) -> Any:
                with network.passage(args, kwargs):
                    return super().connect(*args, **kwargs)

        self.connection_class = Connection

    def passage(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Passage:
        return _Passage(self, args, kwargs)

    def down(self, error: BaseException | None = None) -> None:
        """Let every connect fail from now on."""
        self.error = error or psycopg.OperationalError("the network is down")

    def up(self) -> None:
        """Let connects pass."""
        self.error = None

    def hold(self) -> None:
        """Let every connect wait until release()."""
        self._gate.clear()

    def release(self) -> None:
        """Open the gate."""
        self._gate.set()


class _Passage:
    """One connect on its way; leaving it, however, ends its flight."""

    def __init__(self, network: Network, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._network = network
        self._what = (args, kwargs)

    def __enter__(self) -> None:
        network = self._network
        with network._lock:
            network.attempts.append((time.monotonic(), *self._what))
            network.in_flight += 1
            network.most_in_flight = max(network.most_in_flight, network.in_flight)
        network._gate.wait(20.0)
        if network.error is not None:
            self.__exit__()
            raise network.error

    def __exit__(self, *args: object) -> None:
        with self._network._lock:
            self._network.in_flight -= 1


@pytest.fixture
def network() -> Iterator[Network]:
    """A Network; pass its `connection_class` to a pool. Open again before the pools close."""
    network = Network()
    yield network
    network.release()


@pytest.fixture
def admin(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection that belongs to no pool, in autocommit mode."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def pid() -> Callable[[Any], int]:
    """`pid(conn)` names the session behind a connection, known without a query."""
    return lambda conn: int(conn.pgconn.backend_pid)


@pytest.fixture
def end_session(admin: psycopg.Connection[Any]) -> Callable[[Any], None]:
    """`end_session(conn)` ends the server's side; the client has yet to notice."""

    def end(conn: Any) -> None:
        # Unnoticed: what is tested is what becomes of a broken connection when it is used, checked
        # or given back. That fastpool learns of its end before that, test_notices.py tests.
        if (slot := getattr(conn, "_slot", None)) is not None:
            slot.unwatch()
        gone = admin.execute(
            "select pg_terminate_backend(%s, 5000)", [conn.pgconn.backend_pid]
        ).fetchone()
        assert gone == (True,)

    return end


@pytest.fixture
def break_connection(end_session: Callable[[Any], None]) -> Callable[[Any], None]:
    """`break_connection(conn)` ends the session and lets the client notice."""

    def break_(conn: Any) -> None:
        end_session(conn)
        with suppress(psycopg.OperationalError):
            conn.execute("select 1")
        assert conn.broken

    return break_


class Log(logging.Handler):
    """The lines that pools log, each put into words when it's logged.

    A connection shown in a line would look different afterwards.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self._lines: list[tuple[int, str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append((record.levelno, record.levelname, record.getMessage()))

    def lines(self, level: int = logging.DEBUG) -> list[tuple[str, str]]:
        """Level and text of each line of at least *level*, oldest first."""
        return [(name, text) for number, name, text in list(self._lines) if number >= level]

    def texts(self, level: int = logging.DEBUG) -> list[str]:
        """The texts alone."""
        return [text for _, text in self.lines(level)]

    def warnings(self) -> list[str]:
        """The texts of WARNING and above."""
        return self.texts(logging.WARNING)

    def has(self, level: str, start: str) -> bool:
        """Whether a line of that level starts so."""
        return any(name == level and text.startswith(start) for name, text in self.lines())

    def clear(self) -> None:
        """Forget the lines so far."""
        self._lines.clear()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Log]:
    """What is logged on "psycopg.pool", at every level."""
    caplog.set_level(logging.DEBUG, logger="psycopg.pool")
    handler = Log()
    logging.getLogger("psycopg.pool").addHandler(handler)
    yield handler
    logging.getLogger("psycopg.pool").removeHandler(handler)
