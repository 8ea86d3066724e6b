"""What programs call to lend and give back, without a frame of Python's.

Owns: how a call comes to the fast path, and looks like a method, or a coroutine, written in Python
to who inspects it. Refuses: everything about connections.
"""

cimport cython
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF

from fastpool._blocks cimport Lease, lease_of, new_async_block, new_block, new_lease
from fastpool._core cimport fp_atomic, fp_peek, fp_poke, fp_steal
from fastpool._fastpath cimport FastPath, lend, lend_any, take_back

import functools
from types import CoroutineType, FunctionType, GenericAlias, MethodType


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
    return new_block(pool, timeout)


def connect(FastPath pool not None, timeout=None):
    """ConnectionPool.connect()"""
    check_timeout(pool, timeout)
    return new_lease(pool, timeout)


def connection_async(FastPath pool not None, timeout=None):
    """AsyncConnectionPool.connection()."""
    check_timeout(pool, timeout)
    return new_async_block(pool, timeout)


# --- coroutines -------------------------------------------------------------------------------
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


cdef enum Call:
    GETCONN
    PUTCONN
    CONNECT
    CLOSE               # of a lease
    EXIT                # from its block, without an exception

cdef list coroutine_functions = [None] * 5      # of each Call; see Method


@cython.freelist(16)
cdef class PoolCoroutine:
    """A call of a method of an async pool or its lease: nothing happens before its first step."""

    cdef FastPath pool              # None for a lease
    cdef object argument            # the timeout, the connection or the lease
    cdef Call call
    cdef Progress progress
    cdef object inner               # the coroutine that was handed on to

    def __dealloc__(self):
        if self.progress != NEW:
            return
        qualname = coroutine_functions[self.call].__qualname__
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
        outcome = None
        if self.call == GETCONN:
            check_timeout(self.pool, self.argument)
            outcome = lend(self.pool)
            if outcome is None:
                self.inner = self.pool._getconn(self.argument)
        elif self.call == PUTCONN:
            if not take_back(self.pool, self.argument):
                self.inner = self.pool._putconn(self.argument)
        elif self.call == CONNECT:
            outcome = self.lend_lease()
        elif self.call == CLOSE or (<Lease>self.argument).leaves_nothing_async():
            ended = (<Lease>self.argument).end()
            if ended is not None:
                give_back, conn = ended
                self.inner = give_back(conn)
        else:
            self.inner = self.argument._exit(None, None, None)
        if self.inner is not None:
            return False
        Py_INCREF(outcome)
        result[0] = <PyObject *>outcome
        return True

    cdef object lend_lease(self):
        check_timeout(self.pool, self.argument)
        conn = lend(self.pool) if self.pool.is_direct() else None
        if conn is None:
            self.inner = self.pool._get_lease(self.argument)
            return None
        lease = lease_of(self.pool, conn)
        if lease is None:
            self.inner = self.pool._lease(conn)
        return lease

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
            self.inner = _nothing()
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
        return coroutine_functions[self.call].__name__

    @property
    def __qualname__(self):
        return coroutine_functions[self.call].__qualname__

    @property
    def cr_code(self):
        return coroutine_functions[self.call].__code__

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
    def cr_state(self):             # what inspect.getcoroutinestate() asks for since Python 3.15
        if self.progress == HANDED_ON:
            return "CORO_RUNNING" if self.cr_running else "CORO_SUSPENDED"
        return "CORO_CREATED" if self.progress == NEW else "CORO_CLOSED"

    @property
    def cr_origin(self):
        return None

    def __repr__(self):
        return f"<coroutine object {self.__qualname__} at 0x{id(self):x}>"


async def _nothing():
    """The coroutine of a call that was ended before it began."""


@cython.final
cdef class Checkout(PoolCoroutine):
    """What an async pool's `connect()` returns: await it for the lease, or enter it as a block."""

    cdef bint is_block
    cdef object lease

    __class_getitem__ = classmethod(GenericAlias)

    cdef Step step(self, value, PyObject **result) except RAISED:
        cdef Step came = PoolCoroutine.step(self, value, result)
        if came == RETURNED and self.is_block:
            self.lease = <object>result[0]
        return came

    def __aenter__(self):
        self.is_block = True
        return self

    def __aexit__(self, exc_type, exc, traceback):
        return self.lease.__aexit__(exc_type, exc, traceback)


cdef Step step_of(PoolCoroutine call, value, PyObject **result) except RAISED:
    return call.step(value, result)


fp_make_sender(<PyTypeObject *>PoolCoroutine, <void *>step_of)      # Checkout inherits it


def getconn_async(FastPath pool not None, timeout=None):
    """AsyncConnectionPool.getconn()."""
    return begin_call(GETCONN, pool, timeout)


