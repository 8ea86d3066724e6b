"""The pool's exceptions. Each is a psycopg.OperationalError: programs that catch those go on."""

from __future__ import annotations

import psycopg


class PoolClosed(psycopg.OperationalError):
    """The pool is not open: not yet, or not any more."""

    __module__ = "fastpool"


class PoolTimeout(psycopg.OperationalError):
    """The pool could not lend a connection in time, or was not full in time."""

    __module__ = "fastpool"


class TooManyRequests(psycopg.OperationalError):
    """As many requests as `max_waiting` allows are waiting already."""

    __module__ = "fastpool"
