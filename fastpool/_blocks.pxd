# What `connection()` and `connect()` return.

from libc.stdint cimport uint64_t

from fastpool._core cimport Entry
from fastpool._fastpath cimport FastPath


cdef class Lease:
    # None when the lease has ended.
    cdef FastPath pool
    cdef object conn
    cdef Entry entry
    cdef uint64_t lending           # the slot's word
    cdef dict closed                # what a closed connection's attributes are

    cdef object end(self)
    cdef bint leaves_nothing_async(self) except -1


cdef object new_block(FastPath pool, timeout)
cdef object new_async_block(FastPath pool, timeout)
cdef object new_lease(FastPath pool, timeout)
cdef object lease_of(FastPath pool, conn)
