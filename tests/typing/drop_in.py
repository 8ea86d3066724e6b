"""A program written for psycopg_pool, and what it says about types. Not a test by itself.

It is checked, and run, with fastpool and with psycopg_pool. With that, pyright refuses the lines
that are marked SEEN_HERE: it finds no connection class there where none is given, and takes
ConnectionPool.check_connection for a function of connections with tuples for rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from typing import Any

from psycopg import AsyncConnection, Connection, OperationalError
from psycopg.rows import DictRow, TupleRow, dict_row
from typing_extensions import assert_type

import fastpool.errors
import fastpool.null_pool
import fastpool.null_pool_async
import fastpool.pool
import fastpool.pool_async
from fastpool import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    ConnectionPool,
    NullConnectionPool,
    PoolClosed,
    PoolTimeout,
    TooManyRequests,
)
from fastpool.abc import (
    ACT,
    CT,
    AsyncConnectFailedCB,
    AsyncConnectionCB,
    AsyncConninfoParam,
    AsyncKwargsParam,
    ConnectFailedCB,
    ConnectionCB,
    ConninfoParam,
    KwargsParam,
)
from fastpool.base import AttemptWithBackoff, BasePool


class MyConnection(Connection[DictRow]):
    """A connection class with something of its own."""

    def one(self) -> int:
        row = self.execute("select 1 as one").fetchone()
        assert row is not None
        return int(row["one"])


class MyAsyncConnection(AsyncConnection[DictRow]):
    """The same for asyncio."""

    async def one(self) -> int:
        row = await (await self.execute("select 1 as one")).fetchone()
        assert row is not None
        return int(row["one"])


DICTS: dict[str, Any] = {"row_factory": dict_row}


# --- the connection class is the pool's parameter ---------------------------------------------


def the_class_that_is_given(dsn: str) -> None:
    with ConnectionPool(
        dsn, connection_class=MyConnection, kwargs=DICTS, min_size=1, open=False
    ) as pool:
        assert_type(pool, ConnectionPool[MyConnection])
        assert_type(pool.connection_class, type[MyConnection])
        with pool.connection() as conn:
            assert_type(conn, MyConnection)
            assert conn.one() == 1
        with pool.connection(1.5) as conn, conn.cursor() as cursor:
            assert_type(cursor.fetchall, Callable[[], list[DictRow]])
        conn = pool.getconn()
        assert_type(conn, MyConnection)
        pool.putconn(conn)
        pool.putconn(pool.getconn(timeout=1))
    with NullConnectionPool(dsn, connection_class=MyConnection, kwargs=DICTS, open=False) as null:
        assert_type(null, NullConnectionPool[MyConnection])
        with null.connection() as conn:
            assert_type(conn, MyConnection)


async def the_async_class_that_is_given(dsn: str) -> None:
    async with AsyncConnectionPool(
        dsn, connection_class=MyAsyncConnection, kwargs=DICTS, min_size=1, open=False
    ) as pool:
        assert_type(pool, AsyncConnectionPool[MyAsyncConnection])
        assert_type(pool.connection_class, type[MyAsyncConnection])
        async with pool.connection() as conn:
            assert_type(conn, MyAsyncConnection)
            assert await conn.one() == 1
        conn = await pool.getconn()
        assert_type(conn, MyAsyncConnection)
        await pool.putconn(conn)
        conn = await asyncio.create_task(pool.getconn(timeout=1))
        assert_type(conn, MyAsyncConnection)
        await asyncio.wait_for(pool.putconn(conn), 5)
    async with AsyncNullConnectionPool(
        dsn, connection_class=MyAsyncConnection, kwargs=DICTS, open=False
    ) as null:
        assert_type(null, AsyncNullConnectionPool[MyAsyncConnection])
        async with null.connection() as conn:
            assert_type(conn, MyAsyncConnection)


def no_class_is_given(dsn: str) -> None:
    with ConnectionPool(dsn, min_size=1, open=False) as pool:
        assert_type(pool, ConnectionPool[Connection[TupleRow]])  # SEEN_HERE
        with pool.connection() as conn:
            assert_type(conn, Connection[TupleRow])  # SEEN_HERE
            row = conn.execute("select 1").fetchone()
            assert_type(row, TupleRow | None)  # SEEN_HERE
    null = NullConnectionPool(dsn, open=False)
    assert_type(null, NullConnectionPool[Connection[TupleRow]])  # SEEN_HERE


async def no_async_class_is_given(dsn: str) -> None:
    async with AsyncConnectionPool(dsn, min_size=1, open=False) as pool:
        assert_type(pool, AsyncConnectionPool[AsyncConnection[TupleRow]])  # SEEN_HERE
        async with pool.connection() as conn:
            assert_type(conn, AsyncConnection[TupleRow])  # SEEN_HERE
    null = AsyncNullConnectionPool(dsn, open=False)
    assert_type(null, AsyncNullConnectionPool[AsyncConnection[TupleRow]])  # SEEN_HERE


def without_a_parameter(
    pool: ConnectionPool, other: AsyncConnectionPool, call: ConnectionCB, start: AsyncConnectionCB
) -> None:
    assert_type(pool, ConnectionPool[Connection[TupleRow]])
    assert_type(other, AsyncConnectionPool[AsyncConnection[TupleRow]])
    assert_type(call, Callable[[Connection[TupleRow]], None])
    assert_type(start, Callable[[AsyncConnection[TupleRow]], Awaitable[None]])


def rows_of_another_type(dsn: str) -> None:
    declared: ConnectionPool[Connection[DictRow]] = ConnectionPool(
        dsn, kwargs=DICTS, min_size=1, open=False
    )
    with declared, declared.connection() as conn:
        assert_type(conn, Connection[DictRow])
        assert_type(conn.execute("select 1 as one").fetchone(), DictRow | None)

    subscripted = ConnectionPool[Connection[DictRow]](dsn, kwargs=DICTS, min_size=1, open=False)
    assert_type(subscripted, ConnectionPool[Connection[DictRow]])
    with subscripted, subscripted.connection() as conn:
        assert conn.execute("select 1 as one").fetchone() == {"one": 1}

    with ConnectionPool(
        dsn, connection_class=Connection[DictRow], kwargs=DICTS, min_size=1, open=False
    ) as given:
        assert_type(given, ConnectionPool[Connection[DictRow]])
        with given.connection() as conn:
            assert conn.execute("select 1 as one").fetchone() == {"one": 1}

    null = NullConnectionPool[Connection[DictRow]](dsn, kwargs=DICTS, open=False)
    assert_type(null, NullConnectionPool[Connection[DictRow]])


async def async_rows_of_another_type(dsn: str) -> None:
    declared: AsyncConnectionPool[AsyncConnection[DictRow]] = AsyncConnectionPool(
        dsn, kwargs=DICTS, min_size=1, open=False
    )
    async with declared, declared.connection() as conn:
        assert_type(await (await conn.execute("select 1 as one")).fetchone(), DictRow | None)
    subscripted = AsyncConnectionPool[AsyncConnection[DictRow]](dsn, kwargs=DICTS, open=False)
    assert_type(subscripted, AsyncConnectionPool[AsyncConnection[DictRow]])


# --- callbacks --------------------------------------------------------------------------------


def prepare(conn: MyConnection) -> None:
    conn.one()
    conn.commit()


def prepare_any(conn: Connection[Any]) -> None:
    conn.execute("select 1")
    conn.commit()


def give_up(pool: ConnectionPool[Any]) -> None:
    raise SystemExit(pool.name)


class Service:
    """A program's own object, whose methods are callbacks."""

    def __init__(self, dsn: str) -> None:
        self.pool: ConnectionPool[MyConnection] = ConnectionPool(
            self.conninfo,
            connection_class=MyConnection,
            kwargs=self.kwargs,
            configure=self.prepare,
            check=self.check,
            reset=self.reset,
            reconnect_failed=self.give_up,
            min_size=1,
            open=False,
        )
        self.dsn = dsn

    def conninfo(self) -> str:
        return self.dsn

    def kwargs(self) -> dict[str, Any]:
        return DICTS

    def prepare(self, conn: MyConnection) -> None:
        prepare(conn)

    def check(self, conn: Connection[Any]) -> None:
        ConnectionPool.check_connection(conn)

    @staticmethod
    def reset(conn: MyConnection) -> None:
        prepare(conn)

    def give_up(self, pool: ConnectionPool[Any]) -> None:
        pool.close()

    def __call__(self, conn: MyConnection) -> None:
        prepare(conn)


