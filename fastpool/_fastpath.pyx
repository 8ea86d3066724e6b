"""The hot path: lend a free connection, take a healthy one back, without a Python frame.

Owns: the two operations that a program does millions of, the `with pool.connection()` block around
them and the leases of `connect()`, and the look at a socket where no kernel tells of its end: what
has to be C. Refuses: every case that is not plain. A pool that is not open, a check or reset
callback, INFO logging switched on, an expired or broken connection, an open transaction, somebody
to wait for: each is left to the shell's `_getconn` and `_putconn`, which decide it in full.

A lending is: open, nothing to call or log -> claim a bit -> stamp -> set `conn._pool`.
A return is: its slot is IN_USE and this call made it RETURNING -> transaction idle -> neither
expired nor drained -> unset `conn._pool` -> set the bit -> nobody waits.
"""

from libc.stdint cimport int64_t, uint64_t

cimport cython
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF

from fastpool._core cimport (
    Entry, INHERITED, LATE, NOT_LENT, REQUESTS, Slot, SlotTable, TAKEN, USAGE_NS, Waiter,
    fp_load, fp_load_seq, fp_now, fp_now_coarse, fp_peek, fp_poke, fp_add, fp_atomic, fp_steal,
)

import asyncio
import functools
import logging
import sys
from types import CoroutineType, FunctionType, MethodType

logger = logging.getLogger("psycopg.pool")

cdef object is_finalizing = sys.is_finalizing       # the module may be gone by then

# Asking a logger for its level is a Python call. Loggers remember the answer in a dictionary that
# they clear when any level changes; where there is none, the method is called.
cdef object INFO = logging.INFO
cdef object NO_CACHE = {}
cdef object levels = getattr(logger, "_cache", NO_CACHE)
if not isinstance(levels, dict):
    levels = NO_CACHE


# Up to Python 3.11 a dictionary has a version, which any change of it changes: not even a look
# into the dictionary is needed while that is the same.
cdef extern from *:
    """
    #if PY_VERSION_HEX < 0x030C0000
    #define fp_dict_version(d) (((PyDictObject *)(d))->ma_version_tag)
    #else
    #define fp_dict_version(d) 0
    #endif
    """
    uint64_t fp_dict_version(object)

cdef uint64_t quiet_version = 0     # of `levels`, when INFO was last found to be off


cdef inline bint logs_info() except -1:
    return (quiet_version == 0 or quiet_version != fp_dict_version(levels)) and ask_level()


cdef bint ask_level() except -1:
    global quiet_version
    if (<dict>levels).get(INFO) is not False:
        return logger.isEnabledFor(INFO)
    quiet_version = fp_dict_version(levels)
    return False


# A type's version tag is how CPython knows that a class has not been changed since it looked
# something up: PyType_Modified sets a new one. Unique, and 0 where it is not known.
cdef extern from *:
    """
    #define fp_version(o) (Py_TYPE(o)->tp_version_tag)
    """
    unsigned int fp_version(object)

# None where no loop runs; documented, for who writes loops.
cdef object running_loop = asyncio._get_running_loop

# Its function is written in Python before 3.12; what it reads is this dictionary.
cdef object current_tasks = None if sys.version_info >= (3, 12) else asyncio.tasks._current_tasks
current_task = asyncio.current_task if current_tasks is None else current_tasks.get

cdef object SLOT = "_slot"
cdef object GETCONN = "getconn"
cdef object PUTCONN = "putconn"
cdef object POOL = "_pool"
cdef object IDLE = 0                                # TransactionStatus.IDLE


# --- attributes without a lookup --------------------------------------------------------------
#
# An attribute's lookup costs a third of a checkout: where does it come from, the class or the
# instance? For a class that has been looked at once, until it is changed, that is known.

cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    #define fp_attributes(o) NULL       /* borrowing from a dictionary is not for many threads */
    #else
    static inline PyObject *fp_attributes(PyObject *o) {
        PyObject *d = PyObject_GenericGetDict(o, NULL);
        if (d == NULL) PyErr_Clear();
        else Py_DECREF(d);              /* the instance holds it */
        return d;
    }
    #endif

    /* conn.pgconn.transaction_status. Of a compiled psycopg it is a getter in C. */
    static fp_atomic fp_pg_learnt;      /* 0 -> 1: the one who does it, for the process's life */
    static fp_atomic fp_pg_version;     /* of the pgconn's class whose getter this is; set last */
    static getter fp_pg_get;
    static void *fp_pg_closure;

    static void fp_learn_status(PyTypeObject *type) {
        PyObject *found;
        if (type->tp_version_tag == 0 || !fp_cas(&fp_pg_learnt, 0, 1)) return;
        found = PyObject_GetAttrString((PyObject *)type, "transaction_status");
        if (found == NULL) PyErr_Clear();
        else if (Py_IS_TYPE(found, &PyGetSetDescr_Type)) {
            fp_pg_get = ((PyGetSetDescrObject *)found)->d_getset->get;
            fp_pg_closure = ((PyGetSetDescrObject *)found)->d_getset->closure;
            fp_store(&fp_pg_version, type->tp_version_tag);
        }
        Py_XDECREF(found);
    }

    static PyObject *fp_idle;           /* the int 0, of which there is one */

    static int fp_is_idle(PyObject *pgconn) {       /* -1: an exception */
        uint64_t version = Py_TYPE(pgconn)->tp_version_tag;
        PyObject *status;
        long value = 0;
        if (version != 0 && version == fp_load(&fp_pg_version)) {
            status = fp_pg_get(pgconn, fp_pg_closure);
        } else {
            fp_learn_status(Py_TYPE(pgconn));
            status = PyObject_GetAttrString(pgconn, "transaction_status");
        }
        if (status == NULL) return -1;
        if (status != fp_idle) value = PyLong_AsLong(status);
        Py_DECREF(status);
        return value == -1 && PyErr_Occurred() ? -1 : value == 0;
    }
    """
    PyObject *fp_attributes(object)
    PyObject *fp_idle
    bint fp_is_idle(object) except -1

fp_idle = <PyObject *>IDLE

cdef extern from "pythread.h" nogil:
    unsigned long PyThread_get_thread_ident()

cdef extern from "Python.h":
    PyObject *PyDict_GetItemWithError(PyObject *, object)
    int PyDict_SetItem(PyObject *, object, object) except -1


cdef bint learn_class(FastPath pool, conn) except -1:
    """Look whether the class of *conn* leaves attributes to its instances."""
    cls = type(conn)
    if (fp_version(conn) and conn.__class__ is cls
            and cls.__getattribute__ is object.__getattribute__
            and cls.__setattr__ is object.__setattr__
            and not hasattr(cls, SLOT) and not hasattr(cls, POOL)):
        pool.simple = fp_version(conn)
    return pool.simple == fp_version(conn) != 0


cdef inline PyObject *attributes_of(FastPath pool, conn) except? NULL:
    """The dictionary of a connection's attributes, borrowed; NULL where that is not all there is.
    """
    if fp_version(conn) != pool.simple and not learn_class(pool, conn):
        return NULL
    return fp_attributes(conn)


cdef inline object slot_of(FastPath pool, conn):
    """conn._slot, None when it has none."""
    cdef PyObject *found = pool._table.recall(<PyObject *>conn)
    cdef PyObject *attributes
    if found != NULL:
        return <object>found
    attributes = attributes_of(pool, conn)
    if attributes == NULL:
        return getattr(conn, SLOT, None)
    found = PyDict_GetItemWithError(attributes, SLOT)
    return None if found == NULL else <object>found


cdef inline int set_pool(FastPath pool, conn, value) except -1:
    """conn._pool = value"""
    cdef PyObject *attributes = attributes_of(pool, conn)
    if attributes == NULL:
        conn._pool = value
        return 0
    return PyDict_SetItem(attributes, POOL, value)


# --- a look at a socket -----------------------------------------------------------------------

cdef extern from *:
    """
    enum { FP_QUIET = 0, FP_DATA = 1, FP_ENDED = 2 };

    #ifdef _WIN32
    #define POLLRDHUP 0
    #include <winsock2.h>
    #pragma comment(lib, "ws2_32.lib")
    static int fp_look(long long fd) {
        char byte;
        int n = recv((SOCKET)fd, &byte, 1, MSG_PEEK);       /* libpq's sockets never block */
        if (n > 0) return FP_DATA;
        return n < 0 && WSAGetLastError() == WSAEWOULDBLOCK ? FP_QUIET : FP_ENDED;
    }
    #else
    #include <errno.h>
    #include <poll.h>
    #include <sys/socket.h>
    #ifndef POLLRDHUP                   /* Linux alone has it; elsewhere recv() finds it out */
    #define POLLRDHUP 0
    #endif
    static int fp_look(long long fd) {
        struct pollfd p = {(int)fd, POLLIN | POLLRDHUP, 0};
        char byte;
        ssize_t n;
        if (poll(&p, 1, 0) <= 0) return FP_QUIET;
        if (p.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) return FP_ENDED;
        n = recv((int)fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
        if (n > 0) return FP_DATA;
        return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? FP_QUIET : FP_ENDED;
    }
    #endif
    """
    int FP_QUIET
    int FP_DATA
    int FP_ENDED
    int POLLRDHUP
    int fp_look(long long fd)

QUIET = FP_QUIET
DATA = FP_DATA
ENDED = FP_ENDED
HIDES_END = POLLRDHUP == 0              # whether there may be an end behind DATA


def look(long long fd):
    """Say what a socket holds, without reading it: QUIET, DATA, or ENDED when the other side has
    closed. Never blocks."""
    return fp_look(fd)


cdef class FastPath:
    """What every pool inherits: its slot table, and the plain cases of lending and returning.

    The shell keeps `_lends` up to date: whether it has nothing to do at a lending or a return
    besides moving the slot.
    """

    cdef readonly SlotTable _table
    cdef public bint _lends         # open, used before
    cdef public object _check       # the user's callbacks
    cdef public object _configure
    cdef public object _reset
    cdef public object role         # what a connection that comes back must still be
    cdef readonly object _loop      # the event loop of an async pool that is open
    cdef unsigned long loop_thread  # where it ran then
    cdef dict attributes            # the instance's own
    cdef unsigned int direct        # the version of the pool's class, when it overrides nothing
    cdef uint64_t direct_attributes # the version of the instance's attributes then
    cdef unsigned int simple        # the version of a connection class; see learn_class()

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
        if GETCONN in self.attributes or PUTCONN in self.attributes:
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
        return lend(self)

    def _keep(self, conn):
        """Take a connection back. Return False, with nothing done, when that is not plain."""
        return take_back(self, conn)


cdef inline object lend(FastPath pool):
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


cdef inline bint take_back(FastPath pool, conn) except -1:
    """Take a connection back. False, with nothing done, when that is not plain."""
    found = slot_of(pool, conn)
    return type(found) is Entry and keep(pool, <Entry>found, conn, False)


cdef inline bint keep(FastPath pool, Entry entry, conn, bint idle) except -1:
    """Take back a connection whose entry is known. `idle`: no transaction was found open just now.
    """
    cdef int64_t now = fp_now_coarse()
    check_loop_of(pool, entry)
    if entry.leased:
        return False
    if is_fit(pool, entry, now, idle) and pool._table.begin_return_c(entry, -1) == TAKEN:
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


cdef inline int check_loop_of(FastPath pool, Entry entry) except -1:
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


cdef inline bint is_fit(FastPath pool, Entry entry, int64_t now, bint idle) except -1:
    """Whether a connection can be taken back as it is."""
    cdef SlotTable table = pool._table
    cdef Slot *slot
    if pool._reset is not None or not pool._lends or logs_info() or entry.table_id != <void *>table:
        return False
    if pool.role is not None:
        return False
    if not idle and not fp_is_idle(entry.pgconn):
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
        table.serve()
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
    conn = table.enqueue(waiter)
    fp_add(&table.events[REQUESTS], 1)
    if conn is None:
        try:
            if table.has_room():        # since the look above: a connect was given up
                pool._connector.grow()
            if waiter.is_suspect:
                pool._suspect_deadlock(waiter, seconds)
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
    conn = lend(pool)
    if conn is None:
        conn = stand_in_line(pool, timeout)
    if conn is None:
        conn = pool._getconn(timeout)
    return conn


cdef inline int check_timeout(FastPath pool, timeout) except -1:
    """Leave it to the shell to refuse what is not a number of seconds."""
    if timeout is None or type(timeout) is int or type(timeout) is float and timeout == timeout:
        return 0
    pool._check_timeout(timeout)
    return 0


def getconn(FastPath pool not None, timeout=None):
    """The fast path of ConnectionPool.getconn()."""
    check_timeout(pool, timeout)
    return lend_any(pool, timeout)


def putconn(FastPath pool not None, conn):
    """The fast path of ConnectionPool.putconn()."""
    if not take_back(pool, conn):
        pool._putconn(conn)


def connection(FastPath pool not None, timeout=None):
    """ConnectionPool.connection()."""
    check_timeout(pool, timeout)
    return ConnectionBlock(pool, timeout)


def connection_async(FastPath pool not None, timeout=None):
    """AsyncConnectionPool.connection()."""
    check_timeout(pool, timeout)
    return AsyncConnectionBlock(pool, timeout)


# --- getconn() and putconn() of an async pool -------------------------------------------------
#
# A coroutine costs more than what it does here: the function's frame, the generator around it, and
# the StopIteration that carries its result. So this is a coroutine in C, whose first step does the
# plain case. What is not plain is a coroutine in Python, to which it hands all steps.

cdef enum Step:
    RAISED = -1         # as CPython's PySendResult
    RETURNED = 0
    YIELDED = 1

cdef enum Progress:
    NEW = 0
    HANDED_ON = 1
    OVER = 2

cdef extern from "Python.h":
    Step PyIter_Send(object, object, PyObject **) except RAISED
    int PyErr_WarnFormat(object, Py_ssize_t, const char *, ...) except -1

cdef extern from *:
    """
    /* Where `await` and tasks look first: it returns the result without an exception. */
    #define fp_make_sender(type, f) ((type)->tp_as_async->am_send = (sendfunc)(f))
    """
    void fp_make_sender(PyTypeObject *, void *)


cdef list coroutine_functions = [None, None]    # getconn, putconn; see Method


@cython.final
@cython.freelist(16)
cdef class PoolCoroutine:
    """A call of an async pool's getconn() or putconn(): nothing happens before its first step."""

    cdef FastPath pool
    cdef object argument            # the timeout, or the connection
    cdef bint returns               # putconn()
    cdef Progress progress
    cdef object inner               # the coroutine that was handed on to

    def __dealloc__(self):
        if self.progress != NEW:
            return
        qualname = coroutine_functions[self.returns].__qualname__
        PyErr_WarnFormat(RuntimeWarning, 1, "coroutine '%U' was never awaited",
                         <PyObject *>qualname)

    cdef Step step(self, value, PyObject **result) except RAISED:
        cdef Step came
        if self.progress == NEW:
            self.progress = OVER
            if self.begin(result):
                return RETURNED
            self.progress = HANDED_ON
        elif self.progress == OVER:
            raise RuntimeError("cannot reuse already awaited coroutine")
        try:
            came = PyIter_Send(self.inner, value, result)
        except BaseException:
            self.end()
            raise
        if came == RETURNED:
            self.end()
        return came

    cdef bint begin(self, PyObject **result) except -1:
        """Do the plain case, or make the coroutine that does the others."""
        if self.returns:
            outcome = None
            if not take_back(self.pool, self.argument):
                self.inner = self.pool._putconn(self.argument)
        else:
            check_timeout(self.pool, self.argument)
            outcome = lend(self.pool)
            if outcome is None:
                self.inner = self.pool._getconn(self.argument)
        if self.inner is not None:
            return False
        Py_INCREF(outcome)
        result[0] = <PyObject *>outcome
        return True

    cdef void end(self) noexcept:
        self.progress = OVER
        self.inner = None

    def __await__(self):
        return self

    def __next__(self):
        return self.send(None)

    def send(self, value, /):
        """Go on until the next suspension. Raises StopIteration with the result."""
        cdef PyObject *result = NULL
        cdef Step came = self.step(value, &result)
        outcome = fp_steal(result)
        if came == RETURNED:
            raise StopIteration(outcome)
        return outcome

    def throw(self, *args):
        """Raise an exception where it is suspended."""
        if self.progress == NEW:        # as in any coroutine, that ends it before it began
            self.inner = self.pool._putconn(self.argument) if self.returns else (
                self.pool._getconn(self.argument))
            self.progress = HANDED_ON
        elif self.progress == OVER:
            raise RuntimeError("cannot reuse already awaited coroutine")
        try:
            return self.inner.throw(*args)
        except BaseException:
            self.end()
            raise

    def close(self):
        """End it where it is suspended."""
        inner = self.inner
        self.end()
        if inner is not None:
            inner.close()

    @property
    def __class__(self):
        return CoroutineType

    @property
    def __name__(self):
        return coroutine_functions[self.returns].__name__

    @property
    def __qualname__(self):
        return coroutine_functions[self.returns].__qualname__

    @property
    def cr_code(self):
        return coroutine_functions[self.returns].__code__

    @property
    def cr_await(self):
        return self.inner

    @property
    def cr_frame(self):
        return None if self.inner is None else self.inner.cr_frame

    @property
    def cr_running(self):
        return self.inner is not None and self.inner.cr_running

    @property
    def cr_suspended(self):
        return self.inner is not None and not self.inner.cr_running

    @property
    def cr_origin(self):
        return None

    def __repr__(self):
        return f"<coroutine object {self.__qualname__} at 0x{id(self):x}>"


fp_make_sender(<PyTypeObject *>PoolCoroutine, <void *>PoolCoroutine.step)


def getconn_async(FastPath pool not None, timeout=None):
    """AsyncConnectionPool.getconn()."""
    return pool_coroutine(pool, timeout, False)


def putconn_async(FastPath pool not None, conn):
    """AsyncConnectionPool.putconn()."""
    return pool_coroutine(pool, conn, True)


cdef inline PoolCoroutine pool_coroutine(FastPath pool, argument, bint returns):
    cdef PoolCoroutine call = PoolCoroutine.__new__(PoolCoroutine)
    call.pool = pool
    call.argument = argument
    call.returns = returns
    return call


# --- methods in C that look like methods in Python --------------------------------------------
#
# A call of a Python function costs as much as a whole checkout. But a method in C is none to who
# inspects it: unittest.mock's autospec checks no arguments and passes no self, help() has no
# annotations. So this is the C function when called, and the Python function when looked at.

cdef extern from "Python.h":
    ctypedef void *vectorcallfunc
    Py_ssize_t PyVectorcall_NARGS(size_t)
    PyObject *PyObject_Vectorcall(object, PyObject **, size_t, PyObject *) except NULL

cdef extern from *:
    """
    /* As functions are: `pool.getconn()` is then called without a bound method being made. */
    static void fp_make_method_type(PyTypeObject *type, Py_ssize_t enter_at) {
        type->tp_vectorcall_offset = enter_at;
        type->tp_call = PyVectorcall_Call;
        type->tp_flags |= Py_TPFLAGS_METHOD_DESCRIPTOR | Py_TPFLAGS_HAVE_VECTORCALL;
    }
    """
    void fp_make_method_type(PyTypeObject *, Py_ssize_t)

ctypedef object (*Quick)(FastPath, object)


cdef object quick_getconn(FastPath pool, timeout):
    return lend_any(pool, None)


cdef object quick_putconn(FastPath pool, conn):
    if not take_back(pool, conn):
        pool._putconn(conn)


cdef object quick_getconn_async(FastPath pool, timeout):
    return pool_coroutine(pool, None, False)


cdef object quick_putconn_async(FastPath pool, conn):
    return pool_coroutine(pool, conn, True)


cdef object quick_connection(FastPath pool, timeout):
    return ConnectionBlock(pool, None)


cdef object quick_connection_async(FastPath pool, timeout):
    return AsyncConnectionBlock(pool, None)


cdef extern from "Python.h":
    PyTypeObject *Py_TYPE(PyObject *)


cdef inline bint is_pool(Method me, PyObject *first):
    """isinstance(first, FastPath), remembered for the first class that is."""
    if fp_peek(&me.seen) != 0:
        return fp_peek(&me.seen) == <size_t>Py_TYPE(first) or isinstance(<object>first, FastPath)
    if not isinstance(<object>first, FastPath):
        return False
    Py_INCREF(type(<object>first))      # for ever, so that no other class gets its address
    fp_poke(&me.seen, <size_t>Py_TYPE(first))
    return True


cdef PyObject *enter(PyObject *me, PyObject **args, size_t n, PyObject *names) except NULL:
    """What a call of a Method does."""
    cdef Py_ssize_t given = PyVectorcall_NARGS(n)
    if names == NULL and given == (<Method>me).quick_args and is_pool(<Method>me, args[0]):
        result = (<Method>me).quick(<FastPath>args[0], <object>args[given - 1])
        Py_INCREF(result)
        return <PyObject *>result
    return PyObject_Vectorcall((<Method>me).fast, args, n, names)


@cython.final
cdef class Method:
    # No docstring: it would hide the function's.

    cdef vectorcallfunc enter
    cdef Quick quick                # for calls as programs write them
    cdef int quick_args
    cdef fp_atomic seen             # a class of pools that has been called
    cdef object fast                # for all others
    cdef object function

    def __cinit__(self, fast, function):
        self.enter = <vectorcallfunc>enter
        if fast is getconn:
            self.quick, self.quick_args = quick_getconn, 1
        elif fast is putconn:
            self.quick, self.quick_args = quick_putconn, 2
        elif fast is getconn_async:
            self.quick, self.quick_args = quick_getconn_async, 1
            coroutine_functions[False] = function
        elif fast is putconn_async:
            self.quick, self.quick_args = quick_putconn_async, 2
            coroutine_functions[True] = function
        elif fast is connection:
            self.quick, self.quick_args = quick_connection, 1
        elif fast is connection_async:
            self.quick, self.quick_args = quick_connection_async, 1
        self.fast = fast
        self.function = function

    def __get__(self, instance, owner):
        return self if instance is None else MethodType(self, instance)

    def __getattr__(self, name):
        return getattr(self.function, name)

    def __repr__(self):
        return repr(self.function)

    @property
    def __doc__(self):
        return self.function.__doc__

    @property
    def __class__(self):
        return FunctionType


cdef Method shape = Method(None, None)
fp_make_method_type(<PyTypeObject *>Method, <char *>&shape.enter - <char *><void *>shape)


def runs(fast):
    """Decorate a method so that *fast*, a function in C of the same arguments, runs in its place.
    """
    return functools.partial(Method, fast)


# --- the driver's own `with conn:` ------------------------------------------------------------
#
# On an idle connection without an open transaction block or pipeline the driver's __enter__ and
# __exit__ do nothing, for ~700 ns. They are left out where that is certain: the class resolves to
# the driver's own methods, and has not been changed since that was looked up.

cdef fp_atomic plain_version        # of the last such class; tags are unique, and never 0 there
cdef fp_atomic plain_async_version  # for async connections
cdef tuple DRIVER_METHODS = (
    "__enter__", "__exit__", "commit", "_commit_gen", "wait", "closed", "close",
)
cdef tuple ASYNC_DRIVER_METHODS = ("__aenter__", "__aexit__") + DRIVER_METHODS[2:]
cdef tuple DRIVER_MODULES = (
    "psycopg.connection", "psycopg.connection_async", "psycopg._connection_base",
)


cdef bint is_plain(conn) except -1:
    """Whether the class of *conn* is one whose `with` block is the driver's own."""
    cdef unsigned int version = fp_version(conn)
    return (version != 0 and version == fp_peek(&plain_version)
            or learn_plain(conn, DRIVER_METHODS, &plain_version))


cdef bint is_plain_async(conn) except -1:
    """The same for `async with`."""
    cdef unsigned int version = fp_version(conn)
    return (version != 0 and version == fp_peek(&plain_async_version)
            or learn_plain(conn, ASYNC_DRIVER_METHODS, &plain_async_version))


cdef bint learn_plain(conn, tuple methods, fp_atomic *plain) except -1:
    cls = type(conn)
    own = getattr(cls, "__getattribute__", None) is object.__getattribute__
    for name in methods:
        method = getattr(cls, name, None)
        method = getattr(method, "fget", method)        # `closed` is a property
        module = getattr(method, "__globals__", {}).get("__name__", "")
        own = own and module in DRIVER_MODULES
    if own:
        fp_poke(plain, fp_version(conn))
    return own


cdef object N_TRANSACTIONS = "_num_transactions"
cdef object TPC = "_tpc"
cdef object PIPELINE = "_pipeline"
cdef object COMMIT = "commit"


cdef bint leaves_nothing(FastPath pool, conn, Entry entry) except -1:
    """Whether leaving `with conn:` without an exception would do nothing."""
    cdef PyObject *mine = attributes_of(pool, conn)
    if not fp_is_idle(conn.pgconn if entry is None else entry.pgconn):
        return False
    if mine == NULL:
        return (
            conn._num_transactions == 0
            and not conn._tpc
            and conn._pipeline is None
            and COMMIT not in conn.__dict__
        )
    return (
        attribute(mine, N_TRANSACTIONS) == 0
        and not attribute(mine, TPC)
        and attribute(mine, PIPELINE) is None
        and PyDict_GetItemWithError(mine, COMMIT) == NULL
    )


cdef inline object attribute(PyObject *attributes, name):
    cdef PyObject *found = PyDict_GetItemWithError(attributes, name)
    if found == NULL:
        raise AttributeError(name)
    return <object>found


cdef enum:
    STILL_LENT = -1     # not claimed: it goes through an overridden putconn(), which will


cdef class Lease:
    """One lending by `connect()`. Closing it, or leaving its block, gives the connection back.

    Base of the classes that leases.py derives from connection classes: an instance shares the
    attributes of the connection while it is valid, and has those of a closed one afterwards.
    """

    # None when the lease has ended.
    cdef FastPath pool
    cdef object conn
    cdef Entry entry
    cdef uint64_t lending           # the slot's word
    cdef dict closed                # what a closed connection's attributes are

    def _begin(self, FastPath pool not None, conn, Entry entry not None, dict closed not None):
        """Become the lease of *conn*, which *pool* has just lent."""
        self.closed = closed
        self.pool = pool
        self.conn = conn
        self.entry = entry
        self.lending = fp_load(&pool._table.slot(entry.index).word)
        self.__dict__ = conn.__dict__
        entry.leased = True

    def _end(self):
        """Become a closed connection. Return (method, connection) to the one caller who has to
        give that back by that method of the pool; None to all others, and when it is done."""
        cdef int outcome = NOT_LENT
        cdef FastPath pool = None
        cdef Entry entry = None
        cdef int64_t now
        conn = None
        attributes = self.closed.copy()
        with cython.critical_section(self):
            if self.entry is not None:
                check_loop_of(self.pool, self.entry)    # raises before anything is ended
                pool, conn, entry = self.pool, self.conn, self.entry
                if pool.is_direct():
                    outcome = pool._table.begin_return_c(entry, self.lending >> 8)
                elif fp_load(&pool._table.slot(entry.index).word) == self.lending:
                    outcome = STILL_LENT
                    entry.leased = False
                self.pool = self.conn = self.entry = None
        if pool is not None:
            self.__dict__ = attributes
        if outcome == STILL_LENT:
            return pool.putconn, conn
        if outcome == LATE:
            return pool._accept_late, conn
        if outcome != TAKEN:
            return None
        now = fp_now_coarse()
        if not is_fit(pool, entry, now, False):
            return pool._accept, conn
        put_back(pool, entry, conn, now)
        return None

    @property
    def _lent(self):
        """(pool, connection) while the lease is valid, else None."""
        with cython.critical_section(self):     # two threads may end it at once
            return None if self.conn is None else (self.pool, self.conn)

    def close(self):
        """Give the connection back to the pool. Harmless when that has been done already."""
        ended = self._end()
        if ended is not None:
            give_back, conn = ended
            give_back(conn)

    def __exit__(self, exc_type, exc, traceback):
        cdef FastPath pool
        cdef Entry entry
        with cython.critical_section(self):
            pool, conn, entry = self.pool, self.conn, self.entry
        try:
            if (conn is None
                    or exc_type is None and is_plain(conn) and leaves_nothing(pool, conn, entry)):
                return None
            return self._driver_exit(conn, "__exit__")(exc_type, exc, traceback)
        finally:
            self.close()

    def _driver_exit(self, conn, str name):
        """The connection's own exit: bound to the lease, or to the connection if that is a proxy.
        """
        if issubclass(type(self), type(conn)):
            return getattr(type(conn), name).__get__(self)
        return getattr(conn, name)

    def _leaves_nothing(self):
        """Whether leaving `async with` of the connection without an exception would do nothing."""
        lent = self._lent
        return lent is None or is_plain_async(lent[1]) and leaves_nothing(lent[0], lent[1], None)

    def _dropped(self):
        """In place of the driver's finalizer: the session is the connection's, not the lease's."""


cdef class Block:
    """One `connection()` block. Nothing happens before it is entered."""

    cdef FastPath pool
    cdef object timeout
    cdef object conn
    cdef Entry entry
    cdef uint64_t lending           # the slot's word while it is lent to this block
    cdef int64_t began

    def __cinit__(self, FastPath pool not None, timeout):
        self.pool = pool
        self.timeout = timeout

    cdef int check_new(self) except -1:
        if self.conn is not None:
            raise RuntimeError("this block is entered already: call connection() once for each")
        return 0

    cdef int begin(self, conn) except -1:
        """The block is entered: remember which lending it is."""
        self.conn = conn
        found = slot_of(self.pool, conn)
        if type(found) is Entry:
            self.entry = found
            self.lending = self.word()
        return 0

    cdef object end(self, exc_type):
        """The block is left: its connection, None if it was not entered, or given back inside."""
        conn = self.conn
        self.conn = None
        return conn if conn is not None and self.is_still_lent(conn, exc_type) else None

    cdef bint is_still_lent(self, conn, exc_type) except -1:
        """False when the connection was given back inside the block: it may be somebody else's by
        now. Refuse that, unless an exception is on its way, which the refusal would replace."""
        if not self.is_over():
            return True
        if exc_type is None and not self.pool.close_returns:
            self.pool._refuse(conn)
        return False

    cdef Entry before_return(self):
        """Let go of the connection's entry, and return it."""
        entry = self.entry
        self.entry = None
        return entry

    cdef int after_return(self) except -1:
        self.entry = None
        fp_add(&self.pool._table.events[USAGE_NS], fp_now() - self.began)
        return 0

    cdef uint64_t word(self) except? 0:
        return fp_load(&self.pool._table.slot(self.entry.index).word)

    cdef bint is_parents(self) except -1:
        """Whether this is a forked child of the process that entered the block. There is nothing
        that could be rolled back."""
        return self.entry is not None and fp_load(&self.entry.fate) == INHERITED

    cdef bint is_over(self) except -1:
        """Whether the lending has ended before the block has, other than because the connection is
        of no more use: the return after that is accepted."""
        return (self.entry is not None and self.word() != self.lending
                and not self.pool._table.left_while_lent(self.entry))


cdef class ConnectionBlock(Block):
    """What `pool.connection()` returns: a context manager, and a decorator as contextlib's are.

    One that is dropped while entered gives back.
    """

    def __enter__(self):
        cdef FastPath pool = self.pool
        self.check_new()
        if pool.is_direct():
            conn = lend_any(pool, self.timeout)
        else:
            conn = pool.getconn(timeout=self.timeout)
        self.began = fp_now()
        if not is_plain(conn):
            try:
                type(conn).__enter__(conn)
            except BaseException:
                pool.putconn(conn)
                raise
        self.begin(conn)
        return conn

    def __exit__(self, exc_type, exc, traceback):
        cdef Entry entry
        cdef bint idle = False
        conn = self.end(exc_type)
        if conn is None:
            return None
        try:
            if exc_type is None and is_plain(conn):
                idle = leaves_nothing(self.pool, conn, self.entry)
            if idle:
                return None
            if exc_type is not None and self.is_parents():
                return None
            return type(conn).__exit__(conn, exc_type, exc, traceback)
        finally:
            try:
                if self.is_still_lent(conn, exc_type):
                    entry = self.before_return()
                    if not self.pool.is_direct():
                        entry = None    # the connection's own: it must end with the connection
                        self.pool.putconn(conn)
                    elif entry is None or not keep(self.pool, entry, conn, idle):
                        entry = None
                        self.pool._putconn(conn)
            finally:
                self.after_return()

    def __call__(self, func):
        pool, timeout = self.pool, self.timeout

        @functools.wraps(func)
        def inner(*args, **kwargs):
            with pool.connection(timeout):
                return func(*args, **kwargs)

        return inner

    def __del__(self):
        if self.conn is not None and not is_finalizing():
            self.__exit__(GeneratorExit, GeneratorExit(), None)


cdef class AsyncConnectionBlock(Block):
    """The same for an async pool."""

    async def __aenter__(self):
        cdef FastPath pool = self.pool
        self.check_new()
        conn = lend(pool) if pool.is_direct() else None
        if conn is None:
            conn = await pool.getconn(timeout=self.timeout)
        self.began = fp_now()
        if not is_plain_async(conn):
            try:
                await type(conn).__aenter__(conn)
            except BaseException:
                await pool.putconn(conn)
                raise
        self.begin(conn)
        return conn

    async def __aexit__(self, exc_type, exc, traceback):
        cdef Entry entry
        cdef bint is_kept
        cdef bint idle = False
        conn = self.end(exc_type)
        if conn is None:
            return None
        try:
            if exc_type is None and is_plain_async(conn):
                idle = leaves_nothing(self.pool, conn, self.entry)
            if idle:
                return None
            if exc_type is not None and self.is_parents():
                return None
            return await type(conn).__aexit__(conn, exc_type, exc, traceback)
        finally:
            try:
                if self.is_still_lent(conn, exc_type):
                    entry = self.before_return()
                    is_kept = entry is not None and self.pool.is_direct()
                    is_kept = is_kept and keep(self.pool, entry, conn, idle)
                    entry = None    # the connection's own: it must end with the connection
                    if not is_kept:
                        await self.pool.putconn(conn)
            finally:
                self.after_return()

    def __call__(self, func):
        pool, timeout = self.pool, self.timeout

        @functools.wraps(func)
        async def inner(*args, **kwargs):
            async with pool.connection(timeout):
                return await func(*args, **kwargs)

        return inner

    def __del__(self):
        # Nothing can be awaited here: the loop has it given back.
        if self.conn is not None and not is_finalizing():
            self.pool._put_back_dropped(self.conn)
