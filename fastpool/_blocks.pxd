# What `connection()` returns.

from fastpool._fastpath cimport FastPath

cdef object new_block(FastPath pool, timeout)
cdef object new_async_block(FastPath pool, timeout)
