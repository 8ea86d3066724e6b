"""Notices from the kernel that a session has ended, for the connections of all pools.

Owns: which sockets are watched, how the kernel is asked, and what its answer means. Refuses: to
decide about slots, which it asks a pool's method to do, and to have a thread: the housekeeper
waits here, in a Sentry.

A watch asks for one event only, that the other side has closed: queries, results and notifications
wake nobody. It watches a duplicate of the connection's descriptor. The number is then the watch's
own, and can't become another file's while the kernel still reports on it; and when a borrower
closes the connection for real, the server's answer to that, closing too, is still heard.

Where neither epoll nor kqueue can be had there is no watch, and the pools look at each connection
before they lend it.
"""

from __future__ import annotations

import _thread
import errno
import os
import select
import sys
import threading
import types
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from ._core import Gauge
from ._peek import ENDED, look

# Longer than any program sleeps, shorter than what epoll takes (seconds).
_LONGEST = 1e6

# What a descriptor that is no socket is answered with: a stand-in for a connection, in a test.
_NO_SOCKET = (errno.EBADF, errno.EPERM, errno.ENOTSOCK)


class Sentry(Protocol):
    """What the housekeeper's thread waits in. Thread-safe but for wait() and close(), which are
    that thread's. wake() and remove() are harmless when it is closed."""

    def add(self, fd: int) -> None:
        """Report when the other side of this socket closes, once. Raises OSError."""

    def remove(self, fd: int) -> None:
        """Report no more on this one."""

    def wait(self, timeout: float) -> list[int]:
        """Block until something is reported, wake() is called or *timeout* seconds are over."""

    def wake(self) -> None:
        """End the waiting, or the next one. Never blocks."""

    def close(self) -> None:
        """Give up its descriptors."""


