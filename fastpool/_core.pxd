# Table of contents of the core, and the core's hot path: what a checkout and a return do to a slot.
#
# The latter is at the end of SlotTable, with its bodies, so that the C compiler can put it into
# _fastpath's functions. What the states, the bitmap and the orders mean is said in _core.pyx.

cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t, uint64_t

from fastpool._pacing cimport Pacer

cdef extern from "_atomic.h" nogil:
    ctypedef struct fp_atomic:
        pass
    uint64_t fp_load(fp_atomic *a)
    void fp_store(fp_atomic *a, uint64_t x)
    uint64_t fp_peek(fp_atomic *a)
    void fp_poke(fp_atomic *a, uint64_t x)
    uint64_t fp_load_seq(fp_atomic *a)
    int fp_cas(fp_atomic *a, uint64_t expected, uint64_t desired)
    uint64_t fp_or(fp_atomic *a, uint64_t x)
    uint64_t fp_and(fp_atomic *a, uint64_t x)
    uint64_t fp_add(fp_atomic *a, uint64_t x)
    uint64_t fp_add_seq(fp_atomic *a, uint64_t x)
    int fp_lowest(uint64_t x)
    int fp_count(uint64_t x)
    int64_t fp_now()
    int64_t fp_now_coarse()

cdef extern from "_site.h":
    ctypedef struct fp_site:
        fp_atomic code
        fp_atomic at
        fp_atomic thread
    uint64_t fp_thread() nogil
    bint fp_has_ended(uint64_t thread)
    int fp_mark(fp_site *site) nogil
    PyObject *fp_here(uint64_t *at)
    void fp_add_own(object)
    int fp_line(object code, int at)

cdef extern from "pythread.h" nogil:
    unsigned long PyThread_get_thread_ident()

cdef extern from *:
    """
    #define fp_steal(p) (p)
    #ifdef Py_GIL_DISABLED
    #define FP_FREE_THREADED 1
    #else
    #define FP_FREE_THREADED 0
    #endif
    """
    object fp_steal(PyObject *p)        # the C reference becomes Python's, uncounted
    bint FREE_THREADED "FP_FREE_THREADED"

cdef enum:
    SHIFT = 5
    CHUNK = 32              # slots in a chunk, 1 << SHIFT: half a word of the free bitmap, for
                            # with 64 a pool of two would take 4 KiB more
    LAST = 31               # in its chunk, slot i is i & LAST
    HINTS = 16
    FEW = 4                 # chunks for which no directory is allocated
    MAX_CHUNKS = 512
    MAX_SLOTS = 16384       # CHUNK * MAX_CHUNKS

cdef enum State:
    EMPTY = 0
    CONNECTING = 1
    AVAILABLE = 2
    IN_USE = 3
    RETURNING = 4
    RESERVED = 5
    CLOSING = 6

# What a return turned out to be (SlotTable.begin_return).
cdef enum Return:
    TAKEN = 0               # the caller owns the slot now, state RETURNING
    FOREIGN = 1             # not a connection of this table
    NOT_LENT = 2            # given back already, or never lent
    LATE = 3                # was lent, and has been taken out of the table meanwhile
    CONDEMNED_LATE = 4      # ... because its session had ended

cdef enum Fate:
    RESIDENT = 0
    RETIRED = 1             # taken out of the table
    RETIRED_LENT = 2        # ... while its borrower had it: one late return is accepted quietly
    CONDEMNED = 3           # ... because its session had ended: one late return is told so
    INHERITED = 4           # of the process that this one was forked from

# Events that any thread may count (SlotTable.count); nanoseconds where the name says so.
cdef enum:
    REQUESTS = 0            # beyond Slot.requests
    REQUEST_ERRORS = 1
    USAGE_NS = 2
    RETURNS_BAD = 3
    CONNECTS = 4
    CONNECT_NS = 5
    CONNECT_ERRORS = 6
    LOST = 7
    N_COUNTERS = 8

