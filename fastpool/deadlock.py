"""Deadlocks among a pool's borrowers: proved, or passed over.

Owns: the proof that nobody will give a connection back, and what is said then. Refuses: to guess.
That every connection is lent, each to somebody who waits in this pool, is only a suspicion: a web
framework may borrow in one thread, use and give back in others, and have the first one wait for
the next request's connection meanwhile.

PROOF. From each lent session backwards: what refers to it, what refers to that, and so on. It is
certain when all these ways end on the stacks of those who wait, for then nobody else can reach the
connection. A way that ends elsewhere proves nothing: in a variable of another thread or task, in a
handler of signals, in a global or a class while others may run, in a thread or task that has not
begun, or out of sight.

OUT OF SIGHT of the collector is what a running stack holds: variables, the exit of a `with`
statement, the arguments of a call. Of other threads these are searched for what was found on the
ways. For the rest, a reference that nobody is seen to hold is a stack's that waits if it is found
there, or if such things are so held as a rule; a list or an object of the program's is not.

On a build without a GIL another thread's variables can't be read: there it is certain only when the
process has no other thread. Under gevent all greenlets have one thread's ident: no look is taken.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Mapping
from contextvars import Context
from time import thread_time
from types import (
    AsyncGeneratorType,
    BuiltinMethodType,
    CellType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    MethodType,
    ModuleType,
    TracebackType,
)
from typing import Any, TypeAlias

from . import stacks
from ._core import Entry, Gauge, Waiter
from ._stacks import frame_ids
from .base import BasePool, Timer, now
from .snapshot import place

_SUSPENDED = (CoroutineType, GeneratorType, AsyncGeneratorType)
# What a stack may hold out of sight: exits of `with` statements, arguments and functions of calls,
# the exception that is being handled, the cells of closures, what a `for` statement runs through.
_ON_STACKS = (
    *_SUSPENDED,
    BaseException,
    BuiltinMethodType,
    CellType,
    Context,
    FrameType,
    FunctionType,
    MethodType,
    TracebackType,
    dict,
    tuple,
)
# From 3.14 on a `with` statement holds the object itself, not a method of it.
_HOLDS_MANAGERS = sys.version_info >= (3, 14)
# Where Linux shows the threads of the process.
_THREADS = "/proc/self/task"
# Lendings: index, generation and owner of each.
_Held: TypeAlias = list[tuple[int, int, int]]
# More objects on the ways to the connections are not looked at.
_MANY = 1000

# A wait of at most so many seconds is no deadlock: it ends soon, and what is held comes back. To
# try for a moment is also how programs ask whether anything is free.
SHORT = 0.25
# How long a suspicion must have stood (seconds). What is on its way to somebody arrives meanwhile.
DELAY = 0.05
# Among a million objects a look takes a third of a second of the GIL. After one that proves nothing
# comes a rest of so many times what it took, and of so many seconds at most.
REST = 20.0
LONGEST_REST = 10.0


class Detector:
    """Finds out the deadlocks of one pool. Thread-safe."""

    def __init__(self, pool: BasePool) -> None:
        self._pool_ref = weakref.ref(pool)
        # Whether a look is planned that is taken whatever the last one saw.
        self._suspicion = Gauge()
        self._rests_until = 0.0
        # The lendings of the last look that proved nothing, and after how long to look again (s).
        self._doubt: tuple[_Held, float] = ([], 0.0)
        self._next: Timer | None = None
        # What those in the last deadlock are told: the text of the exception, and its notes.
        self.verdict: tuple[str, list[str]] = ("", [])

    def suspect(self, waiter: Waiter) -> None:
        """Have a look taken soon if *waiter*, which has queued, holds a connection of the pool
        itself. Never blocks."""
        pool = self._pool_ref()
        if pool is None or not waiter.is_suspect or waiter.patience <= SHORT:
            return
        patched = waiter.gate is not None and pool._OWNERS_ARE == "thread"
        if not patched and self._suspicion.enter():
            self._plan_first(pool)

    def _plan_first(self, pool: BasePool) -> None:
        pool._later(max(DELAY, self._rests_until - now()), self._look_first)

    # In the housekeeper's thread, or the event loop's.

    def _look_first(self) -> None:
        pool = self._pool_ref()
        if pool is None:
            return
        if now() < self._rests_until:  # from a look since this one was planned
            self._plan_first(pool)
            return
        self._suspicion.leave()
        held = pool._table.deadlock_suspects(SHORT)
        if held is not None:
            self._look(pool, held, DELAY)

    def _look_again(self) -> None:
        pool = self._pool_ref()
        if pool is None or self._suspicion.inside:  # that look will see what this one would
            return
        before, delay = self._doubt
        if pool._table.deadlock_suspects(SHORT) == before:
            self._look(pool, before, delay)

    def _look(self, pool: BasePool, held: _Held, delay: float) -> None:
        """If there is a deadlock, fail all those in it: each waiter is settled, `is_deadlocked`."""
        began = thread_time()
        if _is_proved(pool, held):
            # What is garbage has no way to it either, and comes back by itself.
            gc.collect()
            if _is_proved(pool, held):
                self.verdict = _describe(pool, held)
                pool._table.break_deadlock(held, SHORT)
                return
        # What stood in the way may pass: a thread that had a reference for a moment, what a stack
        # had left behind. As long as the same lendings stand, ever more seldom.
        rest = min(LONGEST_REST, REST * (thread_time() - began))
        self._rests_until = now() + rest
        self._doubt = held, max(2.0 * delay, rest)
        if self._next is not None:  # planned before another suspicion came
            self._next.cancel()
        self._next = pool._later(self._doubt[1], self._look_again)


# --- proof --------------------------------------------------------------------------------------


def _is_proved(pool: BasePool, held: _Held) -> bool:
    owners = {owner for _, _, owner in held}
    if pool._OWNERS_ARE == "thread" and not stacks.HAS_GIL:
        return not _handlers() and _is_all_there_is({*owners, threading.get_ident()})
    running = pool._stacks()
    try:
        sessions = pool._table.sessions(held)
        if sessions is None or not owners <= running.keys():
            return False
        return _Ways(pool, owners, running).end_on_stacks(sessions)
    finally:
        stacks.forget(running)


def _handlers() -> set[int]:
    """The ids of the handlers of signals, which run while the main thread waits."""
    handlers = map(signal.getsignal, signal.valid_signals())
    return {id(one) for one in handlers if callable(one) and one is not signal.default_int_handler}


def _is_all_there_is(idents: set[int]) -> bool:
    """Whether the process has these threads, of Python, and no others, of anybody's."""
    try:
        return idents == set(sys._current_frames()) and len(idents) == len(os.listdir(_THREADS))
    except OSError:
        return False


