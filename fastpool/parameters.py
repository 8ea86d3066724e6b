"""What arguments a pool takes: their types and ranges.

Owns: every refusal of an argument, of a constructor or a method: TypeError for what can't be one,
ValueError for what is out of range; the text names the argument. Refuses: to show a value that is
of the wrong type, for it may be a conninfo with a password in the wrong place; and to look at an
attribute that a program assigns later.

Where psycopg_pool says what happens this says the same: which sizes, in which order they are looked
at, that a conninfo may be None, that a lifetime may be 0.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Mapping
from numbers import Real
from typing import Any

import psycopg

from ._core import LIMIT
from .leases import DRIVER_RETURNS
from .redaction import hide

ORDERS = ("fifo", "lifo")
ROLES = ("read-write", "read-only")
# The largest number that the core takes.
_INT_MAX = 2**31 - 1


# --- one argument -------------------------------------------------------------------------------


def integer(name: str, value: Any) -> int:
    """Return *value* as an int. Raises TypeError, for a bool too."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} must be an integer, not {_type(value)}")
    return operator.index(value)


def size(name: str, value: Any) -> int:
    """Return a number of connections. Its lower limit is that of the kind of pool."""
    number = integer(name, value)
    if number > LIMIT:
        raise ValueError(f"{name} can be {LIMIT} at most, not {number}")
    return number


def count(name: str, value: Any, least: int) -> None:
    """Refuse what is not an integer of at least *least* that the core can hold."""
    number = integer(name, value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}")
    if number > _INT_MAX:
        raise ValueError(f"{name} can be {_INT_MAX} at most")


def number(name: str, value: Any) -> float:
    """Return *value*, a number of seconds, as a float; infinity is one, NaN is not."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number of seconds, not {_type(value)}")
    try:
        seconds = float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large a number of seconds") from None
    if math.isnan(seconds):
        raise ValueError(f"{name} must be a number of seconds, not NaN")
    return seconds


def duration(name: str, value: Any, *, zero: bool = True) -> None:
    """Refuse what is not a time in seconds: negative, or 0 unless *zero*."""
    seconds = number(name, value)
    if seconds < 0.0:
        raise ValueError(f"{name} cannot be negative")
    if seconds == 0.0 and not zero:
        raise ValueError(f"{name} must be greater than 0")


def patience(timeout: Any) -> float:
    """Return how long a method may take, in seconds: None is for any time."""
    if timeout is None:
        return math.inf
    number("timeout", timeout)
    seconds: float = timeout
    return seconds


def flag(name: str, value: Any) -> None:
    """Refuse what is neither true nor false. 0 and 1 are."""
    if not (isinstance(value, int) and value in (0, 1)):
        raise TypeError(f"{name} must be True or False, not {_type(value)}")


def function(name: str, value: Any, *, is_async: bool) -> None:
    """Refuse what can't be called; for a thread pool, what has to be awaited as well."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, not {_type(value)}")
    if not is_async and _is_async(value):
        raise TypeError(f"{name} must not be a coroutine function: nothing awaits it in this pool")


def _is_async(function: Any) -> bool:
    call = getattr(type(function), "__call__", None)  # noqa: B004  # it may be a coroutine function
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _type(value: Any) -> str:
    return "None" if value is None else type(value).__name__


# --- a constructor's ----------------------------------------------------------------------------


def check_close_returns(close_returns: Any, connection_class: Any, default: Any) -> None:
    """Refuse what the driver can't do. *default*: the pool's own connection class."""
    flag("close_returns", close_returns)
    if close_returns and not DRIVER_RETURNS and connection_class is not default:
        raise TypeError(
            "close_returns=True with a connection_class of your own needs psycopg 3.3 or newer:"
            f" this is {psycopg.__version__}"
        )


def check_counts(*, num_workers: Any, max_waiting: Any, max_connecting: Any) -> None:
    """Refuse numbers that make no sense."""
    count("num_workers", num_workers, 1)
    if integer("max_waiting", max_waiting) < 0:
        raise ValueError("max_waiting cannot be negative")
    count("max_connecting", max_connecting, 1)


def check_source(*, conninfo: Any, connection_class: Any, kwargs: Any, is_async: bool) -> None:
    """Refuse what no connection can be opened with."""
    if conninfo is not None and not isinstance(conninfo, str):
        if not callable(conninfo):
            raise TypeError(f"conninfo must be a str or callable, not {_type(conninfo)}")
        function("conninfo", conninfo, is_async=is_async)
    if not callable(getattr(connection_class, "connect", None)):
        raise TypeError("connection_class must have a method connect()")
    if callable(kwargs):
        function("kwargs", kwargs, is_async=is_async)
    elif kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs must be a dict or callable, not {_type(kwargs)}")
    elif not all(isinstance(key, str) for key in kwargs or ()):
        raise TypeError("kwargs must have names, of type str, for keys")


def check_callbacks(*, is_async: bool, **callbacks: Any) -> None:
    """Refuse what can't be called, or not by this kind of pool."""
    for name, callback in callbacks.items():
        if callback is not None:
            function(name, callback, is_async=is_async)


def check_rest(*, name: Any, order: Any, role: Any, open: Any) -> None:
    """Refuse the wrong words."""
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a str, not {_type(name)}")
    if not isinstance(order, str):
        raise TypeError(f"order must be a str, not {_type(order)}")
    if order not in ORDERS:
        raise ValueError(f"order must be 'fifo' or 'lifo', not {hide(repr(order))}")
    if role is not None and not isinstance(role, str):
        raise TypeError(f"role must be a str or None, not {_type(role)}")
    if role is not None and role not in ROLES:
        raise ValueError(f"role must be 'read-write', 'read-only' or None, not {hide(repr(role))}")
    if open is not None:
        flag("open", open)
