"""The slot table: which connections there are, which are free, and who waits for one.

Owns: slots, their states and generations, the free bitmap, the FIFO of waiters, and the counters
that must move with them. Decides; never does I/O, never logs, never blocks but on its own short
mutex, calls user code only to wake a waiter and then outside the mutex. Knows nothing of psycopg
but a connection object, its `pgconn`, and the few numbers that it keeps for it.

STATES. A slot's word holds its state (low 8 bits) and its generation (above); the generation
moves on at every lending. Who may change a slot is fixed by its state:

    EMPTY       nobody's; becomes CONNECTING under the mutex
    CONNECTING  the connector's, until install() or vacate()
    AVAILABLE   nobody's; its bit in the free bitmap is 1, and clearing that bit makes an owner
    IN_USE      the borrower's; or a waiter's that was granted it and has not come for it yet
    RETURNING   the thread's whose compare-and-swap IN_USE -> RETURNING succeeded
    RESERVED    the maintenance's: check() or drain() looks at it
    CLOSING     the thread's that evicts it, until recycle()

    EMPTY -> CONNECTING -> AVAILABLE -> IN_USE -> RETURNING -> AVAILABLE
    CONNECTING -> EMPTY    AVAILABLE -> RESERVED -> AVAILABLE
    CONNECTING -> IN_USE where nothing stands idle: a null pool's borrower connects
    RETURNING, RESERVED -> CLOSING -> CONNECTING | EMPTY

A connection that is collected while somebody has it takes its slot to CLOSING: its Entry notices.
One whose session has ended leaves at once, AVAILABLE or IN_USE -> CLOSING: condemn().

INVARIANTS (verify() checks them). At rest a bit is set if and only if its slot is AVAILABLE. A
connection is in one slot, lent to one borrower. Slots that are not EMPTY number at most max_size,
or fall to it after a resize. Nobody waits while a bit is set that is not held back, nor while
there is room to grow and no connect in flight. A waiter is settled once; a grant is taken, or
handed on.

WAITING. Getting: queue up under the mutex, raise `attention`, *then* search the bitmap once more.
Returning: set the bit, *then* read `attention`, and serve if it is not zero. Each side publishes
before it looks (Dekker's store-load pattern), so one of them sees the other. That needs a single
total order of the four operations: both are sequentially consistent; acquire and release alone
allow each side to miss the other. tests/model/ searches every interleaving, and finds the lost
wake-up when the order is relaxed. What frees *room* instead of a connection (recycle, vacate,
resize) is followed by grow(), which looks at the waiters under the mutex.

PACING. Threads that share a GIL often get more done with fewer connections: _pacing.pyx finds out
with how many. While somebody waits no more than `width` are lent at once then, and the others stay
AVAILABLE: held back. A return, a connection that leaves the table and a stall serve the first in
the queue; a waiter whose time is over takes what is held back. Newcomers queue meanwhile. One of
those who wait, the lookout, looks after stalls. When it is served, the next that queues takes its
place; if nobody has until it runs, it wakes the last in the queue for that.

OVERTAKING. While the first waiter is younger than `tau`, serve() only wakes it, to compete with
newcomers; once it is older, newcomers queue and returns are handed to it directly. Waking costs
two context switches, and the bit stays free meanwhile for a thread that is running: that is where
the throughput under contention comes from, and `tau` bounds what it takes from the waiters.
Waiters never overtake each other. A waiter that was woken and leaves serves the next one.

THE MUTEX guards the queue and every change from or to EMPTY. Inside it only pointers and integers
move: no user code, no exception, no allocation, no last reference dropped, for a finalizer that
the collector runs may come back into the pool. On a build with a GIL nobody ever waits for it.

COST, uncontended: a checkout is one atomic and-not and the scan of the free bitmap (~1 ns a free
slot with order="fifo", one instruction with "lifo"); a return is one compare-and-swap, one atomic
add and one or. No lock, no allocation. With a GIL these are plain loads and stores (_atomic.h), and
the orders above cost nothing. Both operations stand in _core.pxd, at the end of SlotTable.

SOURCES. Bit as owner token: no ABA problem, for nothing is linked. The publish-then-look pattern:
E. W. Dijkstra, EWD123 (Dekker's algorithm). Memory orders: C11, 7.17.3. Hand-off against barging:
the bounded overtaking of Go's sync.Mutex, https://go.dev/src/internal/sync/mutex.go (by 1 ms).
"""

cimport cython
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF, Py_XINCREF
from cpython.weakref cimport PyWeakref_NewRef

from types import CodeType

cdef extern from "pythread.h" nogil:
    void *PyThread_allocate_lock()
    void PyThread_free_lock(void *lock)
    int PyThread_acquire_lock(void *lock, int wait)
    int PyThread_acquire_lock_timed(void *lock, long long microseconds, int interruptible)
    void PyThread_release_lock(void *lock)
    int PY_LOCK_ACQUIRED
    int PY_LOCK_INTR
    long long PY_TIMEOUT_MAX

cdef extern from "Python.h":
    int Py_MakePendingCalls() except -1

cdef extern from *:
    """
    #ifdef _WIN32
    #define fp_pid() 1L             /* there is no fork */
    #else
    #include <unistd.h>
    #define fp_pid() ((long)getpid())
    #endif
    """
    long fp_pid() nogil

cdef enum Outcome:
    WAITING = 0
    GRANTED = 1
    GONE = 2                # timed out or cancelled: the waiter's own decision
    SHUT = 3                # the pool was closed
    DEADLOCKED = 4          # nobody will ever give back what it waits for

STATES = ("empty", "connecting", "available", "in_use", "returning", "reserved", "closing")

RETURN_TAKEN = TAKEN
RETURN_FOREIGN = FOREIGN
RETURN_NOT_LENT = NOT_LENT
RETURN_LATE = LATE
RETURN_CONDEMNED = CONDEMNED_LATE

COUNT_REQUEST = REQUESTS
COUNT_REQUEST_ERROR = REQUEST_ERRORS
COUNT_RETURN_BAD = RETURNS_BAD
COUNT_CONNECT = CONNECTS
COUNT_CONNECT_NS = CONNECT_NS
COUNT_CONNECT_ERROR = CONNECT_ERRORS
COUNT_LOST = LOST

LIMIT = MAX_SLOTS

# Added to `attention` by close(): a return to a closed table leaves the fast path.
cdef enum:
    CLOSED_BIAS = 1 << 30

# How often on_owed is told of one slot, when that is interrupted.
cdef enum:
    TELLINGS = 8

cdef int64_t NEVER = 0x7FFFFFFFFFFFFFFF


def monotonic_ns():
    """Return the core's exact clock, in nanoseconds."""
    return fp_now()


def coarse_ns():
    """Return the core's cheap clock, in nanoseconds: behind monotonic_ns() by a few ms at most."""
    return fp_now_coarse()


@cython.no_gc_clear     # __dealloc__ needs table_ref; cycles are broken at the connection's dict
cdef class Entry:
    """A connection's place in the table. Lives in the connection's `_slot` attribute.

    While the connection is lent nothing but its own attribute holds the entry, so the entry's end
    says that the connection was collected unreturned. Its end, not a finalizer: the collector runs
    those also for what another finalizer then saves, and never again.
    """

    def __dealloc__(self):
        cdef SlotTable table
        cdef uint64_t fate = fp_load(&self.fate)
        try:
            if self.table_ref is not None and (fate == RESIDENT or fate == CONDEMNED):
                table = self.table_ref()
                if table is not None:
                    table.lost(self)
        finally:
            # Last, and whatever comes of it: the watch is Python, which an interrupt may end.
            self.end_watch()

    cdef int end_watch(self) except -1:
        if self.watch is not None:
            try:
                self.watch.close()
            except (AttributeError, NameError, TypeError):
                pass    # one that was closed before, and has been emptied; or the interpreter ends
        return 0

    @property
    def created_ns(self):
        return self.created

    @property
    def pg(self):
        """The libpq connection."""
        return self.pgconn

    @property
    def is_at_home(self):
        """Whether the pool has the connection: in the table, and in nobody's hands."""
        cdef SlotTable table = self.table_ref() if self.table_ref is not None else None
        return (table is not None and fp_load(&self.fate) == RESIDENT
                and (table.state(self.index) != IN_USE or table.slot(self.index).conn != NULL))

    def unwatch(self):
        """Close what watches the connection's socket: it is about to leave the table."""
        if self.watch is not None:
            self.watch.close()
            self.watch = None

    @property
    def connection_face(self):
        """The object that is lent in the connection's place, None when that is itself."""
        return self.face