class _Ways:
    """The ways on which objects can be reached, as seen from those who wait."""

    def __init__(
        self, pool: BasePool, owners: set[int], running: Mapping[int, list[FrameType]]
    ) -> None:
        self.owners = owners
        self.handlers = _handlers()
        self.mine = {frame for owner in owners for frame in running[owner]}
        others = [frames for ident, frames in running.items() if ident not in owners]
        threads: Mapping[int, list[FrameType]] = {}
        if pool._OWNERS_ARE == "task":
            threads = stacks.of_threads()
            others += threads.values()
            self.alone = False
        else:
            others = [
                frames for frames in others if not _is_pools(frames) and not _joins(frames, owners)
            ]
            self.alone = not others and not self.handlers
        self.theirs = {frame for frames in others for frame in frames if not _is_ours(frame)}
        stacks.forget(threads)
        # Tasks' coroutines are objects, in plain sight: their variables are, too.
        ids = [frame_ids(frame) for frame in self.mine if pool._OWNERS_ARE == "thread"]
        self.variables = Counter(one for variables, _ in ids for one in variables)
        self.stacked = {one for _, stack in ids for one in stack or ()}
        # What finds every thread.
        self.registers = {id(threading.__dict__.get(name)) for name in ("_active", "_limbo")}

    def end_on_stacks(self, found: list[Any]) -> bool:
        """Whether all ways to what is in *found*, a list that nobody else has, end there. What is
        on these ways is added to the list.

        No variable refers to any of it: that would be one more reference.
        """
        ids = {id(one) for one in found}
        hidden: set[int] = set()
        begin = 0
        while begin < len(found):
            end = len(found)
            edges: Counter[int] = Counter()
            level = tuple(found[begin:end])
            referrers = gc.get_referrers(*level)
            for index in range(len(referrers)):
                if referrers[index] is found or referrers[index] is level:
                    continue
                if _is_look(referrers[index]):
                    continue
                edges.update(map(id, gc.get_referents(referrers[index])))
                if id(referrers[index]) in ids or self._is_end(referrers[index]):
                    continue
                if self._leads_elsewhere(referrers[index]) or len(found) >= _MANY:
                    return False
                ids.add(id(referrers[index]))
                found.append(referrers[index])
            referrers.clear()
            del level
            for index in range(begin, end):
                one = id(found[index])
                # Two are the list and getrefcount()'s argument.
                if sys.getrefcount(found[index]) - 2 > edges[one] + self.variables[one]:
                    if not self._may_be_on_stack(found[index]):
                        return False
                    hidden.add(one)
            begin = end
        return all(
            ids.isdisjoint(variables)
            and (not hidden or (stack is not None and hidden.isdisjoint(stack)))
            for variables, stack in map(frame_ids, self.theirs)
        )

    def _is_end(self, one: Any) -> bool:
        """Whether this is where a way may end: a stack that waits, or the pool's own."""
        if isinstance(one, FrameType):
            return one in self.mine
        if isinstance(one, _SUSPENDED):
            return _frame_of(one) in self.mine
        if isinstance(one, asyncio.Future):
            return id(one) in self.owners
        if _is_global(one):
            return self.alone
        return isinstance(one, (Entry, Waiter)) or id(one) in self.registers

    def _leads_elsewhere(self, one: Any) -> bool:
        if isinstance(one, threading.Thread):
            return one.ident not in self.owners
        if isinstance(one, FrameType):
            return one in self.theirs
        if isinstance(one, _SUSPENDED):
            return _frame_of(one) in self.theirs
        return isinstance(one, asyncio.Task) or id(one) in self.handlers or _is_global(one)

    def _may_be_on_stack(self, one: Any) -> bool:
        cls = type(one)
        if _HOLDS_MANAGERS and (hasattr(cls, "__exit__") or hasattr(cls, "__aexit__")):
            return True
        return isinstance(one, _ON_STACKS) or id(one) in self.variables or id(one) in self.stacked


