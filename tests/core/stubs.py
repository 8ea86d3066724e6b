"""What the core's tests use in place of a driver, and a slot table that is checked at every step.

Owns: Stub, the least that the core needs of a connection; CheckedTable; threads that are joined
and whose failures are not lost. Refuses: assertions about behaviour, which are the tests'.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from fastpool._core import RETURN_TAKEN, SlotTable, Waiter, coarse_ns

FAR = 1 << 62
"""An expiry that never comes, in ns; as tau_ns: newcomers may always overtake."""

JOIN_TIMEOUT = 20.0


class Stub:
    """A connection as the core sees one: an object that takes attributes."""

    _slot: Any

    def __init__(self, name: int) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<stub {self.name}>"


class CheckedTable:
    """A slot table whose invariants are verified after every call. For one thread.

    Every name of SlotTable is here; those below are for tests. `raw` is the table itself.
    """

    def __init__(self, min_size: int, max_size: int, **options: Any) -> None:
        self.raw = SlotTable(min_size, max_size, **options)
        self.raw.verify()
        self.made = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.raw, name)
        if not callable(found):
            return found

        def step(*args: Any, **kwargs: Any) -> Any:
            try:
                return found(*args, **kwargs)
            finally:
                self.raw.verify()

        return step

    def connect(self, index: int, expires_ns: int = FAR) -> None:
        """Install a new stub. Returns nothing: a test that holds a lent stub keeps it alive."""
        conn = Stub(self.made)
        self.made += 1
        self.install(index, conn, None, 1000 + conn.name, expires_ns)

    def fill(self) -> None:
        """Have every connect that is owed succeed."""
        for index in self.owed():
            self.connect(index)

    def lend(self) -> Any:
        """Check out a connection that is known to be there."""
        conn = self.checkout()
        assert conn is not None
        return conn

    def give_back(self, conn: Any) -> bool:
        """Return a lent connection; what restore() says."""
        assert self.begin_return(conn) == RETURN_TAKEN
        closed: bool = self.restore(conn)
        return closed

    def queue(self) -> WokenWaiter:
        """Queue a new waiter for which nothing is free."""
        waiter = WokenWaiter()
        assert self.enqueue(waiter.raw) is None
        return waiter

    def states(self) -> list[str]:
        """The names of the states of all slots that there may be."""
        top = self.raw.max_size or self.raw.capacity()
        return [self.raw.state_name(index) for index in range(top)]

    def idle_names(self) -> list[int]:
        """The names of the available stubs, the next to be lent first."""
        return [conn.name for conn in self.idle()]


class WokenWaiter:
    """A waiter that counts how often it was woken."""

    def __init__(self) -> None:
        self.wakes = 0
        self.raw = Waiter(None, self._wake)

    def _wake(self) -> None:
        self.wakes += 1

    @property
    def is_settled(self) -> bool:
        return self.raw.is_settled

    @property
    def was_shut(self) -> bool:
        return self.raw.was_shut


def full(size: int, max_size: int | None = None, **options: Any) -> CheckedTable:
    """A table with *size* connections, all available; stub N is in slot N."""
    table = CheckedTable(size, size if max_size is None else max_size, **options)
    table.fill()
    return table


def age_ns(table: SlotTable, index: int) -> int:
    """How long a slot's connection exists by the core's clock."""
    age = table.survey()[2][index][2]
    assert age is not None
    return age


class StubPGconn:
    """The part of a libpq connection that a pool asks."""

    def __init__(self, backend_pid: int) -> None:
        self.backend_pid = backend_pid
        self.transaction_status = 0
        self.status = 0

    def finish(self) -> None:
        self.transaction_status = 4
        self.status = 1


class StubConnection:
    """A connection class for a pool without a server: connecting takes no time, and succeeds."""

    made = 0
    _slot: Any

    def __init__(self) -> None:
        type(self).made += 1
        self.pgconn = StubPGconn(type(self).made)
        self._pool: Any = None
        self.held = threading.Lock()

    @classmethod
    def connect(cls, conninfo: str = "", **kwargs: Any) -> StubConnection:
        return cls()

    @property
    def closed(self) -> bool:
        return self.pgconn.status != 0

    def close(self) -> None:
        self.pgconn.finish()

    def rollback(self) -> None:
        self.pgconn.transaction_status = 0

    def __enter__(self) -> StubConnection:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.rollback()


def in_threads(*jobs: Callable[[], object], timeout: float = JOIN_TIMEOUT) -> list[Any]:
    """Run each job in a thread of its own. Return what they returned; raise what one raised."""
    results: list[Any] = [None] * len(jobs)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            results[number] = jobs[number]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
    start_and_join(threads, timeout)
    # Where one thread fails at a barrier the others only find that broken.
    errors.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
    if errors:
        raise errors[0]
    return results


def start_and_join(threads: Iterable[threading.Thread], timeout: float = JOIN_TIMEOUT) -> None:
    """Start all, then wait for all; fail when one does not end."""
    threads = list(threads)
    for thread in threads:
        thread.daemon = True  # one that hangs must not keep pytest from saying so
        thread.start()
    for thread in threads:
        thread.join(timeout)
        assert not thread.is_alive(), f"{thread.name} hangs"


__all__ = [
    "FAR",
    "CheckedTable",
    "Stub",
    "StubConnection",
    "WokenWaiter",
    "age_ns",
    "coarse_ns",
    "full",
    "in_threads",
    "start_and_join",
]
