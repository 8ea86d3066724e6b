"""The pool's exceptions. Each is a psycopg.OperationalError: programs that catch those go on.

A program may use fastpool's pool and still catch psycopg_pool's exceptions. Where psycopg_pool has
been imported, what is raised here is an instance of both classes of that name, fastpool's and
psycopg_pool's: nothing less makes an `except` match. psycopg_pool is never imported for that; who
has not imported it can't name its exceptions.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

E = TypeVar("E", bound=psycopg.OperationalError)


def _new(cls: type[E], *args: Any, **kwargs: Any) -> E:
    """Make an exception that can be caught under both names: `__new__` of the classes below."""
    made: Any = cls
    theirs: Any = getattr(sys.modules.get("psycopg_pool"), _their_name(cls), None)
    is_error = isinstance(theirs, type) and issubclass(theirs, psycopg.OperationalError)
    if is_error and not issubclass(cls, theirs):  # while fastpool stands in, theirs is ours
        made = _both(made, theirs)
    error: E = psycopg.OperationalError.__new__(made, *args, **kwargs)
    return error


def _their_name(cls: type[Any]) -> str:
    """Under which name psycopg_pool has it, or what it is derived from."""
    return "PoolTimeout" if issubclass(cls, PoolTimeout) else cls.__name__


@functools.cache
def _both(ours: type[Any], theirs: type[Any]) -> type[Any]:
    """Make the class of what is an instance of *ours* and of *theirs*."""

    def reduce(self: psycopg.OperationalError) -> str | tuple[Any, ...]:
        # Pickle finds a class by its name, and by this name it finds ours.
        reduced = psycopg.OperationalError.__reduce__(self)
        return (ours, *reduced[1:]) if isinstance(reduced, tuple) else reduced

    members = {"__module__": ours.__module__, "__doc__": ours.__doc__, "__reduce__": reduce}
    return type(ours.__name__, (ours, theirs), members)


class PoolClosed(psycopg.OperationalError):
    """The pool is not open: not yet, or not any more."""

    __module__ = "fastpool"
    if not TYPE_CHECKING:
        __new__ = _new


class PoolTimeout(psycopg.OperationalError):
    """The pool could not lend a connection in time, or was not full in time.

    Its text names who has held connections longest, and where they were borrowed. Its notes
    (`__notes__`, shown by tracebacks from Python 3.11 on) are the stacks of these.
    """

    __module__ = "fastpool"
    __notes__: list[str]
    if not TYPE_CHECKING:
        __new__ = _new


class PoolDeadlock(PoolTimeout):
    """Every connection is held by somebody who waits for another one of this pool.

    None will ever come back. Raised in all of these as soon as that is certain. Its text says who
    holds what, its notes are their stacks; none without a GIL.
    """

    __module__ = "fastpool"


class TooManyRequests(psycopg.OperationalError):
    """As many requests as `max_waiting` allows are waiting already."""

    __module__ = "fastpool"
    if not TYPE_CHECKING:
        __new__ = _new