def _is_global(one: Any) -> bool:
    """Whether all threads find this, by its name."""
    return isinstance(one, (ModuleType, type)) or (type(one) is dict and "__builtins__" in one)


def _is_look(referrer: Any) -> bool:
    """Whether this is a frame of the look itself: until Python 3.10 these are in sight."""
    return isinstance(referrer, FrameType) and referrer.f_globals is globals()


def _is_ours(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__")
    return isinstance(name, str) and name.partition(".")[0] == __package__


def _is_pools(frames: list[FrameType]) -> bool:
    """Whether a thread with these frames is one of the pools', doing nothing for a program."""
    return any(map(_is_ours, frames)) and all(
        _is_ours(frame) or frame.f_globals is threading.__dict__ for frame in frames
    )


def _joins(frames: list[FrameType], owners: set[int]) -> bool:
    """Whether a thread with these frames waits for the end of one that waits here, however long."""
    for frame in frames:
        if frame.f_globals is not threading.__dict__:
            return False
        if frame.f_code is threading.Thread.join.__code__:
            variables = frame.f_locals
            return variables["timeout"] is None and variables["self"].ident in owners
    return False


def _frame_of(suspended: Any) -> FrameType | None:
    for name in ("cr_frame", "gi_frame", "ag_frame"):
        frame: FrameType | None = getattr(suspended, name, None)
        if frame is not None:
            return frame
    return None


# --- what is said -------------------------------------------------------------------------------


def _describe(pool: BasePool, held: _Held) -> tuple[str, list[str]]:
    """Return the text of the exception, and its notes: the stacks."""
    kind, names = pool._OWNERS_ARE, pool._owner_names()
    owners = dict.fromkeys(owner for _, _, owner in held)
    running = pool._stacks(owners, stacks.TOLD)
    rows = pool._table.survey()[2]
    parts = []
    for index, _, owner in held:
        _, pid, _, since, _, _, site, *_ = rows[index]
        parts.append(
            f"{kind} {names.get(owner, '?')!r} for {since * 1e-9:.2f} sec (backend {pid})"
            f"{place(site)}"
        )
    text = (
        f"couldn't get a connection: deadlock in the pool {pool.name!r}, all {len(held)} of its"
        f" connections are held by {kind}s that wait for another one: {', '.join(parts)}"
    )
    notes = [
        f"{kind} {names.get(owner, '?')!r} waits at\n{stacks.text(running[owner])}"
        for owner in owners
        if owner in running
    ]
    stacks.forget(running)
    return text, notes
