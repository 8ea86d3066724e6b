"""What programs call: getconn(), putconn() and connection(), without a frame of Python's.

Owns: how a call comes to the fast path, and looks like a method, or a coroutine, written in Python
to who inspects it. Refuses: everything about connections.
"""

cimport cython
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF

from fastpool._blocks cimport new_async_block, new_block
from fastpool._core cimport fp_atomic, fp_peek, fp_poke, fp_steal
from fastpool._fastpath cimport FastPath, lend, lend_any, take_back

import functools
from types import CoroutineType, FunctionType, MethodType


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


def connection_async(FastPath pool not None, timeout=None):
    """AsyncConnectionPool.connection()."""
    check_timeout(pool, timeout)
    return new_async_block(pool, timeout)


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
    def cr_state(self):             # what inspect.getcoroutinestate() asks for since Python 3.15
        if self.progress == HANDED_ON:
            return "CORO_RUNNING" if self.cr_running else "CORO_SUSPENDED"
        return "CORO_CREATED" if self.progress == NEW else "CORO_CLOSED"

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
    return new_block(pool, None)


cdef object quick_connection_async(FastPath pool, timeout):
    return new_async_block(pool, None)


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
