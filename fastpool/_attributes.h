/* Attributes without a lookup.
 *
 * Owns: what CPython lets us know about a class, a dictionary, and the driver's own getter, so that
 * it need not be asked again until that has changed. Refuses: to believe it of a class without a
 * version, and on builds without a GIL to borrow from a dictionary, which is not for many threads.
 */
#ifndef FASTPOOL_ATTRIBUTES_H
#define FASTPOOL_ATTRIBUTES_H

#include <Python.h>
#include "_atomic.h"

/* A type's version tag is how CPython knows that a class has not been changed since it looked
 * something up: PyType_Modified sets a new one. Unique, and 0 where it is not known. */
#define fp_version(o) (Py_TYPE(o)->tp_version_tag)

/* Up to Python 3.11 a dictionary has a version, which any change of it changes: not even a look
 * into the dictionary is needed while that is the same. 0 where there is none. */
#if PY_VERSION_HEX < 0x030C0000
#define fp_dict_version(d) (((PyDictObject *)(d))->ma_version_tag)
#else
#define fp_dict_version(d) 0
#endif

#ifdef Py_GIL_DISABLED
#define fp_attributes(o) NULL       /* borrowing from a dictionary is not for many threads */
#else
FP_INLINE PyObject *fp_attributes(PyObject *o) {
    PyObject *d = PyObject_GenericGetDict(o, NULL);
    if (d == NULL) PyErr_Clear();
    else Py_DECREF(d);              /* the instance holds it */
    return d;
}
#endif

static PyObject *fp_idle;           /* the int 0, of which there is one; set at import */

/* conn.pgconn.transaction_status. Of a compiled psycopg it is a getter in C. */
static fp_atomic fp_pg_learnt;      /* 0 -> 1: the one who does it, for the process's life */
static fp_atomic fp_pg_version;     /* of the pgconn's class whose getter this is; set last */
static getter fp_pg_get;
static void *fp_pg_closure;

FP_INLINE void fp_learn_status(PyTypeObject *type) {
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

/* Whether a libpq connection has no transaction; -1: an exception. */
FP_INLINE int fp_is_idle(PyObject *pgconn) {
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

/* From Python 3.14 on an interrupt may strike between a lock and the `with` block that takes it, and
 * the lock stays locked. Where that can't be, the compiler leaves the looks for it out. */
#if PY_VERSION_HEX < 0x030E0000
#define fp_locks_may_be_lost() 0
#define fp_handles_exception() 0
#else
#define fp_locks_may_be_lost() 1
/* Whether an exception is on its way: the caller is in an `except` or a `finally`. */
FP_INLINE int fp_handles_exception(void) {
    PyObject *handled = PyErr_GetHandledException();
    Py_XDECREF(handled);
    return handled != NULL;
}
#endif

#endif
