/* The branch of _atomic.h that is for MSVC, compiled by clang, which has its intrinsics.
 *
 * The system's headers come first, as clang's; then clang poses as MSVC for ours alone.
 */
#include <stdint.h>
#include <stdlib.h>
#include <intrin.h>
#include <windows.h>

#define __INTRIN_H /* MSVC's is what _atomic.h asks for; clang's was included above */
#define _MSC_VER 1940
#undef __clang__
#undef __forceinline
#define __forceinline __inline
#if defined(__aarch64__)
#define _M_ARM64 1
enum { _ARM64_BARRIER_ISH = 0xB };
void __dmb(unsigned int);
#endif

#include "_atomic.h"

int every_call(fp_atomic *a);
int every_call(fp_atomic *a) {
    fp_store(a, 1);
    fp_poke(a, fp_peek(a));
    fp_or(a, 2);
    fp_and(a, 3);
    fp_add(a, 1);
    fp_add_seq(a, 1);
    return fp_cas(a, 5, 6) + (int)fp_load(a) + (int)fp_load_seq(a) + fp_lowest(8) + fp_count(7)
           + (int)fp_now() + (int)fp_now_coarse();
}
