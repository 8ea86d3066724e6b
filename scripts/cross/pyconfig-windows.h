/* What Python's headers want to know about Windows on a 64-bit processor, for scripts/cross.py.
 *
 * Only as much as compiling an extension module needs: Python's own file for Windows is not on the
 * machine that cross-compiles. Nothing is linked with it.
 */
#define MS_WINDOWS 1
#define MS_WIN64 1
#define NT_THREADS 1
#define WITH_THREAD 1
#define HAVE_DECLSPEC_DLL 1
#define Py_ENABLE_SHARED 1
#define PLATLIBDIR "DLLs"
#define HAVE_STDDEF_H 1
#define HAVE_SYS_TYPES_H 1
#define HAVE_ERRNO_H 1
#define SIZEOF_SHORT 2
#define SIZEOF_INT 4
#define SIZEOF_LONG 4
#define SIZEOF_LONG_LONG 8
#define SIZEOF_FLOAT 4
#define SIZEOF_DOUBLE 8
#define SIZEOF_VOID_P 8
#define SIZEOF_SIZE_T 8
#define SIZEOF_TIME_T 8
#define SIZEOF_WCHAR_T 2
#define ALIGNOF_SIZE_T 8
#define ALIGNOF_LONG 4
#define ALIGNOF_MAX_ALIGN_T 8
#define SIZEOF_PID_T 4
#include <basetsd.h>
#define WITH_DOC_STRINGS 1
#define WITH_PYMALLOC 1