@cython.no_gc_clear     # __dealloc__ needs table_ref
cdef class Debt:
    """The duty to go on with a slot that is CLOSING or CONNECTING. An int as well: its index.

    Who holds it recycles, connects or vacates the slot. When it is dropped before, by an interrupt
    at any point, or with a chore that nobody does, on_owed is told, and the slot is not lost.
    """

    def __dealloc__(self):
        cdef SlotTable table
        if self.table_ref is not None:
            table = self.table_ref()
            if table is not None and table.forget_debt(self):
                table.disown(self.index)

    def __index__(self):
        return self.index

    def __int__(self):
        return self.index

    def __hash__(self):
        return hash(self.index)

    def __eq__(self, other):
        return self.index == other

    def __lt__(self, other):
        return self.index < other

    def __le__(self, other):
        return self.index <= other

    def __gt__(self, other):
        return self.index > other

    def __ge__(self, other):
        return self.index >= other

    def __repr__(self):
        return repr(self.index)


@cython.no_gc_clear     # __dealloc__ needs table_ref
cdef class Waiter:
    """One blocked call. Belongs to one thread or task.

    One that is dropped with a grant that nobody came for hands its slot on: its task was destroyed,
    or a second interrupt ended the leaving of the queue.

    Without arguments it is for a thread, which parks in SlotTable.wait(). Else `gate` is what its
    owner parks on, and `wake` is called, once a parking at most, to end that.
    """

    def __cinit__(self, gate=None, wake=None, uint64_t owner=0):
        self.gate = gate
        self.wake_call = wake
        self.index = -1
        self.owner = owner or PyThread_get_thread_ident()
        if wake is None:
            self.lock = PyThread_allocate_lock()
            if self.lock == NULL:
                raise MemoryError
            PyThread_acquire_lock(self.lock, 0)

    def __dealloc__(self):
        cdef SlotTable table
        if self.index >= 0:
            table = self.table_ref()
            if table is not None and table.is_ours():
                table.give_up(self.index)
        if self.lock != NULL:
            PyThread_acquire_lock(self.lock, 0)     # it may have been woken, and never parked
            PyThread_release_lock(self.lock)
            PyThread_free_lock(self.lock)
        Py_XDECREF(<PyObject *><size_t>fp_peek(&self.site.code))

    @property
    def is_settled(self):
        return fp_load(&self.outcome) != WAITING

    @property
    def was_shut(self):
        """True when the pool's closing ended the wait."""
        return fp_load(&self.outcome) == SHUT

    @property
    def is_deadlocked(self):
        """True when a deadlock that it is part of ended the wait."""
        return fp_load(&self.outcome) == DEADLOCKED


cdef class Gauge:
    """How many are inside: enter() while fewer than a limit are, leave(). Atomic.

    With a limit of 1 it elects: of all who enter, one is told True.
    """

    def enter(self, int limit=1):
        """Count the caller in, and return True, unless `limit` are inside."""
        cdef uint64_t value
        while True:
            value = fp_load_seq(&self.value)
            if value >= <uint64_t>limit:
                return False
            if fp_cas(&self.value, value, value + 1):
                return True

    def leave(self):
        """Count the caller out."""
        fp_add_seq(&self.value, <uint64_t>-1)

    @property
    def inside(self):
        return fp_load_seq(&self.value)


cdef void drop_queue(PyObject *first) noexcept:
    """Let go of those who were queued in a table that nobody holds any more."""
    cdef PyObject *after
    while first != NULL:
        after = (<Waiter>first).next
        Py_XDECREF(first)
        first = after


