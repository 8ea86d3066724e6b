"""The hot path: lend a free connection, take a healthy one back, without a Python frame.

Owns: the two operations that a program does millions of. Refuses: every case that is not plain. A
pool that is not open, a check or reset callback, INFO logging switched on, an expired or broken
connection, an open transaction, somebody to wait for: each is left to the shell's `_getconn` and
`_putconn`, which decide it in full.

A lending is: open, nothing to call or log -> claim a bit -> stamp -> set `conn._pool`.
A return is: its slot is IN_USE and this call made it RETURNING -> transaction idle -> neither
expired nor drained -> unset `conn._pool` -> set the bit -> nobody waits.

What a slot and its bit go through is in _core.pxd; who calls this is _calls.pyx and _blocks.pyx.
"""

from libc.stdint cimport int64_t, uint64_t

from cpython.object cimport PyObject

from fastpool._core cimport (
    Entry, INHERITED, REQUESTS, Slot, SlotTable, TAKEN, Waiter,
    fp_add, fp_load, fp_load_seq, fp_now, fp_now_coarse, fp_peek,
)

import _thread
import asyncio
import logging
import sys

logger = logging.getLogger("psycopg.pool")

# Asking a logger for its level is a Python call. Loggers remember the answer in a dictionary that
# they clear when any level changes; where there is none, the method is called.
cdef object INFO = logging.INFO
cdef object NO_CACHE = {}
cdef object levels = getattr(logger, "_cache", NO_CACHE)
if not isinstance(levels, dict):
    levels = NO_CACHE
cdef uint64_t quiet_version = 0     # of `levels`, when INFO was last found to be off


cdef inline bint logs_info() except -1:
    return (quiet_version == 0 or quiet_version != fp_dict_version(levels)) and ask_level()


cdef bint ask_level() except -1:
    global quiet_version
    if (<dict>levels).get(INFO) is not False:
        return logger.isEnabledFor(INFO)
    quiet_version = fp_dict_version(levels)
    return False


# None where no loop runs; documented, for who writes loops.
cdef object running_loop = asyncio._get_running_loop

# Its function is written in Python before 3.12; what it reads is this dictionary.
cdef object current_tasks = None if sys.version_info >= (3, 12) else asyncio.tasks._current_tasks
current_task = asyncio.current_task if current_tasks is None else current_tasks.get

cdef object IDLE = 0                # TransactionStatus.IDLE
cdef object ACTIVE = 1              # and .ACTIVE
fp_idle = <PyObject *>IDLE

cdef object LockType = _thread.LockType

cdef extern from "pythread.h" nogil:
    unsigned long PyThread_get_thread_ident()


# --- lending and returning --------------------------------------------------------------------

cdef class FastPath:
    """What every pool inherits: its slot table, and the plain cases of lending and returning.

    The shell keeps `_lends` up to date: whether it has nothing to do at a lending or a return
    besides moving the slot.
    """

    def _set_table(self, SlotTable table not None):
        self._table = table
        self.attributes = getattr(self, "__dict__", {})

    cdef bint is_direct(self) except -1:
        """Whether getconn() and putconn() are the pool's own, so that a block may pass them by:
        overridden in no subclass, patched on no class and not on this pool."""
        cdef unsigned int version = fp_version(self)
        cdef uint64_t attributes_version = fp_dict_version(self.attributes)
        if version == 0 or version != self.direct:
            if not self._overrides_nothing():
                return False
            self.direct = fp_version(self)
        elif attributes_version != 0 and attributes_version == self.direct_attributes:
            return True
        if "getconn" in self.attributes or "putconn" in self.attributes:
            return False
        self.direct_attributes = attributes_version
        return True

    def _set_loop(self, loop):
        """Belong to an event loop, the one that runs."""
        self._loop = loop
        self.loop_thread = PyThread_get_thread_ident()

    def _overrides_nothing(self):
        """Whether the pool's class has the getconn() and putconn() of its shell."""
        return False

    def _lend(self):
        """Return a free connection, None when anything about that is not plain."""
        return lend_free(self)

    def _keep(self, conn):
        """Take a connection back. Return False, with nothing done, when that is not plain."""
        return take_back(self, conn)