def putconn_async(FastPath pool not None, conn):
    """AsyncConnectionPool.putconn()."""
    return begin_call(PUTCONN, pool, conn)


def connect_async(FastPath pool not None, timeout=None):
    """AsyncConnectionPool.connect()."""
    return new_checkout(pool, timeout)


def close_async(Lease lease not None):
    """AsyncLease.close()"""
    return begin_call(CLOSE, None, lease)


def exit_async(Lease lease not None, exc_type, exc, traceback):
    """AsyncLease.__aexit__()"""
    if exc_type is None:
        return begin_call(EXIT, None, lease)
    return lease._exit(exc_type, exc, traceback)


cdef inline PoolCoroutine begin_call(Call which, FastPath pool, argument):
    cdef PoolCoroutine call = PoolCoroutine.__new__(PoolCoroutine)
    call.pool = pool
    call.argument = argument
    call.call = which
    return call


cdef inline Checkout new_checkout(FastPath pool, timeout):
    cdef Checkout checkout = Checkout.__new__(Checkout)
    checkout.pool = pool
    checkout.argument = timeout
    checkout.call = CONNECT
    return checkout


cdef dict CALLS = {
    getconn_async: GETCONN,
    putconn_async: PUTCONN,
    connect_async: CONNECT,
    close_async: CLOSE,
    exit_async: EXIT,
}

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

# What is called, and the one argument if there is one.
ctypedef object (*Quick)(object, object)


cdef object quick_getconn(pool, none):
    return lend_any(<FastPath>pool, None)


cdef object quick_putconn(pool, conn):
    if not take_back(<FastPath>pool, conn):
        pool._putconn(conn)


cdef object quick_getconn_async(pool, none):
    return begin_call(GETCONN, <FastPath>pool, None)


cdef object quick_putconn_async(pool, conn):
    return begin_call(PUTCONN, <FastPath>pool, conn)


cdef object quick_connection(pool, none):
    return new_block(<FastPath>pool, None)


cdef object quick_connect(pool, none):
    return new_lease(<FastPath>pool, None)


cdef object quick_connection_async(pool, none):
    return new_async_block(<FastPath>pool, None)


cdef object quick_connect_async(pool, none):
    return new_checkout(<FastPath>pool, None)


cdef object quick_close_async(lease, none):
    return begin_call(CLOSE, None, lease)


cdef extern from "Python.h":
    PyTypeObject *Py_TYPE(PyObject *)


cdef inline bint is_its_own(Method me, PyObject *first):
    """isinstance(first, me.owner), remembered for the first class that is."""
    if fp_peek(&me.seen) == <size_t>Py_TYPE(first):
        return True
    if not isinstance(<object>first, me.owner):
        return False
    if fp_peek(&me.seen) != 0:
        return True
    Py_INCREF(type(<object>first))      # for ever, so that no other class gets its address
    fp_poke(&me.seen, <size_t>Py_TYPE(first))
    return True


cdef PyObject *enter(PyObject *me, PyObject **args, size_t n, PyObject *names) except NULL:
    """What a call of a Method does."""
    cdef Py_ssize_t given = PyVectorcall_NARGS(n)
    if names == NULL and given == (<Method>me).quick_args and is_its_own(<Method>me, args[0]):
        result = (<Method>me).quick(<object>args[0], <object>args[given - 1])
        Py_INCREF(result)
        return <PyObject *>result
    return PyObject_Vectorcall((<Method>me).fast, args, n, names)


@cython.final
cdef class Method:
    # No docstring: it would hide the function's.

    cdef vectorcallfunc enter
    cdef Quick quick                # for calls as programs write them
    cdef int quick_args
    cdef type owner                 # whose method this is
    cdef fp_atomic seen             # a class derived from that, which has been called
    cdef object fast                # for all others
    cdef object function

    def __cinit__(self, fast, function):
        self.enter = <vectorcallfunc>enter
        self.owner = FastPath
        if fast in CALLS:
            coroutine_functions[CALLS[fast]] = function
        if fast is getconn:
            self.quick, self.quick_args = quick_getconn, 1
        elif fast is putconn:
            self.quick, self.quick_args = quick_putconn, 2
        elif fast is getconn_async:
            self.quick, self.quick_args = quick_getconn_async, 1
        elif fast is putconn_async:
            self.quick, self.quick_args = quick_putconn_async, 2
        elif fast is connection:
            self.quick, self.quick_args = quick_connection, 1
        elif fast is connect:
            self.quick, self.quick_args = quick_connect, 1
        elif fast is connection_async:
            self.quick, self.quick_args = quick_connection_async, 1
        elif fast is connect_async:
            self.quick, self.quick_args = quick_connect_async, 1
        elif fast is close_async:
            self.quick, self.quick_args = quick_close_async, 1
            self.owner = Lease
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