# One cache line: all that a checkout and a return touch. Whoever owns the slot (see the essay)
# writes it; the fields that others read for a snapshot are atomic words, relaxed.
cdef struct Slot:
    fp_atomic word          # state in the low 8 bits, generation above
    PyObject *conn          # owned, and NULL while lent: then the borrower holds the only reference
    int64_t expires         # ns
    uint64_t epoch          # the table's epoch when the connection was made; drain() moves that on
    fp_atomic since         # ns, when it entered this state
    fp_atomic uses          # lendings of this connection
    fp_atomic requests      # lendings by the fast path, of all connections of this slot
    fp_atomic owner         # ident of the borrower: its thread's, or its task's

# Changed under the mutex only.
cdef struct Detail:
    PyObject *entry         # borrowed: the connection's Entry, NULL when there is no connection
    fp_atomic *fate         # that entry's
    PyObject *watch         # that entry's, to know it by; never followed
    PyObject *debt          # borrowed: the Debt for what the slot is owed, NULL when nothing
    bint growth             # the connect in flight counts in SlotTable.growing
    bint orphan             # nobody goes on with what the slot is owed: see SlotTable.orphans()

cdef struct Chunk:
    fp_atomic free          # the free bitmap's word: bit set = AVAILABLE
    fp_atomic turn[CHUNK]   # order of return, for order="fifo"
    fp_atomic lent[CHUNK]   # the address of the object that was lent last; see SlotTable.recall()
    Slot slots[CHUNK]
    Detail details[CHUNK]
    fp_site sites[CHUNK]    # where the program was that borrowed the slot last
    void *memory            # what malloc gave, before alignment


# A slot in a survey.
cdef struct View:
    int state
    long pid
    int64_t created
    int64_t since
    uint64_t uses
    uint64_t owner
    uint64_t thread
    uint64_t generation
    PyObject *code          # a new reference, NULL where there is none
    int at


@cython.final
cdef class Entry:
    cdef object __weakref__
    cdef object table_ref   # weak: an idle connection must not keep its table alive. The table's
                            # own, for one that were collected with the entry would be dead already
    cdef void *table_id
    cdef object pgconn
    cdef object face        # the proxy that stands for the connection, if it is one
    cdef object watch       # what watches its socket, None where nothing does
    cdef readonly int index
    cdef readonly long backend_pid
    cdef int64_t created
    cdef public bint leased # lent by connect(): the borrower holds a Lease, not the connection
    cdef object lease_kind  # how its leases are made, None while that has to be asked
    cdef unsigned int lease_version     # the version of the connection's class then
    cdef fp_atomic fate     # a Fate

    cdef int end_watch(self) except -1


@cython.final
cdef class Debt:
    cdef object table_ref   # as Entry's
    cdef readonly int index


@cython.final
cdef class Waiter:
    cdef object table_ref           # as Entry's
    cdef readonly object gate       # what the waiter parks on, when that is the shell's
    cdef object wake_call           # how to wake it then
    cdef void *lock                 # else a thread's own lock, held while nobody has woken it
    cdef PyObject *next
    cdef PyObject *previous
    cdef fp_atomic outcome
    cdef int index                  # the slot granted, -1 when none or taken
    cdef readonly bint is_suspect   # it holds a connection of the pool that it waits for
    cdef public double patience     # for how long it waits (s); set before it queues
    cdef bint token                 # woken, and has not looked yet
    cdef bint queued
    cdef int64_t since
    cdef int64_t granted            # when; 0 if it took its slot itself
    cdef uint64_t owner
    cdef fp_site site               # where its owner called; the slot's former one after a grant


@cython.final
cdef class Gauge:
    cdef fp_atomic value


