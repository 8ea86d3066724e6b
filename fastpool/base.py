"""What every pool is, sync or async, plain or null: parameters, life cycle, figures.

Owns: validation, the live settings, the open/closed state, statistics, the attributes that other
programs read. Refuses: I/O and waiting. Those are the shells', through the few primitives at the
end of BasePool; the policies that use them (lending, connector, upkeep) are written once, as
coroutines. A thread pool's primitives never suspend, so `run()` carries such a coroutine to its
end in one step; an async pool awaits it.
"""

from __future__ import annotations

import contextlib
import math
import random
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from . import forks, parameters, stacks
from ._core import COUNT_LOST, Gauge, SlotTable, Waiter, skip_frames_of
from ._fastpath import FastPath, logger
from .annotations import Role
from .errors import PoolClosed
from .parts import Connects, Detects, Watches
from .redaction import Redactor, hide
from .snapshot import Snapshot, place, take

if TYPE_CHECKING:
    from .guard import Guard
    from .notices import Watch

# A program calls the pool through these modules' functions, and at times through contextlib's.
skip_frames_of(globals())
skip_frames_of(vars(contextlib))

T = TypeVar("T")
Job = Callable[[], Coroutine[Any, Any, None]]

_MS_KEYS = frozenset({"requests_wait_ms", "usage_ms", "connections_ms"})
_NS_PER_MS = 1_000_000
_NS_PER_S = 1_000_000_000


def run(policy: Coroutine[Any, Any, T]) -> T:
    """Carry a thread pool's policy to its end. Its primitives block, so it never suspends."""
    try:
        policy.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    policy.close()
    raise RuntimeError("bug: a policy of a thread pool suspended")


class Timer(Protocol):
    """Something that will happen later."""

    def cancel(self) -> object:
        """Make it not happen, if it has not happened yet."""


class AttemptWithBackoff:
    """The delays between attempts to connect: doubling from INITIAL_DELAY, at most MAX_DELAY, each
    shortened by chance by up to DELAY_JITTER of it, so that many processes do not come at once; the
    last one cut short at the moment of giving up. Times in seconds."""

    INITIAL_DELAY = 1.0
    DELAY_JITTER = 0.1
    DELAY_BACKOFF = 2.0
    # Less than a second: the first success is to come within 1.2 s of the server's return, and
    # after the delay it takes a thread, a handshake and a fork of the server's. So with these
    # numbers each delay is this one; programs may set others.
    MAX_DELAY = 0.8

    def __init__(self, *, timeout: float) -> None:
        self.timeout = timeout
        self.delay: float = 0.0
        self.give_up_at: float = 0.0

    def next_delay(self, now: float) -> float | None:
        """Return how long to wait before the next attempt; None when it is time to give up."""
        if self.give_up_at == 0.0:
            self.give_up_at = now + self.timeout
            self.delay = self.INITIAL_DELAY
        elif now >= self.give_up_at:
            return None
        else:
            self.delay *= self.DELAY_BACKOFF
        self.delay = min(self.delay, self.MAX_DELAY)
        delay = BasePool._jitter(self.delay, -self.DELAY_JITTER, 0.0)
        return max(0.0, min(delay, self.give_up_at - now))


class IdleView:
    """A sized, iterable, read-only view of the idle connections, the next to be lent first."""

    def __init__(self, pool: BasePool) -> None:
        self._pool = pool

    def __len__(self) -> int:
        return self._pool._table.counts()[1]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._list())

    def __getitem__(self, index: int) -> Any:
        return self._list()[index]

    def _list(self) -> list[Any]:
        idle = self._pool._table.idle()
        if self._pool._table.closed:  # while each was held for a moment
            self._pool._sweep()
        return idle

    def __repr__(self) -> str:
        return f"<{len(self)} idle connections>"


class WaitingView:
    """The sized view of the requests that wait."""

    def __init__(self, table: SlotTable) -> None:
        self._table = table

    def __len__(self) -> int:
        return self._table.counts()[2]

    def __repr__(self) -> str:
        return f"<{len(self)} waiting requests>"


