"""The lendings that end by themselves: `with pool.connection()`, and the leases of `connect()`.

Owns: which lending a block or a lease stands for, so that its end gives back that and no other;
and how much of the driver's own `with` can be left out. Refuses: to know how connections are lent
and taken back, which is the fast path's and the shell's.
"""

from libc.stdint cimport int64_t, uint64_t

cimport cython
from cpython.object cimport PyObject

from fastpool._core cimport (
    Entry, INHERITED, LATE, NOT_LENT, TAKEN, USAGE_NS,
    fp_add, fp_atomic, fp_load, fp_now, fp_peek, fp_poke,
)
from fastpool._fastpath cimport (
    FastPath, PyDict_GetItemWithError, attributes_of, check_loop_of, fp_version, is_idle, is_simple,
    keep, keep_returning, lend, lend_any, lock_is_lost, slot_of,
)

import functools
import sys

from psycopg import _connection_base, connection, connection_async

cdef object is_finalizing = sys.is_finalizing       # the module may be gone by then

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
# By identity, for who wraps a method gives the wrapper the name of its module; and without a look
# into the dictionary, whose lock a forked child without a GIL may find taken for good.
cdef tuple DRIVER_GLOBALS = (vars(_connection_base), vars(connection), vars(connection_async))


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
        scope = getattr(method, "__globals__", None)
        own = own and any(scope is drivers for drivers in DRIVER_GLOBALS)
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
    if not is_idle(conn.pgconn if entry is None else entry.pgconn):
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

# --- leases -----------------------------------------------------------------------------------

cdef enum:
    STILL_LENT = -1     # not claimed: it goes through an overridden putconn(), which will

cdef extern from *:
    """
    /* o.__dict__ = d, of an object whose class has an ordinary one. */
    #define fp_set_attributes(o, d) PyObject_GenericSetDict(o, d, NULL)
    /* A call of a __del__ that does nothing costs as much as the rest of a return. */
    #define fp_forget_finalizer(type) (((PyTypeObject *)(type))->tp_finalize = NULL)
    """
    int fp_set_attributes(object, dict) except -1
    void fp_forget_finalizer(type)


cdef class Lease:
    """One lending by `connect()`. Closing it, or leaving its block, gives the connection back.

    Base of the classes that leases.py derives from connection classes: an instance shares the
    attributes of the connection while it is valid, and has those of a closed one afterwards.
    """

    cdef object end(self):
        """Become a closed connection. Return (method, connection) to the one caller who has to
        give that back by that method of the pool; None to all others, and when it is done."""
        cdef int outcome = NOT_LENT
        cdef FastPath pool = None
        cdef Entry entry = None
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
            fp_set_attributes(self, attributes)
        if outcome == STILL_LENT:
            return pool.putconn, conn
        if outcome == LATE:
            return pool._accept_late, conn
        if outcome != TAKEN:
            return None
        return None if keep_returning(pool, entry, conn) else (pool._accept, conn)

    @property
    def _lent(self):
        """(pool, connection) while the lease is valid, else None."""
        with cython.critical_section(self):     # two threads may end it at once
            return None if self.conn is None else (self.pool, self.conn)

    def close(self):
        """Give the connection back to the pool. Harmless when that has been done already."""
        ended = self.end()
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
            if exc_type is not None and lock_is_lost(conn):
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

    cdef bint leaves_nothing_async(self) except -1:
        """Whether leaving `async with` of the connection without an exception would do nothing."""
        cdef FastPath pool
        cdef Entry entry
        with cython.critical_section(self):
            pool, conn, entry = self.pool, self.conn, self.entry
        return conn is None or is_plain_async(conn) and leaves_nothing(pool, conn, entry)

    def _dropped(self):
        """In place of the driver's finalizer: the session is the connection's, not the lease's."""


@cython.final
cdef class LeaseKind:
    """How leases of one class of connections are made: *lease_class*, a class derived from Lease,
    and *closed*, the attributes of such a connection when it is closed."""

    cdef type lease_class
    cdef dict closed

    def __init__(self, type lease_class not None, dict closed not None):
        self.lease_class = lease_class
        self.closed = closed
        fp_forget_finalizer(lease_class)

    cdef object lease(self, FastPath pool, conn, Entry entry):
        cdef type lease_class = self.lease_class
        cdef Lease lease = lease_class.__new__(lease_class)
        lease.closed = self.closed
        lease.pool = pool
        lease.conn = conn
        lease.entry = entry
        lease.lending = fp_load(&pool._table.slot(entry.index).word)
        fp_set_attributes(lease, conn.__dict__)
        entry.leased = True
        return lease

    def __call__(self, FastPath pool not None, conn):
        """Return a lease of *conn*, which *pool* has just lent."""
        cdef Entry entry = conn._slot
        if is_simple(pool, conn):
            entry.lease_kind = self
            entry.lease_version = fp_version(conn)
        return self.lease(pool, conn, entry)


cdef object new_lease(FastPath pool, timeout):
    """pool.connect()"""
    if pool.is_direct():
        conn = lend_any(pool, timeout)
    else:
        conn = pool.getconn(timeout=timeout)
    lease = lease_of(pool, conn)
    return pool._lease(conn) if lease is None else lease


cdef object lease_of(FastPath pool, conn):
    """Return a lease of a connection that was lent just now; None when how has to be asked."""
    cdef Entry entry
    found = slot_of(pool, conn)
    if type(found) is Entry:
        entry = found       # of one connection, which one caller holds: no need of a lock
        if entry.lease_kind is not None and entry.lease_version == fp_version(conn) != 0:
            return (<LeaseKind>entry.lease_kind).lease(pool, conn, entry)
    return None


# --- blocks -----------------------------------------------------------------------------------

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
        cdef bint is_lost = False
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
            is_lost = exc_type is not None and lock_is_lost(conn)
            if is_lost:
                return None
            return type(conn).__exit__(conn, exc_type, exc, traceback)
        finally:
            try:
                if self.is_still_lent(conn, exc_type):
                    entry = self.before_return()
                    if not self.pool.is_direct():
                        entry = None    # the connection's own: it must end with the connection
                        self.pool.putconn(conn)
                    elif entry is None or is_lost or not keep(self.pool, entry, conn, idle):
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


cdef object new_block(FastPath pool, timeout):
    return ConnectionBlock(pool, timeout)


cdef object new_async_block(FastPath pool, timeout):
    return AsyncConnectionBlock(pool, timeout)
