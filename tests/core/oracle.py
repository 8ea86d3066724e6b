"""The slot table once more, in plain Python: what SlotTable does, said with lists and dictionaries.

Owns: the whole behaviour of a slot table that one thread uses, without its speed. Refuses: to share
anything with the core but the names of the states. Connections are named by numbers. Where the
core asks a clock, the oracle is told: `patient` means that the first in line never gets overdue.
"""

from __future__ import annotations

from dataclasses import dataclass, field

EMPTY, CONNECTING, AVAILABLE = "empty", "connecting", "available"
IN_USE, RETURNING, RESERVED, CLOSING = "in_use", "returning", "reserved", "closing"

TAKEN, NOT_LENT, LATE = "taken", "not lent", "late"
WAITING, GRANTED, GONE, SHUT = "waiting", "granted", "gone", "shut"


class Refused(Exception):
    """As many wait as may."""


@dataclass
class Slot:
    state: str = EMPTY
    conn: int | None = None
    turn: int = 0
    uses: int = 0
    generation: int = 0
    growth: bool = False


@dataclass
class Party:
    """A waiter, or a watcher."""

    outcome: str = WAITING
    grant: int | None = None
    """The slot that it was granted and has not come for."""
    woken: bool = False
    """Woken, and has not looked since."""
    wakes: int = 0


