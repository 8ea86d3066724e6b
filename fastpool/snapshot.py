"""An immutable picture of a pool: sizes, states, waiters, and one entry a slot.

Owns: the two picture classes, and how a survey of the slot table becomes one. Every count is made
from the entries of the same survey, so the counts add up whatever the pool does meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from ._core import STATES, SlotTable

_NS = 1e-9

# File, line, function.
Site = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """One slot. Times in seconds, exact to a few ms; None where the state has no such fact.

    Its state:

    *empty*: has no connection.
    *connecting*: has a connect in flight, or owed.
    *available*: can be lent.
    *in_use*: is lent.
    *returning*: has come back, and is rolled back, reset or judged.
    *reserved*: is looked at by `check()`, `drain()` or the shrink.
    *closing*: loses its connection.
    """

    index: int
    state: str
    """empty, connecting, available, in_use, returning, reserved or closing."""
    backend_pid: int | None
    """The server process of its connection."""
    age: float | None
    """Since the connection was made."""
    time_in_state: float
    """Since it entered this state; for a slot in use: how long it has been lent."""
    uses: int
    """How often this connection has been lent."""
    owner_name: str | None
    """For a slot in use: the name of the thread that borrowed it, None when that has ended. In an
    async pool: of the task."""
    owner_ident: int | None
    """For a slot in use: the ident of the thread that borrowed it; of a task, its id()."""
    call_site: str | None = None
    """For a slot in use: where in the program it was borrowed, "path/file.py:12 in function"."""
    is_overdue: bool = False
    """For a slot in use: held for longer than the pool's leak_timeout."""
    owner_has_ended: bool = False
    """For a slot in use: the thread or task that borrowed it has ended."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that json can write."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A pool at one moment. Times in seconds."""

    name: str
    min_size: int
    max_size: int
    """0: no limit."""
    size: int
    """Slots that are not empty."""
    counts: Mapping[str, int]
    """How many slots are in each state; all states are present."""
    waiting: int
    """Requests that wait for a connection."""
    oldest_wait: float
    """How long the first of them has waited; 0 when nobody waits."""
    lends_at_once: int
    """So many connections at most while requests wait, for more would serve fewer; 0: all. The
    others are available meanwhile."""
    slots: tuple[SlotInfo, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the picture as a dictionary that json can write."""
        return {
            "name": self.name,
            "min_size": self.min_size,
            "max_size": self.max_size,
            "size": self.size,
            "counts": dict(self.counts),
            "waiting": self.waiting,
            "oldest_wait": self.oldest_wait,
            "lends_at_once": self.lends_at_once,
            "slots": [slot.as_dict() for slot in self.slots],
        }


def place(site: Site | None) -> str:
    """Say where a call site is, to be added to a text."""
    return "" if site is None else f" at {_spot(site)}"


def _spot(site: Site) -> str:
    file, line, function = site
    return f"{file}:{line} in {function}"


def take(
    name: str, table: SlotTable, owners: Mapping[int, str], leak_timeout: float | None = None
) -> Snapshot:
    """Picture *table*. *owners*: the names of those who may be borrowers, by ident.

    Thread-safe; blocks nobody for longer than the copying of the slots.
    """
    limit = math.inf if leak_timeout is None else leak_timeout
    waiting, oldest, rows = table.survey()
    slots = tuple(
        SlotInfo(
            index=index,
            state=STATES[state],
            backend_pid=pid,
            age=None if age is None else age * _NS,
            time_in_state=since * _NS,
            uses=uses,
            owner_name=None if owner is None or ended else owners.get(owner),
            owner_ident=owner,
            call_site=None if site is None else _spot(site),
            is_overdue=owner is not None and since * _NS > limit,
            owner_has_ended=owner is not None and (ended or owner not in owners),
        )
        for index, (state, pid, age, since, uses, owner, site, _, ended) in enumerate(rows)
    )
    counts = dict.fromkeys(STATES, 0)
    for slot in slots:
        counts[slot.state] += 1
    return Snapshot(
        name=name,
        min_size=table.min_size,
        max_size=table.max_size,
        size=len(slots) - counts["empty"],
        counts=MappingProxyType(counts),
        waiting=waiting,
        oldest_wait=oldest * _NS,
        lends_at_once=table.width,
        slots=slots,
    )
