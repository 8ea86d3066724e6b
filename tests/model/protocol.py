"""The waiting protocol as a model that is small enough to search whole.

Owns: the slot table, the queue and every thread's place in the code as one hashable State, and
the steps that lead from a state to the next. Refuses: to run the core. It says what the algorithm
of fastpool/_core.pyx does under every interleaving; whether the core is that algorithm is for the
other tests. The steps are named after the core's methods.

A STEP is one access to a word that threads share without the mutex (the free bitmap, a slot's
word, `attention`, `closed`), or one critical section that touches none of them. What stands
around such an access moves with it, for nobody can tell the difference: a thread's own variables,
what the mutex guards, taking the mutex before it and letting go of it after it (R. J. Lipton,
CACM 18(12), 1975). Hence, too, three pairs of accesses are one step: clearing a bit and stamping
its slot IN_USE, marking a slot AVAILABLE and setting its bit (in between the slot is its owner's
alone), and a checkout's looks at `closed` and at the age of the first waiter (both only send it
into the queue, where they are asked again). So a bit is set exactly if its slot is AVAILABLE, in
every state.

Threads go on for ever, so one search covers any number of calls. What keeps it finite:
  - a generation is the lowest number that nobody remembers: the core only compares for equality;
  - a waiter's age is one bit, `overdue`, which turns at any moment for the first in the queue;
  - slots are interchangeable, and so are threads of one role: canonical() sorts them.

A step is VOLUNTARY when nothing in the pool makes it happen: a call, a return, a timeout, the end
of a connect, the passing of tau. A state is AT REST when it has no other step. A borrower may
hold for ever and a caller may stay away for ever, so what is owed at rest is owed for ever.

A drain happens once in a scene, and so does each step of a resize. A connection that dies while it
is lent dies at any moment, and so does an idle one: the keeper finds either. A fork goes on as the
child, from every state that the parent can reach: with the thread that forked, and a table of its
own. What the child's threads may not touch of the old table is whether its mutex is held.

NOT HERE: the second word of a bitmap of more than 64 slots (a bit that is set behind a search is
served by whoever set it), those who wait for a full pool, and time itself.

MEMORY. A store that is not sequentially consistent may stay in its thread's buffer, to reach
memory at any later moment, at the latest with that thread's next locked instruction (the total
store order of x86; it stands for any reordering of a store with a later load). The protocol's own
stores have no such freedom; Scene.changes can give it to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

# States of a slot. Beside CONNECTING, a word holds 1 if the connect was started for a waiter and
# 0 if it replaces a connection; beside the others, the generation.
EMPTY, CONNECTING, AVAILABLE, IN_USE = "empty", "connecting", "available", "in use"
RETURNING, RESERVED = "returning", "reserved"
OWNED = (IN_USE, RETURNING, RESERVED)

FREE, HELD = "free", "held"

# Added to attention by close.
BIAS = 1000

# What became of a wait.
NONE, WAITING, GRANTED, GONE, SHUT = "", "waiting", "granted", "gone", "shut"

# What became of a lent connection that was taken from its borrower: its entry's fate.
RESIDENT, RETIRED_LENT, RETIRED = "", "retired while lent", "retired"
# What a forked child still holds of its parent's.
OLD = "the parent's"

BORROWER, CONNECTOR, KEEPER, CLOSER = "borrower", "connector", "keeper", "closer"
WATCHMAN, DRAINER, RESIZER = "watchman", "drainer", "resizer"

# Where a thread may stand while nothing is owed to it or by it.
RESTING = ("idle", "holding", "parked", "done")

# What a thread goes on with after it has replaced a connection.
GOING_ON = ("checkout", "sweep_old")

# What a return has seen of its connection.
SURPLUS, STALE = 1, 2

# Deliberate faults: each leaves out, or turns round, one thing that the protocol does.
FAULTS = {
    "no second look": "a waiter parks without searching the bitmap again",
    "count after look": "attention is raised after the second look, not before",
    "read before publish": "a return reads attention, then sets its bit",
    "relaxed bit": "the bit that a return sets may become visible late",
    "relaxed attention": "the attention that a new waiter raises may become visible late",
    "grant dropped": "a waiter that gives up ignores that it has been granted a slot",
    "wake-up swallowed": "a woken waiter that gives up serves nobody",
    "no baton": "a woken waiter that found a slot serves nobody",
    "token kept": "a woken waiter that found nothing still counts as woken",
    "token not set": "serve does not remember that it has woken the first waiter",
    "token taken unwoken": "a waiter that timed out counts as not woken, with a wake-up on its way",
    "spins": "a woken waiter that found nothing looks again instead of parking",
    "anyone looks": "the second look is for every waiter, not for the first in the queue only",
    "anyone resumes": "a woken waiter claims a slot though it is not the first in the queue",
    "newcomers barge": "a newcomer takes a free slot though the first waiter is overdue",
    "room seen early": "a waiter looks for room before it queues up, not after",
    "no grow after failure": "a failed connect leaves its room unused",
    "no grow after eviction": "a discarded connection leaves its room unused",
    "generation unchecked": "a return compares the slot's state, but not its generation",
    "word unchecked": "a return sets the slot's word without comparing it",
    "close leaves waiters": "close settles nobody",
    "close unannounced": "close does not raise attention, so that a return does not look at closed",
    "close overlooked": "a return does not look at closed after it has set its bit",
    "install unchecked": "a connect that lands does not look at closed",
    "sweep first": "close looks for idle connections before it takes the mutex",
    "limit unread": "a connect is started by the size that the pool once had, not by its maximum",
    "surplus kept": "a return does not look whether a resize has left too many connections",
    "no grow after resize": "a resize leaves the room that it makes unused",
    "drained lent": "a checkout does not look whether the connection was made before the drain",
    "drained granted": "a waiter does not look whether its connection was made before the drain",
    "drained kept": "a return does not look whether the connection was made before the drain",
    "word stored": "a notice of death takes a lent slot without comparing its word",
    "fate before word": "a return reads the entry's fate, then the slot's word",
    "fate seen once": "a return that finds its slot taken does not look at the fate once more",
    "grant evicted": "a notice of death takes a slot whose waiter has not come for it",
    "table kept": "a forked child goes on with its parent's table",
    "table unchecked": "a return does not look which table the connection is of",
    "ghosts heard": "a connection of the parent's table that the child drops tells that table",
}

# What the core does beyond need: the protocol holds without it.
SPARE = {
    "no baton after look": "a waiter whose second look found a slot serves nobody",
    "serve only if woken": "a waiter that gives up serves only if it has been woken",
}


@dataclass(frozen=True)
class Scene:
    """Who takes part, and what may happen."""

    slots: int = 1
    ready: int | None = None  # connections at the start; None: one in each slot
    borrowers: int = 2
    connectors: int = 0
    max_connecting: int = 1
    keeper: bool = False  # maintenance reserves a free slot, and restores or discards it
    closer: bool = False  # somebody closes the pool, once
    giving_up: bool = True  # waiters time out or are cancelled
    aging: bool = True  # waiters become overdue
    breakage: bool = False  # connections come back broken
    replacement: bool = False  # what is discarded may be replaced unasked
    second_return: bool = False  # borrowers return again what they have returned
    shared_gate: bool = False  # a late wake-up reaches the next wait of the same thread
    watchman: bool = False  # lent connections die, and somebody takes them out at once
    drainer: bool = False  # somebody drains the pool, once
    limit: int | None = None  # the maximum at the start; None: all slots
    resizes: tuple[int, ...] = ()  # the maximum is set to each of these in turn
    forks: bool = False  # a caller forks, once, and the rest happens in the child
    changes: frozenset[str] = frozenset()  # of FAULTS and SPARE

    def __post_init__(self) -> None:
        unknown = self.changes - FAULTS.keys() - SPARE.keys()
        if unknown:
            raise ValueError(f"unknown changes: {sorted(unknown)}")

    @property
    def connections(self) -> int:
        """How many connections there are at the start."""
        return self.slots if self.ready is None else self.ready

    @property
    def has_room(self) -> bool:
        """Whether a slot can ever be EMPTY."""
        rooms = self.breakage, self.keeper, self.watchman, self.drainer, self.resizes, self.forks
        return self.connections < self.slots or any(rooms)

    @property
    def judges(self) -> bool:
        """Whether a connection may be one too many, or of yesterday."""
        return self.drainer or bool(self.resizes)


class Violation(Exception):
    """An invariant does not hold."""


FIELDS = (
    "role", "pc", "then", "slot", "generation", "owns", "seen", "outcome", "place", "token",
    "wakes", "overdue", "overtaken", "buffer", "fate", "fresh",
)  # fmt: skip
Fields: TypeAlias = tuple[Any, ...]  # a Thread's, in that order


class State(NamedTuple):
    """Everything there is, immutable and hashable."""

    free: int
    words: tuple[tuple[str, int], ...]
    locked: bool
    attention: int
    size: int
    growing: int
    closed: bool
    threads: tuple[Fields, ...]
    limit: int  # max_size
    stale: int  # a bit for each slot whose connection was made before the drain
    drained: bool  # the drain is over
    resized: int  # how many of the resizes have happened
    old: str  # of a child: the mutex of its parent's table was FREE, or HELD at the fork


class Step(NamedTuple):
    """What one thread may do next, and the state that this leads to."""

    thread: int
    text: str
    after: State
    voluntary: bool


class Thread:
    """One thread: its place in the code, and what it and its waiter know."""

    __slots__ = FIELDS

    role: str
    pc: str  # its next step, or one of RESTING
    then: str  # the step that follows upon serve, or upon recycle
    slot: int  # the slot it has to do with, -1 for none
    generation: int  # with which that was lent
    owns: bool  # False: it remembers a lending that is over
    seen: int  # a register
    outcome: str
    place: int  # in the queue: 1 is the first, 0 is outside
    token: bool  # woken, and has not looked yet
    wakes: int  # wake-ups on their way to it
    overdue: bool
    overtaken: int  # by newcomers, since it is overdue
    buffer: tuple[tuple[str, int], ...]  # stores that have not reached memory
    fate: str  # of the connection that it has: RESIDENT, RETIRED_LENT, RETIRED or OLD
    fresh: bool  # it asked for a connection after the drain was over

    def __init__(self, fields: Fields) -> None:
        (
            self.role, self.pc, self.then, self.slot, self.generation, self.owns, self.seen,
            self.outcome, self.place, self.token, self.wakes, self.overdue, self.overtaken,
            self.buffer, self.fate, self.fresh,
        ) = fields  # fmt: skip

    @staticmethod
    def new(role: str) -> Fields:
        return role, "idle", "", -1, 0, False, 0, NONE, 0, False, 0, False, 0, (), RESIDENT, False


fields_of = attrgetter(*FIELDS)
ROLE, PC, SLOT, GENERATION, OWNS = map(FIELDS.index, ("role", "pc", "slot", "generation", "owns"))
OUTCOME, PLACE, WAKES, OVERDUE = map(FIELDS.index, ("outcome", "place", "wakes", "overdue"))
BUFFER, FATE = map(FIELDS.index, ("buffer", "fate"))
FRESH = FIELDS.index("fresh")


class World:
    """A state in the making: what the steps change, and the core's helpers that they share."""

    __slots__ = (
        "attention", "closed", "drained", "edited", "free", "growing", "limit", "locked", "old",
        "resized", "size", "stale", "threads", "words",
    )  # fmt: skip

    def __init__(self, state: State) -> None:
        (
            self.free, words, self.locked, self.attention, self.size, self.growing, self.closed,
            threads, self.limit, self.stale, self.drained, self.resized, self.old,
        ) = state  # fmt: skip
        self.words = list(words)
        self.threads = list(threads)
        self.edited: dict[int, Thread] = {}

    def freeze(self) -> State:
        for index, thread in self.edited.items():
            self.threads[index] = fields_of(thread)
        return State(
            self.free, tuple(self.words), self.locked, self.attention, self.size, self.growing,
            self.closed, tuple(self.threads), self.limit, self.stale, self.drained, self.resized,
            self.old,
        )  # fmt: skip

    def thread(self, index: int) -> Thread:
        """Return the thread, to be changed."""
        thread = self.edited.get(index)
        if thread is None:
            thread = self.edited[index] = Thread(self.threads[index])
        return thread

    def head(self) -> Thread | None:
        """Return the first waiter."""
        for index, fields in enumerate(self.threads):
            if fields[PLACE] == 1:
                return self.thread(index)
        return None

    # --- memory -----------------------------------------------------------------------------

    def arrive(self, store: tuple[str, int]) -> None:
        """Let a store reach memory."""
        kind, operand = store
        if kind == "bit":
            self.free |= 1 << operand
        else:
            self.attention += operand

    def flush(self, me: Thread) -> None:
        for store in me.buffer:
            self.arrive(store)
        me.buffer = ()

    def lock(self, me: Thread) -> None:
        self.flush(me)
        self.locked = True

    def unlock(self, me: Thread) -> None:
        self.flush(me)
        self.locked = False

    # --- slots ------------------------------------------------------------------------------

    def lend(self, slot: int, borrower: Thread) -> None:
        """AVAILABLE -> IN_USE, of a slot whose bit was cleared."""
        remembered = {
            fields[GENERATION]
            for fields in self.threads
            if fields[SLOT] == slot and fields[FATE] != OLD
        }
        generation = next(number for number in range(99) if number not in remembered)
        self.words[slot] = (IN_USE, generation)
        borrower.slot, borrower.generation, borrower.owns = slot, generation, True
        borrower.fate = RESIDENT

    def reserve(self, slot: int, me: Thread) -> None:
        """AVAILABLE -> RESERVED, of a slot whose bit was cleared."""
        self.words[slot] = (RESERVED, 0)
        me.slot, me.owns = slot, True

    def leave(self, slot: int) -> None:
        """-> EMPTY. Caller holds the mutex."""
        name, growth = self.words[slot]
        if name == CONNECTING:
            self.growing -= growth
        self.words[slot] = (EMPTY, 0)
        self.stale &= ~(1 << slot)
        self.size -= 1

    def occupy(self, slot: int) -> None:
        """EMPTY -> CONNECTING, for a waiter. Caller holds the mutex."""
        self.words[slot] = (CONNECTING, 1)
        self.size += 1
        self.growing += 1
        if self.size > self.limit:
            raise Violation(f"the pool grows to {self.size}, beyond its maximum of {self.limit}")

    # --- waiters ----------------------------------------------------------------------------

    def link(self, me: Thread) -> None:
        """Join the queue. Caller holds the mutex."""
        me.place = 1 + n_waiting(self.threads)
        me.outcome = WAITING

    def settle(self, waiter: Thread, outcome: str) -> None:
        """WAITING -> outcome, once, and out of the queue. Caller holds the mutex."""
        if waiter.outcome != WAITING:
            raise Violation(f"a waiter that is {waiter.outcome} is settled again: {outcome}")
        if outcome == GRANTED and waiter.place != 1:
            raise Violation(f"number {waiter.place} of the queue is served")
        for index, fields in enumerate(self.threads):
            if fields[PLACE] > waiter.place:
                self.thread(index).place -= 1
        waiter.outcome = outcome
        waiter.place = waiter.overtaken = 0
        waiter.overdue = False
        self.attention -= 1

    def wake(self, waiter: Thread, remember: bool = True) -> None:
        """Send a wake-up, unless one is on its way. It may take long: it is sent after unlock."""
        if not waiter.token:
            waiter.token = remember
            waiter.wakes = min(waiter.wakes + 1, 2)