class BasePool(FastPath):
    """Base class of all pools. Not for direct use."""

    # What a newcomer may overtake the first waiter by, in ns; settled by measurement. Without a GIL
    # who waits for a connection need not wait for his turn to run too: more would only be unfair.
    _TAU_NS: ClassVar[int] = 2_000_000 if stacks.HAS_GIL else 500_000
    # Whether to find out how many connections are best lent at once: see _pacing.pyx.
    _PACES: ClassVar[bool] = stacks.HAS_GIL
    # What connects where no class is given.
    _DRIVER_CLASS: ClassVar[Any] = None
    # What borrows: "thread" or "task".
    _OWNERS_ARE: ClassVar[str] = "thread"
    # Whether connections stand idle; else each is opened for its borrower, and closed after it.
    _KEEPS_IDLE: ClassVar[bool] = True
    _num_pool: ClassVar[int] = 0

    # See the module parts.
    _connector: Connects
    _deadlocks: Detects
    _watchman: Watches

    def __init__(
        self,
        conninfo: Any,
        *,
        connection_class: Any,
        kwargs: Any,
        min_size: int,
        max_size: int | None,
        configure: Any,
        check: Any,
        reset: Any,
        name: str | None,
        close_returns: bool,
        timeout: float,
        max_waiting: int,
        max_lifetime: float,
        max_idle: float,
        reconnect_timeout: float,
        reconnect_failed: Any,
        num_workers: int,
        order: str,
        max_connecting: int,
        role: Role | None,
        leak_timeout: float | None,
        reclaim_dead: bool,
        open: bool | None,
    ) -> None:
        is_async = self._OWNERS_ARE == "task"
        parameters.check_close_returns(close_returns, connection_class, self._DRIVER_CLASS)
        min_size, max_size = self._check_size(min_size, max_size)
        parameters.check_counts(
            num_workers=num_workers, max_waiting=max_waiting, max_connecting=max_connecting
        )
        parameters.check_source(
            conninfo=conninfo, connection_class=connection_class, kwargs=kwargs, is_async=is_async
        )
        parameters.check_callbacks(
            is_async=is_async,
            configure=configure,
            check=check,
            reset=reset,
            reconnect_failed=reconnect_failed,
        )
        parameters.duration("timeout", timeout)
        parameters.duration("max_lifetime", max_lifetime)
        parameters.duration("max_idle", max_idle, zero=False)
        parameters.duration("reconnect_timeout", reconnect_timeout)
        if leak_timeout is not None:
            parameters.duration("leak_timeout", leak_timeout, zero=False)
        parameters.flag("reclaim_dead", reclaim_dead)
        parameters.check_rest(name=name, order=order, role=role, open=open)

        self.conninfo = conninfo
        self.connection_class = connection_class
        self.kwargs = kwargs
        self.name: str = name or self._new_name()
        self.close_returns: bool = close_returns if self._KEEPS_IDLE else False
        self.timeout = timeout
        self.max_waiting = max_waiting
        self.max_lifetime = max_lifetime
        self.max_idle = max_idle
        self.reconnect_timeout = reconnect_timeout
        self.num_workers = num_workers
        self.role = role
        self.leak_timeout = leak_timeout
        self.reclaim_dead = reclaim_dead

        self._configure = configure
        self._check = check
        self._reset = reset
        self._reconnect_failed = reconnect_failed
        self._set_table(
            SlotTable(
                min_size,
                max_size,
                lifo=order == "lifo",
                max_connecting=max_connecting,
                tau_ns=self._TAU_NS,
                keeps_idle=self._KEEPS_IDLE,
                paces=self._PACES,
                on_lost=self._make_on_lost(),
                on_owed=self._make_on_owed(),
            )
        )
        self._redactor = Redactor()
        # What the first use warns of.
        self._warns: Warning | None = None
        # In a forked child: open since before the fork, to be opened there when it is used.
        self._was_open = False
        self._begin()
        forks.register(self)

    def _begin(self) -> None:
        """Have the state of a pool that is not open yet, but for the slot table and chores."""
        self._lends = False
        self._opening = Gauge()
        # Found broken while idle, and out of the table: to be closed.
        self._dead: list[Any] = []
        # Whether to look at connections before they are lent.
        self._peeks = False
        self._popped: dict[str, int] = {}
        # The text only: an exception holds the frames it went through, and those the pool.
        self._last_error: str | None = None
        self._shrink_timer: Timer | None = None
        # Until when (seconds) a change of one session's role is no reason to replace all.
        self._renewed_until = -math.inf

    def _after_fork(self) -> None:
        """In a forked child: begin anew, open or closed as before. What was lent is the parent's;
        that it comes back is accepted. Shells extend this."""
        opened, closed = self._opened, self._table.closed
        self._set_table(self._table.heir())
        self._begin()
        self._was_open = opened and not closed
        if closed:
            self._table.close()

    def __repr__(self) -> str:
        cls = type(self)
        return f"<{cls.__module__}.{cls.__qualname__} {self.name!r} at 0x{id(self):x}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a connection pool can't be pickled or copied: its sessions are its own")

    # --- parameters ---------------------------------------------------------------------------

    @staticmethod
    def _check_size(min_size: int, max_size: int | None) -> tuple[int, int]:
        min_size = parameters.size("min_size", min_size)
        max_size = min_size if max_size is None else parameters.size("max_size", max_size)
        if min_size < 0:
            raise ValueError("min_size cannot be negative")
        if max_size < min_size:
            raise ValueError("max_size must be greater or equal than min_size")
        if min_size == max_size == 0:
            raise ValueError("if min_size is 0 max_size must be greater than 0")
        return min_size, max_size

    @staticmethod
    def _new_name() -> str:
        BasePool._num_pool += 1
        return f"pool-{BasePool._num_pool}"

    @staticmethod
    def _jitter(value: float, low: float, high: float) -> float:
        """Return *value* changed by a random fraction of itself between *low* and *high*."""
        return value * (1.0 + random.uniform(low, high))

    def _expiry_ns(self, now_ns: int) -> int:
        """When a connection made now expires: max_lifetime, less up to 5 % against stampedes."""
        lifetime = self._jitter(self.max_lifetime, -0.05, 0.0)
        return now_ns + int(min(lifetime, 1e9) * _NS_PER_S)

    def _check_timeout(self, timeout: Any) -> None:
        """Refuse what is not a time to wait. Called for calls that say one."""
        parameters.number("timeout", timeout)

    def _hide(self, text: str) -> str:
        """Return *text* without the passwords that the pool connects with."""
        return self._redactor.hide(text, self.conninfo, self.kwargs)

    @property
    def min_size(self) -> int:
        """How many connections the pool keeps open."""
        return self._table.min_size

    @property
    def max_size(self) -> int:
        """How many connections the pool opens at most."""
        return self._table.max_size

    # --- life cycle ---------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """True when the pool can't lend: not open yet, or closed."""
        return self._closed

    @property
    def _closed(self) -> bool:
        return not self._opened or self._table.closed

    @property
    def _opened(self) -> bool:
        return self._opening.inside > 0 or self._was_open

    def _begin_open(self) -> bool:
        """Become open. Return True to the one caller who does the opening's work."""
        if self._table.closed:
            raise PoolClosed("pool has already been opened/closed and cannot be reused")
        return self._opening.enter()

    def _require_open(self) -> None:
        if self._closed:
            when = "already closed" if self._table.closed else "not open yet"
            raise PoolClosed(f"the pool {self.name!r} is {when}")

    def _warn_once(self) -> None:
        """Say what is to be said at the first use, and make way for the fast path."""
        warns, self._warns = self._warns, None
        if not self._closed:
            self._reopen()
            self._lend_directly()
        if warns is not None:
            warnings.warn(warns, stacklevel=1)

    def _lend_directly(self) -> None:
        """Let the fast path lend, unless connections don't stand idle, or are to be looked at."""
        self._lends = self._KEEPS_IDLE and not self._peeks

    def _look_first(self) -> None:
        """From now on look at each connection before it is lent: nobody tells of their ends."""
        self._peeks = True
        self._lends = False

    # --- figures ------------------------------------------------------------------------------

    def get_stats(self) -> dict[str, int]:
        """Return the pool's measures as of now and its counters since the last `pop_stats()`.

        Every key is there, always. Measures:

        *pool_min*, *pool_max*: the sizes that were set.
        *pool_size*: connections lent, available, or being made.
        *pool_available*: connections that can be lent at once.
        *requests_waiting*: requests that wait for a connection now.

        Counters:

        *requests_num*: requests for a connection, also those that were refused.
        *requests_queued*: requests that had to wait.
        *requests_wait_ms*: how long they waited, all together, in milliseconds.
        *requests_errors*: requests that waited in vain (timeout, interrupt, pool closed), or that
        `max_waiting` refused.
        *usage_ms*: how long `connection()` blocks held connections, all together, in milliseconds.
        *returns_bad*: connections that came back broken or busy, or that failed in `reset`.
        *connections_num*: attempts to connect.
        *connections_ms*: how long those that succeeded took, all together, in milliseconds.
        *connections_errors*: attempts to connect that failed.
        *connections_lost*: connections found broken while they were idle, and those that were
        collected without being given back.

        Thread-safe; blocks nobody.
        """
        return self._measures() | self._since_popped(self._totals())

    def pop_stats(self) -> dict[str, int]:
        """Return what `get_stats()` does, and start the counters anew. Thread-safe."""
        totals = self._totals()
        counters = self._since_popped(totals)
        self._popped = totals
        return self._measures() | counters

    def _measures(self) -> dict[str, int]:
        size, available, waiting = self._table.counts()
        return {
            "pool_min": self.min_size,
            "pool_max": self.max_size,
            "pool_size": size,
            "pool_available": available,
            "requests_waiting": waiting,
        }

    def _totals(self) -> dict[str, int]:
        # Times are kept in ns and cut to ms as totals, so that their parts add up.
        return {
            key: value // _NS_PER_MS if key in _MS_KEYS else value
            for key, value in self._table.counters().items()
        }

    def _since_popped(self, totals: dict[str, int]) -> dict[str, int]:
        popped = self._popped
        return {key: value - popped.get(key, 0) for key, value in totals.items()}

    def snapshot(self) -> Snapshot:
        """Return an immutable picture of the pool: sizes, counts by state, waiters, each slot.

        Consistent: the counts are made from the slots that it shows. Thread-safe; cheap enough
        for a metrics loop, not for every request.
        """
        return take(self.name, self._table, self._owner_names(), self.leak_timeout)

    # --- private names that programs in the wild read -----------------------------------------

    @property
    def _pool(self) -> IdleView:
        return IdleView(self)

    @property
    def _waiting(self) -> WaitingView:
        return WaitingView(self._table)

    @property
    def _nconns(self) -> int:
        return self._table.counts()[0]

    # --- lost connections ---------------------------------------------------------------------

    def _make_on_lost(self) -> Callable[[int, int, int, int, bool], None]:
        """Make what the slot table calls, in a finalizer, for a connection that was collected
        while it was lent."""
        this = weakref.ref(self)
        is_finalizing = sys.is_finalizing  # the module may be gone by then

        def on_lost(index: int, backend_pid: int, owner: int, held_ns: int, closed: bool) -> None:
            pool = this()
            # The program's end collects what is lent then, which is nobody's mistake.
            if pool is not None and not is_finalizing():
                pool._table.count(COUNT_LOST)
                if not closed:
                    pool._warn_of_lost(index, backend_pid, owner, held_ns)

        return on_lost

    def _make_on_owed(self) -> Callable[[int], None]:
        """Make what the slot table calls for a slot that nobody goes on with."""
        this = weakref.ref(self)
        is_finalizing = sys.is_finalizing

        def on_owed(index: int) -> None:
            pool = this()
            # Before it is opened a pool owes without a debt: open() goes through all slots.
            if pool is not None and pool._opened and not is_finalizing():
                pool._later(0.0, pool._replace_lost)

        return on_owed

    def _warn_of_lost(self, index: int, backend_pid: int, owner: int, held_ns: int) -> None:
        names, kind = self._owner_names(), self._OWNERS_ARE
        who = f"{kind} {names[owner]!r}" if owner in names else f"a {kind} that has ended"
        warnings.warn(
            f"a connection of pool {self.name!r} (backend {backend_pid}), lent to {who}"
            f" {held_ns / _NS_PER_S:.2f} sec before{place(self._table.call_site(index))}, was"
            " collected without being given back."
            " Use `with pool.connection()`. Its slot is free again",
            ResourceWarning,
            stacklevel=2,
        )

    def _replace_lost(self) -> None:
        for debt in self._table.orphans():
            closing = self._table.state_name(debt.index) == "closing"
            if not closing or self._table.recycle(debt, True):
                self._connector.start(debt)
            else:
                self._connector.grow()

    # --- sessions that have ended -------------------------------------------------------------

    def _condemn(self, watch: Watch) -> bool:
        """Take out the connection that was watched: lending.condemn()."""
        raise NotImplementedError

    def _bury(self) -> None:
        """Have what is in `_dead` closed."""
        raise NotImplementedError

    # --- what is planned for later ------------------------------------------------------------

    def _retry_connect(self) -> None:
        self._connector.retry()

    def _resume_connects(self) -> None:
        self._connector.resume()

    def _revive(self) -> None:
        if not self._closed:
            self._connector.fill()
            self._connector.grow()

    def _plan_shrink(self) -> None:
        self._shrink_timer = self._later(max(self.max_idle, 0.01), self._shrink)

    def _shrink(self) -> None:
        if not self._closed:
            self._submit(self._shrink_job)
            self._plan_shrink()
            self._replace_lost()  # of which nothing was told, for interrupts

    def _shrink_job(self) -> Coroutine[Any, Any, None]:
        raise NotImplementedError

    def _renewal_job(self) -> Coroutine[Any, Any, None]:
        raise NotImplementedError

    def _plan_look(self) -> None:
        self._later(self._watchman.period, self._look)

    def _look(self) -> None:
        if not self._closed:
            self._watchman.look()
            self._plan_look()

    # --- what the shells define, sync or async: called through _call() ------------------------

    if TYPE_CHECKING:

        def check(self) -> Any: ...
        def close(self, timeout: float | None = 5.0) -> Any: ...
        def putconn(self, conn: Any) -> Any: ...
        def reconnect_failed(self) -> Any: ...
        def _connect(self, timeout: float | None = None) -> Any: ...
        def _resolve_conninfo(self) -> Any: ...
        def _resolve_kwargs(self) -> Any: ...
        @staticmethod
        def check_connection(conn: Any) -> Any: ...

    # --- primitives of the shells -------------------------------------------------------------

    def _reopen(self) -> None:
        """In a forked child, at the first use of a pool that was open: open it."""
        raise NotImplementedError

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call the user's function or the driver's."""
        raise NotImplementedError

    async def _dial(self, connect: Callable[[], Any], seconds: float) -> Any:
        """Connect; raise LeftBehind when that takes more than *seconds*. See the module dialing."""
        raise NotImplementedError

    def _replace_worker(self, who: int) -> None:
        """Let another worker have the place of *who*, whose chore does not end."""
        raise NotImplementedError

    def _guard(self, conn: Any, seconds: float) -> Guard:
        """Start the clock of a call to the server over *conn*. See the module guard."""
        raise NotImplementedError

    def _new_waiter(self) -> Waiter:
        """Make what one blocked call parks on."""
        raise NotImplementedError

    def _owner(self) -> int:
        """Return the ident of who runs, as a borrower. Never 0."""
        return threading.get_ident()

    def _owner_names(self) -> Mapping[int, str]:
        """Return the names of those who may be borrowers, by ident."""
        return {ident: thread.name for ident, thread in stacks.threads().items()}

    def _borrowers(self) -> Mapping[int, Any]:
        """Return all who run, by ident; None for those of whom nothing else is known."""
        return {**dict.fromkeys(sys._current_frames()), **stacks.threads()}

    def _stacks(
        self, idents: Collection[int] | None = None, limit: int = sys.maxsize
    ) -> Mapping[int, list[FrameType]]:
        """Return what these borrowers, or all who run, are doing: the *limit* innermost frames by
        ident, the innermost first. Of whom nothing can be known, nothing."""
        return stacks.of_threads(idents, limit)

    async def _wait(self, waiter: Waiter, timeout: float) -> Any:
        """Wait for a connection. None after *timeout* seconds, or when the waiter was shut."""
        raise NotImplementedError

    async def _watch(self, waiter: Waiter, timeout: float) -> None:
        """Wait until the waiter is settled, *timeout* seconds at most."""
        raise NotImplementedError

    def _sweep(self) -> None:
        """Close what is idle in a closed pool. Called where nothing can be awaited."""
        raise NotImplementedError

    async def _end_chores(self, timeout: float) -> None:
        """Do the chores that are queued, and wait for those under way, *timeout* seconds at most.
        Say of what did not end in time."""
        raise NotImplementedError

    async def _sleep(self, seconds: float) -> None:
        """Let time pass."""
        raise NotImplementedError

    def _submit(self, job: Job) -> None:
        """Have a chore done by somebody else, soon. Never blocks."""
        raise NotImplementedError

    def _later(self, delay: float, method: Callable[[], object]) -> Timer:
        """Call a method of the pool, or of a part of it, in *delay* seconds, unless that is gone by
        then.

        The method is quick, or submits a chore. May be called by a finalizer.
        """
        raise NotImplementedError


def log_failed_chore(job: Job, error: BaseException) -> None:
    """Say that a chore failed, which nobody waits for."""
    logger.warning("task run %s failed: %s: %s", job, type(error).__name__, hide(str(error)))


def one_line(error: BaseException) -> str:
    """Return the error's class and text; libpq's texts have several lines."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def now() -> float:
    """Return the clock of all deadlines, in seconds."""
    return monotonic()


__all__ = ["AttemptWithBackoff", "BasePool", "log_failed_chore", "logger", "now", "one_line", "run"]
