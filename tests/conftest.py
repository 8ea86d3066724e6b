"""What the tests share: a PostgreSQL, a way to wait for a condition, and a watch on threads.

Each test session has one server of its own, whatever DATABASE_URL says: tests kill backends. A test
that stops or restarts a server makes one with `own_server`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import select
import signal
import sysconfig
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Protocol, TypeVar

import pytest

from fastpool.demo.postgres import PostgresServer

T = TypeVar("T")

POLL = 0.005
THREAD_GRACE = 2.0


class Eventually(Protocol):
    """Wait until *predicate* returns something true, and return it.

    Fails after *timeout* seconds; the failure names *what* was waited for and the last value.
    """

    def __call__(self, predicate: Callable[[], T], timeout: float = 5.0, what: str = "") -> T: ...


def wait_until(predicate: Callable[[], T], timeout: float = 5.0, what: str = "") -> T:
    """Do what Eventually says."""
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() > deadline
        value = predicate()
        if value:
            return value
        if late:
            name = what or getattr(predicate, "__name__", repr(predicate))
            raise AssertionError(f"not within {timeout:g} s: {name} (last: {value!r})")
        time.sleep(POLL)


@pytest.fixture(scope="session")
def eventually() -> Eventually:
    """Poll a condition with a deadline: `eventually(lambda: pool.waiting == 1, timeout=5)`."""
    return wait_until


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Let Ctrl-C arrive: a shell starts what it runs in the background with SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    """The session's PostgreSQL. Kill its backends; leave it running with its options."""
    with PostgresServer(settings={"max_connections": "200"}) as server:
        yield server


@pytest.fixture(scope="session")
def dsn(server: PostgresServer) -> str:
    """The session server's connection string."""
    return server.dsn


@pytest.fixture
def own_server() -> Iterator[Callable[..., PostgresServer]]:
    """Make a server for one test, which may stop and restart it: `own_server(tcp=True)`.

    Takes the arguments of PostgresServer; the server runs when it is returned.
    """
    with contextlib.ExitStack() as stack:

        def make(*args: Any, **kwargs: Any) -> PostgresServer:
            return stack.enter_context(PostgresServer(*args, **kwargs))

        yield make


@pytest.fixture(autouse=True)
def no_thread_left_behind() -> Iterator[None]:
    """Fail a test that leaves behind threads which would keep the interpreter from exiting."""
    before = set(threading.enumerate())

    def left() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t not in before and not t.daemon]

    yield
    deadline = time.monotonic() + THREAD_GRACE
    while left() and time.monotonic() < deadline:
        time.sleep(POLL)
    if names := [thread.name for thread in left()]:
        pytest.fail(f"threads left behind: {names}")


@pytest.fixture
def makers_gone(eventually: Eventually) -> Callable[[], None]:
    """`makers_gone()` waits until the threads that made connections have ended.

    Only without a GIL: there an object that another thread drops is freed when the thread that
    made it runs again, or has ended (PEP 703, biased reference counting), not at once.
    """

    def wait() -> None:
        if sysconfig.get_config_var("Py_GIL_DISABLED"):
            eventually(
                lambda: not any("-worker" in thread.name for thread in threading.enumerate()),
                what="no worker threads",
            )

    return wait


# --- forked children --------------------------------------------------------------------------


class Child:
    """A forked child of the test's process that calls one function."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._answer, answer = os.pipe()
        with warnings.catch_warnings():
            # Python 3.12 and newer: the process has threads. That is what is tested.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            _live(function, answer)
        os.close(answer)

    def result(self, timeout: float = 20.0) -> Any:
        """Return what the function returned. Fails with what it raised; or, after *timeout*
        seconds, with what the child's threads were doing. The child has ended then."""
        received = self._receive(time.monotonic() + timeout)
        late = received is None
        if late:
            os.kill(self.pid, signal.SIGUSR1)  # see _live()
            received = self._receive(time.monotonic() + 1.0, part=True) or b""
            os.kill(self.pid, signal.SIGKILL)
        os.close(self._answer)
        os.waitpid(self.pid, 0)
        if late:
            raise AssertionError(f"the child hung:\n{received.decode(errors='replace')}")
        assert received, "the child ended without a word"
        value, error = pickle.loads(received)
        if error is not None:
            raise AssertionError(f"in the child:\n{error}")
        return value

    def _receive(self, deadline: float, part: bool = False) -> bytes | None:
        """Read until the end of the child's answer. None, or a *part*, at the *deadline*."""
        received = b""
        while select.select([self._answer], [], [], max(0.0, deadline - time.monotonic()))[0]:
            chunk = os.read(self._answer, 65536)
            received += chunk
            if not chunk:
                return received
        return received if part else None


def _live(function: Callable[[], Any], answer: int) -> NoReturn:
    """Be the child: never return into the test, or into what would run the other tests."""
    try:
        faulthandler.register(signal.SIGUSR1, file=answer)
        try:
            told = pickle.dumps((function(), None))
        except BaseException:
            told = pickle.dumps((None, traceback.format_exc()))
        while told:
            told = told[os.write(answer, told) :]
    finally:
        os._exit(0)


@pytest.fixture
def fork() -> Iterator[Callable[[Callable[[], Any]], Child]]:
    """`fork(function).result()` calls *function* in a forked child, and returns what it returns.

    The child ends by os._exit(), at the test's end at the latest.
    """
    if not hasattr(os, "fork"):
        pytest.skip("there is no fork on this platform")
    children: list[Child] = []

    def start(function: Callable[[], Any]) -> Child:
        child = Child(function)
        children.append(child)
        return child

    yield start
    for child in children:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            if os.waitpid(child.pid, os.WNOHANG) == (0, 0):
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)
