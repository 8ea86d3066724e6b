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

NOT HERE: the second word of a bitmap of more than 64 slots (a bit that is set behind a search is
served by whoever set it), those who wait for a full pool, resize(), and time itself.

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

# Added to attention by close.
BIAS = 1000

# What became of a wait.
NONE, WAITING, GRANTED, GONE, SHUT = "", "waiting", "granted", "gone", "shut"

BORROWER, CONNECTOR, KEEPER, CLOSER = "borrower", "connector", "keeper", "closer"

# Where a thread may stand while nothing is owed to it or by it.
RESTING = ("idle", "holding", "parked", "done")

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
        return self.connections < self.slots or self.breakage or self.keeper


class Violation(Exception):
    """An invariant does not hold."""


FIELDS = (
    "role", "pc", "then", "slot", "generation", "owns", "seen", "outcome", "place", "token",
    "wakes", "overdue", "overtaken", "buffer",
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

    def __init__(self, fields: Fields) -> None:
        (
            self.role, self.pc, self.then, self.slot, self.generation, self.owns, self.seen,
            self.outcome, self.place, self.token, self.wakes, self.overdue, self.overtaken,
            self.buffer,
        ) = fields  # fmt: skip

    @staticmethod
    def new(role: str) -> Fields:
        return role, "idle", "", -1, 0, False, 0, NONE, 0, False, 0, False, 0, ()


fields_of = attrgetter(*FIELDS)
ROLE, PC, SLOT, GENERATION, OWNS = map(FIELDS.index, ("role", "pc", "slot", "generation", "owns"))
OUTCOME, PLACE, WAKES, OVERDUE = map(FIELDS.index, ("outcome", "place", "wakes", "overdue"))
BUFFER = FIELDS.index("buffer")


class World:
    """A state in the making: what the steps change, and the core's helpers that they share."""

    __slots__ = (
        "attention", "closed", "edited", "free", "growing", "locked", "size", "threads", "words",
    )  # fmt: skip

    def __init__(self, state: State) -> None:
        (
            self.free, words, self.locked, self.attention, self.size, self.growing, self.closed,
            threads,
        ) = state  # fmt: skip
        self.words = list(words)
        self.threads = list(threads)
        self.edited: dict[int, Thread] = {}

    def freeze(self) -> State:
        for index, thread in self.edited.items():
            self.threads[index] = fields_of(thread)
        return State(
            self.free, tuple(self.words), self.locked, self.attention, self.size, self.growing,
            self.closed, tuple(self.threads),
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
        remembered = {fields[GENERATION] for fields in self.threads if fields[SLOT] == slot}
        generation = next(number for number in range(99) if number not in remembered)
        self.words[slot] = (IN_USE, generation)
        borrower.slot, borrower.generation, borrower.owns = slot, generation, True

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
        self.size -= 1

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


def rank(slot: int, words: tuple[tuple[str, int], ...], threads: tuple[Fields, ...]) -> Any:
    """Tell slots apart by what they are to whom."""
    return words[slot], sorted(
        fields[:SLOT] + fields[SLOT + 1 :] for fields in threads if fields[SLOT] == slot
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
        return State((1 << ready) - 1, words, False, 0, ready, 0, False, threads)

    def canonical(self, state: State) -> State:
        """Return a state that stands for those that only number threads or slots otherwise."""
        free, words, threads = state.free, state.words, state.threads
        if len(words) > 1:
            order = sorted(range(len(words)), key=lambda slot: rank(slot, words, threads))
            if order != list(range(len(words))):
                words = tuple(state.words[slot] for slot in order)
                free = sum((state.free >> slot & 1) << new for new, slot in enumerate(order))
                threads = tuple(renumber(fields, order) for fields in threads)
        ordered: list[Fields] = []
        for group in self.groups:
            ordered += sorted(threads[group])
        return State(
            free, words, state.locked, state.attention, state.size, state.growing, state.closed,
            tuple(ordered),
        )  # fmt: skip

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
        if pc == "holding":
            yield from self.begin_return(state, index)
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
                    yield from self.begin_return(state, index)
            elif role == CONNECTOR:
                yield from self.connect(state, index)
            elif role == KEEPER:
                yield from self.maintain(state, index)
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
        me.slot, me.generation = -1, 0
        self.stop_waiting(me)

    def forget(self, me: Thread) -> None:
        """The slot is not this thread's any more; but some return what they have returned."""
        if not self.scene.second_return:
            me.slot, me.generation = -1, 0

    def hold(self, me: Thread) -> None:
        """The call is over, and brought a connection."""
        me.pc, me.then = "holding", ""
        self.stop_waiting(me)

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
        self.end(me)
        me.pc = "enqueue" if queues else "claim"
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
        self.hold(me)
        if baton not in self.changes:
            me.pc, me.then = "attend", "holding"
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
            self.hold(me)
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
            self.hold(me)
            yield "gives up: lock; was granted a slot; unlock; takes it", world
            world, me = self.begin(state, index)
            self.hold(me)
            me.pc = "begin_return"
            yield "gives up: lock; was granted a slot; unlock; returns it", world

    # --- returning --------------------------------------------------------------------------

    def begin_return(self, state: State, index: int) -> Moves:
        """IN_USE with its own generation -> RETURNING, by compare-and-swap."""
        world, me = self.begin(state, index)
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
        world.words[me.slot] = (RETURNING, me.generation)
        me.owns = True
        me.then = "recheck"
        me.pc = "look_early" if "read before publish" in self.changes else "restore"
        yield f"putconn: slot {me.slot} := RETURNING", world
        if self.scene.breakage:
            world, me = self.begin(world.freeze(), index)
            me.pc, me.then = "recycle", "grow"
            yield f"putconn: slot {me.slot} := RETURNING; is broken", world

    def look_early(self, state: State, index: int) -> Moves:
        """The wrong order: see FAULTS."""
        world, me = self.begin(state, index)
        me.pc, me.seen = "restore", state.attention
        yield f"reads attention {told(state.attention)}", world

    def restore(self, state: State, index: int) -> Moves:
        world, me = self.begin(state, index)
        slot = me.slot
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
        unused = me.then == "grow" and "no grow after eviction" in self.changes
        self.go(me, "over" if unused else me.then)
        yield f"lock; slot {slot} := EMPTY; unlock", world
        if self.scene.replacement and not state.closed:
            world, me = self.begin(state, index)
            world.words[slot] = (CONNECTING, 0)
            me.owns = False
            self.forget(me)
            self.go(me, "over")
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
        limit = min(self.scene.max_connecting, n_waiting(state.threads))
        if state.size < self.scene.slots and state.growing < limit and not state.closed:
            slot = next(slot for slot, word in enumerate(state.words) if word[0] == EMPTY)
            world.words[slot] = (CONNECTING, 1)
            world.size += 1
            world.growing += 1
            text = f"grow: lock; slot {slot} := CONNECTING; unlock"
        else:
            text = "grow: lock; no room or no need; unlock"
        # A waiter parks now, even if it has been settled meanwhile.
        if me.outcome:
            me.pc = "parked"
        else:
            self.go(me, "over")
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
        world.unlock(me)
        me.slot, me.pc = -1, "attend"
        yield f"slot {slot} := AVAILABLE; sets its bit; unlock", world

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
            if state.size < self.scene.slots and all(name != CONNECTING for name, _ in state.words):
                raise Violation("somebody waits while there is room, and nobody connects")
