"""Leases that last too long, and those whose borrower has ended.

Owns: the look at what is lent, taken now and then for a pool that was given `leak_timeout` or
`reclaim_dead`, and for every pool when somebody has waited in vain while a borrower has ended.
Refuses: to look oftener than that, and to do anything at a checkout.

That a thread has ended the slot table knows, but not without a GIL, nor of a task. There an ident
is all that tells, and idents are used again, quickly. So the borrower that is found at the first
look at a lease is remembered: another one under its ident is another one. A lease that was taken
and abandoned between two looks, and whose borrower's ident has been given away at once, passes for
the new one's until that ends.
"""

from __future__ import annotations

import weakref
from typing import Any, TypeAlias

from . import guard
from ._core import STATES
from .base import BasePool, logger
from .snapshot import place

# Seconds between two looks: at most, and at least.
_SELDOM = 1.0
_OFTEN = 0.01

_IN_USE = STATES.index("in_use")

# The leases, by slot and generation, of which the log has been told.
_Told: TypeAlias = dict[tuple[int, int], object]


class Watchman:
    """Looks at one pool's leases. Thread-safe."""

    def __init__(self, pool: BasePool) -> None:
        self._pool_ref = weakref.ref(pool)
        self._leak_timeout = pool.leak_timeout
        self._reclaim = pool.reclaim_dead
        quarter = _SELDOM if pool.leak_timeout is None else pool.leak_timeout / 4
        # Seconds between two looks.
        self.period = min(_SELDOM, max(_OFTEN, quarter))
        # By slot: the lease's generation, and its borrower as it was first seen.
        self._seen: dict[int, tuple[int, weakref.ref[Any] | None]] = {}
        self._warned: _Told = {}
        self._mourned: _Told = {}

    def look(self) -> None:
        """Warn of each lease that has become too old, or has lost its borrower; once of each."""
        pool = self._pool_ref()
        if pool is None:
            return
        borrowers, names = pool._borrowers(), pool._owner_names()
        for index, row in enumerate(pool._table.survey()[2]):
            state, pid, _, held_ns, _, owner, site, generation, ended = row
            if state != _IN_USE or owner is None:
                continue
            held = held_ns * 1e-9
            borrower = borrowers.get(owner)
            is_dead = ended or self._is_dead(index, generation, owner in borrowers, borrower)
            if is_dead:
                who = f"a {pool._OWNERS_ARE} that has ended"
            else:
                who = f"{pool._OWNERS_ARE} {names.get(owner, '?')!r}"
            what = f"connection (backend {pid}) of pool {pool.name!r}"
            lent = f"lent to {who} {held:.2f} sec ago{place(site)}"
            limit = self._leak_timeout
            if limit is not None and held > limit and _is_first(self._warned, index, generation):
                logger.warning("%s has not been given back: %s", what, lent)
            if is_dead and _is_first(self._mourned, index, generation):
                logger.warning("%s has outlived its borrower: %s", what, lent)
                if self._reclaim:
                    _reclaim(pool, index, generation)

    def _is_dead(self, index: int, generation: int, runs: bool, borrower: Any) -> bool:
        known = self._seen.get(index)
        if known is None or known[0] != generation:
            reference = None if borrower is None else weakref.ref(borrower)
            known = self._seen[index] = (generation, reference)
        if not runs:
            return True
        # A thread that Python did not start has no object; of that only the ident is known.
        return known[1] is not None and borrower is not None and known[1]() is not borrower


def _is_first(told: _Told, index: int, generation: int) -> bool:
    """Whether a lease has not been told of; of two callers at once, one is the first. Without a
    lock: an interrupt can leave one locked for ever (Python 3.14)."""
    mark = object()
    if told.setdefault((index, generation), mark) is not mark:
        return False
    for lease in list(told):
        if lease[0] == index and lease[1] < generation:
            told.pop(lease, None)
    return True


def _reclaim(pool: BasePool, index: int, generation: int) -> None:
    """Free the slot of a lease whose borrower has ended. Its session ends: the socket is shut down,
    which a thread that uses the connection all the same gets as an error."""
    found = pool._table.reclaim(index, generation)
    if found is None:  # given back meanwhile
        return
    debt, pgconn = found
    guard.shut_down(pgconn)
    logger.warning("connection of pool %r reclaimed: its slot is free again", pool.name)
    if pool._table.recycle(debt, True):
        pool._connector.start(debt)
    else:
        pool._connector.grow()