def callbacks(dsn: str) -> None:
    service = Service(dsn)
    with service.pool as pool, pool.connection() as conn:
        assert_type(pool, ConnectionPool[MyConnection])
        assert_type(conn, MyConnection)
    inferred = ConnectionPool(dsn, configure=prepare, open=False)  # SEEN_HERE
    assert_type(inferred, ConnectionPool[MyConnection])
    with ConnectionPool(
        dsn,
        connection_class=MyConnection,
        kwargs=DICTS,
        configure=service,
        check=lambda conn: prepare(conn),
        reset=prepare_any,
        reconnect_failed=lambda pool: pool.close(),
        min_size=1,
        open=False,
    ) as given:
        assert_type(given, ConnectionPool[MyConnection])
        given.putconn(given.getconn())
    # One that takes any connection says nothing about the pool's.
    general: ConnectionPool[Connection[TupleRow]] = ConnectionPool(
        dsn, configure=prepare_any, reset=prepare_any, reconnect_failed=give_up, open=False
    )
    assert_type(general, ConnectionPool[Connection[TupleRow]])


def checks(dsn: str) -> None:
    plain: ConnectionPool = ConnectionPool(
        dsn, check=ConnectionPool.check_connection, min_size=1, open=False
    )
    with plain, plain.connection() as conn:
        assert_type(conn, Connection[TupleRow])
        plain.check_connection(conn)
    check = ConnectionPool.check_connection
    rows: ConnectionPool[Connection[DictRow]]
    rows = ConnectionPool(dsn, check=check, open=False)  # SEEN_HERE
    rows = NullConnectionPool(dsn, check=check, open=False)  # SEEN_HERE
    own = ConnectionPool(dsn, connection_class=MyConnection, check=check, open=False)  # SEEN_HERE
    assert_type(own, ConnectionPool[MyConnection])
    assert {rows.closed, own.closed} == {True}


