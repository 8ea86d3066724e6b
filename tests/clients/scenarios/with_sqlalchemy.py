"""SQLAlchemy over pool.getconn, as its manual has it: NullPool, and close() gives back."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import Engine, NullPool, create_engine, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

Seen = dict[str, Any]

PID = text("select pg_backend_pid()")


class Base(DeclarativeBase):
    """The models' base."""


class Item(Base):
    """A row."""

    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


def make_pool(dsn: str, **options: Any) -> ConnectionPool:
    """Return a pool for the recipe, not open yet."""
    options = {"min_size": 1, "max_size": 3, "timeout": 10.0, **options}
    return ConnectionPool(dsn, open=False, close_returns=True, **options)


def make_engine(pool: ConnectionPool) -> Engine:
    """Return an engine over *pool*."""
    return create_engine("postgresql+psycopg://", creator=pool.getconn, poolclass=NullPool)


def make_async_pool(dsn: str, **options: Any) -> AsyncConnectionPool:
    """Return a pool for the recipe, not open yet."""
    options = {"min_size": 1, "max_size": 3, "timeout": 10.0, **options}
    return AsyncConnectionPool(dsn, open=False, close_returns=True, **options)


def make_async_engine(pool: AsyncConnectionPool) -> AsyncEngine:
    """Return an engine over *pool*."""
    return create_async_engine(
        "postgresql+psycopg://", async_creator=pool.getconn, poolclass=NullPool
    )


def terminate(dsn: str, backend: int) -> None:
    """End a session, from outside, and wait until it is gone."""
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("select pg_terminate_backend(%s, 5000)", [backend])


def full(pool: Any, size: int) -> Callable[[], bool]:
    """Return a question: does *pool* have *size* connections, all of them idle?"""

    def question() -> bool:
        now = pool.get_stats()
        return bool(now["pool_size"] == now["pool_available"] == size)

    return question