cdef inline object lend_free(FastPath pool):
    """Lend a free connection; None when anything about that is not plain."""
    cdef SlotTable table = pool._table
    cdef Slot *slot
    cdef int index
    cdef int64_t now
    cdef uint64_t owner = 0 if pool._loop is None else borrower(pool)
    if not pool._lends or pool._check is not None or logs_info():
        return None
    if fp_load(&table.attention) and (fp_load(&table.is_closed) or table.overdue()):
        return None
    while True:
        index = table.claim()
        if index < 0:
            return None
        slot = table.slot(index)
        now = fp_now_coarse()
        if slot.expires > now and slot.epoch == fp_peek(&table.epoch):
            conn = table.lend(index, True, owner, now)
            set_pool(pool, conn, pool)
            return conn
        pool._retire(table.lend(index, False, 0, now))
        if table.overdue():     # that took time, and a waiter may have grown old over it
            return None


cdef inline bint keep_fit(FastPath pool, Entry entry, conn, bint idle) except -1:
    """Take back a connection whose entry is known. `idle`: no transaction was found open just now.
    """
    cdef int64_t now = fp_now_coarse()
    check_loop(pool, entry)
    if entry.leased:
        return False
    if is_fit(pool, entry, conn, now, idle) and pool._table.begin_return_c(entry, -1) == TAKEN:
        put_back(pool, entry, conn, now)
        return True
    # Of a forked child's parent: there is nothing to do, here nor, at the interpreter's end, in
    # modules that may be gone.
    return fp_load(&entry.fate) == INHERITED and conn._pool is pool


cdef inline uint64_t borrower(FastPath pool) except? 0:
    """The ident of the task that runs, 0 for the thread's, in a pool that has an event loop. Has
    the shell refuse another loop: of two only one runs in a thread, and only that has a current
    task."""
    cdef uint64_t task
    if PyThread_get_thread_ident() == pool.loop_thread:
        task = task_in(pool._loop)
        if task != 0:
            return task
    if running_loop() is not pool._loop:
        pool._refuse_loop()
    return 0


cdef inline int check_loop(FastPath pool, Entry entry) except -1:
    """The same for a return. In a forked child that of the parent's is harmless anywhere."""
    if pool._loop is not None and fp_load(&entry.fate) != INHERITED:
        borrower(pool)
    return 0


cdef inline uint64_t task_in(loop) except? 0:
    """id() of the task that a loop runs, 0 when it runs none."""
    if current_tasks is not None:
        return <size_t>PyDict_GetItemWithError(<PyObject *>current_tasks, loop)
    task = current_task(loop)
    return 0 if task is None else <size_t><PyObject *>task


cdef inline bint is_fit(FastPath pool, Entry entry, conn, int64_t now, bint idle) except -1:
    """Whether a connection can be taken back as it is."""
    cdef SlotTable table = pool._table
    cdef Slot *slot
    if pool._reset is not None or not pool._lends or logs_info() or entry.table_id != <void *>table:
        return False
    if pool.role is not None:
        return False
    if not idle and not fp_is_idle(entry.pgconn):
        return False
    if fp_handles_exception() and lock_is_lost(conn):
        return False
    slot = table.slot(entry.index)
    return (slot.expires > now and slot.epoch == fp_peek(&table.epoch)
            and not fp_load(&table.is_surplus))


cdef inline int put_back(FastPath pool, Entry entry, conn, int64_t now) except -1:
    """RETURNING -> AVAILABLE, of a connection that is fit."""
    cdef SlotTable table = pool._table
    set_pool(pool, conn, None)
    table.make_available(table.slot(entry.index), entry, conn, now)
    table.publish(entry.index, True)
    if fp_load_seq(&table.attention):
        table.serve(False, True)
        if fp_load(&table.is_closed):
            pool._sweep()
    return 0


