"""A procrastinate app: jobs are deferred, and its own worker does them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import procrastinate
import psycopg
import psycopg_pool
from procrastinate.exceptions import AlreadyEnqueued

Seen = dict[str, Any]

done: list[int] = []
threads: set[int] = set()


async def wait(number: int) -> None:
    """Do something in the worker's loop."""
    await asyncio.sleep(0.002)
    done.append(number)


def compute(number: int) -> None:
    """Do something in a thread."""
    time.sleep(0.002)
    threads.add(threading.get_ident())
    done.append(number)


def fail(context: procrastinate.JobContext, number: int) -> None:
    """Fail once for an even number, always for an odd one."""
    if number % 2 or not context.job.attempts:
        raise ZeroDivisionError
    done.append(number)


def make_app(connector: Any) -> procrastinate.App:
    """Return an app that knows the tasks."""
    app = procrastinate.App(connector=connector)
    app.task(name="wait")(wait)
    app.task(name="compute")(compute)
    app.task(name="fail", retry=2, pass_context=True)(fail)
    return app


def make_async_app(dsn: str, null: bool = False, **pool: Any) -> procrastinate.App:
    """Return an app over an async pool, a null pool if so told."""
    options: dict[str, Any] = {"conninfo": dsn, "max_size": 4, "timeout": 10.0, **pool}
    if null:
        options["pool_factory"] = psycopg_pool.AsyncNullConnectionPool
    else:
        options.setdefault("min_size", 1)
    return make_app(procrastinate.PsycopgConnector(**options))


async def work(app: procrastinate.App, **options: Any) -> None:
    """Run a worker."""
    await app.run_worker_async(
        concurrency=8, install_signal_handlers=False, **{"wait": False, **options}
    )


def statuses(dsn: str) -> dict[str, int]:
    """Return how many jobs there are of each status."""
    with psycopg.connect(dsn) as conn:
        rows = conn.execute("select status::text, count(*) from procrastinate_jobs group by 1")
        return dict(rows.fetchall())


def out(pool: Any) -> int:
    """Return how many connections of *pool* are not at home."""
    now = pool.get_stats()
    return int(now["pool_size"] - now["pool_available"])


async def eventually(question: Callable[[], bool]) -> bool:
    """Wait up to 10 s for a yes."""
    deadline = time.monotonic() + 10.0
    while not (answer := question()) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return answer


# ---- the scenarios


def jobs(dsn: str, null: bool) -> Seen:
    """Sixty jobs of three kinds are deferred at once, and a worker runs until all are done."""

    async def main() -> Seen:
        app = make_async_app(dsn, null)
        async with app.open_async():
            pool = app.connector.pool
            await app.schema_manager.apply_schema_async()
            names = ("wait", "compute", "fail")
            await asyncio.gather(
                *[
                    app.configure_task(names[number % 3]).defer_async(number=number)
                    for number in range(60)
                ]
            )
            while "todo" in statuses(dsn):  # what failed comes again
                await work(app)
            return {
                "pool": type(pool).__name__,
                "done": sorted(done),
                "statuses": statuses(dsn),
                "in_threads": len(threads) > 0,
                "connections_out": out(pool),
                "closed_inside": pool.closed,
            }

    seen = asyncio.run(main())
    expected = [number for number in range(60) if number % 3 < 2 or number % 2 == 0]
    return seen | {"done": seen["done"] == expected}


def listening(dsn: str, null: bool) -> Seen:
    """A worker waits, is notified of jobs as they come, and is stopped."""

    async def main() -> Seen:
        app = make_async_app(dsn, null)
        async with app.open_async():
            pool = app.connector.pool
            await app.schema_manager.apply_schema_async()
            # It may drop a notification that comes while it looks, so it looks from time to time.
            worker = asyncio.ensure_future(
                work(app, wait=True, fetch_job_polling_interval=0.5, listen_notify=True)
            )
            listens = "select count(*) from pg_stat_activity where query ilike 'listen %'"

            def listening() -> bool:
                with psycopg.connect(dsn) as conn:
                    return bool(conn.execute(listens).fetchone() != (0,))

            heard = await eventually(listening)
            for number in range(5):
                await app.configure_task("wait").defer_async(number=number)
                if not await eventually(lambda number=number: number in done):
                    break
            await eventually(lambda: statuses(dsn) == {"succeeded": 5})
            worker.cancel()
            try:
                await worker
                stopped = "returned"
            except asyncio.CancelledError:
                stopped = "cancelled"
            return {
                "heard": heard,
                "done": done,
                "stopped": stopped,
                "connections_out": out(pool),
            }

    return asyncio.run(main())


def terminated(dsn: str) -> Seen:
    """The server ends every session of a worker that waits; it goes on, as its check allows."""

    async def main() -> Seen:
        app = make_async_app(dsn, min_size=4)
        async with app.open_async():
            pool = app.connector.pool
            await app.schema_manager.apply_schema_async()
            worker = asyncio.ensure_future(
                work(app, wait=True, fetch_job_polling_interval=0.1, listen_notify=True)
            )
            await app.configure_task("wait").defer_async(number=0)
            before = await eventually(lambda: 0 in done)
            with psycopg.connect(dsn, autocommit=True) as conn:
                # A worker between two queries holds none, or few, of them.
                conn.execute(
                    "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                    " where datname = current_database() and pid <> pg_backend_pid()"
                    " and state = 'idle' and query not ilike 'listen %'"
                )
            await app.configure_task("wait").defer_async(number=1)
            after = await eventually(lambda: statuses(dsn) == {"succeeded": 2})
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
            full = await eventually(lambda: pool.get_stats()["pool_size"] == 4 and not out(pool))
            return {"before": before, "after": after, "full": full}

    return asyncio.run(main())


def from_threads(dsn: str, kind: str) -> Seen:
    """Threads defer jobs over a pool of the connector's own or a given one; a worker follows."""
    given: Any = None
    if kind == "given":
        given = psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=4, open=True)
    elif kind == "null":
        given = psycopg_pool.NullConnectionPool(dsn, max_size=4, open=True)
    app = make_app(procrastinate.SyncPsycopgConnector(conninfo=dsn, min_size=1, max_size=4))
    refused: list[int] = []

    def defer(number: int) -> None:
        try:
            app.configure_task("wait").defer(number=number)
            app.configure_task("compute", queueing_lock="one").defer(number=100)
        except AlreadyEnqueued:
            refused.append(number)

    with app.open(given):
        app.schema_manager.apply_schema()
        pool = app.connector.pool
        with ThreadPoolExecutor(8) as executor:
            list(executor.map(defer, range(24)))
        connections_out = out(pool)
    still_open = not pool.closed
    if given:
        given.close()

    async def main() -> None:
        async with make_async_app(dsn).open_async() as opened:
            await work(opened)

    asyncio.run(main())
    return {
        "pool": type(pool).__name__,
        "done": sorted(done) == [*range(24), 100],
        "refused": len(refused),
        "connections_out": connections_out,
        "still_open": still_open,
    }