@dataclass
class Oracle:
    min_size: int
    max_size: int
    lifo: bool
    max_connecting: int
    patient: bool
    closed: bool = False
    epoch: int = 0
    turns: int = 0
    idle_low: int = 0
    slots: dict[int, Slot] = field(default_factory=dict)
    home: dict[int, int] = field(default_factory=dict)
    """The slot of each connection that is in the table."""
    epochs: dict[int, int] = field(default_factory=dict)
    late: set[int] = field(default_factory=set)
    """Connections taken out while they were lent, and not returned since."""
    line: list[Party] = field(default_factory=list)
    watchers: list[Party] = field(default_factory=list)

    def __post_init__(self) -> None:
        for index in range(self.min_size):
            self.slot(index).state = CONNECTING

    # --- looking ----------------------------------------------------------------------------

    def slot(self, index: int) -> Slot:
        return self.slots.setdefault(index, Slot())

    def of(self, conn: int) -> Slot:
        return self.slots[self.home[conn]]

    def indexes(self, state: str) -> list[int]:
        return sorted(index for index, slot in self.slots.items() if slot.state == state)

    @property
    def size(self) -> int:
        return sum(slot.state != EMPTY for slot in self.slots.values())

    @property
    def surplus(self) -> bool:
        return self.size > self.max_size

    @property
    def growing(self) -> int:
        return sum(slot.growth for slot in self.slots.values())

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.size, len(self.indexes(AVAILABLE)), len(self.line)

    def idle(self, lifo: bool | None = None) -> list[int]:
        """The slots that are available, the next to be lent first."""
        free = self.indexes(AVAILABLE)
        if self.lifo if lifo is None else lifo:
            return free
        return sorted(free, key=lambda index: self.slots[index].turn)

    def is_expired(self, conn: int) -> bool:
        return self.epochs[conn] != self.epoch

    # --- lending and returning --------------------------------------------------------------

    def claim(self, lifo: bool | None = None) -> int | None:
        free = self.idle(lifo)
        self.idle_low = min(self.idle_low, len(free) - 1) if free else 0
        return free[0] if free else None

    def lend(self, index: int) -> int:
        slot = self.slots[index]
        slot.state = IN_USE
        slot.uses += 1
        slot.generation += 1
        assert slot.conn is not None
        return slot.conn

    def checkout(self) -> int | None:
        if self.closed or (self.line and not self.patient):
            return None
        index = self.claim()
        return None if index is None else self.lend(index)

    def begin_return(self, conn: int, generation: int | None = None) -> str:
        if conn in self.late:
            self.late.remove(conn)
            return LATE
        if conn not in self.home:
            return NOT_LENT
        slot = self.of(conn)
        if slot.state != IN_USE or generation not in (None, slot.generation):
            return NOT_LENT
        slot.state = RETURNING
        return TAKEN

    def restore(self, conn: int, new_turn: bool) -> bool:
        self.of(conn).state = AVAILABLE
        if new_turn:
            self.to_the_end(self.of(conn))
        self.serve()
        return self.closed

    def to_the_end(self, slot: Slot) -> None:
        slot.turn = self.turns
        self.turns += 1

    # --- maintenance ------------------------------------------------------------------------

    def reserve(self, index: int) -> int | None:
        if index not in self.indexes(AVAILABLE):
            return None
        self.slots[index].state = RESERVED
        return self.slots[index].conn

    def reserve_surplus(self) -> tuple[int | None, int] | None:
        low = self.idle_low
        # By turn, whatever the order of lending is: the one idle for longest.
        index = self.claim(lifo=False) if self.size > self.min_size and low > 0 else None
        if index is not None:
            self.slots[index].state = RESERVED
        self.idle_low = len(self.idle())
        return None if index is None else (self.slots[index].conn, low)

    def evict(self, conn: int, late: bool) -> int:
        index = self.home.pop(conn)
        self.slots[index].state = CLOSING
        self.slots[index].conn = None
        if late:
            self.late.add(conn)
        return index

    def recycle(self, index: int, replace: bool) -> bool:
        if replace and not self.surplus and not self.closed:
            self.slots[index].state = CONNECTING
            return True
        self.leave(index)
        return False

    def leave(self, index: int) -> None:
        self.slots[index].state = EMPTY
        self.slots[index].growth = False

    # --- connecting -------------------------------------------------------------------------

    def start(self, growth: bool) -> int:
        index = next(i for i in range(self.max_size) if self.slot(i).state == EMPTY)
        self.slots[index].state = CONNECTING
        self.slots[index].growth = growth
        return index

    def has_room(self) -> bool:
        return self.size < self.max_size and not self.closed

    def grow(self) -> int:
        wanted = len(self.line) > self.growing or self.size < self.min_size
        if self.has_room() and wanted and self.growing < self.max_connecting:
            return self.start(True)
        return -1

    def enter(self, below: int) -> int:
        return self.start(False) if self.has_room() and self.size < below else -1

    def install(self, index: int, conn: int) -> bool:
        if self.closed:
            return False
        slot = self.slots[index]
        slot.state = AVAILABLE
        slot.conn = conn
        slot.uses = 0
        slot.growth = False
        self.home[conn] = index
        self.epochs[conn] = self.epoch
        self.to_the_end(slot)
        self.serve(at_once=True)
        return True

    def resize(self, min_size: int, max_size: int) -> None:
        self.min_size, self.max_size = min_size, max_size
        self.serve()

    # --- waiting ----------------------------------------------------------------------------

    def enqueue(self, party: Party, max_waiting: int) -> int | None:
        if self.closed:
            party.outcome = SHUT
            return None
        if 0 < max_waiting <= len(self.line):
            raise Refused
        self.line.append(party)
        return self.look(party)

    def resume(self, party: Party) -> int | None:
        party.woken = False
        return self.look(party)

    def look(self, party: Party) -> int | None:
        """The first in line takes what is free; whoever was granted something takes that."""
        if self.line[:1] == [party] and (index := self.claim()) is not None:
            self.grant(party, index)
            self.serve()
        return self.collect(party)

    def collect(self, party: Party) -> int | None:
        index, party.grant = party.grant, None
        return None if index is None else self.slots[index].conn

    def abandon(self, party: Party) -> int | None:
        if party.outcome == WAITING:
            party.outcome = GONE
            self.line = [one for one in self.line if one is not party]
        self.serve()
        return self.collect(party)

    def grant(self, party: Party, index: int) -> None:
        self.lend(index)
        self.line.remove(party)
        party.outcome = GRANTED
        party.grant = index

    def wake(self, party: Party) -> None:
        if not party.woken:
            party.woken = True
            party.wakes += 1

    def serve(self, at_once: bool = False) -> None:
        patient = self.patient and not at_once
        while self.line and self.indexes(AVAILABLE):
            head = self.line[0]
            if patient:
                self.wake(head)
                return
            index = self.claim()
            assert index is not None
            self.grant(head, index)
            self.wake(head)
        if self.line:
            # The core looks for something free before it knows that there is nothing.
            if not patient:
                self.claim()
            return
        while self.watchers and len(self.indexes(AVAILABLE)) >= self.min_size:
            head = self.watchers.pop(0)
            head.outcome = GRANTED
            head.wakes += 1

    def watch(self, party: Party) -> bool:
        if self.closed or len(self.indexes(AVAILABLE)) >= self.min_size:
            party.outcome = SHUT if self.closed else GRANTED
            return True
        self.watchers.append(party)
        return False

    def unwatch(self, party: Party) -> bool:
        if party.outcome != WAITING:
            return True
        party.outcome = GONE
        self.watchers = [one for one in self.watchers if one is not party]
        return False

    # --- the end, and losses ----------------------------------------------------------------

    def close(self) -> bool:
        first = not self.closed
        self.closed = True
        for party in self.line:
            self.wake(party)
        for party in self.watchers:
            party.wakes += 1
        for party in self.line + self.watchers:
            party.outcome = SHUT
        self.line, self.watchers = [], []
        return first

    def drop(self, conn: int) -> int | None:
        """The last reference to a connection outside the table goes: the slot that loses it."""
        self.late.discard(conn)
        if conn not in self.home or self.of(conn).state == AVAILABLE:
            return None
        return self.evict(conn, False)