async def async_prepare(conn: MyAsyncConnection) -> None:
    await conn.one()
    await conn.commit()


async def async_prepare_any(conn: AsyncConnection[Any]) -> None:
    await conn.execute("select 1")
    await conn.commit()


async def async_give_up(pool: AsyncConnectionPool[Any]) -> None:
    await pool.close()


def give_up_async_pool(pool: AsyncConnectionPool[Any]) -> None:
    raise SystemExit(pool.name)


class AsyncService:
    """The same for asyncio."""

    def __init__(self, dsn: str) -> None:
        self.pool: AsyncConnectionPool[MyAsyncConnection] = AsyncConnectionPool(
            self.conninfo,
            connection_class=MyAsyncConnection,
            kwargs=self.kwargs,
            configure=self.prepare,
            check=self.check,
            reset=self.reset,
            reconnect_failed=async_give_up,
            min_size=1,
            open=False,
        )
        self.dsn = dsn

    async def conninfo(self) -> str:
        return self.dsn

    async def kwargs(self) -> dict[str, Any]:
        return DICTS

    async def prepare(self, conn: MyAsyncConnection) -> None:
        await async_prepare(conn)

    async def check(self, conn: AsyncConnection[Any]) -> None:
        await AsyncConnectionPool.check_connection(conn)

    @staticmethod
    async def reset(conn: MyAsyncConnection) -> None:
        await async_prepare(conn)


async def async_callbacks(dsn: str) -> None:
    service = AsyncService(dsn)
    async with service.pool as pool, pool.connection() as conn:
        assert_type(pool, AsyncConnectionPool[MyAsyncConnection])
        assert_type(conn, MyAsyncConnection)
    inferred = AsyncConnectionPool(dsn, configure=async_prepare, open=False)  # SEEN_HERE
    assert_type(inferred, AsyncConnectionPool[MyAsyncConnection])
    given = AsyncConnectionPool(
        lambda: dsn,
        connection_class=MyAsyncConnection,
        kwargs=lambda: DICTS,
        configure=async_prepare,
        check=lambda conn: async_prepare(conn),
        reset=async_prepare_any,
        reconnect_failed=give_up_async_pool,
        open=False,
    )
    assert_type(given, AsyncConnectionPool[MyAsyncConnection])
    rows: AsyncConnectionPool[AsyncConnection[DictRow]]
    check = AsyncConnectionPool.check_connection
    rows = AsyncConnectionPool(dsn, check=check, open=False)  # SEEN_HERE
    assert rows.closed


async def names_of_callback_types(dsn: str) -> None:
    conninfo: ConninfoParam = dsn
    kwargs: KwargsParam = Service(dsn).kwargs
    configure: ConnectionCB[MyConnection] = prepare
    reconnect_failed: ConnectFailedCB = give_up
    pool = ConnectionPool(
        conninfo,
        connection_class=MyConnection,
        kwargs=kwargs,
        configure=configure,
        reconnect_failed=reconnect_failed,
        open=False,
    )
    assert_type(pool, ConnectionPool[MyConnection])

    async_conninfo: AsyncConninfoParam = AsyncService(dsn).conninfo
    async_kwargs: AsyncKwargsParam = AsyncService(dsn).kwargs
    async_configure: AsyncConnectionCB[MyAsyncConnection] = async_prepare
    async_reconnect_failed: AsyncConnectFailedCB = async_give_up
    async_pool = AsyncConnectionPool(
        async_conninfo,
        connection_class=MyAsyncConnection,
        kwargs=async_kwargs,
        configure=async_configure,
        reconnect_failed=async_reconnect_failed,
        open=False,
    )
    assert_type(async_pool, AsyncConnectionPool[MyAsyncConnection])


