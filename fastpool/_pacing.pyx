"""How many connections to lend at once while threads wait: as many as let most requests through.

Owns: that number, and how it is found. Refuses: the clock, the queue and the slots, which are the
table's; it only counts what the table tells it. Guarded by the table's mutex.

Threads that share a GIL don't get more done by being more. A short query gives up the GIL nine
times and asks for it again; with each connection that is lent there is one more thread to wake and
to put back to sleep because another one has the GIL already. 64 threads get more `SELECT 1` out of
two connections than out of four, and more than twice as many as out of eight (bench/width.py).
Where the server or the network is what requests wait for, it is the other way round, and all
connections are lent.

LAPS. Throughput is measured in laps, of LAP returns and LAP_NS at least. A lap in which the queue
ran empty says nothing, and after MOST_PAUSES of them in a row, LAP_NS apart, what was found is
forgotten. So it is after a lap with fewer than a return per SLOW ns: there the GIL is not what
requests wait for.

LAG is the time from a grant to the moment at which the waiter that was woken runs. Where it is
less than 1/16 of the time for which connections are held, the GIL is free when it is wanted: all
are lent. A smaller width is tried only where it is 1/8 or more, and no longer than connections are
held; else newcomers that overtake do most of the work, and waiters are seldom handed anything.

TRIALS. A trial is TRIAL_LAPS laps with half of the width, or twice. If each is faster by 1/8 it is
kept, and the next trial goes the same way; else the width goes back, as soon as that shows, and the
next trial comes after twice as many laps as this one did. This is hill climbing, on a hill that is
steep: the pace differs by 15 to 60 % from one power of two to the next. But for the top of a large
pool, where sixteen threads are in each other's way as much as eight are. So from all it is a leap
to 2, and half of them, that are tried by turns.

STALLS. A connection that is held back is lent at the next return. When those that are lent are
held for longer all of a sudden, that may take long; so a waiter is on the lookout: when it has
waited for twice as long as the pace says it looks, and again STALL ns later. If nothing came back
between, all are lent. One is enough: with a short timeout for each, setting the timers took 8 % of
the throughput on two cores, and 14 % on one.

SOURCES. The more connections, the less throughput: N. J. Gunther, Guerrilla Capacity Planning
(2007), ch. 4-6 (universal scalability law). Finding the limit by measuring: as in the control of
congestion, V. Jacobson, Congestion Avoidance and Control, SIGCOMM 1988; for requests to a server,
https://github.com/Netflix/concurrency-limits.
"""

from libc.stdint cimport int64_t, uint64_t

cimport cython

cdef enum:
    LAP = 128                       # returns
    MOST_PATIENCE = 64              # laps
    MOST_PAUSES = 32
    TRIAL_LAPS = 2

cdef int64_t LAP_NS = 8_000_000
cdef int64_t SLOW = 500_000
cdef int64_t STALL = 1_000_000


@cython.final
cdef class Pacer:
    """See the module's text. Times are in ns, of one monotonic clock."""

    def __cinit__(self):
        self.patience = 1

    cpdef void returned(self, int64_t now, uint64_t turn, int present) noexcept:
        """A connection came back while somebody waits.

        `turn`: how many have come back so far. `present`: the connections that there are.
        """
        cdef int64_t passed = now - self.began
        cdef int64_t n = <int64_t>(turn - self.turn)
        self.last = now
        if self.began == 0:
            self.begin(now, turn)
        elif n < LAP or passed < LAP_NS:
            if passed > LAP * SLOW:
                self.relax()
            elif self.on_trial and n >= LAP // 4 and 2 * passed > 3 * n * self.kept_pace:
                self.give_up_trial()
                self.begin(now, turn)
        else:
            self.judge(passed // n, present)
            self.begin(now, turn)

    cdef void begin(self, int64_t now, uint64_t turn) noexcept:
        self.began = now
        self.turn = turn
        self.lag = self.n_lags = 0

    cdef void judge(self, int64_t pace, int present) noexcept:
        """A lap is over."""
        self.pauses = 0
        cdef int64_t held = pace * (self.width if self.width else present)
        cdef int64_t lag = self.lag // self.n_lags if self.n_lags else 0
        if self.on_trial:
            if 8 * pace >= 7 * self.kept_pace:
                self.give_up_trial()
            elif self.on_trial < TRIAL_LAPS:
                self.on_trial += 1
            else:
                self.pace = self.kept_pace = pace
                self.kept = self.width
                self.patience = self.rest = 1
                self.on_trial = self.step(present)
        elif 16 * lag < held or self.width == 0 and not lag <= held <= 8 * lag:
            self.width = 0
            self.pace = 0
        else:
            self.pace = (3 * self.pace + pace) // 4 if self.pace else pace
            if self.rest > 0:
                self.rest -= 1
            else:
                self.kept = self.width
                self.kept_pace = self.pace
                self.upwards = self.width != 0 and not self.upwards
                self.on_trial = self.step(present)

    cdef int step(self, int present) noexcept:
        """Go to the next width. Return 1, the first lap of its trial; 0 if there is none."""
        cdef int width = 2 * self.width if self.upwards else (self.width + 1) // 2
        if self.width == 0:
            self.leaps = not self.leaps
            width = 2 if self.leaps and present > 2 else (present + 1) // 2
        if width >= present:
            width = 0
        if width == self.width:
            return 0
        self.width = width
        return 1

    cdef void give_up_trial(self) noexcept:
        self.on_trial = 0
        self.width = self.kept
        self.rest = self.patience
        self.patience = min(2 * self.patience, MOST_PATIENCE)

    cpdef void came(self, int64_t lag) noexcept:
        """A waiter runs, *lag* ns after it was granted a connection."""
        self.lag += lag
        self.n_lags += 1

    cpdef void pause(self) noexcept:
        """The queue ran empty: the lap says nothing. What was found holds for the next queue."""
        if self.on_trial:
            self.give_up_trial()
        self.began = 0
        # Those that follow at once are one: threads that start, or end.
        if self.last - self.paused_at >= LAP_NS:
            self.paused_at = self.last
            self.pauses += 1
            if self.pauses > MOST_PAUSES:
                self.relax()

    cpdef void relax(self) noexcept:
        """Lend all, and find the width anew: connections are held for longer than they were."""
        if self.on_trial:
            self.give_up_trial()
        elif self.width:
            self.patience = 1
            self.rest = 0
        self.width = 0
        self.began = 0
        self.pace = 0

    cpdef bint has_stalled(self, int64_t now) noexcept:
        """Whether connections are held back, and none has come back from one look to another."""
        if self.width == 0 or now - self.last < STALL:
            return False
        # Not at the first look: when the machine stood still, that comes before any return.
        if self.suspected != self.last:
            self.suspected = self.last
            self.suspected_at = now
        return now - self.suspected_at >= STALL

    cpdef int64_t patience_of(self, int waiting) noexcept:
        """For how long (ns) the last of so many waits before it looks after a stall."""
        return STALL if self.suspected == self.last else STALL + 2 * waiting * self.pace
