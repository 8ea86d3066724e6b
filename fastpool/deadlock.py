"""Deadlocks among a pool's borrowers: proved, or passed over.

Owns: the proof that nobody will give a connection back, and what is said then. Refuses: to guess.
That every connection is lent, each by somebody who waits in this pool, is only a suspicion: a web
framework may borrow in one thread, use and give back in others, and have the first one wait for
the next request's connection meanwhile.

PROOF. Of each connection: it is in the variables of the functions that its borrower is in the
middle of, and every reference to it that there is has been found there, directly or in a list,
tuple, set or dictionary that itself is nowhere else, or in the `with` block that lent it. So none
but its borrower can give it back, and that one waits. A connection that is also kept in an object,
a closure, a queue or another thread's variables proves nothing, and the waiting goes on.

The slot table keeps no reference to what it has lent, so there is nothing to subtract. On a build
without a GIL another thread's variables can't be read, and under gevent all greenlets have one
thread's ident: there no look at threads is taken.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from types import (
    AsyncGeneratorType,
    BuiltinMethodType,
    CoroutineType,
    FrameType,
    GeneratorType,
    MethodType,
)
from typing import TYPE_CHECKING, Any

from psycopg import AsyncConnection, Connection
from psycopg._cursor_base import BaseCursor

from . import stacks
from ._core import Entry, Waiter
from ._fastpath import Block, Lease
from .snapshot import place

if TYPE_CHECKING:
    from .base import BasePool

_CONTAINERS = (list, tuple, set, dict)
_SUSPENDED = (CoroutineType, GeneratorType, AsyncGeneratorType)
# Larger ones are not looked into: their size is no business of a wait.
_LARGE = 1000
# How far a chain of containers is followed.
_DEPTH = 4

# A wait of at most so many seconds is no deadlock: it ends soon, and what is held comes back. To
# try for a moment is also how programs ask whether anything is free.
SHORT = 1.0

# How long a suspicion must have stood (seconds). What is on its way to somebody arrives meanwhile.
DELAY = 0.2


def suspect(pool: BasePool, waiter: Waiter, timeout: float) -> None:
    """Have a look taken soon: *waiter*, which has queued for *timeout* seconds, holds a connection
    of the pool itself. Never blocks."""
    patched = waiter.gate is not None and pool._OWNERS_ARE == "thread"
    if waiter.is_suspect and timeout > SHORT and not patched and pool._suspicion.enter():
        pool._later(DELAY, pool._look_for_deadlock)


def look(pool: BasePool) -> None:
    """If there is a deadlock, fail all those in it: each waiter is settled, with `is_deadlocked`.
    In the housekeeper's thread, or the event loop's."""
    pool._suspicion.leave()
    held = pool._table.deadlock_suspects()
    if held is not None and _is_proved(pool, held):
        pool._deadlock = _describe(pool, held)
        pool._table.break_deadlock(held)


# --- proof --------------------------------------------------------------------------------------


def _is_proved(pool: BasePool, held: list[tuple[int, int, int]]) -> bool:
    running, alone = pool._stacks(), _is_alone(pool, held)
    for index, generation, owner in held:
        frames = [frame for frame in running.get(owner, ()) if not _is_ours(frame)]
        box = _find(pool, index, generation, frames)
        if not box or not _is_confined(box, _Variables(frames, alone)):
            return False
    return True


def _is_alone(pool: BasePool, held: list[tuple[int, int, int]]) -> bool:
    """Whether no thread runs but those that wait and the pool's: then globals are theirs alone."""
    owners = {owner for _, _, owner in held}
    return pool._OWNERS_ARE == "thread" and all(
        ident in owners or all(map(_is_ours, frames)) for ident, frames in pool._stacks().items()
    )


