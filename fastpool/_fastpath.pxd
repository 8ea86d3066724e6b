# What the fast path offers to the modules around it, and how it looks at a connection.
#
# The latter has its bodies here, so that the C compiler can put it into those modules too.

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from fastpool._core cimport Entry, SlotTable

cdef extern from "_attributes.h":
    unsigned int fp_version(object)
    uint64_t fp_dict_version(object)
    PyObject *fp_attributes(object)
    PyObject *fp_idle
    bint fp_is_idle(object) except -1
    bint fp_locks_may_be_lost()
    bint fp_handles_exception()

cdef extern from "Python.h":
    PyObject *PyDict_GetItemWithError(PyObject *, object)
    int PyDict_SetItem(PyObject *, object, object) except -1


cdef class FastPath:
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

    cdef bint is_direct(self) except -1


cdef object lend(FastPath pool)
cdef object lend_any(FastPath pool, timeout)
cdef int check_loop_of(FastPath pool, Entry entry) except -1
cdef bint take_back(FastPath pool, conn) except -1
cdef bint keep(FastPath pool, Entry entry, conn, bint idle) except -1
cdef bint keep_returning(FastPath pool, Entry entry, conn) except -1
cdef bint is_idle(pgconn) except -1
cpdef bint lock_is_lost(conn) except -1
cdef bint learn_class(FastPath pool, conn) except -1


# --- a connection's attributes, without a lookup -----------------------------------------------
#
# A lookup costs a third of a checkout: where does it come from, the class or the instance? For a
# class that has been looked at once, until it is changed, that is known.

cdef inline bint is_simple(FastPath pool, conn) except -1:
    """Whether its class leaves `_slot` and `_pool` to its instances."""
    return fp_version(conn) == pool.simple != 0 or learn_class(pool, conn)


cdef inline PyObject *attributes_of(FastPath pool, conn) except? NULL:
    """The dictionary of a connection's attributes, borrowed; NULL where that is not all there is.
    """
    return fp_attributes(conn) if is_simple(pool, conn) else NULL


cdef inline object slot_of(FastPath pool, conn):
    """conn._slot, None when it has none."""
    cdef PyObject *found = pool._table.recall(<PyObject *>conn)
    cdef PyObject *attributes
    if found != NULL:
        return <object>found
    attributes = attributes_of(pool, conn)
    if attributes == NULL:
        return getattr(conn, "_slot", None)
    found = PyDict_GetItemWithError(attributes, "_slot")
    return None if found == NULL else <object>found


cdef inline int set_pool(FastPath pool, conn, value) except -1:
    """conn._pool = value"""
    cdef PyObject *attributes = attributes_of(pool, conn)
    if attributes == NULL:
        conn._pool = value
        return 0
    return PyDict_SetItem(attributes, "_pool", value)