cdef object stand_in_line(FastPath pool, timeout):
    """Wait for a connection of a pool that is at its maximum; None when that is not plain."""
    cdef SlotTable table = pool._table
    cdef Waiter waiter
    cdef Entry entry
    cdef double seconds
    if not pool._lends or pool._check is not None or logs_info() or table.has_room():
        return None
    if pool.max_waiting != 0:
        return None
    seconds = pool.timeout if timeout is None else timeout
    waiter = pool._new_waiter()
    if waiter.lock == NULL or not seconds > 0:
        return None
    waiter.patience = seconds
    conn = table.enqueue(waiter)
    fp_add(&table.events[REQUESTS], 1)
    if conn is None:
        try:
            if table.has_room():        # since the look above: a connect was given up
                pool._connector.grow()
            if waiter.is_suspect:
                pool._deadlocks.suspect(waiter)
            conn = table.wait(waiter, seconds)
            if conn is None:
                pool._refuse_waiter(waiter, seconds)
        except BaseException:
            pool._leave_queue(waiter)
            raise
    entry = slot_of(pool, conn)
    if table.slot(entry.index).epoch != fp_peek(&table.epoch):
        return pool._acquire_another(conn, seconds, (fp_now() - waiter.since) * 1e-9)
    conn._pool = pool
    return conn


cdef object lend_any(FastPath pool, timeout):
    """getconn() of a thread pool."""
    conn = lend_free(pool)
    if conn is None:
        conn = stand_in_line(pool, timeout)
    if conn is None:
        conn = pool._getconn(timeout)
    return conn


# --- for the modules around this ----------------------------------------------------------------
#
# The functions above without `inline`, which C compilers take at its word.

cdef object lend(FastPath pool):
    """Lend a free connection; None when anything about that is not plain."""
    return lend_free(pool)


cdef bint keep(FastPath pool, Entry entry, conn, bint idle) except -1:
    """Take back a connection whose entry is known. False, with nothing done, when that is not
    plain. `idle`: no transaction was found open just now."""
    return keep_fit(pool, entry, conn, idle)


cdef int check_loop_of(FastPath pool, Entry entry) except -1:
    """Refuse a return in a loop that is not the pool's."""
    return check_loop(pool, entry)


cdef bint take_back(FastPath pool, conn) except -1:
    """Take a connection back. False, with nothing done, when that is not plain."""
    found = slot_of(pool, conn)
    return type(found) is Entry and keep_fit(pool, <Entry>found, conn, False)


cdef bint keep_returning(FastPath pool, Entry entry, conn) except -1:
    """Take back a connection whose slot is RETURNING already. False when it is not fit."""
    cdef int64_t now = fp_now_coarse()
    if not is_fit(pool, entry, conn, now, False):
        return False
    put_back(pool, entry, conn, now)
    return True


cdef bint is_idle(pgconn) except -1:
    """Whether a libpq connection has no transaction."""
    return fp_is_idle(pgconn)


cpdef bint lock_is_lost(conn) except -1:
    """Whether an interrupt has left the driver's lock of this connection locked: who uses it next
    would wait for ever. Only where that can be. Not while the server works for somebody, who may
    have the lock."""
    if not fp_locks_may_be_lost():
        return False
    lock = getattr(conn, "lock", None)
    return type(lock) is LockType and lock.locked() and conn.pgconn.transaction_status != ACTIVE


cdef bint learn_class(FastPath pool, conn) except -1:
    """Look whether the class of *conn* leaves `_slot` and `_pool` to its instances."""
    cls = type(conn)
    if (fp_version(conn) and conn.__class__ is cls
            and cls.__getattribute__ is object.__getattribute__
            and cls.__setattr__ is object.__setattr__
            and not hasattr(cls, "_slot") and not hasattr(cls, "_pool")):
        pool.simple = fp_version(conn)
    return pool.simple == fp_version(conn) != 0