# --- functions and classes over pools ---------------------------------------------------------


def borrow(pool: ConnectionPool[CT]) -> CT:
    return pool.getconn()


def lend(pool: ConnectionPool[CT]) -> AbstractContextManager[CT]:
    return pool.connection()


async def async_borrow(pool: AsyncConnectionPool[ACT]) -> ACT:
    return await pool.getconn()


def async_lend(pool: AsyncConnectionPool[ACT]) -> AbstractAsyncContextManager[ACT]:
    return pool.connection()


def make(pool_class: type[ConnectionPool[Any]], dsn: str) -> ConnectionPool[MyConnection]:
    return pool_class(dsn, connection_class=MyConnection, kwargs=DICTS, open=False)


def size_of(pool: BasePool) -> int:
    return pool.get_stats()["pool_size"]


def functions_over_pools(dsn: str) -> None:
    with make(NullConnectionPool, dsn) as pool:
        assert_type(pool, ConnectionPool[MyConnection])
        conn = borrow(pool)
        assert_type(conn, MyConnection)
        assert size_of(pool) == 1
        pool.putconn(conn)
        with lend(pool) as conn:
            assert_type(conn, MyConnection)
        with ExitStack() as stack:
            assert_type(stack.enter_context(pool.connection()), MyConnection)
        assert decorated(pool) == 1


def decorated(pool: ConnectionPool[MyConnection]) -> int:
    @pool.connection()
    def size() -> int:
        return size_of(pool)

    assert_type(size, Callable[[], int])
    return size()


async def functions_over_async_pools(dsn: str) -> None:
    pool: AsyncConnectionPool[MyAsyncConnection]
    pool = AsyncNullConnectionPool(
        dsn, connection_class=MyAsyncConnection, kwargs=DICTS, open=False
    )
    async with pool:
        conn = await async_borrow(pool)
        assert_type(conn, MyAsyncConnection)
        assert size_of(pool) == 1
        await pool.putconn(conn)
        async with async_lend(pool) as conn:
            assert_type(conn, MyAsyncConnection)
        async with AsyncExitStack() as stack:
            conn = await stack.enter_async_context(pool.connection())
            assert_type(conn, MyAsyncConnection)
        assert await async_decorated(pool) == 1


async def async_decorated(pool: AsyncConnectionPool[MyAsyncConnection]) -> int:
    @pool.connection()
    async def size() -> int:
        return size_of(pool)

    return await size()


class DictPool(ConnectionPool[Connection[DictRow]]):
    """A pool with its parameter fixed."""

    def __init__(self, conninfo: str) -> None:
        super().__init__(conninfo, kwargs=DICTS, min_size=1, open=False)


class MyPool(ConnectionPool[MyConnection]):
    """A pool with its parameter fixed, and methods of its own in place of the pool's."""

    def __init__(self, conninfo: str = "", **kwargs: Any) -> None:
        super().__init__(conninfo, connection_class=MyConnection, kwargs=DICTS, **kwargs)

    def getconn(self, timeout: float | None = None) -> MyConnection:
        return super().getconn(timeout)

    def putconn(self, conn: MyConnection) -> None:
        super().putconn(conn)

    @contextmanager
    def connection(self, timeout: float | None = None) -> Generator[MyConnection, None, None]:
        with super().connection(timeout=timeout) as conn:
            yield conn

    @staticmethod
    def check_connection(conn: MyConnection) -> None:
        conn.one()

    def _connect(self, timeout: float | None = None) -> MyConnection:
        return super()._connect(timeout)


class GenericPool(ConnectionPool[CT]):
    """A pool that is still open to any connection class."""


class MyAsyncPool(AsyncConnectionPool[MyAsyncConnection]):
    """The same for asyncio."""

    async def getconn(self, timeout: float | None = None) -> MyAsyncConnection:
        return await super().getconn(timeout)

    async def putconn(self, conn: MyAsyncConnection) -> None:
        await super().putconn(conn)

    @asynccontextmanager
    async def connection(
        self, timeout: float | None = None
    ) -> AsyncGenerator[MyAsyncConnection, None]:
        async with super().connection(timeout) as conn:
            yield conn