def _is_ours(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__")
    return isinstance(name, str) and name.partition(".")[0] in (__package__, "threading")


def _find(pool: BasePool, index: int, generation: int, frames: list[FrameType]) -> list[Any]:
    """Return the lent connection or lease that is in these frames' variables, in a list: to hold it
    in a variable would be one more reference. An empty list when it is not there."""
    for frame in frames:
        for value in list(frame.f_locals.values()):
            found = [value]
            if type(value) in _CONTAINERS and len(value) <= _LARGE:
                found = list(value.values() if type(value) is dict else value)
            for candidate in found:
                if _is_lent(pool, candidate, index, generation):
                    return [candidate]
    return []


def _is_lent(pool: BasePool, candidate: Any, index: int, generation: int) -> bool:
    # By its type, for an attribute of an unknown object may be anybody's code.
    cls = type(candidate)
    if issubclass(cls, Lease):
        lent = candidate._lent
        return lent is not None and _is_lent(pool, lent[1], index, generation)
    if not issubclass(cls, (Connection, AsyncConnection)):
        return False
    entry = getattr(candidate, "__dict__", {}).get("_slot")
    return (
        isinstance(entry, Entry)
        and entry.index == index
        and candidate._pool is pool
        and pool._table.generation(entry) == generation
    )


class _Variables:
    """The variables of a stack."""

    def __init__(self, frames: list[FrameType], alone: bool) -> None:
        self.frames = frames
        # Dictionaries of variables: until Python 3.12 a function's frame keeps one, once it has
        # been asked for; of a module it is its globals, which are other threads' too.
        self.own = {
            id(frame.f_locals)
            for frame in frames
            if type(frame.f_locals) is dict and (alone or frame.f_locals is not frame.f_globals)
        }

    def count(self, box: list[Any], but: Iterable[FrameType]) -> int:
        """How many variables are what is in *box*. Cells and globals are others' as well."""
        return sum(
            1
            for frame in self.frames
            if frame.f_locals is not frame.f_globals and frame not in but
            for name, value in frame.f_locals.items()
            if value is box[0] and name not in frame.f_code.co_freevars
            if name not in frame.f_code.co_cellvars
        )


def _is_confined(box: list[Any], variables: _Variables, depth: int = _DEPTH) -> bool:
    """Whether every reference to what is in *box* is found in these variables, or in something
    that is so confined itself."""
    if depth == 0:
        return False
    found = 0
    inner: list[list[Any]] = []
    seen: list[FrameType] = []
    referrers = gc.get_referrers(box[0])
    while referrers:
        by = [referrers.pop()]
        if by[0] is box:
            continue
        frame = _frame_of(by[0])
        if frame is not None:
            if frame not in variables.frames:
                return False
            seen.append(frame)
        elif type(by[0]) is dict and id(by[0]) in variables.own:
            pass
        elif isinstance(by[0], Entry):
            pass  # of a proxy
        elif type(by[0]) in (MethodType, BuiltinMethodType):
            if not _is_on_a_stack(by, variables, referrers):
                return False
        elif isinstance(by[0], (*_CONTAINERS, Block, Lease, BaseCursor)):
            inner.append(by)
        else:
            return False
        found += sum(1 for one in gc.get_referents(by[0]) if one is box[0])
    found += variables.count(box, seen)
    # Two are the box and getrefcount()'s argument; the list of referrers is empty by now. A block
    # that is entered is held by its `with` statement, at times out of everybody's sight.
    unknown = sys.getrefcount(box[0]) - 2 - found
    if unknown > (1 if isinstance(box[0], Block) else 0):
        return False
    return all(_is_confined(by, variables, depth - 1) for by in inner)


def _frame_of(referrer: Any) -> FrameType | None:
    """The frame whose variables a referrer has."""
    if isinstance(referrer, FrameType):
        return referrer
    if isinstance(referrer, _SUSPENDED):
        for name in ("cr_frame", "gi_frame", "ag_frame"):
            frame: FrameType | None = getattr(referrer, name, None)
            if frame is not None:
                return frame
    return None


def _is_on_a_stack(by: list[Any], variables: _Variables, mine: list[Any]) -> bool:
    """Whether a bound method is held by no object but these frames: it is a `with` statement's."""
    return not [
        referrer
        for referrer in gc.get_referrers(by[0])
        if referrer is not by and referrer is not mine
        if _frame_of(referrer) not in variables.frames
    ]


# --- what is said -------------------------------------------------------------------------------


def _describe(pool: BasePool, held: list[tuple[int, int, int]]) -> tuple[str, list[str]]:
    """Return the text of the exception, and its notes: the stacks."""
    kind, names = pool._OWNERS_ARE, pool._owner_names()
    owners = dict.fromkeys(owner for _, _, owner in held)
    running = pool._stacks(owners, stacks.TOLD)
    rows = pool._table.survey()[2]
    parts = []
    for index, _, owner in held:
        _, pid, _, since, _, _, site, _ = rows[index]
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
    return text, notes
