"""What the tests of the null pools share: two packages, two kinds of pools, and ways to use them.

Every test in this directory runs on psycopg_pool and on fastpool, and on each with the null pool
for threads and with the one for tasks. The tests are coroutines: `do` calls either kind of pool,
`spawn` calls it in a thread or in a task. Owns no assertion about a pool. All of it is fixtures,
for in importlib mode a test cannot import its neighbours.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from types import ModuleType
from typing import Any, Protocol

import psycopg
import pytest

IMPLEMENTATIONS = ("psycopg_pool", "fastpool")
POLL = 0.005


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Run the tests in asyncio's own event loop, a new one for each test."""
    return ("asyncio", {})


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request: pytest.FixtureRequest) -> ModuleType:
    """The package under test. psycopg_pool may be missing, fastpool may not."""
    if request.param == "psycopg_pool":
        reason = "psycopg_pool, the yardstick, is not installed"
        module: ModuleType = pytest.importorskip("psycopg_pool", reason=reason)
        return module
    return importlib.import_module(request.param)


@pytest.fixture(params=["threads", "tasks"])
def kind(request: pytest.FixtureRequest) -> str:
    """Who uses the pool: "threads" or "tasks"."""
    return str(request.param)


@pytest.fixture
def pool_class(impl: ModuleType, kind: str) -> Any:
    """The null pool of that package, for that kind."""
    return impl.NullConnectionPool if kind == "threads" else impl.AsyncNullConnectionPool


@pytest.fixture
def quick_backoff(impl: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the first delay between two attempts 20 ms instead of a second."""
    base = importlib.import_module(f"{impl.__name__}.base")
    monkeypatch.setattr(base.AttemptWithBackoff, "INITIAL_DELAY", 0.02)


# --- calling ----------------------------------------------------------------------------------


async def done(result: Any) -> Any:
    """What a call came to: for threads at once, for tasks when it has been awaited."""
    return await result if inspect.isawaitable(result) else result


@pytest.fixture(scope="session")
def do() -> Callable[..., Awaitable[Any]]:
    """`await do(pool.getconn, timeout=1.0)` calls here, whatever the kind."""

    async def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await done(function(*args, **kwargs))

    return call


@pytest.fixture(scope="session")
def entered() -> Callable[..., Any]:
    """`async with entered(pool.connection()) as conn` enters either kind of block."""

    @asynccontextmanager
    async def enter(block: Any) -> AsyncIterator[Any]:
        if hasattr(type(block), "__aexit__"):
            async with block as value:
                yield value
        else:
            with block as value:
                yield value

    return enter


@pytest.fixture
def callback(kind: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`callback(function)` makes what the pool takes as configure, check or reset.

    The function may return an awaitable; for tasks that is awaited.
    """

    def make(function: Callable[..., Any]) -> Callable[..., Any]:
        async def coroutine_function(*args: Any) -> Any:
            return await done(function(*args))

        return function if kind == "threads" else coroutine_function

    return make


async def wait_until(predicate: Callable[[], Any], timeout: float = 5.0, what: str = "") -> Any:
    """Let the loop run until *predicate* returns something true, and return it."""
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() > deadline
        value = predicate()
        if value:
            return value
        if late:
            name = what or getattr(predicate, "__name__", repr(predicate))
            raise AssertionError(f"not within {timeout:g} s: {name} (last: {value!r})")
        await asyncio.sleep(POLL)


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Awaitable[Any]]:
    """Poll a condition with a deadline: `await eventually(lambda: conn.closed, timeout=5)`."""
    return wait_until


class Call(Protocol):
    """A call that goes on in a thread or a task of its own."""

    @property
    def done(self) -> bool: ...

    async def result(self, timeout: float = 5.0) -> Any:
        """Return what the call returned, or raise what it raised.

        Raises TimeoutError when that takes more than *timeout* seconds; the call goes on then.
        """
        ...

    def cancel(self) -> None:
        """Cancel the call. Tasks only."""
        ...


class ThreadCall:
    """A call in a daemon thread."""

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

    async def result(self, timeout: float = 5.0) -> Any:
        with suppress(AssertionError):
            await wait_until(lambda: self.done, timeout)
        if not self.done:
            raise TimeoutError(f"still running after {timeout} s")
        if self._error is not None:
            raise self._error
        return self._value

    def cancel(self) -> None:
        raise AssertionError("a thread can't be cancelled")


class TaskCall:
    """A call in a task."""

    def __init__(self, function: Callable[[], Any], name: str | None) -> None:
        self.task = asyncio.get_running_loop().create_task(function(), name=name)

    @property
    def done(self) -> bool:
        return self.task.done()

    async def result(self, timeout: float = 5.0) -> Any:
        await asyncio.wait({self.task}, timeout=timeout)
        if not self.done:
            raise TimeoutError(f"still running after {timeout} s")
        return self.task.result()

    def cancel(self) -> None:
        self.task.cancel()


