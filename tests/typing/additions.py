"""What fastpool has beyond psycopg_pool, as a type checker sees it. Not a test by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from psycopg import AsyncConnection, Connection
from psycopg.rows import DictRow, TupleRow, dict_row
from typing_extensions import assert_type

import fastpool
from fastpool import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    ConnectionPool,
    NullConnectionPool,
    SlotInfo,
    Snapshot,
)


class MyConnection(Connection[DictRow]):
    """A connection class of a program's own."""


class MyAsyncConnection(AsyncConnection[DictRow]):
    """The same for asyncio."""


DICTS: dict[str, Any] = {"row_factory": dict_row}


def leases(dsn: str) -> None:
    with ConnectionPool(
        dsn, connection_class=MyConnection, kwargs=DICTS, min_size=1, open=False
    ) as pool:
        with pool.connect() as conn:
            assert_type(conn, MyConnection)
            assert conn.execute("select 1 as one").fetchone() == {"one": 1}
        conn = pool.connect(timeout=1.5)
        assert_type(conn, MyConnection)
        conn.close()
    with NullConnectionPool(dsn, open=False) as null, null.connect(1) as plain:
        assert_type(plain, Connection[TupleRow])


async def async_leases(dsn: str) -> None:
    async with AsyncConnectionPool(
        dsn, connection_class=MyAsyncConnection, kwargs=DICTS, min_size=1, open=False
    ) as pool:
        async with pool.connect() as conn:
            assert_type(conn, MyAsyncConnection)
            cursor = await conn.execute("select 1 as one")
            assert await cursor.fetchone() == {"one": 1}
        async with await pool.connect(timeout=1.5) as conn:
            assert_type(conn, MyAsyncConnection)
        conn = await pool.connect()
        assert_type(conn, MyAsyncConnection)
        await conn.close()
        conn = await asyncio.wait_for(pool.connect(), 5)
        assert_type(conn, MyAsyncConnection)
        await conn.close()
        conn = await asyncio.create_task(pool.connect())
        assert_type(conn, MyAsyncConnection)
        await conn.close()
    async with AsyncNullConnectionPool(dsn, open=False) as null, null.connect(1) as plain:
        assert_type(plain, AsyncConnection[TupleRow])


def snapshots(dsn: str) -> None:
    with ConnectionPool(dsn, min_size=1, order="lifo", leak_timeout=60, reclaim_dead=True) as pool:
        picture = pool.snapshot()
    assert_type(picture, Snapshot)
    assert_type(picture.name, str)
    assert_type(picture.min_size, int)
    assert_type(picture.max_size, int)
    assert_type(picture.size, int)
    assert_type(picture.counts, Mapping[str, int])
    assert_type(picture.waiting, int)
    assert_type(picture.oldest_wait, float)
    assert_type(picture.slots, tuple[SlotInfo, ...])
    assert_type(picture.as_dict(), dict[str, Any])
    for slot in picture.slots:
        assert_type(slot.index, int)
        assert_type(slot.state, str)
        assert_type(slot.backend_pid, int | None)
        assert_type(slot.age, float | None)
        assert_type(slot.time_in_state, float)
        assert_type(slot.uses, int)
        assert_type(slot.owner_name, str | None)
        assert_type(slot.owner_ident, int | None)
        assert_type(slot.call_site, str | None)
        assert_type(slot.is_overdue, bool)
        assert_type(slot.as_dict(), dict[str, Any])


async def async_snapshots(dsn: str) -> None:
    async with AsyncConnectionPool(
        dsn, order="fifo", leak_timeout=1.5, role="read-only", open=False
    ) as pool:
        assert_type(pool.snapshot(), Snapshot)


def standing_in() -> Callable[[], None]:
    return fastpool.install
