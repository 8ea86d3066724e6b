/* Call sites: which place of a program called into C, without a walk of its stack, in which thread.
 *
 * Owns: what differs between versions of CPython in reading the running frame. Refuses: lines and
 * names. A site is a code object and the offset of an instruction in it; what line that is, is
 * computed when somebody asks.
 *
 * 3.10 has frame objects. From 3.11 on a frame is a record of the interpreter, and a frame object
 * is made, at a cost, for who asks for one. Up to 3.13 the record is read directly, as Cython's own
 * code does too; its layout is in CPython's internal/pycore_frame.h. Of later ones only the first
 * word is read, a guess at its code that is compared with what is known; the rest is asked of
 * PyUnstable_InterpreterFrame_GetLasti() and, for code that is new, of frame objects. (_stacks.pyx
 * goes on to read those of 3.14 and 3.15.)
 */
#ifndef FASTPOOL_SITE_H
#define FASTPOOL_SITE_H

#include <Python.h>
#include "_atomic.h"

#if PY_VERSION_HEX < 0x030B0000
  #include <frameobject.h>
#elif PY_VERSION_HEX < 0x030E0000
  #ifndef Py_BUILD_CORE
    #define Py_BUILD_CORE 1
  #endif
  #include "internal/pycore_frame.h"
#endif

/* All are words, for a survey may look at any time. `code` is a strong reference; it changes under
 * the table's mutex. */
typedef struct {
    fp_atomic code;
    fp_atomic at;           /* in bytes; only of use together with `code` */
    fp_atomic thread;       /* the number of the thread: see fp_thread() */
} fp_site;

/* The frames of these modules, known by their globals, are not where a program calls the pool. */
#define FP_OWN_MODULES 16
static PyObject *fp_own[FP_OWN_MODULES];
static int fp_n_own;

FP_INLINE int fp_is_own(PyObject *globals) {
    int i;
    for (i = 0; i < fp_n_own; i++)
        if (fp_own[i] == globals) return 1;
    return 0;
}

FP_INLINE void fp_add_own(PyObject *globals) {
    if (fp_n_own < FP_OWN_MODULES && !fp_is_own(globals)) {
        Py_INCREF(globals);             /* for the process's life */
        fp_own[fp_n_own++] = globals;
    }
}

#if PY_VERSION_HEX >= 0x030D0000
  #define fp_tstate PyThreadState_GetUnchecked
#else
  #define fp_tstate _PyThreadState_UncheckedGet
#endif

/* The number of the thread that runs. No other one ever gets it, while an ident is used again as
 * soon as its thread has ended. */
#define fp_thread() ((uint64_t)fp_tstate()->id)

/* Whether the thread with this number has ended. Without a GIL nobody can go through the threads:
 * then it is not known to have. */
FP_INLINE int fp_has_ended(uint64_t thread) {
#ifdef Py_GIL_DISABLED
    (void)thread;
    return 0;
#else
    PyThreadState *one = PyInterpreterState_ThreadHead(fp_tstate()->interp);
    while (one != NULL && (uint64_t)one->id != thread) one = PyThreadState_Next(one);
    return one == NULL;
#endif
}

/* --- frames: fp_top_of(), fp_code(), fp_at(), and fp_caller(), the first that is not ours --------- */

#if PY_VERSION_HEX < 0x030B0000

typedef PyFrameObject fp_frame;
#define fp_top_of(tstate) ((tstate)->frame)
#define fp_code(f) ((PyObject *)(f)->f_code)
#define fp_at(f) ((uint64_t)(f)->f_lasti * 2)

FP_INLINE fp_frame *fp_caller(void) {
    fp_frame *frame = fp_top_of(fp_tstate());
    while (frame != NULL && fp_is_own(frame->f_globals)) frame = frame->f_back;
    return frame;
}

#elif PY_VERSION_HEX < 0x030E0000

typedef struct _PyInterpreterFrame fp_frame;
#if PY_VERSION_HEX >= 0x030D0000
  #define fp_top_of(tstate) ((tstate)->current_frame)
  #define fp_code(f) ((f)->f_executable)
  #define fp_instruction(f) ((f)->instr_ptr)
#else
  #define fp_top_of(tstate) ((tstate)->cframe->current_frame)
  #define fp_code(f) ((PyObject *)(f)->f_code)
  #define fp_instruction(f) ((f)->prev_instr)
#endif
#define fp_at(f) ((uint64_t)((char *)fp_instruction(f) - (char *)_PyCode_CODE((PyCodeObject *)fp_code(f))))
#if PY_VERSION_HEX >= 0x030C0000
  #define fp_is_entry(f) ((f)->owner == FRAME_OWNED_BY_CSTACK)
#else
  #define fp_is_entry(f) 0
#endif

FP_INLINE fp_frame *fp_caller(void) {
    fp_frame *frame = fp_top_of(fp_tstate());
    while (frame != NULL && (fp_is_entry(frame) || fp_is_own(frame->f_globals)))
        frame = frame->previous;
    return frame;
}

#endif

/* Note the thread that calls, and the place if it is in the code that it was in the last time. For
 * the owner of the slot only. */
FP_INLINE int fp_mark(fp_site *site) {
    PyThreadState *tstate = fp_tstate();
#if PY_VERSION_HEX < 0x030E0000
    fp_frame *frame = fp_top_of(tstate);
    fp_poke(&site->thread, (uint64_t)tstate->id);
    if (frame == NULL || (uint64_t)(size_t)fp_code(frame) != fp_peek(&site->code)) return 0;
    fp_poke(&site->at, fp_at(frame));
    return 1;
#else
    struct _PyInterpreterFrame *frame = tstate->current_frame;
    fp_poke(&site->thread, (uint64_t)tstate->id);
    if (frame == NULL || (*(uint64_t *)frame & ~(uint64_t)3) != fp_peek(&site->code)) return 0;
    fp_poke(&site->at, (uint64_t)PyUnstable_InterpreterFrame_GetLasti(frame));
    return 1;
#endif
}

/* Where the program is: a new reference to its code, NULL if there is none, and the place in that. */
FP_INLINE PyObject *fp_here(uint64_t *at) {
    PyObject *code = NULL;
#if PY_VERSION_HEX < 0x030E0000
    fp_frame *frame = fp_caller();
    *at = 0;
    if (frame != NULL) {
        code = fp_code(frame);
        Py_INCREF(code);
        *at = fp_at(frame);
    }
#else
    PyFrameObject *frame = PyThreadState_GetFrame(PyThreadState_Get());
    *at = 0;
    while (frame != NULL) {
        PyFrameObject *after;
        PyObject *globals = PyFrame_GetGlobals(frame);
        int own = fp_is_own(globals);
        Py_DECREF(globals);
        if (!own) {
            code = (PyObject *)PyFrame_GetCode(frame);
            *at = (uint64_t)PyFrame_GetLasti(frame);
            Py_DECREF(frame);
            break;
        }
        after = PyFrame_GetBack(frame);
        Py_DECREF(frame);
        frame = after;
    }
#endif
    return code;
}

#define fp_line(code, at) PyCode_Addr2Line((PyCodeObject *)(code), (at))

#endif