cdef class SlotTable:
    """See the module's text. `min_size` slots are CONNECTING from the start: they are owed.

    Thread-safe. No method blocks but on the mutex.
    """

    def __cinit__(
        self, int min_size, int max_size, *, bint lifo=False, int max_connecting=1,
        int64_t tau_ns=2_000_000, bint keeps_idle=True, bint paces=False, on_lost=None,
        on_owed=None,
    ):
        self.min_size = min_size
        self.max_size = max_size
        self.max_connecting = max_connecting
        self.lifo = lifo
        self.tau = tau_ns
        self.keeps_idle = keeps_idle
        self.pacer = Pacer() if paces and not FREE_THREADED else None
        self.on_lost = on_lost
        self.on_owed = on_owed
        self.pid = fp_pid()
        self.me = PyWeakref_NewRef(self, None)
        self.chunks = self.few
        if max_size > MAX_SLOTS:
            raise ValueError(f"a pool holds at most {MAX_SLOTS} connections, not {max_size}")
        if min_size < 0 or max_size and max_size < min_size:
            raise ValueError(f"no table has {min_size} to {max_size} slots")
        if not self.make_room(max_size if max_size else min_size + CHUNK):
            raise MemoryError
        cdef int i
        for i in range(min_size):
            self.put_state(i, CONNECTING)
        self.size = min_size

    def __dealloc__(self):
        cdef int i
        cdef int n = <int>fp_peek(&self.n_chunks)
        cdef Slot *slot
        for i in range(n * CHUNK):
            slot = self.slot(i)
            Py_XDECREF(slot.conn)
            slot.conn = NULL
            Py_XDECREF(<PyObject *><size_t>fp_peek(&self.chunk(i).sites[i & LAST].code))
        for i in range(n):
            PyMem_RawFree(self.chunks[i].memory)
        PyMem_RawFree(self.many)
        drop_queue(self.first)
        drop_queue(self.first_watcher)

    # --- forks ------------------------------------------------------------------------------

    cdef bint is_ours(self) noexcept nogil:
        """Whether this is the table's process. In one that was forked from it the mutex may be
        held by a thread that is not there, so no finalizer goes any further."""
        return self.pid == fp_pid()

    def forsake(self):
        """Give the table up, in a forked child, where nothing may use it any more.

        Its connections are the parent's: each is marked as inherited, and what becomes of it is
        nobody's business. Return (the pgconn of all, the connections that were in nobody's hands).
        Takes no lock; no other thread may run.
        """
        cdef int index
        cdef PyObject *entry
        sessions = []
        at_home = []
        self.pid = 0
        for index in range(self.capacity()):
            entry = self.chunk(index).details[index & LAST].entry
            if entry != NULL:
                fp_store(&(<Entry>entry).fate, INHERITED)
                sessions.append((<Entry>entry).pgconn)
            if self.slot(index).conn != NULL:
                at_home.append(self.take(index))
        return sessions, at_home

    def heir(self):
        """Return an empty table of the same sizes and policies, for a forked child.

        With room for as many slots: what was lent by the old one is looked up by its index still.
        """
        cdef SlotTable heir = SlotTable(
            self.min_size, self.max_size, lifo=self.lifo, max_connecting=self.max_connecting,
            tau_ns=self.tau, keeps_idle=self.keeps_idle, paces=self.pacer is not None,
            on_lost=self.on_lost, on_owed=self.on_owed,
        )
        if not heir.make_room(self.capacity()):
            raise MemoryError
        return heir

    # --- memory -----------------------------------------------------------------------------

    cdef bint make_room(self, int slots) noexcept nogil:
        """Have chunks for that many slots; False when memory or the limit forbids it. Caller holds
        the mutex, or is the constructor."""
        cdef int n = <int>fp_peek(&self.n_chunks)
        cdef void *memory
        cdef Chunk *chunk
        while n * CHUNK < slots:
            if n == MAX_CHUNKS or n == FEW and not self.make_directory():
                return False
            memory = PyMem_RawCalloc(1, sizeof(Chunk) + 64)
            if memory == NULL:
                return False
            chunk = <Chunk *>((<size_t>memory + 63) & ~<size_t>63)
            chunk.memory = memory
            self.chunks[n] = chunk
            n += 1
            fp_store(&self.n_chunks, n)     # release: a reader that sees n sees the chunk
        return True

    cdef bint make_directory(self) noexcept nogil:
        """Let there be more chunks than a few. Those who read the old directory may go on."""
        cdef int c
        if self.many != NULL:           # made before, when there was no memory for the chunk
            return True
        self.many = <Chunk **>PyMem_RawCalloc(MAX_CHUNKS, sizeof(Chunk *))
        if self.many == NULL:
            return False
        for c in range(FEW):
            self.many[c] = self.few[c]
        self.chunks = self.many         # before n_chunks says that there are more
        return True

    # --- states -----------------------------------------------------------------------------

    cdef int state(self, int index) noexcept nogil:
        return fp_load(&self.slot(index).word) & 0xFF

    cdef void put_state(self, int index, int state) noexcept nogil:
        cdef Slot *slot = self.slot(index)
        fp_poke(&slot.since, fp_now_coarse())
        fp_store(&slot.word, (fp_peek(&slot.word) & ~<uint64_t>0xFF) | <uint64_t>state)

    # --- the free bitmap --------------------------------------------------------------------

    cdef int claim_this(self, int index) noexcept nogil:
        """Take this slot out of the bitmap if it is free. Return whether it was."""
        cdef uint64_t mask = <uint64_t>1 << (index & LAST)
        return (fp_and(&self.chunk(index).free, ~mask) & mask) != 0

    cdef bint any_free(self) noexcept nogil:
        cdef int c
        for c in range(<int>fp_load(&self.n_chunks)):
            if fp_load_seq(&self.chunks[c].free):
                return True
        return False

    cdef int n_free(self) noexcept nogil:
        cdef int c
        cdef int total = 0
        for c in range(<int>fp_load(&self.n_chunks)):
            total += fp_count(fp_load_seq(&self.chunks[c].free))
        return total

    # --- lending ----------------------------------------------------------------------------

    cdef void stamp_for(self, int index, Waiter waiter) noexcept:
        """stamp() for a waiter, with the place that it called from. Caller holds the mutex."""
        cdef fp_site *site = &self.chunk(index).sites[index & LAST]
        cdef uint64_t code = fp_peek(&site.code)
        self.stamp(self.slot(index), waiter.owner, fp_now_coarse())
        fp_poke(&site.code, fp_peek(&waiter.site.code))
        fp_poke(&site.at, fp_peek(&waiter.site.at))
        fp_poke(&site.thread, fp_peek(&waiter.site.thread))
        fp_poke(&waiter.site.code, code)    # its reference ends with the waiter

    cdef void mark_anew(self, fp_site *site) noexcept:
        """mark(), when the code is not that of the last time."""
        cdef uint64_t at
        cdef PyObject *code = fp_here(&at)
        if <size_t>code == fp_peek(&site.code):
            fp_poke(&site.at, at)
        else:
            with self.mutex:
                fp_poke(&site.at, at)
                at = fp_peek(&site.code)
                fp_poke(&site.code, <size_t>code)
            code = <PyObject *><size_t>at
        Py_XDECREF(code)

    def call_site(self, int index):
        """(file, line, function) of where the slot was lent the last time, None if not known."""
        cdef PyObject *code
        cdef int at
        with self.mutex:
            code = self.site_locked(index, &at)
        return describe(code, at)

    cdef PyObject *site_locked(self, int index, int *at) noexcept:
        """Caller holds the mutex, and gets a reference."""
        cdef fp_site *site = &self.chunk(index).sites[index & LAST]
        cdef PyObject *code = <PyObject *><size_t>fp_peek(&site.code)
        at[0] = <int>fp_peek(&site.at)
        Py_XINCREF(code)
        return code

    def checkout(self, uint64_t owner=0):
        """Lend a free connection, None when there is none or when others wait for too long.

        `owner`: the borrower's ident, 0 for the thread's.
        """
        cdef int index
        if fp_load(&self.is_closed) or (fp_load(&self.attention) and self.overdue()):
            return None
        index = self.claim()
        if index < 0:
            return None
        return self.lend(index, False, owner, fp_now_coarse())

    def generation(self, Entry entry not None):
        """The generation with which the connection is lent."""
        return fp_load(&self.slot(entry.index).word) >> 8

    # --- returning --------------------------------------------------------------------------

    def is_returning(self, Entry entry not None, uint64_t generation):
        """Whether the connection is being returned still, from the lending with this generation.
        """
        return (fp_load(&self.slot(entry.index).word) == (generation << 8 | RETURNING)
                and fp_load(&entry.fate) == RESIDENT)

    cdef bint left_while_lent(self, Entry entry) noexcept nogil:
        """Whether the connection left the table while lent, and has not been given back since."""
        cdef uint64_t fate
        with self.mutex:        # condemn() moves the word and the fate together
            fate = fp_load(&entry.fate)
        return fate != RESIDENT and fate != RETIRED

    def begin_return(self, conn, int64_t generation=-1):
        """Claim the right to return a lent connection: RETURN_TAKEN to exactly one caller.

        Else RETURN_FOREIGN or RETURN_NOT_LENT. To the first return of one that was evicted while it
        was lent RETURN_LATE, or RETURN_CONDEMNED if that was because its session had ended.
        """
        cdef Entry entry
        cdef int outcome
        found = getattr(conn, "_slot", None)
        if type(found) is not Entry:
            return FOREIGN
        entry = <Entry>found
        outcome = self.begin_return_c(entry, generation)
        if outcome != LATE:
            return outcome
        if fp_cas(&entry.fate, CONDEMNED, RETIRED):
            return CONDEMNED_LATE
        return LATE if fp_cas(&entry.fate, RETIRED_LENT, RETIRED) else NOT_LENT

    def expect_late(self, Entry entry not None):
        """Of a condemned connection that the caller has begun to return: its borrower, who did not
        ask for that, may still return it once."""
        fp_store(&entry.fate, RETIRED_LENT)

    def is_retired(self, Entry entry not None):
        """Whether the connection has been taken out of the table."""
        return fp_load(&entry.fate) != RESIDENT

    def is_expired(self, Entry entry not None):
        """Whether the connection has outlived its lifetime, or was made before the last drain."""
        cdef Slot *slot = self.slot(entry.index)
        return (slot.expires <= fp_now_coarse() or slot.epoch != fp_peek(&self.epoch))

    def is_drained(self, Entry entry not None):
        """Whether the connection was made before the last drain."""
        return self.slot(entry.index).epoch != fp_peek(&self.epoch)

    cdef bint is_kept(self) noexcept nogil:
        return self.keeps_idle or fp_load_seq(&self.attention) % CLOSED_BIAS != 0

    @property
    def keeps_returned(self):
        """Whether a connection that comes back is of use: to stand idle, or to somebody who waits.
        """
        return self.is_kept()

    @property
    def surplus(self):
        """Whether a resize left more connections than max_size."""
        return fp_load(&self.is_surplus) != 0

    def restore(self, conn, bint new_turn=True):
        """Make a connection that the caller returns or looked at AVAILABLE; serve whoever waits.

        With new_turn False it keeps its place in the order of lending. Return True when the table
        has been closed meanwhile: the caller then closes what it finds free.
        """
        cdef Entry entry = conn._slot
        self.check_owned(entry)
        self.make_available(self.slot(entry.index), entry, conn, fp_now_coarse())
        self.publish(entry.index, new_turn)
        if fp_load_seq(&self.attention):
            self.serve(False, new_turn)
        return fp_load(&self.is_closed) != 0

    # --- maintenance ------------------------------------------------------------------------

    def reserve(self, int index):
        """AVAILABLE -> RESERVED: the slot's connection, None when it is not free."""
        if index >= <int>fp_load(&self.n_chunks) * CHUNK or not self.claim_this(index):
            return None
        self.put_state(index, RESERVED)
        return self.take(index)

    def reserve_surplus(self):
        """Shrink: the connection idle longest, RESERVED, and how many stood available throughout
        the last period, if that is more than none and more than min_size are open; else None.
        Starts the next period.
        """
        cdef int index = -1
        cdef uint64_t low = fp_peek(&self.idle_low)
        with self.mutex:
            if self.size > self.min_size and low > 0:
                index = self.claim_by(False)
            fp_poke(&self.idle_low, self.n_free())
        if index < 0:
            return None
        self.put_state(index, RESERVED)
        return self.take(index), low

    def capacity(self):
        """How many slots there may be to look at."""
        return <int>fp_load(&self.n_chunks) * CHUNK

    def new_epoch(self):
        """Make every connection of today outdated (drain)."""
        fp_add_seq(&self.epoch, 1)

    def evict(self, conn, bint late=False):
        """Take a connection that the caller owns (RETURNING or RESERVED) out of the table. Its
        slot is CLOSING until recycle(); return the debt. `late`: its borrower did not ask for
        this, and may still return it once.
        """
        cdef Entry entry = conn._slot
        self.check_owned(entry)
        self.detach(entry, late)
        debt = self.new_debt(entry.index)
        self.serve_held_back()
        return debt

    cdef int check_owned(self, Entry entry) except -1:
        """The caller says that it owns the connection: RETURNING or RESERVED, and in this table."""
        if entry.table_id != <void *>self:
            raise RuntimeError("bug: the connection is not of this table")
        cdef int state = self.state(entry.index)
        if fp_load(&entry.fate) != RESIDENT or (state != RETURNING and state != RESERVED):
            raise RuntimeError(f"bug: slot {entry.index} is {STATES[state]}, not the caller's")
        return 0

    cdef int check_state(self, int index, int wanted) except -1:
        if self.state(index) != wanted:
            raise RuntimeError(
                f"bug: slot {index} is {STATES[self.state(index)]}, not {STATES[wanted]}")
        return 0

    cdef detach(self, Entry entry, bint late):
        with self.mutex:
            self.detach_locked(entry.index, RETIRED_LENT if late else RETIRED)

    cdef void detach_locked(self, int index, int fate) noexcept nogil:
        """-> CLOSING, and this is the connection's fate. Caller holds the mutex."""
        cdef Detail *detail = &self.chunk(index).details[index & LAST]
        fp_store(detail.fate, fate)
        detail.entry = detail.watch = NULL
        self.present -= 1
        fp_poke(&self.chunk(index).lent[index & LAST], 0)
        self.put_state(index, CLOSING)

    def condemn(self, int index, watch):
        """The session of the connection with this watch has ended: take it out of the table,
        AVAILABLE or IN_USE -> CLOSING, and nobody's: on_owed is told. Return (True, connection), or
        (True, None) if it is lent, and its borrower may return it once.

        (False, None) when it is somebody's for a moment, or not in the table.
        """
        cdef Slot *slot = self.slot(index)
        cdef Detail *detail = &self.chunk(index).details[index & LAST]
        cdef uint64_t word
        cdef bint lent = False
        cdef bint idle = False
        with self.mutex:
            if detail.watch == <PyObject *>watch:
                word = fp_load(&slot.word)
                if (word & 0xFF) == AVAILABLE:
                    idle = self.claim_this(index)
                    if idle:
                        self.detach_locked(index, RETIRED)
                # With a reference it is granted to a waiter that has not come for it yet.
                elif (word & 0xFF) == IN_USE and slot.conn == NULL:
                    lent = fp_cas(&slot.word, word, (word & ~<uint64_t>0xFF) | CLOSING)
                    if lent:
                        self.detach_locked(index, CONDEMNED)
        if not lent and not idle:
            return False, None
        conn = None
        if idle:
            conn = self.take(index)
            fp_poke(&self.chunk(index).lent[index & LAST], 0)     # not lent at all
        self.disown(index)
        self.serve_held_back()
        return True, conn

    def lost(self, Entry entry not None):
        """The connection was collected while lent: its slot is CLOSING, and nobody's. on_lost is
        told.

        Called by the entry's end, at any moment and in any thread; on_lost must cope with that.
        """
        cdef Slot *slot = self.slot(entry.index)
        cdef int64_t held = fp_now_coarse() - <int64_t>fp_peek(&slot.since)
        cdef uint64_t owner = 0 if self.borrower_has_ended(entry.index) else fp_peek(&slot.owner)
        cdef int state
        cdef bint mine = False
        # Not only while IN_USE: whoever was returning it, or looked at it, has gone as well. Nor
        # can anybody move the slot any more, for that takes the connection; but condemn() and
        # reclaim() can.
        if not self.is_ours():
            return
        with self.mutex:
            state = self.state(entry.index)
            if (fp_load(&entry.fate) == RESIDENT
                    and (state == IN_USE or state == RETURNING or state == RESERVED)):
                mine = True
                self.detach_locked(entry.index, RETIRED)
        if not mine:
            if fp_load(&entry.fate) == CONDEMNED:   # and never given back
                self.count(LOST)
            return
        self.disown(entry.index)
        if self.on_lost is not None:
            # A borrower that closed it on purpose knows what it does.
            closed = getattr(entry.pgconn, "status", 0) != 0
            self.on_lost(entry.index, entry.backend_pid, owner, held, closed)

    def reclaim(self, int index, uint64_t generation):
        """Take a connection out of the table that is lent, with this generation, to somebody who
        has ended. Return the slot's debt and the pgconn; None when it is not lent so any more. A
        late return is accepted, as after evict().
        """
        cdef Slot *slot = self.slot(index)
        cdef Detail *detail = &self.chunk(index).details[index & LAST]
        cdef uint64_t word
        cdef PyObject *pgconn = NULL
        with self.mutex:
            word = fp_load(&slot.word)
            if (word == (generation << 8 | IN_USE) and slot.conn == NULL and detail.entry != NULL
                    and fp_cas(&slot.word, word, (word & ~<uint64_t>0xFF) | RETURNING)):
                # No reference to the entry: it may have lost its last one, and stand before the
                # mutex in lost().
                pgconn = <PyObject *>(<Entry>detail.entry).pgconn
                Py_XINCREF(pgconn)
                self.detach_locked(index, RETIRED_LENT)
        if pgconn == NULL:
            return None
        debt = self.new_debt(index)
        self.serve_held_back()
        return debt, fp_steal(pgconn)

    cdef Debt new_debt(self, int index):
        cdef Debt debt = Debt.__new__(Debt)
        debt.table_ref = self.me
        debt.index = index
        self.chunk(index).details[index & LAST].debt = <PyObject *>debt
        self.chunk(index).details[index & LAST].orphan = False
        return debt

    cdef bint forget_debt(self, Debt debt):
        """The debt is dropped. Return whether the slot still waits for what it is owed."""
        cdef Detail *detail = &self.chunk(debt.index).details[debt.index & LAST]
        cdef bint unpaid
        if not self.is_ours():
            return False
        with self.mutex:
            unpaid = detail.debt == <PyObject *>debt
            if unpaid:
                detail.debt = NULL
        return unpaid

    cdef int disown(self, int index) except -1:
        """Whoever had to go on with the slot has gone: remember that, and tell on_owed.

        The telling is Python, in a finalizer, where an interrupt is lost with whatever it ends. So
        it is repeated then; and should that end so too, the next telling makes up for it.
        """
        cdef int attempt
        with self.mutex:
            self.chunk(index).details[index & LAST].orphan = True
        if self.on_owed is None:
            return 0
        for attempt in range(TELLINGS):
            try:
                self.on_owed(index)
                return 0
            except BaseException:
                if attempt == TELLINGS - 1:
                    raise
        return 0

    def orphans(self):
        """The debts of the slots with which nobody goes on any more, as a list, for the caller."""
        cdef int index
        cdef bint orphan
        debts = []
        for index in range(self.capacity()):
            with self.mutex:
                orphan = self.chunk(index).details[index & LAST].orphan
                self.chunk(index).details[index & LAST].orphan = False
            if orphan:
                debts.append(self.new_debt(index))
        return debts

    def owe(self, int index):
        """The debt of a slot that is CLOSING or CONNECTING, for who goes on with it."""
        if self.state(index) != CLOSING:
            self.check_state(index, CONNECTING)
        return self.new_debt(index)

    def recycle(self, int index, bint replace):
        """CLOSING -> CONNECTING (True: the caller owes a connect) or EMPTY (False).

        A slot beyond max_size, or of a closed table, is not replaced; nor one that nobody waits
        for, where none stands idle.
        """
        self.check_state(index, CLOSING)
        with self.mutex:
            if self.max_size and self.size > self.max_size:
                replace = False
            if fp_load(&self.is_closed) or not self.is_kept():
                replace = False
            if replace:
                self.chunk(index).details[index & LAST].orphan = False
                self.put_state(index, CONNECTING)
            else:
                self.leave_locked(index)
        return replace

    cdef void leave_locked(self, int index) noexcept nogil:
        """-> EMPTY. Caller holds the mutex."""
        cdef Detail *detail = &self.chunk(index).details[index & LAST]
        if detail.growth:
            detail.growth = False
            self.growing -= 1
        detail.debt = NULL
        detail.orphan = False
        self.put_state(index, EMPTY)
        self.size -= 1
        fp_store(&self.is_surplus, self.max_size != 0 and self.size > self.max_size)

    # --- connecting -------------------------------------------------------------------------

    cdef int enter_locked(self, bint growth) noexcept nogil:
        """EMPTY -> CONNECTING, the lowest there is; -1 when the chunks are full. Caller holds the
        mutex, and has seen that there is room."""
        cdef int index
        if self.max_size == 0 and not self.make_room(self.size + 1):
            return -1
        for index in range(<int>fp_peek(&self.n_chunks) * CHUNK):
            if (fp_peek(&self.slot(index).word) & 0xFF) == EMPTY:
                self.put_state(index, CONNECTING)
                self.chunk(index).details[index & LAST].growth = growth
                self.growing += growth
                self.size += 1
                return index
        return -1

    cdef bint has_room(self) noexcept nogil:
        return (self.max_size == 0 or self.size < self.max_size) and not fp_load(&self.is_closed)

    def grow(self):
        """Start one connect for those who wait, or towards min_size: its debt, else -1.

        At most max_connecting at once, and no more than there are waiters to serve, those not
        counted for whom there is one that is held back. Where none stands idle, who waits for the
        pool to be ready waits for one too.
        """
        cdef int index = -1
        cdef int wanted
        with self.mutex:
            wanted = self.n_waiting if self.keeps_idle else self.n_waiting + self.n_watching
            if self.width != 0:
                wanted -= self.n_free()
            if (self.has_room() and self.growing < self.max_connecting
                    and (wanted > self.growing or self.size < self.min_size)):
                index = self.enter_locked(True)
        return self.new_debt(index) if index >= 0 else -1

    def enter(self, int below):
        """Start one connect if fewer than `below` slots are taken: its debt, else -1."""
        cdef int index = -1
        with self.mutex:
            if self.size < below and self.has_room():
                index = self.enter_locked(False)
        return self.new_debt(index) if index >= 0 else -1

    def owed(self):
        """The debts of the slots that are CONNECTING, as a list."""
        cdef int index
        return [self.new_debt(index) for index in range(self.capacity())
                if self.state(index) == CONNECTING]

    def install(
        self, int index, conn, pgconn, long backend_pid, int64_t expires_ns, uint64_t owner=0,
        watch=None,
    ):
        """CONNECTING -> AVAILABLE with this connection; serve whoever waits. With the ident of an
        `owner`: CONNECTING -> IN_USE, lent to that one. `watch`: what watches its socket, closed by
        the entry's end at the latest.

        Return False when the table is closed. Raises AttributeError when the connection takes no
        attributes. The slot is still CONNECTING then.
        """
        self.check_state(index, CONNECTING)
        cdef Slot *slot = self.slot(index)
        cdef Entry entry = Entry.__new__(Entry)
        cdef Waiter waiter = None
        cdef bint closed
        cdef bint again = False
        cdef bint asleep = False
        fp_store(&entry.fate, RETIRED)  # until it is in the table its finalizer has nothing to say
        entry.table_ref = self.me
        entry.table_id = <void *>self
        entry.pgconn = pgconn
        entry.index = index
        entry.backend_pid = backend_pid
        entry.created = fp_now_coarse()
        entry.watch = watch
        if type(conn) is not conn.__class__:
            entry.face = conn
        conn._slot = entry
        if FREE_THREADED:
            # The attributes' dictionary is made here, by a thread that soon ends: one that was made
            # by a borrower could not be freed, nor the loss be noticed, while that thread sleeps
            # (PEP 703, biased reference counting).
            conn.__dict__
        slot.expires = expires_ns
        slot.epoch = fp_load(&self.epoch)
        fp_poke(&slot.uses, 0)
        fp_poke(&slot.owner, 0)
        if owner:
            self.mark(&self.chunk(index).sites[index & LAST])
        with self.mutex:
            closed = fp_load(&self.is_closed) != 0
            if not closed:
                fp_store(&entry.fate, RESIDENT)
                self.chunk(index).details[index & LAST].entry = <PyObject *>entry
                self.chunk(index).details[index & LAST].fate = &entry.fate
                self.chunk(index).details[index & LAST].watch = <PyObject *>watch
                self.chunk(index).details[index & LAST].debt = NULL
                self.present += 1
                if self.chunk(index).details[index & LAST].growth:
                    self.chunk(index).details[index & LAST].growth = False
                    self.growing -= 1
                if owner:
                    self.stamp(self.slot(index), owner, fp_now_coarse())
                else:
                    self.make_available(slot, entry, conn, fp_now_coarse())
                    self.publish(index, True)
                    # At once, and before the mutex is let go: or grow() found the connect counted
                    # out, the waiter for whom it was still there, and opened another.
                    waiter = self.serve_one(fp_now(), True, &again, &asleep)
        if asleep:
            self.wake(waiter)
        if fp_load_seq(&self.attention):
            self.serve(True)
        return not closed

    def vacate(self, int index):
        """CONNECTING -> EMPTY: the connect was given up."""
        self.check_state(index, CONNECTING)
        with self.mutex:
            self.leave_locked(index)

    def vacate_unpaid(self, Debt debt not None):
        """The same, unless the debt is paid: for a connect that was interrupted at any point."""
        if self.forget_debt(debt):
            self.vacate(debt.index)

    def resize(self, int min_size, int max_size):
        """Set the sizes. Starts nothing and closes nothing: see enter() and surplus."""
        if max_size > MAX_SLOTS:
            raise ValueError(f"a pool holds at most {MAX_SLOTS} connections, not {max_size}")
        cdef bint done
        with self.mutex:
            done = self.make_room(max_size)     # raw memory, which no collector watches
            if done:
                self.min_size = min_size
                self.max_size = max_size
                fp_store(&self.is_surplus, max_size != 0 and self.size > max_size)
        if not done:
            raise MemoryError
        if fp_load_seq(&self.attention):
            self.serve()

    # --- waiting ----------------------------------------------------------------------------

    cdef void link(self, Waiter waiter, bint watcher) noexcept:
        """Put it at the end of its queue. Caller holds the mutex."""
        cdef PyObject *me = <PyObject *>waiter
        cdef PyObject *last = self.last_watcher if watcher else self.last
        # A reference that the collector can't see, or it took the last one for garbage.
        Py_INCREF(waiter)
        waiter.queued = True
        waiter.previous = last
        waiter.next = NULL
        if last != NULL:
            (<Waiter>last).next = me
        if watcher:
            if last == NULL:
                self.first_watcher = me
            self.last_watcher = me
            self.n_watching += 1
        else:
            if last == NULL:
                self.first = me
                fp_store(&self.head_since, <uint64_t>waiter.since)
            self.last = me
            self.n_waiting += 1
            if self.width != 0 and self.lookout == NULL:
                self.lookout = me
        fp_add_seq(&self.attention, 1)

    cdef void unlink(self, Waiter waiter, bint watcher) noexcept:
        """Take it out of its queue. Caller holds the mutex, and a reference to it."""
        cdef PyObject *before = waiter.previous
        cdef PyObject *after = waiter.next
        if before != NULL:
            (<Waiter>before).next = after
        if after != NULL:
            (<Waiter>after).previous = before
        if watcher:
            if before == NULL:
                self.first_watcher = after
            if after == NULL:
                self.last_watcher = before
            self.n_watching -= 1
        else:
            if before == NULL:
                self.first = after
                fp_store(&self.head_since, <uint64_t>(<Waiter>after).since if after != NULL else 0)
                if after == NULL and self.pacer is not None:
                    self.pacer.pause()
                    self.heed_pacer()
            if after == NULL:
                self.last = before
            if self.lookout == <PyObject *>waiter:
                self.lookout = NULL
            self.n_waiting -= 1
        fp_add_seq(&self.attention, <uint64_t>-1)
        waiter.next = waiter.previous = NULL
        waiter.queued = False
        Py_DECREF(waiter)               # not the last: the caller has one

    cdef void settle(self, Waiter waiter, int outcome, int index, int64_t now) noexcept:
        """WAITING -> outcome, once, out of the queue. Caller holds the mutex."""
        fp_store(&waiter.outcome, outcome)
        waiter.index = index
        self.wait_ns += now - waiter.since
        self.unlink(waiter, False)

    def enqueue(self, Waiter waiter not None, int max_waiting=0):
        """Queue up. Return a connection when one turned up at the second look, else None: then
        park, and resume(). Raises OverflowError when max_waiting others wait already.

        A closed table settles the waiter at once (was_shut).
        """
        cdef int index = -1
        cdef bint full = False
        cdef uint64_t at
        waiter.since = fp_now()
        waiter.table_ref = self.me
        fp_poke(&waiter.site.code, <size_t>fp_here(&at))
        fp_poke(&waiter.site.at, at)
        fp_poke(&waiter.site.thread, fp_thread())
        if waiter.lock == NULL and self.pacer is not None:
            self.stop_pacing()      # its park() is the shell's, and looks after nothing
        with self.mutex:
            if fp_load(&self.is_closed):
                fp_store(&waiter.outcome, SHUT)
            elif max_waiting > 0 and self.n_waiting >= max_waiting:
                full = True
            else:
                self.queued += 1
                self.link(waiter, False)
                # The second look. Only the first in the queue may: waiters don't overtake.
                if self.first == <PyObject *>waiter:
                    index = self.claim()
                    if index >= 0:
                        self.stamp_for(index, waiter)
                        self.settle(waiter, GRANTED, index, waiter.since)
        if full:
            raise OverflowError(max_waiting)
        if index < 0:
            waiter.is_suspect = self.is_holder(waiter.owner)
            return None
        return self.after_leaving(waiter)

    # --- deadlocks ------------------------------------------------------------------------------

    cdef bint is_holder(self, uint64_t owner) noexcept nogil:
        """Whether the pool is at its maximum, and this one has some of it."""
        cdef int index
        cdef Slot *slot
        if self.max_size == 0 or self.size < self.max_size:
            return False
        for index in range(self.max_size):
            slot = self.slot(index)
            if fp_peek(&slot.owner) == owner and (fp_load(&slot.word) & 0xFF) == IN_USE:
                return True
        return False

    cdef bint borrower_has_ended(self, int index) noexcept:
        """Whether the thread that borrowed the slot last has ended: its ident, which is the owner's
        of a thread pool, may be another one's by now."""
        return fp_has_ended(fp_peek(&self.chunk(index).sites[index & LAST].thread))

    cdef PyObject *waiter_of(self, uint64_t owner) noexcept:
        """The first waiter of this owner, NULL when there is none. Caller holds the mutex."""
        cdef PyObject *cursor = self.first
        while cursor != NULL and (<Waiter>cursor).owner != owner:
            cursor = (<Waiter>cursor).next
        return cursor

    cdef bint all_wait_locked(self, double brief) noexcept:
        """Whether all slots that there may be are lent, each to an owner who waits here, and for
        more than *brief* seconds. Caller holds the mutex."""
        cdef int index, state
        cdef Slot *slot
        cdef PyObject *waiter
        if self.max_size == 0 or self.size != self.max_size or fp_load(&self.is_closed):
            return False
        for index in range(<int>fp_peek(&self.n_chunks) * CHUNK):
            slot = self.slot(index)
            state = self.state(index)
            if state == EMPTY:
                continue
            if state != IN_USE or slot.conn != NULL or self.borrower_has_ended(index):
                return False
            waiter = self.waiter_of(fp_peek(&slot.owner))
            if waiter == NULL or (<Waiter>waiter).patience <= brief:
                return False
        return True

    def deadlock_suspects(self, double brief):
        """(index, generation, owner) of each slot, if each is held by an owner who waits here, for
        more than *brief* seconds; else None. An owner is a number that says who borrowed: whether
        that one still has it, and can't give it back, the caller finds out."""
        cdef int index
        cdef bint all_wait
        with self.mutex:
            all_wait = self.all_wait_locked(brief)
        if not all_wait:
            return None
        return [(index, fp_load(&self.slot(index).word) >> 8, fp_peek(&self.slot(index).owner))
                for index in range(self.capacity()) if self.state(index) == IN_USE]

    def sessions(self, list held not None):
        """The pgconn of each of these lendings; None when one has ended, or has none. No reference
        to their entries: see reclaim()."""
        cdef int index
        cdef uint64_t generation
        cdef PyObject *pgconn
        cdef Detail *detail
        found = []
        for index, generation, _ in held:
            detail = &self.chunk(index).details[index & LAST]
            pgconn = NULL
            with self.mutex:
                if (fp_load(&self.slot(index).word) == (generation << 8 | IN_USE)
                        and detail.entry != NULL):
                    pgconn = <PyObject *>(<Entry>detail.entry).pgconn
                    Py_XINCREF(pgconn)
            if pgconn == NULL:
                return None
            found.append(fp_steal(pgconn))
        return None if None in found else found

    def break_deadlock(self, list held not None, double brief):
        """Settle those who wait and hold, if these lendings still are all that there is. Return
        whether they are. *brief*: as above."""
        cdef int index
        cdef bint asleep
        cdef bint holds = True
        cdef uint64_t generation, owner
        cdef Waiter waiter
        cdef PyObject *found
        for index, generation, _ in held:
            holds = holds and fp_load(&self.slot(index).word) == (generation << 8 | IN_USE)
        with self.mutex:
            holds = holds and self.all_wait_locked(brief) and self.size == len(held)
        if not holds:
            return False
        for _, _, owner in held:
            waiter = None
            asleep = False
            with self.mutex:
                found = self.waiter_of(owner)
                if found != NULL:
                    waiter = <Waiter>found
                    self.settle(waiter, DEADLOCKED, -1, fp_now())
                    asleep = not waiter.token
                    waiter.token = True
            if asleep:
                self.wake(waiter)
        return True

    cdef wake(self, Waiter waiter):
        """End the waiter's parking. Its token says that this happens once. Outside the mutex."""
        if waiter.lock != NULL:
            PyThread_release_lock(waiter.lock)
        else:
            waiter.wake_call()

    cdef int park(self, Waiter waiter, int64_t deadline) except -1:
        """Sleep until woken (True) or until the deadline; signal handlers run, and may raise."""
        cdef long long microseconds
        cdef int outcome
        cdef int64_t until
        while True:
            until = deadline
            if self.lookout == <PyObject *>waiter:
                until = min(deadline, fp_now() + self.pacer.patience_of(self.n_waiting))
            microseconds = -1           # for ever
            if until < NEVER:
                microseconds = max(<int64_t>0, (until - fp_now() + 999) // 1000)
                if microseconds > PY_TIMEOUT_MAX:
                    microseconds = PY_TIMEOUT_MAX
            # Before, too: a signal that came since the last line of Python interrupts no sleep.
            Py_MakePendingCalls()
            with nogil:
                outcome = PyThread_acquire_lock_timed(waiter.lock, microseconds, 1)
            if outcome == PY_LOCK_ACQUIRED:
                return True
            if outcome != PY_LOCK_INTR:
                if until == deadline:
                    return False
                self.end_stall()

    cdef void heed_pacer(self) noexcept:
        """Lend as many at once as it says. Caller holds the mutex."""
        self.width = self.pacer.width
        if self.width == 0:
            self.lookout = NULL

    cdef Waiter appoint_lookout(self):
        """Have the last in the queue look after a stall, where that is called for and nobody does.
        Return it if it has to be woken for that, outside the mutex, which the caller holds."""
        cdef Waiter last
        if self.width == 0 or self.lookout != NULL or self.last == NULL:
            return None
        self.lookout = self.last
        last = <Waiter>self.last
        if last.token:
            return None                 # it is awake
        last.token = True
        return last

    cdef end_stall(self):
        """Lend what is held back if none of those that are lent comes back any more."""
        cdef bint stalled
        with self.mutex:
            stalled = self.pacer is not None and self.pacer.has_stalled(fp_now())
            if stalled:
                self.pacer.relax()
                self.heed_pacer()
        if stalled:
            self.serve()

    cdef stop_pacing(self):
        """Lend all that there are, from now on."""
        with self.mutex:
            self.width = 0
            self.lookout = NULL
            self.pacer = None
        if fp_load_seq(&self.attention):
            self.serve()

    cdef serve_held_back(self):
        """A connection has left the table: one that was held back may take its turn."""
        if self.width != 0:
            self.serve()

    def park_until(self, Waiter waiter not None, double timeout):
        """Park the thread that watches with this waiter, *timeout* seconds at most."""
        if fp_load(&waiter.outcome) == WAITING:
            self.park(waiter, NEVER if timeout >= 1e9 else fp_now() + <int64_t>(timeout * 1e9))

    def wait(self, Waiter waiter not None, double timeout):
        """Park the thread that queued this waiter. Return its connection; None when the table was
        closed (was_shut), or none came in *timeout* seconds. Raises what signal handlers raise:
        abandon() then.
        """
        cdef int64_t deadline = NEVER
        if timeout < 1e9:
            deadline = fp_now() + <int64_t>(timeout * 1e9)
        while True:
            woken = fp_load(&waiter.outcome) == WAITING and self.park(waiter, deadline)
            conn = self.resume(waiter, woken)
            # Not: if it is settled. A grant that came since resume() looked is for the next round.
            if conn is not None or fp_load(&waiter.outcome) >= SHUT:
                return conn
            if fp_now() >= deadline:
                return self.abandon(waiter)

    cdef object after_leaving(self, Waiter waiter):
        """A waiter has its slot: others may be free as well, and the next in the queue asleep."""
        if fp_load_seq(&self.attention):
            self.serve()
        return self.collect(waiter)

    cdef object collect(self, Waiter waiter):
        cdef int index = waiter.index
        if index < 0:
            return None
        waiter.index = -1
        return self.take(index)

    cdef int give_up(self, int index) except -1:
        """Make a granted slot AVAILABLE again, whose waiter is gone."""
        conn = self.take(index)
        if self.begin_return(conn) == TAKEN:    # else condemned since
            self.restore(conn)
        return 0

    def resume(self, Waiter waiter not None, bint woken=True):
        """After parking: the connection granted or found, or None: the pool was shut, or somebody
        was faster and the caller parks again. `woken` is False when the parking timed out: a
        wake-up may still be on its way, and no second one must follow it."""
        cdef int index
        cdef int64_t now = fp_now()
        cdef bint found = False
        cdef bint settled
        cdef Waiter lookout = None
        with self.mutex:
            if woken:
                waiter.token = False
            if (fp_load(&waiter.outcome) == WAITING and self.first == <PyObject *>waiter
                    and not self.holds_back()):
                index = self.claim()
                if index >= 0:
                    self.stamp_for(index, waiter)
                    self.settle(waiter, GRANTED, index, now)
                    found = True
            settled = fp_load(&waiter.outcome) != WAITING
            if self.pacer is not None:
                if waiter.granted:
                    self.pacer.came(now - waiter.granted)
                lookout = self.appoint_lookout()
        if lookout is not None:
            self.wake(lookout)
        if found:
            return self.after_leaving(waiter)
        # A grant that comes from here on is still being written: it is for the next round.
        return self.collect(waiter) if settled else None

    def abandon(self, Waiter waiter not None):
        """Leave the queue: timed out, cancelled, interrupted. Return the connection if one was
        granted meanwhile, or was held back: the caller uses it, or gives it back."""
        cdef bint pass_on = False
        cdef int64_t now = fp_now()
        cdef int index
        cdef Waiter lookout
        with self.mutex:
            if fp_load(&waiter.outcome) == WAITING and waiter.queued:
                pass_on = waiter.token          # its wake-up is somebody else's now
                index = self.claim() if self.width else -1
                if index >= 0:
                    self.stamp_for(index, waiter)
                self.settle(waiter, GRANTED if index >= 0 else GONE, index, now)
            elif fp_load(&waiter.outcome) == WAITING:
                fp_store(&waiter.outcome, GONE)
            lookout = self.appoint_lookout()
        if lookout is not None:
            self.wake(lookout)
        # Also when it was first and never woken: the next may have a free connection to claim.
        if pass_on or fp_load_seq(&self.attention):
            self.serve()
        return self.collect(waiter)

    cdef Waiter serve_one(self, int64_t now, bint at_once, bint *again, bint *asleep):
        """Decide about the first waiter, and return it: the caller, who holds the mutex, drops
        what may be the last reference after it let go, and wakes it if it is asleep."""
        cdef Waiter head
        cdef int index
        again[0] = asleep[0] = False
        if self.first == NULL:
            return self.serve_watcher(again, asleep)
        head = <Waiter>self.first
        if self.holds_back():
            return head
        if not at_once and not self.width and now - head.since < self.tau:
            asleep[0] = not head.token and self.any_free()
            head.token |= asleep[0]
            return head
        index = self.claim()
        if index < 0:
            return head
        again[0] = True
        self.stamp_for(index, head)
        self.settle(head, GRANTED, index, now)
        head.granted = now
        asleep[0] = not head.token      # else it is awake already, on its way to resume()
        head.token = True
        return head

    cdef bint is_ready(self) noexcept nogil:
        """Whether as many stand available as should; where none should, one shows that it can."""
        return self.n_free() >= (self.min_size if self.keeps_idle else 1)

    cdef Waiter serve_watcher(self, bint *again, bint *asleep):
        """Wake one of those who wait for a full pool, if it is. Caller holds the mutex."""
        cdef Waiter head
        if self.first_watcher == NULL or not self.is_ready():
            return None
        head = <Waiter>self.first_watcher
        fp_store(&head.outcome, GRANTED)
        self.unlink(head, True)
        again[0] = asleep[0] = True
        return head

    cdef bint holds_back(self) noexcept nogil:
        """Whether as many are lent as should be at once while others wait."""
        return self.width != 0 and self.present - self.n_free() >= self.width

    cdef Waiter pace(self, int64_t now):
        """A connection came back. Return a waiter that has to be woken, as appoint_lookout()."""
        cdef int before = self.width
        if self.first == NULL:
            return None
        self.pacer.returned(now, fp_load(&self.turns), self.present)
        self.heed_pacer()
        # Later on those who come, and those who leave, see to it that somebody is.
        return self.appoint_lookout() if before == 0 else None

    cpdef object serve(self, bint at_once=False, bint returned=False):
        """While somebody waits and something is free: wake or grant, first come first served.
        `at_once`: grant, however young the first waiter is. `returned`: a connection came back."""
        cdef Waiter waiter
        cdef Waiter lookout = None
        cdef bint again = True
        cdef bint asleep = False
        cdef int64_t now = fp_now()
        while again:
            waiter = None
            with self.mutex:
                if returned and self.pacer is not None:
                    lookout = self.pace(now)
                    returned = False
                waiter = self.serve_one(now, at_once, &again, &asleep)
            if asleep:
                self.wake(waiter)
        if lookout is not None:
            self.wake(lookout)

    def watch(self, Waiter waiter not None):
        """Wait until min_size connections stand available. True when they do already."""
        cdef bint done
        with self.mutex:
            self.link(waiter, True)
            done = fp_load(&self.is_closed) != 0 or self.is_ready()
            if done:
                fp_store(&waiter.outcome, SHUT if fp_load(&self.is_closed) else GRANTED)
                self.unlink(waiter, True)
        return done

    def unwatch(self, Waiter waiter not None):
        """Stop watching. Return whether it was settled before."""
        cdef bint settled
        with self.mutex:
            settled = fp_load(&waiter.outcome) != WAITING
            if not settled:
                fp_store(&waiter.outcome, GONE)
            if waiter.queued:
                self.unlink(waiter, True)
        return settled

    # --- the end ----------------------------------------------------------------------------

    def close(self):
        """Lend nothing any more, and settle all who wait. Return True to the first caller."""
        cdef Waiter waiter
        cdef bint asleep
        cdef bint first = fp_cas(&self.is_closed, 0, 1)
        if first:
            fp_add_seq(&self.attention, CLOSED_BIAS)
        while True:
            waiter = None
            asleep = False
            with self.mutex:
                if self.first != NULL:
                    waiter = <Waiter>self.first
                    self.settle(waiter, SHUT, -1, fp_now())
                elif self.first_watcher != NULL:
                    waiter = <Waiter>self.first_watcher
                    fp_store(&waiter.outcome, SHUT)
                    self.unlink(waiter, True)
                if waiter is not None:
                    asleep = not waiter.token
                    waiter.token = True
            if waiter is None:
                return first
            if asleep:
                self.wake(waiter)

    @property
    def closed(self):
        return fp_load(&self.is_closed) != 0

    # --- looking ----------------------------------------------------------------------------

    def count(self, int event, int64_t amount=1):
        """Add to one of the COUNT_* events."""
        fp_add(&self.events[event], <uint64_t>amount)

    def counts(self):
        """(slots taken, available, waiting) now."""
        cdef int size, free, waiting
        with self.mutex:
            size, free, waiting = self.size, self.n_free(), self.n_waiting
        return size, free, waiting

    def counters(self):
        """Every counter since the start, by its name in the stats; times in ns."""
        cdef uint64_t requests = fp_peek(&self.events[REQUESTS])
        cdef uint64_t queued
        cdef int64_t wait_ns
        cdef int index
        for index in range(self.capacity()):
            requests += fp_peek(&self.slot(index).requests)
        with self.mutex:
            queued = self.queued
            wait_ns = self.wait_ns
        return {
            "requests_num": requests,
            "requests_queued": queued,
            "requests_wait_ms": wait_ns,
            "requests_errors": fp_peek(&self.events[REQUEST_ERRORS]),
            "usage_ms": fp_peek(&self.events[USAGE_NS]),
            "returns_bad": fp_peek(&self.events[RETURNS_BAD]),
            "connections_num": fp_peek(&self.events[CONNECTS]),
            "connections_ms": fp_peek(&self.events[CONNECT_NS]),
            "connections_errors": fp_peek(&self.events[CONNECT_ERRORS]),
            "connections_lost": fp_peek(&self.events[LOST]),
        }

    def survey(self):
        """(waiting, ns the first has waited, list of slots), each slot as (state, backend pid,
        age ns, ns in this state, uses, owner ident, call site, generation, whether it is lent to a
        thread that is known to have ended). One pass: each slot is counted once."""
        cdef int index, waiting
        cdef int room = 0
        cdef int n = 0
        cdef int64_t oldest, now
        cdef View *views = NULL
        try:
            while True:
                drop_views(views, room)
                room = self.capacity()
                views = <View *>PyMem_RawCalloc(room, sizeof(View))
                if views == NULL:
                    raise MemoryError
                with self.mutex:
                    now = fp_now()
                    waiting = self.n_waiting
                    oldest = now - (<Waiter>self.first).since if self.first != NULL else 0
                    n = self.view_locked(views, room)
                if n <= room:           # else it has been resized meanwhile
                    break
            # Outside the mutex, for building these allocates.
            slots = [
                (
                    views[index].state,
                    views[index].pid if views[index].created >= 0 else None,
                    max(0, now - views[index].created) if views[index].created >= 0 else None,
                    max(0, now - views[index].since) if views[index].since else 0,
                    views[index].uses if views[index].created >= 0 else 0,
                    views[index].owner if views[index].state == IN_USE else None,
                    describe_view(&views[index]),
                    views[index].generation,
                    views[index].state == IN_USE and fp_has_ended(views[index].thread),
                )
                for index in range(n)
            ]
        finally:
            drop_views(views, room)
        return waiting, oldest, slots

    cdef int view_locked(self, View *views, int room) noexcept:
        """Copy the slots. Return how many make up the picture: those that max_size allows, and
        those beyond it that are taken. Caller holds the mutex."""
        cdef int index
        cdef int taken = 0
        cdef uint64_t word
        cdef Slot *slot
        cdef Detail *detail
        for index in range(room):
            slot = self.slot(index)
            word = fp_load(&slot.word)
            views[index].state = word & 0xFF
            views[index].generation = word >> 8
            views[index].since = <int64_t>fp_peek(&slot.since)
            views[index].uses = fp_peek(&slot.uses)
            views[index].owner = fp_peek(&slot.owner)
            views[index].created = -1
            if views[index].state == IN_USE:
                views[index].code = self.site_locked(index, &views[index].at)
                views[index].thread = fp_peek(&self.chunk(index).sites[index & LAST].thread)
            if views[index].state != EMPTY:
                taken = index + 1
            detail = &self.chunk(index).details[index & LAST]
            if detail.entry != NULL:
                views[index].pid = (<Entry>detail.entry).backend_pid
                views[index].created = (<Entry>detail.entry).created
        return max(room if self.max_size == 0 else self.max_size, taken)

    def state_name(self, int index):
        """The state of one slot, by its name."""
        if not 0 <= index < self.capacity():
            raise IndexError(f"no slot {index}")
        return STATES[self.state(index)]

    def idle(self):
        """The available connections, the next to be lent first. Looks at one slot after the other;
        each goes back to its place in the order. See restore() about a table closed meanwhile."""
        cdef int index
        found = []
        for index in range(self.capacity()):
            if self.claim_this(index):
                found.append((fp_peek(&self.chunk(index).turn[index & LAST]), index,
                              <object>self.slot(index).conn))
                self.publish(index, False)
        if fp_load_seq(&self.attention):
            self.serve()
        found.sort(key=by_index if self.lifo else by_turn)
        return [conn for _, _, conn in found]

    def verify(self):
        """Check the invariants that hold at rest; raise AssertionError naming the one that broke.

        For tests: nothing else may use the table meanwhile.
        """
        cdef int index, state
        cdef int taken = 0
        cdef int present = 0
        cdef int growing = 0
        cdef int linked = 0
        cdef int looked_out = 0
        cdef bint bit
        cdef Slot *slot
        cdef PyObject *cursor
        connections = set()
        for index in range(self.capacity()):
            slot = self.slot(index)
            state = self.state(index)
            bit = (fp_load(&self.chunk(index).free) >> (index & LAST)) & 1
            growing += self.chunk(index).details[index & LAST].growth
            taken += state != EMPTY
            present += self.chunk(index).details[index & LAST].entry != NULL
            demand(bit == (state == AVAILABLE), f"slot {index} is {STATES[state]}, its bit {bit}")
            demand((slot.conn != NULL) == (state == AVAILABLE) or state == IN_USE,
                   f"slot {index} is {STATES[state]}, its reference {slot.conn != NULL}")
            if slot.conn != NULL:
                demand(<size_t>slot.conn not in connections, f"slot {index}: held twice")
                connections.add(<size_t>slot.conn)
        cursor = self.first
        while cursor != NULL:
            linked += 1
            looked_out += cursor == self.lookout
            demand(fp_load(&(<Waiter>cursor).outcome) == WAITING, "a settled waiter is queued")
            cursor = (<Waiter>cursor).next
        demand(taken == self.size, f"{taken} slots taken, size {self.size}")
        demand(present == self.present, f"{present} connections, counted {self.present}")
        demand(growing == self.growing, f"{growing} slots growing, counted {self.growing}")
        demand(linked == self.n_waiting, f"{linked} queued, counted {self.n_waiting}")
        demand(looked_out == (self.lookout != NULL), "the lookout is not queued")
        demand(fp_load(&self.attention) % CLOSED_BIAS
               == <uint64_t>(self.n_waiting + self.n_watching), "attention miscounts")
        demand(self.max_size == 0 or self.size <= self.max_size or self.surplus,
               f"size {self.size} above {self.max_size}")


cdef object describe(PyObject *code, int at):
    """(file, line, function) of a place in a code object; takes the reference."""
    if code == NULL:
        return None
    found = fp_steal(code)
    if not isinstance(found, CodeType):
        return None
    # 3.10's has the bare name only.
    return (found.co_filename, fp_line(found, at),
            getattr(found, "co_qualname", found.co_name))


cdef object describe_view(View *view):
    cdef PyObject *code = view.code
    view.code = NULL
    return describe(code, view.at)


cdef void drop_views(View *views, int n) noexcept:
    """Let go of a survey's copy, after an exception too."""
    cdef int i
    if views != NULL:
        for i in range(n):
            Py_XDECREF(views[i].code)
        PyMem_RawFree(views)


def skip_frames_of(dict module_globals not None):
    """Say that a module's functions are not where a program calls the pool from."""
    fp_add_own(module_globals)


def by_turn(row):
    return row[0]


def by_index(row):
    return row[1]


cdef demand(bint holds, str what):
    if not holds:
        raise AssertionError(what)


# ---- how this was compiled

cdef extern from *:
    """
    #define FP_TEXT_(x) #x
    #define FP_TEXT(x) FP_TEXT_(x)
    #ifndef FASTPOOL_BUILD
    #define FASTPOOL_BUILD of unknown kind
    #endif
    #if defined(__clang__)
    #define FP_COMPILER "clang " __clang_version__
    #elif defined(_MSC_VER)
    #define FP_COMPILER "MSVC " FP_TEXT(_MSC_VER)
    #else
    #define FP_COMPILER "gcc " __VERSION__
    #endif
    #define FP_BUILD FP_TEXT(FASTPOOL_BUILD) ", " FP_COMPILER
    """
    const char *FP_BUILD

# "release, gcc 12.2.0": setup.py's word for the kind of build, and the compiler's for itself.
BUILD = FP_BUILD.decode("utf-8", "replace").strip()