@cython.final
cdef class SlotTable:
    cdef object __weakref__
    cdef object me                  # weak, for the entries: see Entry.table_ref
    cdef cython.pymutex mutex
    # --- guarded by the mutex -------------------------------------------------------------
    cdef int size                   # slots that are not EMPTY
    cdef int present                # connections in the table
    cdef int growing                # connects in flight that were started for waiters
    cdef int n_waiting
    cdef int n_watching
    cdef PyObject *first            # FIFO of waiters; the queue holds a reference to each
    cdef PyObject *last
    cdef PyObject *lookout          # of those, the one that looks after a stall; NULL: nobody does
    cdef PyObject *first_watcher    # those who wait until min_size stand available
    cdef PyObject *last_watcher
    cdef int64_t wait_ns
    cdef readonly Pacer pacer       # None where threads share no GIL
    cdef uint64_t queued
    cdef readonly int min_size
    cdef readonly int max_size      # 0: no limit
    cdef readonly int max_connecting
    # --- atomic, or written once ----------------------------------------------------------
    cdef fp_atomic attention        # waiters + watchers (+ CLOSED_BIAS): what a return looks at
    cdef fp_atomic head_since       # ns, the first waiter's age; 0: nobody waits
    cdef fp_atomic turns
    cdef fp_atomic hints[HINTS]     # a slot's index by its lent object's address; see recall()
    cdef fp_atomic n_chunks
    cdef fp_atomic epoch
    cdef fp_atomic is_closed
    cdef fp_atomic is_surplus       # size > max_size after a resize down
    cdef fp_atomic idle_low         # fewest that stood available since the last shrink
    cdef Chunk **chunks             # the directory: few, or many once there are more than FEW
    cdef Chunk *few[FEW]
    cdef Chunk **many
    cdef fp_atomic events[N_COUNTERS]
    cdef int64_t tau
    cdef readonly int width         # lend no more at once while others wait; 0: all there are
    cdef bint lifo
    cdef long pid                   # of the process that it belongs to; see forsake()
    cdef readonly bint keeps_idle   # else no connection stands available: a null pool's
    cdef readonly object on_lost    # called with (index, pid, owner, held_ns, closed)
    cdef readonly object on_owed    # called with (index)

    # memory and states
    cdef bint is_ours(self) noexcept nogil
    cdef bint make_room(self, int slots) noexcept nogil
    cdef bint make_directory(self) noexcept nogil
    cdef int state(self, int index) noexcept nogil
    cdef void put_state(self, int index, int state) noexcept nogil
    # the free bitmap
    cdef int claim_this(self, int index) noexcept nogil
    cdef bint any_free(self) noexcept nogil
    cdef int n_free(self) noexcept nogil
    # lending and returning
    cdef void stamp_for(self, int index, Waiter waiter) noexcept
    cdef void mark_anew(self, fp_site *site) noexcept
    cdef PyObject *site_locked(self, int index, int *at) noexcept
    cdef bint left_while_lent(self, Entry entry) noexcept nogil
    # taking out and bringing in
    cdef int check_owned(self, Entry entry) except -1
    cdef int check_state(self, int index, int wanted) except -1
    cdef detach(self, Entry entry, bint late)
    cdef void detach_locked(self, int index, int fate) noexcept nogil
    cdef Debt new_debt(self, int index)
    cdef bint forget_debt(self, Debt debt)
    cdef int disown(self, int index) except -1
    cdef bint has_room(self) noexcept nogil
    cdef int enter_locked(self, bint growth) noexcept nogil
    cdef void leave_locked(self, int index) noexcept nogil
    # waiting
    cdef void link(self, Waiter waiter, bint watcher) noexcept
    cdef void unlink(self, Waiter waiter, bint watcher) noexcept
    cdef void settle(self, Waiter waiter, int outcome, int index, int64_t now) noexcept
    cdef bint is_holder(self, uint64_t owner) noexcept nogil
    cdef bint borrower_has_ended(self, int index) noexcept
    cdef PyObject *waiter_of(self, uint64_t owner) noexcept
    cdef bint all_wait_locked(self, double brief) noexcept
    cdef wake(self, Waiter waiter)
    cdef int park(self, Waiter waiter, int64_t deadline) except -1
    cdef object after_leaving(self, Waiter waiter)
    cdef object collect(self, Waiter waiter)
    cdef Waiter serve_one(self, int64_t now, bint at_once, bint *again, bint *asleep)
    cdef int give_up(self, int index) except -1
    cdef bint holds_back(self) noexcept nogil
    cdef void heed_pacer(self) noexcept
    cdef Waiter appoint_lookout(self)
    cdef Waiter pace(self, int64_t now)
    cdef end_stall(self)
    cdef stop_pacing(self)
    cdef serve_held_back(self)
    cdef bint is_ready(self) noexcept nogil
    cdef bint is_kept(self) noexcept nogil
    cdef Waiter serve_watcher(self, bint *again, bint *asleep)
    cpdef object serve(self, bint at_once=*, bint returned=*)
    # looking
    cdef int view_locked(self, View *views, int room) noexcept

    # --- the hot path: a slot's place, its lending, its return --------------------------------

    cdef inline Chunk *chunk(self, int index) noexcept nogil:
        return self.chunks[index >> SHIFT]

    cdef inline Slot *slot(self, int index) noexcept nogil:
        return &self.chunks[index >> SHIFT].slots[index & LAST]

    cdef inline bint overdue(self) noexcept nogil:
        """Whether newcomers must queue: the first waiter is older than tau, or some are held back.
        """
        cdef int64_t since = <int64_t>fp_load(&self.head_since)
        return since != 0 and (self.width != 0 or fp_now() - since >= self.tau)

    cdef inline int claim(self) noexcept nogil:
        """Take a free slot out of the bitmap, by the pool's order; -1 when there is none."""
        return self.claim_by(self.lifo)

    cdef inline int claim_by(self, bint lifo) noexcept nogil:
        """Take the lowest free slot, or the one returned longest ago; -1 when there is none.

        The caller owns it from here on; its state still reads AVAILABLE.
        """
        cdef int c, bit, best, seen
        cdef int n = <int>fp_load(&self.n_chunks)
        cdef uint64_t bits, mask, turn, best_turn
        cdef Chunk *chunk
        while True:
            best = -1
            best_turn = <uint64_t>-1
            seen = 0
            for c in range(n):
                chunk = self.chunks[c]
                bits = fp_load_seq(&chunk.free)     # the look of publish-then-look
                if lifo:
                    seen += fp_count(bits)
                    if bits and best < 0:
                        best = c * CHUNK + fp_lowest(bits)
                    continue
                while bits:
                    bit = fp_lowest(bits)
                    bits &= bits - 1
                    seen += 1
                    turn = fp_peek(&chunk.turn[bit])
                    if turn < best_turn:
                        best_turn = turn
                        best = c * CHUNK + bit
            if best < 0:
                fp_poke(&self.idle_low, 0)
                return -1
            mask = <uint64_t>1 << (best & LAST)
            if fp_and(&self.chunk(best).free, ~mask) & mask:
                if <uint64_t>(seen - 1) < fp_peek(&self.idle_low):
                    fp_poke(&self.idle_low, seen - 1)
                return best

    cdef inline object lend(self, int index, bint fast, uint64_t owner, int64_t now):
        """Lend a slot that was claimed: AVAILABLE -> IN_USE. Return its connection."""
        cdef Chunk *chunk = self.chunk(index)
        cdef Slot *slot = &chunk.slots[index & LAST]
        self.mark(&chunk.sites[index & LAST])
        self.stamp(slot, owner or PyThread_get_thread_ident(), now)
        if fast:
            fp_poke(&slot.requests, fp_peek(&slot.requests) + 1)
        return self.take(index)

    cdef inline void mark(self, fp_site *site) noexcept:
        """Note where the program is that is about to borrow the slot, which is the caller's."""
        if not fp_mark(site):
            self.mark_anew(site)

    cdef inline void stamp(self, Slot *slot, uint64_t owner, int64_t now) noexcept nogil:
        """AVAILABLE -> IN_USE, of a slot that was claimed. `now`: the coarse clock."""
        fp_poke(&slot.since, now)
        fp_poke(&slot.owner, owner)
        fp_poke(&slot.uses, fp_peek(&slot.uses) + 1)
        fp_store(&slot.word, (((fp_peek(&slot.word) >> 8) + 1) << 8) | IN_USE)

    cdef inline object take(self, int index):
        """Hand out the slot's reference: from here on the borrower's is the only one."""
        cdef Chunk *chunk = self.chunk(index)
        cdef PyObject *conn = chunk.slots[index & LAST].conn
        chunk.slots[index & LAST].conn = NULL
        fp_poke(&chunk.lent[index & LAST], <size_t>conn)
        fp_poke(&self.hints[(<size_t>conn >> 6) % HINTS], index)
        return fp_steal(conn)

    cdef inline PyObject *recall(self, PyObject *conn) noexcept nogil:
        """The Entry of an object that this table has lent, borrowed; NULL if only the object's
        attribute can tell. A guess by the address, checked: costs a quarter of the attribute.

        Not without a GIL: the slot could get another tenant between the two looks.
        """
        cdef int index = <int>fp_peek(&self.hints[(<size_t>conn >> 6) % HINTS])
        cdef Chunk *chunk = self.chunk(index)
        if FREE_THREADED or fp_peek(&chunk.lent[index & LAST]) != <size_t>conn:
            return NULL
        return chunk.details[index & LAST].entry

    cdef inline int begin_return_c(self, Entry entry, int64_t generation) noexcept nogil:
        """IN_USE -> RETURNING, for one caller only. With a generation >= 0, for that lending only.
        """
        cdef Slot *slot
        cdef uint64_t word, fate
        if entry.table_id != <void *>self:
            return FOREIGN
        slot = self.slot(entry.index)
        # The word before the fate: an eviction has set the fate before the slot has a next tenant.
        # So with a word of that one's the fate shows too, and with an older one the swap fails.
        word = fp_load(&slot.word)
        fate = fp_load(&entry.fate)
        if fate != RESIDENT:
            return LATE if fate != RETIRED else NOT_LENT
        if (word & 0xFF) != IN_USE or (generation >= 0 and (word >> 8) != <uint64_t>generation):
            return LATE if self.left_while_lent(entry) else NOT_LENT
        if slot.conn != NULL:       # granted to a waiter that has not come for it yet
            return NOT_LENT
        if not fp_cas(&slot.word, word, (word & ~<uint64_t>0xFF) | RETURNING):
            return LATE if self.left_while_lent(entry) else NOT_LENT
        return TAKEN

    cdef inline int make_available(
        self, Slot *slot, Entry entry, object conn, int64_t now
    ) except -1:
        """RETURNING, RESERVED or CONNECTING -> AVAILABLE: keep a reference, let go of the slot."""
        cdef object kept = conn if entry.face is None else entry.face
        Py_INCREF(kept)
        slot.conn = <PyObject *>kept
        entry.leased = False
        fp_poke(&slot.since, now)
        fp_store(&slot.word, (fp_peek(&slot.word) & ~<uint64_t>0xFF) | AVAILABLE)
        return 0

    cdef inline void publish(self, int index, bint new_turn) noexcept nogil:
        """Set the slot's bit: from here on it is anybody's. Sequentially consistent."""
        cdef Chunk *chunk = self.chunk(index)
        if new_turn:
            fp_poke(&chunk.turn[index & LAST], fp_add(&self.turns, 1))
        fp_or(&chunk.free, <uint64_t>1 << (index & LAST))