def n_waiting(threads: list[Fields] | tuple[Fields, ...]) -> int:
    return sum(1 for fields in threads if fields[PLACE])


def rank(slot: int, state: State) -> Any:
    """Tell slots apart by what they are to whom."""
    return (
        state.words[slot],
        state.stale >> slot & 1,
        sorted(
            fields[:SLOT] + fields[SLOT + 1 :] for fields in state.threads if fields[SLOT] == slot
        ),
    )


def renumber(fields: Fields, order: list[int]) -> Fields:
    """Give a thread's slots their new numbers: order[new] is the old one."""
    slot, buffer = fields[SLOT], fields[BUFFER]
    if slot >= 0:
        fields = (*fields[:SLOT], order.index(slot), *fields[SLOT + 1 :])
    if buffer:
        moved = tuple(
            (kind, order.index(operand) if kind == "bit" else operand) for kind, operand in buffer
        )
        fields = (*fields[:BUFFER], moved, *fields[BUFFER + 1 :])
    return fields


def told(attention: int) -> str:
    return f"{attention % BIAS}" + (" (closed)" if attention >= BIAS else "")


# Where a borrower has a connection, and may be overtaken by a notice of its death.
LENT = ("holding", "begin_return", "read_fate", "read_word", "swap")

Moves: TypeAlias = Iterator[tuple[str, World]]


