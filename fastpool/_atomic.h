/* Atomic words, bit counting and clocks for the core: one spelling for gcc, clang and MSVC.
 *
 * Owns: the few machine primitives that C does not spell alike everywhere. Refuses: policy.
 * C11 <stdatomic.h> where there is one; interlocked intrinsics (full barriers) for MSVC in C mode,
 * which has no C11 atomics without an experimental switch. Every shared word goes through these
 * calls, so no plain access races with an atomic one (C11 5.1.2.4: a data race is undefined).
 */
#ifndef FASTPOOL_ATOMIC_H
#define FASTPOOL_ATOMIC_H

#include <Python.h>
#include <stdint.h>
#include <stdlib.h>

#if defined(_MSC_VER) && !defined(__clang__)

#include <intrin.h>
#define FP_INLINE static __forceinline
typedef struct { volatile __int64 v; } fp_atomic;

#if defined(_M_ARM64)
FP_INLINE uint64_t fp_load(fp_atomic *a) {
    uint64_t x = (uint64_t)__iso_volatile_load64(&a->v);
    __dmb(_ARM64_BARRIER_ISH);
    return x;
}
FP_INLINE void fp_store(fp_atomic *a, uint64_t x) {
    __dmb(_ARM64_BARRIER_ISH);
    __iso_volatile_store64(&a->v, (__int64)x);
}
#else /* x86: loads acquire and stores release; only the compiler must be held back */
FP_INLINE uint64_t fp_load(fp_atomic *a) {
    uint64_t x = (uint64_t)__iso_volatile_load64(&a->v);
    _ReadWriteBarrier();
    return x;
}
FP_INLINE void fp_store(fp_atomic *a, uint64_t x) {
    _ReadWriteBarrier();
    __iso_volatile_store64(&a->v, (__int64)x);
}
#endif
FP_INLINE uint64_t fp_peek(fp_atomic *a) { return (uint64_t)__iso_volatile_load64(&a->v); }
FP_INLINE void fp_poke(fp_atomic *a, uint64_t x) { __iso_volatile_store64(&a->v, (__int64)x); }
#ifdef Py_GIL_DISABLED
FP_INLINE uint64_t fp_load_seq(fp_atomic *a) {
    return (uint64_t)_InterlockedCompareExchange64(&a->v, 0, 0);
}
FP_INLINE int fp_cas(fp_atomic *a, uint64_t expected, uint64_t desired) {
    return _InterlockedCompareExchange64(&a->v, (__int64)desired, (__int64)expected)
           == (__int64)expected;
}
FP_INLINE uint64_t fp_or(fp_atomic *a, uint64_t x) {
    return (uint64_t)_InterlockedOr64(&a->v, (__int64)x);
}
FP_INLINE uint64_t fp_and(fp_atomic *a, uint64_t x) {
    return (uint64_t)_InterlockedAnd64(&a->v, (__int64)x);
}
FP_INLINE uint64_t fp_add(fp_atomic *a, uint64_t x) {
    return (uint64_t)_InterlockedExchangeAdd64(&a->v, (__int64)x);
}
FP_INLINE uint64_t fp_add_seq(fp_atomic *a, uint64_t x) { return fp_add(a, x); }
#endif

FP_INLINE int fp_lowest(uint64_t x) { /* x != 0 */
    unsigned long i;
    _BitScanForward64(&i, x);
    return (int)i;
}

#else

#include <stdatomic.h>
#define FP_INLINE static inline
typedef struct { _Atomic uint64_t v; } fp_atomic;

