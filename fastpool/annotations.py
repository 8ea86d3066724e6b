"""Type variables, callback types and other names for annotations. No behaviour."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol

if sys.version_info >= (3, 13):
    from typing import TypeVar
else:
    from typing_extensions import TypeVar

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection
    from psycopg.rows import TupleRow

# The pool's connection class; Connection[TupleRow] where none is given (PEP 696).
CT = TypeVar("CT", bound="Connection[Any]", default="Connection[TupleRow]")
ACT = TypeVar("ACT", bound="AsyncConnection[Any]", default="AsyncConnection[TupleRow]")

T_co = TypeVar("T_co", covariant=True)
F = TypeVar("F", bound=Callable[..., Any])
AF = TypeVar("AF", bound=Callable[..., Awaitable[Any]])


class NotGiven:
    """What a type checker takes `connection_class` for where a program gives none. Never made.

    From a default value that is a class, or is said to be a type[CT], pyright concludes what CT
    is, and concludes it wrong. This tells it nothing, and CT is its own default.
    """


class ConnectionContext(AbstractContextManager[T_co], Protocol[T_co]):
    """What `connection()` returns: for a `with` statement, or to decorate a function."""

    def __call__(self, func: F, /) -> F: ...


class AsyncConnectionContext(AbstractAsyncContextManager[T_co], Protocol[T_co]):
    """What an async pool's `connection()` returns."""

    def __call__(self, func: AF, /) -> AF: ...


# What a server must be: one that takes writes, or one that refuses them.
Role = Literal["read-write", "read-only"]

ConnectionCB = Callable[[CT], None]
AsyncConnectionCB = Callable[[ACT], Awaitable[None]]

ConninfoParam = str | Callable[[], str]
AsyncConninfoParam = str | Callable[[], str] | Callable[[], Awaitable[str]]
KwargsParam = dict[str, Any] | Callable[[], dict[str, Any]]
AsyncKwargsParam = (
    dict[str, Any] | Callable[[], dict[str, Any]] | Callable[[], Awaitable[dict[str, Any]]]
)