class Protocol:
    """The steps of one scene.

    Each method that takes a state and a thread's index is one step of the code; it yields what
    may come of it, or nothing while that thread is held up by the mutex.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.changes = scene.changes
        members = {
            BORROWER: scene.borrowers,
            CONNECTOR: scene.connectors,
            KEEPER: int(scene.keeper),
            CLOSER: int(scene.closer),
            WATCHMAN: int(scene.watchman),
            DRAINER: int(scene.drainer),
            RESIZER: int(bool(scene.resizes)),
        }
        self.roles = [role for role, count in members.items() for _ in range(count)]
        self.groups = [
            slice(self.roles.index(role), self.roles.index(role) + count)
            for role, count in members.items()
            if count
        ]

    def initial(self) -> State:
        ready = self.scene.connections
        words = ((AVAILABLE, 0),) * ready + ((EMPTY, 0),) * (self.scene.slots - ready)
        threads = tuple(Thread.new(role) for role in self.roles)
        limit = self.scene.slots if self.scene.limit is None else self.scene.limit
        return State(
            (1 << ready) - 1, words, False, 0, ready, 0, False, threads, limit, 0, False, 0, ""
        )

    def canonical(self, state: State) -> State:
        """Return a state that stands for those that only number threads or slots otherwise."""
        free, stale, words, threads = state.free, state.stale, state.words, state.threads
        if len(words) > 1:
            order = sorted(range(len(words)), key=lambda slot: rank(slot, state))
            if order != list(range(len(words))):
                words = tuple(state.words[slot] for slot in order)
                free = sum((state.free >> slot & 1) << new for new, slot in enumerate(order))
                stale = sum((state.stale >> slot & 1) << new for new, slot in enumerate(order))
                threads = tuple(renumber(fields, order) for fields in threads)
        ordered: list[Fields] = []
        for group in self.groups:
            ordered += sorted(threads[group])
        return state._replace(free=free, words=words, threads=tuple(ordered), stale=stale)

    def name(self, index: int) -> str:
        role = self.roles[index]
        return f"{role} {index - self.roles.index(role) + 1}"

    # --- who may do what --------------------------------------------------------------------

    def steps(self, state: State) -> Iterator[Step]:
        """Yield every step that some thread can take now."""
        for index, fields in enumerate(state.threads):
            pc = fields[PC]
            if pc in RESTING:
                for text, world in self.voluntary(state, index):
                    yield Step(index, text, world.freeze(), True)
            if pc not in RESTING or (pc == "parked" and fields[WAKES]):
                method = self.resume if pc == "parked" else getattr(self, pc)
                for text, world in method(state, index):
                    yield Step(index, text, world.freeze(), False)
            if fields[BUFFER]:
                world, me = self.begin(state, index)
                world.arrive(me.buffer[0])
                me.buffer = me.buffer[1:]
                yield Step(index, "(its store reaches memory)", world.freeze(), False)

    def voluntary(self, state: State, index: int) -> Moves:
        fields = state.threads[index]
        role, pc = fields[ROLE], fields[PC]
        if self.scene.forks and not state.old and role == BORROWER and pc in ("idle", "holding"):
            yield from self.fork(state, index)
        if pc == "holding":
            yield from self.give_back(state, index)
            if fields[FATE] == OLD:
                yield from self.drop(state, index)
        elif pc == "parked":
            if self.scene.giving_up:
                yield from self.abandon(state, index)
                yield from self.look_late(state, index)
            if self.scene.aging and fields[PLACE] == 1 and not fields[OVERDUE]:
                world, me = self.begin(state, index)
                me.overdue = True
                yield "(has waited for longer than tau)", world
        elif pc == "idle":
            if role == BORROWER:
                yield from self.checkout(state, index)
                if fields[SLOT] >= 0:
                    yield from self.give_back(state, index)
            elif role == CONNECTOR:
                yield from self.connect(state, index)
            elif role == KEEPER:
                yield from self.maintain(state, index)
            elif role == WATCHMAN:
                yield from self.notice(state, index)
            elif role == DRAINER:
                yield from self.drain(state, index)
            elif role == RESIZER:
                yield from self.resize(state, index)
            else:
                yield from self.close(state, index)

    def begin(self, state: State, index: int) -> tuple[World, Thread]:
        world = World(state)
        return world, world.thread(index)

    def go(self, me: Thread, pc: str) -> None:
        """Set a thread's next step. What cannot matter in this scene is passed over."""
        if pc == "recheck" and not self.scene.closer:
            pc = "over"
        if pc == "grow" and not self.scene.has_room:
            pc = "parked" if me.outcome == WAITING else "over"
        me.pc = pc
        if pc == "over":
            lent = me.slot, me.generation
            self.end(me)
            if me.role == BORROWER and self.scene.second_return:
                me.slot, me.generation = lent

    def end(self, me: Thread) -> None:
        """The call is over."""
        me.pc, me.then, me.seen, me.owns = "idle", "", 0, False
        me.slot, me.generation, me.fate, me.fresh = -1, 0, RESIDENT, False
        self.stop_waiting(me)

    def forget(self, me: Thread) -> None:
        """The slot is not this thread's any more; but some return what they have returned."""
        if not self.scene.second_return:
            me.slot, me.generation = -1, 0

    def hold(self, me: Thread, granted: bool = False) -> None:
        """The call is over, and brought a connection; where that may be too old, it is looked at.
        Who takes what it was granted takes what the slot has."""
        me.owns = True
        self.stop_waiting(me)
        me.then = ""
        looks = "drained granted" if granted else "drained lent"
        if self.scene.drainer and looks not in self.changes:
            me.pc = "compare"
        else:
            me.pc = "holding"

    def compare(self, state: State, index: int) -> Moves:
        """A borrower looks at its connection's epoch; what is of yesterday it replaces."""
        world, me = self.begin(state, index)
        if state.stale >> me.slot & 1:
            world.words[me.slot] = (RETURNING, me.generation)
            me.pc, me.then = "recycle", "checkout"
            yield f"finds slot {me.slot} too old; slot {me.slot} := RETURNING", world
        else:
            me.pc = "holding"
            yield f"finds slot {me.slot} new enough", world

    def stop_waiting(self, me: Thread) -> None:
        me.outcome, me.token = NONE, False
        if not self.scene.shared_gate:
            me.wakes = 0

    def claims(self, state: State, index: int) -> Iterator[tuple[int, World, Thread]]:
        """Clear a bit that is set: any, for the order of lending is no part of the protocol."""
        free = state.free
        for kind, slot in state.threads[index][BUFFER]:
            if kind == "bit":
                free |= 1 << slot
        for slot in range(self.scene.slots):
            if free >> slot & 1:
                world, me = self.begin(state, index)
                world.flush(me)
                world.free &= ~(1 << slot)
                yield slot, world, me

    # --- getting ----------------------------------------------------------------------------

    def checkout(self, state: State, index: int) -> Moves:
        world, me = self.begin(state, index)
        overdue = any(fields[OVERDUE] for fields in state.threads)
        queues = state.attention and (overdue or state.closed)
        if "newcomers barge" in self.changes:
            queues = state.attention and state.closed
        fresh = me.fresh or state.drained
        self.end(me)
        me.pc = "enqueue" if queues else "claim"
        me.fresh = fresh
        yield f"getconn: closed {state.closed}, first waiter overdue {overdue}", world

    def claim(self, state: State, index: int) -> Moves:
        found = False
        for slot, world, me in self.claims(state, index):
            found = True
            self.overtake(world)
            world.lend(slot, me)
            self.hold(me)
            yield f"takes slot {slot}", world
        if not found:
            world, me = self.begin(state, index)
            me.pc = "enqueue"
            if "room seen early" in self.changes:
                me.seen = int(state.size == self.scene.slots)
            yield "finds nothing free", world

    def overtake(self, world: World) -> None:
        """Whoever looked before the first waiter was overdue may pass it; once each, therefore."""
        head = world.head()
        if head is not None and head.overdue:
            head.overtaken += 1
            if head.overtaken >= self.scene.borrowers:
                raise Violation("somebody has overtaken an overdue waiter twice")

    def enqueue(self, state: State, index: int) -> Moves:
        if state.locked:
            return
        world, me = self.begin(state, index)
        if world.closed:
            self.end(me)
            yield "lock; closed; unlock: PoolClosed", world
            return
        world.lock(me)
        world.link(me)
        if "count after look" not in self.changes:
            self.store(world, me, "attention", 1)
        me.pc = "look"
        yield f"lock; queues up as number {me.place}; attention += 1", world

    def look(self, state: State, index: int) -> Moves:
        """Search the bitmap once more. Caller holds the mutex."""
        first = state.threads[index][PLACE] == 1 or "anyone looks" in self.changes
        found = False
        if first and "no second look" not in self.changes:
            for slot, world, me in self.claims(state, index):
                found = True
                if "count after look" in self.changes:
                    world.attention += 1
                world.lend(slot, me)
                me.pc, me.then = "leave", "look"
                yield f"second look: takes slot {slot}", world
        if not found:
            world, me = self.begin(state, index)
            if me.buffer or "count after look" in self.changes:
                # Here the unlock publishes something, so it is a step of its own.
                me.pc = "let_go"
                yield "second look: nothing", world
            else:
                self.park(world, me)
                yield "second look: nothing; unlock", world

    def let_go(self, state: State, index: int) -> Moves:
        world, me = self.begin(state, index)
        if "count after look" in self.changes:
            world.attention += 1
        self.park(world, me)
        yield "unlock", world

    def park(self, world: World, me: Thread) -> None:
        """Let go of the mutex. Before it parks, a waiter looks for room."""
        world.unlock(me)
        self.go(me, "parked" if me.seen else "grow")
        me.seen = 0

    def leave(self, state: State, index: int) -> Moves:
        """A waiter that claimed a slot itself leaves the queue. Caller holds the mutex."""
        world, me = self.begin(state, index)
        world.settle(me, GRANTED)
        world.unlock(me)
        baton = "no baton after look" if me.then == "look" else "no baton"
        self.hold(me, granted=True)
        if baton not in self.changes:
            me.pc, me.then = "attend", me.pc
        yield "leaves the queue; attention -= 1; unlock", world

    def resume(self, state: State, index: int) -> Moves:
        """A parked thread is woken."""
        if state.locked:
            return
        # Two wake-ups may arrive as one.
        wakes = state.threads[index][WAKES]
        for left in {wakes - 1, 0}:
            for text, world, me in self.look_again(state, index):
                me.wakes = left
                if me.pc == "parked":
                    me.token = "token kept" in self.changes
                    me.wakes += "spins" in self.changes
                yield f"is woken: {text}", world

    def look_late(self, state: State, index: int) -> Moves:
        """A parked thread times out: it looks once more before it gives up."""
        if state.locked:
            return
        for text, world, me in self.look_again(state, index):
            if me.pc == "parked":
                me.pc = "abandon"
                if "token taken unwoken" in self.changes:
                    me.token = False
            yield f"times out: {text}", world

    def look_again(self, state: State, index: int) -> Iterator[tuple[str, World, Thread]]:
        """Under the mutex: take what was granted, or, being the first, what is free."""
        world, me = self.begin(state, index)
        if me.outcome == GRANTED:
            text = f"lock; was granted slot {me.slot}; unlock"
            self.hold(me, granted=True)
            yield text, world, me
            return
        if me.outcome == SHUT:
            self.end(me)
            yield "lock; was shut out; unlock: PoolClosed", world, me
            return
        found = False
        if me.place == 1 or "anyone resumes" in self.changes:
            for slot, world, me in self.claims(state, index):
                found = True
                world.lock(me)
                world.lend(slot, me)
                me.pc = "leave"
                yield f"lock; takes slot {slot}", world, me
        if not found:
            world, me = self.begin(state, index)
            yield "lock; may take nothing; unlock", world, me

    def abandon(self, state: State, index: int) -> Moves:
        """A parked thread gives up: cancelled, interrupted, or its time is over."""
        if state.locked:
            return
        world, me = self.begin(state, index)
        if me.outcome == WAITING:
            serves = me.token or "serve only if woken" not in self.changes
            world.settle(me, GONE)
            self.end(me)
            if serves and "wake-up swallowed" not in self.changes:
                me.pc, me.then = "attend", "over"
            yield "gives up: lock; leaves the queue; attention -= 1; unlock", world
        elif me.outcome == SHUT or "grant dropped" in self.changes:
            text = f"gives up: lock; was {me.outcome}; unlock"
            self.end(me)
            yield text, world
        else:
            self.hold(me, granted=True)
            yield "gives up: lock; was granted a slot; unlock; takes it", world
            world, me = self.begin(state, index)
            self.hold(me)
            me.pc = "begin_return"
            yield "gives up: lock; was granted a slot; unlock; returns it", world

    # --- returning --------------------------------------------------------------------------

    def give_back(self, state: State, index: int) -> Moves:
        """A borrower returns what it has; first it looks whether that is of use."""
        if not self.scene.judges:
            yield from self.begin_return(state, index)
            return
        world, me = self.begin(state, index)
        me.seen = SURPLUS * (state.size > state.limit) + STALE * (state.stale >> me.slot & 1)
        useless = (me.seen & SURPLUS and "surplus kept" not in self.changes) or (
            me.seen & STALE and "drained kept" not in self.changes
        )
        me.pc, me.then = "begin_return", "discard" if useless else ""
        yield f"putconn: finds slot {me.slot} {'useless' if useless else 'of use'}", world

    def begin_return(self, state: State, index: int) -> Moves:
        """IN_USE with its own generation -> RETURNING, by compare-and-swap."""
        world, me = self.begin(state, index)
        if me.fate == OLD and "table unchecked" not in self.changes:
            self.end(me)
            yield "putconn: that is of another table", world
            return
        if self.scene.watchman:
            # Whom a connection may be taken from knows it by the entry. It reads two words, and
            # by what it has read it swaps.
            first = "read_fate" if "fate before word" in self.changes else "read_word"
            yield from getattr(self, first)(state, index)
            return
        word = world.words[me.slot]
        refused = word != (IN_USE, me.generation)
        if "generation unchecked" in self.changes:
            refused = word[0] != IN_USE
        elif "word unchecked" in self.changes:
            refused = False
        if refused:
            if me.owns:
                raise Violation(f"a borrower's return is refused: slot {me.slot} is {word}")
            self.end(me)
            yield "putconn: that lending is over: ValueError", world
            return
        yield from self.returning(world, index)

    def returning(self, world: World, index: int) -> Moves:
        """The return is this thread's."""
        me = world.thread(index)
        world.words[me.slot] = (RETURNING, me.generation)
        me.owns = True
        if me.then == "discard":
            me.pc, me.then = "recycle", "grow"
            yield f"putconn: slot {me.slot} := RETURNING; is of no use", world
            return
        me.then = "recheck"
        me.pc = "look_early" if "read before publish" in self.changes else "restore"
        yield f"putconn: slot {me.slot} := RETURNING", world
        if self.scene.breakage:
            world, me = self.begin(world.freeze(), index)
            me.pc, me.then = "recycle", "grow"
            yield f"putconn: slot {me.slot} := RETURNING; is broken", world

    # A notice of death writes the fate, and moves the word on; so a return reads the word, and then
    # the fate. With the word of a later lending the fate shows too.

    def read_word(self, state: State, index: int) -> Moves:
        world, me = self.begin(state, index)
        name, generation = state.words[me.slot]
        me.seen = 1 + generation if name == IN_USE else 0
        me.pc = "swap" if "fate before word" in self.changes else "read_fate"
        yield f"putconn: reads slot {me.slot}, {name} {generation}", world

    def read_fate(self, state: State, index: int) -> Moves:
        world, me = self.begin(state, index)
        if me.fate == RETIRED_LENT:
            self.end(me)
            yield "putconn: it was taken out meanwhile: accepted", world
            return
        me.pc = "read_word" if "fate before word" in self.changes else "swap"
        yield "putconn: reads the fate, in the table", world

    def swap(self, state: State, index: int) -> Moves:
        world, me = self.begin(state, index)
        if state.words[me.slot] == (IN_USE, me.seen - 1):
            me.seen = 0
            yield from self.returning(world, index)
        else:
            me.pc = "read_fate_again"
            yield f"putconn: slot {me.slot} is not lent, or not as it was", world

    def read_fate_again(self, state: State, index: int) -> Moves:
        """Under the mutex, for a notice may be half done."""
        if state.locked:
            return
        world, me = self.begin(state, index)
        if me.fate != RETIRED_LENT or "fate seen once" in self.changes:
            raise Violation(f"a borrower's return is refused: slot {me.slot} is taken")
        self.end(me)
        yield "putconn: lock; it was taken out meanwhile; unlock: accepted", world

    def look_early(self, state: State, index: int) -> Moves:
        """The wrong order: see FAULTS."""
        world, me = self.begin(state, index)
        me.pc, me.seen = "restore", state.attention
        yield f"reads attention {told(state.attention)}", world

    def restore(self, state: State, index: int) -> Moves:
        world, me = self.begin(state, index)
        slot = me.slot
        if self.scene.judges and me.role == BORROWER:
            if me.seen & SURPLUS and state.size > state.limit:
                raise Violation("a return keeps a connection beyond the maximum")
            if me.seen & STALE:
                raise Violation("a return keeps a connection from before the drain")
            me.seen = 0
        self.make_available(world, me)
        if not self.scene.closer:
            self.forget(me)
        if "read before publish" in self.changes and me.role == BORROWER:
            self.go(me, "serve" if me.seen else me.then)
        else:
            me.pc = "attend"
        yield f"slot {slot} := AVAILABLE; sets its bit", world

    def make_available(self, world: World, me: Thread) -> None:
        world.words[me.slot] = (AVAILABLE, 0)
        me.owns = False
        self.store(world, me, "bit", me.slot)

    def store(self, world: World, me: Thread, kind: str, operand: int) -> None:
        if f"relaxed {kind}" in self.changes:
            me.buffer = (*me.buffer, (kind, operand))
        else:
            world.arrive((kind, operand))

    def recheck(self, state: State, index: int) -> Moves:
        """Close may have swept before the bit was set: then whoever set it takes it back."""
        world, me = self.begin(state, index)
        if state.closed:
            world.flush(me)
        free = world.free >> me.slot & 1
        if state.closed and free and "close overlooked" not in self.changes:
            world.free &= ~(1 << me.slot)
            world.reserve(me.slot, me)
            me.pc, me.then = "recycle", "over"
            yield f"reads closed True; takes slot {me.slot} back", world
        else:
            self.go(me, "over")
            yield f"reads closed {state.closed}", world

    def recycle(self, state: State, index: int) -> Moves:
        """Take a connection out of the table: -> EMPTY, or CONNECTING if it is replaced."""
        if state.locked:
            return
        world, me = self.begin(state, index)
        slot = me.slot
        world.leave(slot)
        me.owns = False
        self.forget(me)
        # Who replaces what it has found too old makes use of the room, and goes on.
        goes_on = me.then in GOING_ON
        unused = me.then == "grow" and "no grow after eviction" in self.changes
        self.go(me, "over" if unused else "grow" if goes_on else me.then)
        yield f"lock; slot {slot} := EMPTY; unlock", world
        if self.scene.replacement and not state.closed and state.size <= state.limit:
            world, me = self.begin(state, index)
            world.words[slot] = (CONNECTING, 0)
            world.stale &= ~(1 << slot)
            me.owns = False
            self.forget(me)
            self.go(me, me.then if goes_on else "over")
            yield f"lock; slot {slot} := CONNECTING; unlock", world

    # --- serving ----------------------------------------------------------------------------

    def attend(self, state: State, index: int) -> Moves:
        world, me = self.begin(state, index)
        if state.attention:
            me.pc = "serve"
        else:
            # A closed pool has raised attention before it swept.
            self.go(me, "over" if me.then == "recheck" else me.then)
        yield f"reads attention {told(state.attention)}", world

    def serve(self, state: State, index: int) -> Moves:
        if state.locked:
            return
        world, me = self.begin(state, index)
        world.flush(me)
        head = world.head()
        if head is not None and head.overdue and world.free:
            flushed = world.freeze()
            for slot, world, me in self.claims(flushed, index):
                head = world.head()
                assert head is not None
                world.lock(me)
                world.lend(slot, head)
                me.pc = "grant"
                yield f"serve: lock; takes slot {slot} for the first waiter", world
            return
        self.go(me, me.then)
        if head is None:
            yield "serve: lock; nobody waits; unlock", world
        elif not world.free:
            yield "serve: lock; nothing is free; unlock", world
        elif head.token:
            yield "serve: lock; the first waiter has been woken; unlock", world
        else:
            world.wake(head, remember="token not set" not in self.changes)
            yield "serve: lock; unlock; wakes the first waiter", world

    def grant(self, state: State, index: int) -> Moves:
        """Settle the first waiter with the slot that was claimed for it, and look again."""
        world, me = self.begin(state, index)
        head = world.head()
        assert head is not None
        world.settle(head, GRANTED)
        world.wake(head)
        world.unlock(me)
        me.pc = "serve"
        yield "grants it; attention -= 1; unlock; wakes that waiter", world

    # --- connecting -------------------------------------------------------------------------

    def grow(self, state: State, index: int) -> Moves:
        """Start one connect, if there is room and somebody waits for more."""
        if state.locked:
            return
        world, me = self.begin(state, index)
        wanted = min(self.scene.max_connecting, n_waiting(state.threads))
        limit = self.scene.slots if "limit unread" in self.changes else state.limit
        if state.size < limit and state.growing < wanted and not state.closed:
            slot = next(slot for slot, word in enumerate(state.words) if word[0] == EMPTY)
            world.occupy(slot)
            text = f"grow: lock; slot {slot} := CONNECTING; unlock"
        else:
            text = "grow: lock; no room or no need; unlock"
        # A waiter parks now, even if it has been settled meanwhile.
        if me.outcome:
            me.pc = "parked"
        else:
            self.go(me, me.then if me.then in GOING_ON else "over")
        yield text, world

    def connect(self, state: State, index: int) -> Moves:
        """A connect ends, well or badly."""
        attended = {fields[SLOT] for fields in state.threads if fields[ROLE] == CONNECTOR}
        for slot, word in enumerate(state.words):
            if word[0] == CONNECTING and slot not in attended:
                for pc, text in ("install", "succeeds"), ("vacate", "fails for good"):
                    world, me = self.begin(state, index)
                    me.slot, me.pc, me.then = slot, pc, "grow"
                    yield f"the connect of slot {slot} {text}", world

    def install(self, state: State, index: int) -> Moves:
        if state.locked:
            return
        world, me = self.begin(state, index)
        if state.closed and "install unchecked" not in self.changes:
            me.pc = "vacate"
            yield "lock; reads closed True; unlock", world
        else:
            world.lock(me)
            me.pc = "land"
            yield f"lock; reads closed {state.closed}", world

    def land(self, state: State, index: int) -> Moves:
        """CONNECTING -> AVAILABLE. Caller holds the mutex."""
        world, me = self.begin(state, index)
        slot = me.slot
        world.growing -= world.words[slot][1]
        self.make_available(world, me)
        me.slot, me.pc = -1, "deliver"
        yield f"slot {slot} := AVAILABLE; sets its bit", world

    def deliver(self, state: State, index: int) -> Moves:
        """Serve the first waiter, however young it is. Caller holds the mutex."""
        world, me = self.begin(state, index)
        claims = () if world.head() is None else tuple(self.claims(state, index))
        for slot, world, me in claims:
            head = world.head()
            assert head is not None
            world.lend(slot, head)
            me.pc = "grant"
            yield f"takes slot {slot} for the first waiter", world
        if not claims:
            world.unlock(me)
            me.pc = "attend"
            yield "nobody waits, or nothing is free; unlock", world

    def vacate(self, state: State, index: int) -> Moves:
        if state.locked:
            return
        world, me = self.begin(state, index)
        slot = me.slot
        world.leave(slot)
        me.slot = -1
        self.go(me, "over" if "no grow after failure" in self.changes else "grow")
        yield f"lock; slot {slot} := EMPTY; unlock", world

    # --- maintenance and the end ------------------------------------------------------------

    def maintain(self, state: State, index: int) -> Moves:
        for slot, world, me in self.claims(state, index):
            world.reserve(slot, me)
            me.pc, me.then = "restore", "recheck"
            yield f"reserves slot {slot}, finds it well", world
            world, me = self.begin(world.freeze(), index)
            me.pc, me.then = "recycle", "grow"
            yield f"reserves slot {slot}, finds it dead", world

    def notice(self, state: State, index: int) -> Moves:
        """A lent connection has died: take its slot from the borrower, by compare-and-swap."""
        if state.locked:
            return
        for fields in state.threads:
            slot, generation = fields[SLOT], fields[GENERATION]
            # A grant that nobody has come for is not lent yet.
            lent = fields[PC] in LENT
            lent |= fields[OUTCOME] == GRANTED and "grant evicted" in self.changes
            if lent and fields[OWNS] and state.words[slot] == (IN_USE, generation):
                world, me = self.begin(state, index)
                me.slot, me.generation = slot, generation
                if "word stored" in self.changes:
                    me.pc = "take_out"
                    yield f"notice: the connection of slot {slot} is dead, and lent", world
                else:
                    world.lock(me)
                    yield from self.taken_out(world, index)

    def take_out(self, state: State, index: int) -> Moves:
        """The wrong way: see FAULTS."""
        if state.locked:
            return
        world, me = self.begin(state, index)
        world.lock(me)
        yield from self.taken_out(world, index)

    def taken_out(self, world: World, index: int) -> Moves:
        me = world.thread(index)
        borrower = self.borrower(world, me)
        if borrower is not None:
            borrower.owns = False
        world.words[me.slot] = (RETURNING, me.generation)
        me.owns, me.pc = True, "retire"
        yield f"notice: lock; takes slot {me.slot} from its borrower", world

    def retire(self, state: State, index: int) -> Moves:
        world, me = self.begin(state, index)
        borrower = self.borrower(world, me)
        if borrower is not None:
            borrower.fate = RETIRED_LENT
        world.unlock(me)
        me.pc, me.then = "recycle", "grow"
        yield "notice: sets the entry's fate; unlock", world

    def borrower(self, world: World, me: Thread) -> Thread | None:
        """Return the one that has the connection that *me*, the watchman, takes out."""
        for number, fields in enumerate(world.threads):
            lending = fields[ROLE], fields[SLOT], fields[GENERATION]
            if lending == (BORROWER, me.slot, me.generation) and fields[FATE] != OLD:
                return world.thread(number)
        return None

    def drain(self, state: State, index: int) -> Moves:
        """Make what there is today outdated, then replace what is idle of it."""
        world, me = self.begin(state, index)
        for slot, (name, _) in enumerate(state.words):
            if name not in (EMPTY, CONNECTING):
                world.stale |= 1 << slot
        me.pc = "sweep_old"
        yield "drain: epoch += 1", world

    def sweep_old(self, state: State, index: int) -> Moves:
        if state.free & state.stale:
            for slot, world, me in self.claims(state, index):
                if state.stale >> slot & 1:
                    world.reserve(slot, me)
                    me.pc, me.then = "recycle", "sweep_old"
                    yield f"drain: takes slot {slot}", world
        else:
            world, me = self.begin(state, index)
            self.end(me)
            world.drained = True
            me.pc = "done"
            yield "drain: nothing old is free", world

    def resize(self, state: State, index: int) -> Moves:
        if state.locked or state.resized == len(self.scene.resizes):
            return
        world, me = self.begin(state, index)
        world.limit = self.scene.resizes[state.resized]
        world.resized += 1
        me.pc, me.then = "attend", "grow"
        if "no grow after resize" in self.changes:
            me.then = "over"
        yield f"resize: lock; maximum := {world.limit}; unlock", world

    # --- forks ------------------------------------------------------------------------------

    def fork(self, state: State, index: int) -> Moves:
        """Go on as the child: there is the thread that forked, and others begin."""
        world, me = self.begin(state, index)
        holding = me.pc == "holding"
        slot, generation = me.slot, me.generation
        if "table kept" in self.changes:
            for number in range(len(self.roles)):
                if number != index:
                    other = world.thread(number)
                    place, outcome = other.place, other.outcome
                    self.end(other)
                    other.place, other.outcome, other.pc = place, outcome, "done"
            world.old = FREE
            yield "fork: goes on in the child, with its parent's table", world
            return
        fresh = World(self.initial())
        fresh.free, fresh.size = 0, 0
        fresh.words = [(EMPTY, 0)] * self.scene.slots
        fresh.old = HELD if state.locked else FREE
        if holding:
            me = fresh.thread(index)
            me.pc, me.slot, me.generation, me.fate = "holding", slot, generation, OLD
        yield f"fork: goes on in the child; the old mutex is {fresh.old}", fresh

    def drop(self, state: State, index: int) -> Moves:
        """A child drops a connection of its parent's, which frees its entry."""
        world, me = self.begin(state, index)
        self.end(me)
        if "ghosts heard" in self.changes:
            me.pc = "mourn"
        yield "drops the connection of its parent's", world

    def mourn(self, state: State, index: int) -> Moves:
        """The wrong way: see FAULTS."""
        if state.old == HELD:
            return
        world, me = self.begin(state, index)
        self.end(me)
        yield "tells the old table, under its mutex", world

    def close(self, state: State, index: int) -> Moves:
        world, me = self.begin(state, index)
        world.closed = True
        me.pc = "announce"
        yield "close: closed := True", world

    def announce(self, state: State, index: int) -> Moves:
        world, me = self.begin(state, index)
        if "close unannounced" not in self.changes:
            world.attention += BIAS
        me.pc = "shut"
        if self.changes & {"close leaves waiters", "sweep first"}:
            me.pc = "sweep"
        yield "close: raises attention for good", world

    def shut(self, state: State, index: int) -> Moves:
        if state.locked:
            return
        world, me = self.begin(state, index)
        head = world.head()
        if head is None:
            me.pc = "done" if "sweep first" in self.changes else "sweep"
            yield "close: lock; nobody waits; unlock", world
        else:
            world.settle(head, SHUT)
            world.wake(head)
            yield "close: lock; shuts the first waiter out; attention -= 1; unlock; wakes it", world

    def sweep(self, state: State, index: int) -> Moves:
        if state.free:
            for slot, world, me in self.claims(state, index):
                world.reserve(slot, me)
                me.pc, me.then = "recycle", "sweep"
                yield f"close: takes slot {slot}", world
        else:
            world, me = self.begin(state, index)
            self.end(me)
            me.pc = "shut" if "sweep first" in self.changes else "done"
            yield "close: nothing is free", world

    # --- what must hold ---------------------------------------------------------------------

    def check(self, state: State) -> None:
        """Check the invariants of every state. Raises Violation."""
        free, attention = state.free, state.attention
        owners = [0] * self.scene.slots
        for fields in state.threads:
            if fields[OWNS]:
                owners[fields[SLOT]] += 1
            if fields[WAKES] > 1 and not self.scene.shared_gate:
                raise Violation("a waiter is woken twice")
            lent = fields[PC] == "holding" and fields[OWNS]
            if lent and fields[FRESH] and state.stale >> fields[SLOT] & 1:
                raise Violation("a connection from before the drain is lent after it")
            for kind, operand in fields[BUFFER]:
                if kind == "bit":
                    free |= 1 << operand
                else:
                    attention += operand
        for slot, (name, _) in enumerate(state.words):
            if (free >> slot & 1) != (name == AVAILABLE):
                raise Violation(f"slot {slot} is {name}, its bit {free >> slot & 1}")
            if owners[slot] != (name in OWNED):
                raise Violation(f"slot {slot} is {name}, and has {owners[slot]} owners")
        size = sum(1 for name, _ in state.words if name != EMPTY)
        growing = sum(extra for name, extra in state.words if name == CONNECTING)
        if (state.size, state.growing) != (size, growing):
            raise Violation(f"size {size} and growing {growing} are counted wrong: {state}")
        if growing > self.scene.max_connecting:
            raise Violation(f"{growing} connects at once for waiters")
        if not state.locked and attention % BIAS != n_waiting(state.threads):
            raise Violation(f"attention {attention}, but {n_waiting(state.threads)} wait")

    def check_at_rest(self, state: State) -> None:
        """Check what must hold where nothing happens unless somebody calls. Raises Violation."""
        for fields in state.threads:
            if fields[PC] not in RESTING:
                raise Violation(f"a {fields[ROLE]} is stuck before {fields[PC]}")
            if fields[PC] == "parked" and fields[OUTCOME] != WAITING:
                raise Violation(f"a waiter sleeps, though it was {fields[OUTCOME]}")
        waiting = n_waiting(state.threads)
        if state.closed:
            if waiting:
                raise Violation("somebody waits for a closed pool")
            if state.free:
                raise Violation("a closed pool has kept a connection")
        elif waiting:
            if state.free:
                raise Violation("somebody waits while a connection is free")
            if state.size < state.limit and all(name != CONNECTING for name, _ in state.words):
                raise Violation("somebody waits while there is room, and nobody connects")
