"""The frames of threads that go on running, read in C: what stacks.py and deadlock.py look at.

Owns: reading them before any other thread can go on. Refuses: to say what a frame means.
"""

from cpython.object cimport PyObject

from fastpool._core cimport fp_steal

from sys import _current_frames as current_frames

# The layout of frames.
cdef extern from "_site.h":
    pass

cdef extern from *:
    """
    #define fp_back(frame) ((PyObject *)PyFrame_GetBack((PyFrameObject *)(frame)))
    """
    PyObject *fp_back(object frame)     # a new reference, NULL for the outermost
    int PyGC_Disable()
    int PyGC_Enable()


def stacks_of_threads(idents, Py_ssize_t limit):
    """Return the frames of these threads, or of all (None), by ident; the innermost first.

    In C, and without the collector, that no other thread may run before the last frame is in hand:
    a frame that has gone on meanwhile leads back into memory that its thread has used anew.
    """
    cdef bint collects = PyGC_Disable()
    cdef dict stacks = {}
    try:
        for ident, frame in (<dict>current_frames()).items():
            if idents is None or ident in idents:
                stacks[ident] = outwards(frame, limit)
    finally:
        if collects:
            PyGC_Enable()
    return stacks


def outwards(frame, Py_ssize_t limit):
    """Return a frame and those that called it, at most *limit*, the innermost first."""
    cdef PyObject *back
    cdef list frames = []
    while frame is not None and len(frames) < limit:
        frames.append(frame)
        back = fp_back(frame)
        frame = None if back == NULL else fp_steal(back)
    return frames


cdef extern from *:
    """
    #if PY_VERSION_HEX >= 0x030E0000 && PY_VERSION_HEX < 0x03100000 && !defined(Py_GIL_DISABLED)
      #define FP_TAGGED 1           /* the words of a frame have tags in their low bits */
      #ifndef Py_BUILD_CORE
        #define Py_BUILD_CORE 1
      #endif
      #include "internal/pycore_frame.h"
      #include "internal/pycore_interpframe_structs.h"
    #else
      #define FP_TAGGED 0
    #endif

    /* The words of a frame: n variables, then its stack, up to `all`. How high the stack is, a
       frame that runs C code does not tell before 3.14; what is above may be stale. The layout is
       that of CPython's internal headers, see _site.h; NULL where it is not known. */
    static size_t *fp_words(PyObject *object, Py_ssize_t *n, Py_ssize_t *all) {
    #if PY_VERSION_HEX < 0x030B0000
        PyFrameObject *frame = (PyFrameObject *)object;
        PyCodeObject *code = frame->f_code;
        *n = code->co_nlocals + PyTuple_GET_SIZE(code->co_cellvars)
            + PyTuple_GET_SIZE(code->co_freevars);
        *all = *n + code->co_stacksize;
        return (size_t *)frame->f_localsplus;
    #elif PY_VERSION_HEX < 0x030E0000
        struct _PyInterpreterFrame *frame = ((PyFrameObject *)object)->f_frame;
        PyCodeObject *code = (PyCodeObject *)fp_code(frame);
        *n = code->co_nlocalsplus;
        *all = *n + code->co_stacksize;
        #if PY_VERSION_HEX < 0x030D0000
        if (frame->stacktop >= *n && frame->stacktop < *all) *all = frame->stacktop;
        #endif
        return (size_t *)frame->localsplus;
    #elif FP_TAGGED
        struct _PyInterpreterFrame *frame = ((PyFrameObject *)object)->f_frame;
        PyCodeObject *code = (PyCodeObject *)(frame->f_executable.bits & ~(size_t)3);
        *n = code->co_nlocalsplus;
        *all = *n + code->co_stacksize;
        if (frame->stackpointer != NULL) *all = frame->stackpointer - frame->localsplus;
        return (size_t *)frame->localsplus;
    #else
        *n = *all = 0;
        return NULL;
    #endif
    }

    /* What a word refers to: its id, 0 for nothing. Tagged 2 or 3 it is no reference; 1 is one that
       is not counted, to what a variable further out refers to. */
    #define fp_target(word) (!FP_TAGGED ? (word) : (word) & 2 ? 0 : (word) & ~(size_t)1)
    #define fp_is_counted(word) (!FP_TAGGED || ((word) & 3) == 0)
    """
    size_t *fp_words(object frame, Py_ssize_t *n, Py_ssize_t *all)
    size_t fp_target(size_t word)
    bint fp_is_counted(size_t word)


def frame_ids(frame):
    """Return the ids of what is in the variables of a frame, cells as such, and of what is, or was
    not long ago, on its stack: None instead of these where the stack is not in sight.

    In C, for a look at `f_locals` leaves copies of the variables behind, up to 3.12. For a build
    with a GIL, where no thread runs meanwhile.
    """
    cdef Py_ssize_t n, all, i
    cdef list variables = [], stack = []
    cdef size_t *words = fp_words(frame, &n, &all)
    if words == NULL:
        if frame.f_locals is not frame.f_globals:
            variables = [id(value) for value in frame.f_locals.values()]
        return variables, None
    for i in range(all):
        if fp_target(words[i]) != 0:
            (variables if i < n and fp_is_counted(words[i]) else stack).append(fp_target(words[i]))
    return variables, stack
