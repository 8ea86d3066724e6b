# How many connections a pool lends at once while threads wait.

from libc.stdint cimport int64_t, uint64_t

cimport cython


@cython.final
cdef class Pacer:
    cdef readonly int width         # lend no more at once while others wait; 0: all there are
    cdef readonly int64_t pace      # ns from one return to the next, lately; 0: unknown
    cdef int64_t last               # ns, the last return
    cdef int64_t suspected          # the last return, when a look found that it was long ago
    cdef int64_t suspected_at       # ns, when
    cdef int64_t began              # ns, when the lap began; 0: it has not
    cdef uint64_t turn              # the table's count of returns then
    cdef int64_t lag                # ns, of the lap's grants together; how many there were
    cdef int64_t n_lags
    cdef int kept                   # the width that a trial goes back to
    cdef int64_t kept_pace
    cdef int on_trial               # which lap of a trial this is; 0: none
    cdef bint upwards               # which way the next trial goes
    cdef int pauses                 # laps in a row in which the queue ran empty
    cdef int64_t paused_at          # ns, the return before the last pause
    cdef bint leaps                 # whether the last trial from all went to 2
    cdef int rest                   # laps until it
    cdef int patience               # laps after a trial that failed

    cpdef void returned(self, int64_t now, uint64_t turn, int present) noexcept
    cpdef void came(self, int64_t lag) noexcept
    cpdef void pause(self) noexcept
    cpdef void relax(self) noexcept
    cpdef bint has_stalled(self, int64_t now) noexcept
    cpdef int64_t patience_of(self, int waiting) noexcept
    cdef void begin(self, int64_t now, uint64_t turn) noexcept
    cdef void judge(self, int64_t pace, int present) noexcept
    cdef void give_up_trial(self) noexcept
    cdef int step(self, int present) noexcept