def settled(question: Callable[[], bool]) -> bool:
    """Wait up to 5 s for a yes."""
    deadline = time.monotonic() + 5.0
    while not (answer := question()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return answer


async def settled_async(question: Callable[[], bool]) -> bool:
    """Wait up to 5 s for a yes, and let the loop run meanwhile."""
    deadline = time.monotonic() + 5.0
    while not (answer := question()) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return answer


# ---- the scenarios, with threads


def many_threads(dsn: str) -> Seen:
    """Eight threads, each with 30 units of work, every third one of which is rolled back."""
    backends: set[int] = set()
    failed: list[str] = []
    with make_pool(dsn) as pool:
        engine = make_engine(pool)
        Base.metadata.create_all(engine)

        def work(thread: int) -> None:
            for number in range(30):
                try:
                    with Session(engine) as session, session.begin():
                        session.add(Item(name=f"{thread}-{number}"))
                        session.flush()
                        backends.add(session.scalar(PID))
                        if number % 3 == 0:
                            session.add(Item(name=f"{thread}-{number}"))
                except DBAPIError as error:
                    failed.append(type(error).__name__)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with Session(engine) as session:
            rows = session.scalar(select(func.count(Item.id)))
        size = pool.get_stats()["pool_size"]
        return {
            "rows": rows,
            "failed": len(failed),
            "kinds": sorted(set(failed)),
            "at_most_3": len(backends) <= 3,
            "all_back": settled(full(pool, size)),
        }


def one_session(dsn: str) -> Seen:
    """Connections of an engine, one after the other, in the ways there are to end one."""
    with make_pool(dsn, max_size=1) as pool:
        engine = make_engine(pool)
        backends = []
        with engine.connect() as conn:
            backends.append(conn.scalar(PID))
            lent = pool.get_stats()["pool_available"]
        with engine.begin() as conn:
            backends.append(conn.scalar(PID))
        conn = engine.connect()
        backends.append(conn.scalar(PID))
        conn.invalidate()
        conn.close()
        conn = engine.connect()
        backends.append(conn.scalar(PID))
        conn.detach()
        conn.close()
        raw = engine.raw_connection()
        backends.append(raw.cursor().execute("select pg_backend_pid()").fetchone()[0])
        raw.close()
        engine.dispose()
        with engine.connect() as conn:
            backends.append(conn.scalar(PID))
        return {"sessions": len(set(backends)), "lent": lent, "all_back": settled(full(pool, 1))}


def broken(dsn: str, times: int) -> Seen:
    """The server ends the session of a connection in use, again and again; the pool has one."""
    errors, backends = [], []
    with make_pool(dsn, max_size=1, timeout=2.0) as pool:
        engine = make_engine(pool)
        try:
            for _ in range(times):
                with engine.connect() as conn:
                    backends.append(conn.scalar(PID))
                    terminate(dsn, backends[-1])
                    try:
                        conn.execute(PID)
                    except DBAPIError as error:
                        errors.append(bool(error.connection_invalidated))
            with engine.connect() as conn:
                backends.append(conn.scalar(PID))
        except DBAPIError as error:
            errors.append(type(error.orig).__name__)
        return {
            "errors": errors,
            "sessions": len(set(backends)),
            "all_back": settled(full(pool, 1)),
        }


def broken_in_a_session(dsn: str) -> Seen:
    """The same in the middle of an ORM session's transaction, whose rollback can do nothing."""
    errors = []
    with make_pool(dsn, min_size=2, max_size=2, timeout=2.0) as pool:
        engine = make_engine(pool)
        Base.metadata.create_all(engine)
        for number in range(4):
            try:
                with Session(engine) as session, session.begin():
                    session.add(Item(name=str(number)))
                    session.flush()
                    if number < 3:
                        terminate(dsn, session.scalar(PID))
            except DBAPIError as error:
                errors.append(type(error.orig).__name__)
        try:
            with Session(engine) as session:
                names = list(session.scalars(select(Item.name)))
        except DBAPIError as error:
            names = [type(error.orig).__name__]
        return {"errors": errors, "names": names, "all_back": settled(full(pool, 2))}


def exhausted(dsn: str) -> Seen:
    """An engine's connection is asked for while the pool has none."""
    with make_pool(dsn, max_size=1, timeout=0.1) as pool:
        engine = make_engine(pool)
        with engine.connect() as conn:
            conn.execute(PID)
            try:
                engine.connect()
            except DBAPIError as error:
                caught = [type(error).__name__, type(error.orig).__name__]
        with engine.connect() as conn:
            answer = conn.scalar(select(1))
        return {"caught": caught, "answer": answer}


# ---- the scenarios, with tasks


def run(work: Callable[[AsyncConnectionPool, AsyncEngine], Awaitable[Seen]], **pool: Any) -> Seen:
    """Run *work* with an open pool and an engine over it."""

    async def main() -> Seen:
        async with make_async_pool(**pool) as opened:
            return await work(opened, make_async_engine(opened))

    return asyncio.run(main())


def many_tasks(dsn: str) -> Seen:
    """What many_threads() does, with 40 tasks."""

    async def work(pool: AsyncConnectionPool, engine: AsyncEngine) -> Seen:
        backends: set[int] = set()
        failed: list[str] = []
        async with engine.begin() as conn:
            await conn.run_sync(Base.metadata.create_all)

        async def unit(task: int, number: int) -> None:
            try:
                async with AsyncSession(engine) as session, session.begin():
                    session.add(Item(name=f"{task}-{number}"))
                    await session.flush()
                    backends.add(await session.scalar(PID))
                    if number % 3 == 0:
                        session.add(Item(name=f"{task}-{number}"))
            except DBAPIError as error:
                failed.append(type(error).__name__)

        await asyncio.gather(*[unit(task, number) for task in range(40) for number in range(6)])
        async with AsyncSession(engine) as session:
            rows = await session.scalar(select(func.count(Item.id)))
        size = pool.get_stats()["pool_size"]
        return {
            "rows": rows,
            "failed": len(failed),
            "kinds": sorted(set(failed)),
            "at_most_3": len(backends) <= 3,
            "all_back": await settled_async(full(pool, size)),
        }

    return run(work, dsn=dsn)


def broken_async(dsn: str, times: int) -> Seen:
    """What broken() does, with an async engine."""

    async def work(pool: AsyncConnectionPool, engine: AsyncEngine) -> Seen:
        errors, backends = [], []
        try:
            for _ in range(times):
                async with engine.connect() as conn:
                    backends.append(await conn.scalar(PID))
                    await asyncio.to_thread(terminate, dsn, backends[-1])
                    try:
                        await conn.execute(PID)
                    except DBAPIError as error:
                        errors.append(bool(error.connection_invalidated))
            async with engine.connect() as conn:
                backends.append(await conn.scalar(PID))
        except DBAPIError as error:
            errors.append(type(error.orig).__name__)
        return {
            "errors": errors,
            "sessions": len(set(backends)),
            "all_back": await settled_async(full(pool, 1)),
        }

    return run(work, dsn=dsn, max_size=1, timeout=2.0)


def cancelled(dsn: str, seed: int) -> Seen:
    """Sessions are cancelled at random moments, in a query or waiting for a connection."""
    dice = random.Random(seed)

    async def work(pool: AsyncConnectionPool, engine: AsyncEngine) -> Seen:
        ends: dict[str, int] = {"done": 0, "cancelled": 0}

        async def unit(rest: float) -> None:
            async with AsyncSession(engine) as session, session.begin():
                await session.execute(text("select pg_sleep(:rest)"), {"rest": rest})

        async def one(rest: float, patience: float) -> None:
            task = asyncio.ensure_future(unit(rest))
            done, _ = await asyncio.wait([task], timeout=patience)
            if not done:
                task.cancel()
            try:
                await task
                ends["done"] += 1
            except asyncio.CancelledError:
                ends["cancelled"] += 1

        for _ in range(10):
            await asyncio.gather(
                *[one(dice.uniform(0, 0.02), dice.uniform(0, 0.06)) for _ in range(30)]
            )
        back = await settled_async(full(pool, 3))
        async with AsyncSession(engine) as session:
            answer = await session.scalar(select(1))
        return {
            "total": sum(ends.values()),
            "some_of_each": min(ends.values()) > 0,
            "all_back": back,
            "answer": answer,
        }

    return run(work, dsn=dsn, min_size=3)