/* acquire load, release store: the slot's fields travel with its state word */
FP_INLINE uint64_t fp_load(fp_atomic *a) {
    return atomic_load_explicit(&a->v, memory_order_acquire);
}
FP_INLINE void fp_store(fp_atomic *a, uint64_t x) {
    atomic_store_explicit(&a->v, x, memory_order_release);
}
/* relaxed: for fields whose owner alone writes, read by others only to show them */
FP_INLINE uint64_t fp_peek(fp_atomic *a) {
    return atomic_load_explicit(&a->v, memory_order_relaxed);
}
FP_INLINE void fp_poke(fp_atomic *a, uint64_t x) {
    atomic_store_explicit(&a->v, x, memory_order_relaxed);
}
#ifdef Py_GIL_DISABLED
/* sequentially consistent: both sides of "publish, then look at the other's word" */
FP_INLINE uint64_t fp_load_seq(fp_atomic *a) {
    return atomic_load_explicit(&a->v, memory_order_seq_cst);
}
FP_INLINE int fp_cas(fp_atomic *a, uint64_t expected, uint64_t desired) {
    return atomic_compare_exchange_strong_explicit(
        &a->v, &expected, desired, memory_order_seq_cst, memory_order_seq_cst);
}
FP_INLINE uint64_t fp_or(fp_atomic *a, uint64_t x) {
    return atomic_fetch_or_explicit(&a->v, x, memory_order_seq_cst);
}
FP_INLINE uint64_t fp_and(fp_atomic *a, uint64_t x) {
    return atomic_fetch_and_explicit(&a->v, x, memory_order_seq_cst);
}
FP_INLINE uint64_t fp_add(fp_atomic *a, uint64_t x) {
    return atomic_fetch_add_explicit(&a->v, x, memory_order_relaxed);
}
FP_INLINE uint64_t fp_add_seq(fp_atomic *a, uint64_t x) {
    return atomic_fetch_add_explicit(&a->v, x, memory_order_seq_cst);
}
#endif

FP_INLINE int fp_lowest(uint64_t x) { return __builtin_ctzll(x); } /* x != 0 */

#endif

/* With a GIL, whoever touches a shared word holds it, and nothing else runs between two lines of C:
 * what reads, changes and writes a word needs no locked instruction (6 to 10 ns each), and what one
 * holder of the GIL has written, the next one sees. */
#ifndef Py_GIL_DISABLED
FP_INLINE uint64_t fp_load_seq(fp_atomic *a) { return fp_load(a); }
FP_INLINE int fp_cas(fp_atomic *a, uint64_t expected, uint64_t desired) {
    if (fp_peek(a) != expected) return 0;
    fp_store(a, desired);
    return 1;
}
FP_INLINE uint64_t fp_or(fp_atomic *a, uint64_t x) {
    uint64_t before = fp_peek(a);
    fp_store(a, before | x);
    return before;
}
FP_INLINE uint64_t fp_and(fp_atomic *a, uint64_t x) {
    uint64_t before = fp_peek(a);
    fp_store(a, before & x);
    return before;
}
FP_INLINE uint64_t fp_add(fp_atomic *a, uint64_t x) {
    uint64_t before = fp_peek(a);
    fp_store(a, before + x);
    return before;
}
FP_INLINE uint64_t fp_add_seq(fp_atomic *a, uint64_t x) { return fp_add(a, x); }
#endif

FP_INLINE int fp_count(uint64_t x) { /* bits set: SWAR, needs no instruction set beyond C */
    x = x - ((x >> 1) & 0x5555555555555555ULL);
    x = (x & 0x3333333333333333ULL) + ((x >> 2) & 0x3333333333333333ULL);
    x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
    return (int)((x * 0x0101010101010101ULL) >> 56);
}

/* Monotonic clocks, in nanoseconds. fp_now is exact (~25 ns); fp_now_coarse lags it by at most one
 * scheduler tick (4 ms as a rule) and costs ~5 ns: enough for ages and lifetimes.
 * Both count from the same origin, and no coarse reading is later than an exact one. */
#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#include <windows.h>
FP_INLINE int64_t fp_now(void) {
    LARGE_INTEGER f, c;
    QueryPerformanceFrequency(&f);
    QueryPerformanceCounter(&c);
    return (int64_t)(c.QuadPart / f.QuadPart) * 1000000000LL
           + (int64_t)(c.QuadPart % f.QuadPart) * 1000000000LL / f.QuadPart;
}
FP_INLINE int64_t fp_now_coarse(void) { return fp_now(); }

#else

#include <time.h>
FP_INLINE int64_t fp_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000LL + t.tv_nsec;
}
#if defined(CLOCK_MONOTONIC_COARSE)
FP_INLINE int64_t fp_now_coarse(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return (int64_t)t.tv_sec * 1000000000LL + t.tv_nsec;
}
#else
FP_INLINE int64_t fp_now_coarse(void) { return fp_now(); }
#endif

#endif
#endif