def subclasses(dsn: str) -> None:
    with DictPool(dsn) as rows, rows.connection() as conn:
        assert_type(rows, DictPool)
        assert_type(conn, Connection[DictRow])
        assert conn.execute("select 1 as one").fetchone() == {"one": 1}
    with MyPool(dsn, open=False) as mine, mine.connection() as own:
        assert_type(mine, MyPool)
        assert_type(own, MyConnection)
        mine.check_connection(own)
    generic = GenericPool(dsn, connection_class=MyConnection, open=False)
    assert_type(generic, GenericPool[MyConnection])
    assert_type(GenericPool(dsn, open=False), GenericPool[Connection[TupleRow]])  # SEEN_HERE
    pools: list[ConnectionPool[MyConnection]] = [mine, generic]
    assert all(isinstance(pool, ConnectionPool) for pool in pools)


async def async_subclasses(dsn: str) -> None:
    pool = MyAsyncPool(dsn, connection_class=MyAsyncConnection, kwargs=DICTS, open=False)
    async with pool as same, same.connection() as conn:
        assert_type(same, MyAsyncPool)
        assert_type(conn, MyAsyncConnection)


def one_or_the_other(source: Connection[Any] | ConnectionPool[Any]) -> str:
    if isinstance(source, ConnectionPool):
        return source.name
    return source.info.dbname


# --- the rest of the surface ------------------------------------------------------------------


def attributes_and_methods(dsn: str) -> None:
    pool = ConnectionPool(dsn, connection_class=MyConnection, min_size=1, open=False)
    assert_type(pool.conninfo, str | Callable[[], str])
    assert_type(pool.kwargs, dict[str, Any] | Callable[[], dict[str, Any]] | None)
    pool.kwargs = DICTS
    assert_type(pool.name, str)
    assert_type(pool.timeout, float)
    assert_type(pool.max_waiting, int)
    assert_type(pool.max_lifetime, float)
    assert_type(pool.max_idle, float)
    assert_type(pool.reconnect_timeout, float)
    assert_type(pool.num_workers, int)
    assert_type(pool.close_returns, bool)
    pool.timeout = 5
    assert_type(pool.min_size, int)
    assert_type(pool.max_size, int)
    assert_type(pool.closed, bool)
    pool.open(wait=True, timeout=30)
    pool.wait(timeout=30)
    pool.resize(1, max_size=2)
    pool.check()
    pool.drain()
    assert_type(pool.get_stats(), dict[str, int])
    assert_type(pool.pop_stats(), dict[str, int])
    assert one_or_the_other(pool) == pool.name
    pool.close(timeout=5)


async def async_attributes_and_methods(dsn: str) -> None:
    pool = AsyncConnectionPool(dsn, connection_class=MyAsyncConnection, min_size=1, open=False)
    assert_type(
        pool.conninfo,
        str | Callable[[], str] | Callable[[], Awaitable[str]],
    )
    pool.kwargs = DICTS
    await pool.open(wait=True, timeout=30)
    await pool.wait(timeout=30)
    await pool.resize(1, max_size=2)
    await pool.check()
    await pool.drain()
    assert_type(pool.get_stats(), dict[str, int])
    assert_type(pool.pop_stats(), dict[str, int])
    await pool.close(timeout=5)


def exceptions(dsn: str) -> None:
    errors: list[type[OperationalError]] = [PoolClosed, PoolTimeout, TooManyRequests]
    closed: type[OperationalError] = fastpool.errors.PoolClosed
    try:
        ConnectionPool(dsn, open=False).getconn()
    except (PoolTimeout, TooManyRequests) as error:
        assert_type(error, PoolTimeout | TooManyRequests)
    except PoolClosed as error:
        assert_type(error, PoolClosed)
    assert closed in errors


def modules(dsn: str) -> None:
    plain: type[ConnectionPool[Any]] = fastpool.pool.ConnectionPool
    null: type[NullConnectionPool[Any]] = fastpool.null_pool.NullConnectionPool
    tasks: type[AsyncConnectionPool[Any]] = fastpool.pool_async.AsyncConnectionPool
    both: type[AsyncNullConnectionPool[Any]] = fastpool.null_pool_async.AsyncNullConnectionPool
    assert issubclass(null, plain)
    assert issubclass(both, tasks)
    assert_type(AttemptWithBackoff.INITIAL_DELAY, float)
    assert_type(fastpool.__version__, str)
