"""What type checkers refuse, with psycopg_pool and with fastpool. Not a test by itself, never run.

Each ignored error is one: the checkers complain of an ignore comment that nothing needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from psycopg import AsyncConnection, Connection
from psycopg.rows import DictRow, TupleRow

from fastpool import AsyncConnectionPool, ConnectionPool, NullConnectionPool
from fastpool.abc import AsyncConnectionCB, ConnectionCB


class MyConnection(Connection[DictRow]):
    """A connection class of a program's own."""


def nothing() -> None: ...
def of_strings(conn: str) -> None: ...
def of_async(conn: AsyncConnection[Any]) -> None: ...
def returns(conn: Connection[Any]) -> bool:
    return True


async def coroutine(conn: Connection[Any]) -> None: ...
def not_coroutine(conn: AsyncConnection[Any]) -> None: ...
def of_dicts(conn: MyConnection) -> None: ...
def takes_async_pool(pool: AsyncConnectionPool[Any]) -> None: ...
def two(pool: ConnectionPool[Any], error: Exception) -> None: ...
def gives_int() -> int:
    return 1


Plain = Connection[TupleRow]


def callbacks() -> None:
    ConnectionPool(connection_class=Plain, configure=nothing)  # type: ignore[arg-type]
    ConnectionPool(connection_class=Plain, configure=of_strings)  # type: ignore[arg-type]
    ConnectionPool(connection_class=Plain, configure=of_async)  # type: ignore[arg-type]
    ConnectionPool(connection_class=Plain, configure=returns)  # type: ignore[arg-type]
    ConnectionPool(connection_class=Plain, configure=coroutine)  # type: ignore[arg-type]
    ConnectionPool(connection_class=Plain, configure=of_dicts)  # type: ignore[arg-type]
    ConnectionPool(connection_class=Plain, check=of_strings)  # type: ignore[arg-type]
    ConnectionPool(connection_class=Plain, reset=of_strings)  # type: ignore[arg-type]
    ConnectionPool(connection_class=Plain, reconnect_failed=nothing)  # type: ignore[arg-type]
    ConnectionPool(connection_class=Plain, reconnect_failed=two)  # type: ignore[arg-type]
    ConnectionPool(connection_class=Plain, reconnect_failed=takes_async_pool)  # type: ignore[arg-type]
    ConnectionPool(gives_int, connection_class=Plain)  # type: ignore[arg-type]
    ConnectionPool(kwargs=gives_int, connection_class=Plain)  # type: ignore[arg-type]
    ConnectionPool(check=AsyncConnectionPool.check_connection)  # type: ignore[arg-type]


def async_callbacks() -> None:
    async_class = AsyncConnection[TupleRow]
    AsyncConnectionPool(connection_class=async_class, configure=not_coroutine)  # type: ignore[arg-type]
    AsyncConnectionPool(connection_class=async_class, check=coroutine)  # type: ignore[arg-type]
    AsyncConnectionPool(connection_class=async_class, reset=not_coroutine)  # type: ignore[arg-type]
    AsyncConnectionPool(connection_class=async_class, reconnect_failed=nothing)  # type: ignore[arg-type]
    AsyncConnectionPool(gives_int, connection_class=async_class)  # type: ignore[arg-type]
    AsyncConnectionPool(check=ConnectionPool.check_connection)  # type: ignore[arg-type]


def parameters() -> None:
    ConnectionPool(connection_class=AsyncConnection)  # type: ignore[type-var]
    AsyncConnectionPool(connection_class=Connection)  # type: ignore[type-var]
    ConnectionPool(connection_class=int)  # type: ignore[type-var]
    ConnectionPool(connection_class=None)  # type: ignore[arg-type]
    ConnectionPool("", Connection)  # type: ignore[call-arg]
    ConnectionPool(min_size="4")  # type: ignore[arg-type]
    ConnectionPool(no_such_parameter=1)  # type: ignore[call-arg]
    NullConnectionPool(timeout=None)  # type: ignore[arg-type]


def of_another_class(pool: ConnectionPool[MyConnection], conn: Plain) -> None:
    pool.putconn(conn)  # type: ignore[arg-type]
    pool.putconn(None)  # type: ignore[arg-type]
    pool.getconn("1")  # type: ignore[arg-type]
    other: ConnectionPool[Plain] = pool  # type: ignore[assignment]
    another: AsyncConnectionPool = pool  # type: ignore[assignment]
    null: NullConnectionPool[MyConnection] = pool  # type: ignore[assignment]
    lent: Plain = pool.getconn()  # type: ignore[assignment]
    print(other, another, null, lent)
    pool.min_size = 1  # type: ignore[misc]
    pool.closed = False  # type: ignore[misc]


def bound() -> tuple[type, ...]:
    return (
        ConnectionPool[int],  # type: ignore[type-var]
        AsyncConnectionPool[Connection[Any]],  # type: ignore[type-var]
    )


def names(conn: ConnectionCB[MyConnection], async_conn: AsyncConnectionCB) -> None:
    first: Callable[[str], None] = conn  # type: ignore[assignment]
    second: ConnectionCB[MyConnection] = async_conn  # type: ignore[assignment]
    print(first, second)
