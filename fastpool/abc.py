"""Type variables and callback types, for annotations. No behaviour."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

if sys.version_info >= (3, 13):
    from typing import TypeVar
else:
    from typing_extensions import TypeVar

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection
    from psycopg.rows import TupleRow

    from .pool import ConnectionPool
    from .pool_async import AsyncConnectionPool

# The pool's connection class; Connection[TupleRow] where none is given (PEP 696).
CT = TypeVar("CT", bound="Connection[Any]", default="Connection[TupleRow]")
ACT = TypeVar("ACT", bound="AsyncConnection[Any]", default="AsyncConnection[TupleRow]")

ConnectionCB = Callable[[CT], None]
AsyncConnectionCB = Callable[[ACT], Awaitable[None]]
ConnectFailedCB = Callable[["ConnectionPool[Any]"], None]
AsyncConnectFailedCB = (
    Callable[["AsyncConnectionPool[Any]"], None]
    | Callable[["AsyncConnectionPool[Any]"], Awaitable[None]]
)

ConninfoParam = str | Callable[[], str]
AsyncConninfoParam = str | Callable[[], str] | Callable[[], Awaitable[str]]
KwargsParam = dict[str, Any] | Callable[[], dict[str, Any]]
AsyncKwargsParam = (
    dict[str, Any] | Callable[[], dict[str, Any]] | Callable[[], Awaitable[dict[str, Any]]]
)
