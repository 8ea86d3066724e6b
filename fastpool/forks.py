"""Forked children: what becomes there of the pools that their parent has.

Owns: that a child never disturbs its parent's sessions, and that its pools are as new. Refuses: to
open anything. A pool that was open opens its own connections at its first use, for a server that
forks many children has many that never use it.

A session is cut off in the child before anything else may run there. Its descriptor is a copy of
the parent's, on the same socket: whatever was written to it would reach the server, a farewell
too, and the driver says farewell when it closes. So the number is made to lead to a socket that
has no other end. The driver then finds a server that has gone.

The child has one thread. What others were doing at the fork is never done, and the locks that they
held stay held: the child enters no table, queue or lock of its parent's, but makes new ones. A
connect that was in flight is such a thing: nobody goes on with it, and the child's copy of its
socket stays open until the child ends.
"""

from __future__ import annotations

import gc
import itertools
import os
import socket
import weakref
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from . import housekeeper
from ._core import SlotTable


class Inherited(Protocol):
    """What is asked here of a pool."""

    @property
    def _table(self) -> SlotTable: ...
    def _after_fork(self) -> None:
        """In a forked child: begin anew."""


# The living pools, each under a number of its own. A plain dictionary: adding, removing and
# copying are one step each, also for a finalizer, and for a child that is forked in between.
_pools: dict[int, weakref.ref[Inherited]] = {}
_numbers = itertools.count()


def register(pool: Inherited) -> None:
    """Have *pool* made anew in forked children. Thread-safe. It is held weakly."""
    number = next(_numbers)
    # pop(number, reference): the second is what it returns when there is none.
    _pools[number] = weakref.ref(pool, partial(_pools.pop, number))


def _after_fork() -> None:
    """Make the child's pools its own. Called by Python in the child's only thread."""
    collects = gc.isenabled()
    gc.disable()  # a finalizer may use a connection
    try:
        pools = [pool for reference in list(_pools.values()) if (pool := reference()) is not None]
        kept = [_cut_off(*pool._table.forsake()) for pool in pools]
        housekeeper.forget_in_child()
        for pool in pools:
            pool._after_fork()
        del kept  # the connections that are nobody's: here their finalizers may run
    finally:
        if collects:
            gc.enable()


def _cut_off(sessions: Iterable[Any], at_home: list[Any]) -> list[Any]:
    """Cut off *sessions*, libpq's connections. Close those of *at_home*, and return these."""
    descriptors = [number for session in sessions if (number := _descriptor(session)) >= 0]
    if descriptors:
        dead_end = _dead_end(descriptors[0])
        for number in descriptors:
            if number != dead_end:
                os.dup2(dead_end, number, inheritable=False)
        if dead_end not in descriptors:
            os.close(dead_end)
    for conn in at_home:
        # Nobody was using it, so libpq's part is in order, and its memory and descriptor can be
        # had back. But not where that enters the TLS library, which may have been in use.
        with suppress(Exception):
            if not conn.pgconn.ssl_in_use:
                conn.pgconn.finish()
    return at_home


def _descriptor(session: Any) -> int:
    try:
        return int(session.socket)
    except Exception:  # the session is closed, or none of libpq's
        return -1


def _dead_end(spare: int) -> int:
    """Return the descriptor of a socket that has lost its other end; *spare* when there is no
    descriptor left, which then leads nowhere."""
    try:
        here, there = socket.socketpair()
    except OSError:
        os.close(spare)
        return os.open(os.devnull, os.O_RDWR)  # the lowest that is free: the same number
    there.close()
    return here.detach()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