@pytest.fixture
async def spawn(anyio_backend: object, kind: str) -> AsyncIterator[Callable[..., Call]]:
    """`spawn(pool.getconn, timeout=5.0, caller="x")` starts a call in a thread or a task."""
    calls: list[Any] = []
    make: Any = ThreadCall if kind == "threads" else TaskCall

    def start(
        function: Callable[..., Any], *args: Any, caller: str | None = None, **kwargs: Any
    ) -> Call:
        call: Call = make(lambda: function(*args, **kwargs), caller)
        calls.append(call)
        return call

    yield start
    for call in calls:
        if kind == "tasks":
            call.cancel()
        with suppress(AssertionError):
            await wait_until(lambda call=call: call.done)


# --- pools ------------------------------------------------------------------------------------


def others() -> set[Any]:
    """The threads, and the tasks that are not the test runner's own."""
    return {
        *threading.enumerate(),
        *(
            task
            for task in asyncio.all_tasks()
            if not getattr(task.get_coro(), "__qualname__", "").startswith("TestRunner.")
        ),
    }


@pytest.fixture
async def new_pool(
    spawn: object, pool_class: Any, dsn: str
) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Build null pools that are not open, of one connection at most unless told.

    All are closed at the end, which ends the calls that still wait. Their threads and tasks have
    ended too by then, for one that lingers would log into the next test.
    """
    pools: list[Any] = []
    before = others()

    def ended() -> bool:
        left = others() - before
        return all(getattr(one, "name", "") == "fastpool-housekeeper" for one in left)

    def build(conninfo: Any = dsn, *, cls: Any = pool_class, **options: Any) -> Any:
        pool = cls(conninfo, **{"max_size": 1, "open": False, "name": "p", **options})
        pools.append(pool)
        return pool

    yield build
    for pool in pools:
        await done(pool.close(timeout=1.0))
    with suppress(AssertionError):
        await wait_until(ended, timeout=2.0)


@pytest.fixture
def open_pool(new_pool: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Build null pools that are open."""

    async def build(*args: Any, **options: Any) -> Any:
        pool = new_pool(*args, **options)
        await done(pool.open())
        return pool

    return build


@pytest.fixture
def waiter(
    spawn: Callable[..., Call],
) -> Callable[..., Awaitable[Call]]:
    """`call = await waiter(pool, timeout=5.0)`: a getconn that waits, when it does."""

    async def start(pool: Any, timeout: float = 5.0, caller: str | None = None) -> Call:
        before = pool.get_stats()["requests_waiting"]
        call = spawn(pool.getconn, timeout=timeout, caller=caller)
        await wait_until(
            lambda: pool.get_stats()["requests_waiting"] == before + 1, what="one more waiting"
        )
        return call

    return start


# --- connections ------------------------------------------------------------------------------


class Network:
    """What happens between a pool and its server: connects pass, fail, or wait at a gate."""

    def __init__(self, kind: str) -> None:
        self._lock = threading.Lock()
        self._gate = threading.Event()
        self._gate.set()
        self.error: BaseException | None = None
        self.attempts: list[dict[str, Any]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.connection_class = self._for_threads() if kind == "threads" else self._for_tasks()

    def _for_threads(self) -> Any:
        network = self

        class Connection(psycopg.Connection[Any]):
            @classmethod
            def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
                network._enter(kwargs)
                try:
                    network._gate.wait(20.0)
                    network._pass()
                    return super().connect(conninfo, **kwargs)
                finally:
                    network._leave()

        return Connection

    def _for_tasks(self) -> Any:
        network = self

        class Connection(psycopg.AsyncConnection[Any]):
            @classmethod
            async def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
                network._enter(kwargs)
                try:
                    while not network._gate.is_set():
                        await asyncio.sleep(POLL)
                    network._pass()
                    return await super().connect(conninfo, **kwargs)
                finally:
                    network._leave()

        return Connection

    def _enter(self, kwargs: dict[str, Any]) -> None:
        with self._lock:
            self.attempts.append(kwargs)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def _pass(self) -> None:
        if self.error is not None:
            raise self.error

    def _leave(self) -> None:
        with self._lock:
            self.in_flight -= 1

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


@pytest.fixture
def network(new_pool: object, kind: str) -> Iterator[Network]:
    """A Network; pass its `connection_class` to a pool. Open again before the pools close."""
    network = Network(kind)
    yield network
    network.release()


@pytest.fixture
def admin(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection that belongs to no pool, in autocommit mode. Its calls block the loop."""
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
def break_connection(end_session: Callable[[Any], None]) -> Callable[[Any], Awaitable[None]]:
    """`await break_connection(conn)` ends the session and lets the client notice."""

    async def break_(conn: Any) -> None:
        end_session(conn)
        with suppress(psycopg.OperationalError):
            await done(conn.execute("select 1"))
        assert conn.broken

    return break_


@pytest.fixture(scope="session")
def works() -> Callable[[Any], Awaitable[bool]]:
    """`await works(conn)` tells whether a query is answered; it ends the transaction."""

    async def ask(conn: Any) -> bool:
        cursor = await done(conn.execute("select 1"))
        row = await done(cursor.fetchone())
        await done(conn.rollback())
        return bool(row == (1,))

    return ask


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

    def texts(self, level: int = logging.INFO) -> list[str]:
        """The texts alone."""
        return [text for _, text in self.lines(level)]

    def warnings(self) -> list[str]:
        """The texts of WARNING and above."""
        return self.texts(logging.WARNING)

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