class Bell:
    """A Sentry that watches no sockets: a lock that is released to ring."""

    def __init__(self) -> None:
        self._bell = threading.Lock()
        self._bell.acquire()

    def add(self, fd: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def remove(self, fd: int) -> None:
        pass

    def wait(self, timeout: float) -> list[int]:
        self._bell.acquire(True, min(timeout, threading.TIMEOUT_MAX))
        return []

    def wake(self) -> None:
        with suppress(RuntimeError):  # it is ringing already
            self._bell.release()

    def close(self) -> None:
        pass


if sys.platform == "linux":

    class KernelSentry:
        """Linux: edge-triggered epoll for EPOLLRDHUP, which reading and writing do not trigger."""

        def __init__(self) -> None:
            self._epoll = select.epoll()
            # Always ready, and asked for once at each wake(). Nothing is written to wake: a
            # descriptor that was closed meanwhile could be another file by then.
            try:
                self._ready = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            except OSError:
                self._epoll.close()
                raise
            self._epoll.register(self._ready, select.EPOLLONESHOT)

        def add(self, fd: int) -> None:
            with suppress(FileExistsError):
                self._epoll.register(fd, select.EPOLLRDHUP | select.EPOLLET)

        def remove(self, fd: int) -> None:
            with suppress(OSError, ValueError):
                self._epoll.unregister(fd)

        def wait(self, timeout: float) -> list[int]:
            return [fd for fd, _ in self._epoll.poll(min(timeout, _LONGEST)) if fd != self._ready]

        def wake(self) -> None:
            with suppress(OSError, ValueError):
                self._epoll.modify(self._ready, select.EPOLLIN | select.EPOLLONESHOT)

        def close(self) -> None:
            self._epoll.close()
            os.close(self._ready)

    _CALL = "epoll"

elif sys.platform != "win32":

    class KernelSentry:
        """macOS and the BSDs: kqueue. EOF is reported however little can be read, and nothing else
        is with a low-water mark that no buffer reaches."""

        _UNREACHABLE = 2**31 - 1

        def __init__(self) -> None:
            self._kqueue = select.kqueue()

        def _control(self, *what: int) -> None:
            self._kqueue.control([select.kevent(*what)], 0)

        def add(self, fd: int) -> None:
            self._control(
                fd,
                select.KQ_FILTER_READ,
                select.KQ_EV_ADD | select.KQ_EV_CLEAR,
                select.KQ_NOTE_LOWAT,
                self._UNREACHABLE,
            )

        def remove(self, fd: int) -> None:
            with suppress(OSError, ValueError):
                self._control(fd, select.KQ_FILTER_READ, select.KQ_EV_DELETE)

        def wait(self, timeout: float) -> list[int]:
            events = self._kqueue.control(None, 256, min(timeout, _LONGEST))
            return [event.ident for event in events if event.filter == select.KQ_FILTER_READ]

        def wake(self) -> None:
            with suppress(OSError, ValueError):  # a timer of 0 ms: no descriptor, nothing to write
                self._control(0, select.KQ_FILTER_TIMER, select.KQ_EV_ADD | select.KQ_EV_ONESHOT)

        def close(self) -> None:
            self._kqueue.close()

    _CALL = "kqueue"

else:
    KernelSentry = Bell
    _CALL = "none"


def can_watch() -> bool:
    """Whether this process can have notices at all.

    Not where threads are not the system's: gevent replaces them, and takes epoll away. It may do
    that at any time before the first pool is opened, so it is asked anew.
    """
    if not isinstance(_thread.start_new_thread, types.BuiltinFunctionType):
        return False
    if not hasattr(select, _CALL):
        return False
    if _CALL not in _allowed:
        try:
            KernelSentry().close()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                return True  # descriptors have run out, which passes; connecting fails as well
            _allowed[_CALL] = False
        else:
            _allowed[_CALL] = True
    return _allowed[_CALL]


# Whether a sandbox lets us have it, once known.
_allowed: dict[str, bool] = {}

# The watches by their descriptors, and the sentry that the housekeeper waits in: one, or none.
_watches: dict[int, Watch] = {}
_on_duty: list[Sentry] = []


class Watch:
    """The watch on one connection's socket, from now on until close().

    *fd*: the connection's; *index*: its slot. *method*: of the pool, which is held weakly; called
    by tell(), and to return True when it has taken the connection out of its table, which closes
    the watch. *on_end*: called when it is closed.

    Raises OSError. Thread-safe, also in a finalizer.
    """

    __slots__ = ("_closing", "_method", "_on_end", "fd", "index")

    def __init__(
        self,
        fd: int,
        index: int,
        method: Callable[[Watch], bool],
        on_end: Callable[[], object],
    ) -> None:
        self.index = index
        self._closing = Gauge()
        self._on_end = on_end
        self._method: Callable[[], Callable[[Watch], bool] | None]
        self._method = weakref.WeakMethod(method, lambda _: self.close())
        self.fd = os.dup(fd)
        # In this order: a sentry that comes on duty meanwhile finds the watch by itself.
        _watches[self.fd] = self
        try:
            for sentry in list(_on_duty):
                sentry.add(self.fd)
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._closing.inside > 0

    def tell(self) -> bool:
        """Have the pool take the connection out. False: its slot is somebody's at the moment, and
        this is to be tried again."""
        method = self._method()
        return self.closed or method is None or method(self)

    def belongs_to(self, pool: object) -> bool:
        """Whether it is a connection of this pool."""
        return getattr(self._method(), "__self__", None) is pool

    def close(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        """Watch no longer. Harmless when closed. Never blocks."""
        # At the interpreter's end the module may be gone, and the descriptors soon are.
        if not is_finalizing() and self._closing.enter():
            self._drop(is_childs_copy=False)

    def forget(self) -> None:
        """Close a forked child's copy, of which the parent's watch is to notice nothing."""
        if self._closing.enter():
            self._drop(is_childs_copy=True)

    def _drop(self, is_childs_copy: bool) -> None:
        # try: an interrupt may come in at any line.
        try:
            self._method = _nobody  # the weak reference's callback holds this watch
            _watches.pop(self.fd, None)
            if not is_childs_copy:
                # The kernel forgets a socket when all its descriptors are closed: not yet.
                for sentry in list(_on_duty):
                    sentry.remove(self.fd)
        finally:
            os.close(self.fd)
            self._on_end()


def _nobody() -> None:
    return None


def is_no_socket(error: OSError) -> bool:
    """Whether this is why a descriptor can't be watched: there is nothing to look at."""
    return error.errno in _NO_SOCKET


def any_watched() -> bool:
    """Whether there is a watch."""
    return bool(_watches)


def unwatch(pool: object) -> None:
    """Close the watches of this pool's connections."""
    for watch in list(_watches.values()):
        if watch.belongs_to(pool):
            watch.close()


def come_on_duty() -> Sentry:
    """Return a sentry that watches all there is to watch; what can't be watched is not.

    For the housekeeper, which calls go_off_duty() with it.
    """
    sentry: Sentry
    try:
        sentry = KernelSentry() if can_watch() else Bell()
    except OSError:
        sentry = Bell()
    _on_duty[:] = [sentry]
    for fd in list(_watches):
        with suppress(OSError):
            sentry.add(fd)
    return sentry


def go_off_duty(sentry: Sentry) -> None:
    """Close the sentry."""
    _on_duty.clear()
    sentry.close()


def wake() -> None:
    """Wake the housekeeper, if it waits. Never blocks."""
    for sentry in list(_on_duty):
        sentry.wake()


def ended(fds: list[int]) -> list[Watch]:
    """Of the descriptors that were reported, return the watches whose sessions have ended.

    They are looked at: a report may be of a descriptor that was closed since, and given anew.
    """
    found = (_watches.get(fd) for fd in fds)
    return [watch for watch in found if watch is not None and look(watch.fd) == ENDED]


def forget_in_child() -> None:
    """After fork(), in the child: forget all watches, without a trace in the parent's.

    Closes the child's copies of the descriptors. Nothing is taken out of the epoll, which both
    processes share. Called by housekeeper.forget_in_child().
    """
    for watch in list(_watches.values()):
        watch.forget()
    for sentry in list(_on_duty):
        sentry.close()
    _on_duty.clear()
