"""What makes a pool a null pool: no connection stands idle.

Owns: the sizes that are allowed, and the switches that lending and the slot table look at. Each
connection is opened for its borrower, in its borrower's time, and closed when it comes back,
unless somebody waits for it at the pool's maximum.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

from . import parameters
from .base import BasePool


class BaseNullPool(BasePool):
    """Base class of the null pools. Not for direct use."""

    _KEEPS_IDLE = False
    # Hand-off: what is not given to who waits would be closed.
    _TAU_NS = 0
    _PACES = False

    @staticmethod
    def _check_size(min_size: int, max_size: int | None) -> tuple[int, int]:
        min_size = parameters.size("min_size", min_size)
        max_size = min_size if max_size is None else parameters.size("max_size", max_size)
        if min_size != 0:
            raise ValueError("null pools must have min_size = 0")
        if max_size < min_size:
            raise ValueError("max_size must be greater or equal than min_size")
        return min_size, max_size


def with_defaults(function: Callable[..., Any], owner: str, **defaults: Any) -> Any:
    """Return a copy of *function*, a method of class *owner*, with other defaults for some of its
    keyword-only parameters."""
    qualname = f"{owner}.{function.__name__}"
    code = function.__code__
    if sys.version_info >= (3, 11):
        code = code.replace(co_qualname=qualname)
    copy = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = {**(function.__kwdefaults__ or {}), **defaults}
    copy.__annotations__ = function.__annotations__
    copy.__qualname__ = qualname
    copy.__doc__ = function.__doc__
    return copy
