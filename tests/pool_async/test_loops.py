"""One pool, one loop: use in another one is refused, and what becomes of a pool whose loop ends."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import sys
import textwrap
import threading
import warnings

import pytest
from pool_async.stepping import at_once

import fastpool

HAS_UVLOOP = importlib.util.find_spec("uvloop") is not None


# --- kinds of loops -------------------------------------------------------------------------------


def new_asyncio_loop():
    """A loop of the standard library's."""
    return asyncio.new_event_loop()


def new_uvloop():
    """A loop of uvloop's."""
    return pytest.importorskip("uvloop", reason="uvloop is not installed").new_event_loop()


def new_eager_loop():
    """A loop whose tasks begin where they are created."""
    if sys.version_info < (3, 12):
        pytest.skip("eager tasks came with Python 3.12")
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    return loop


def new_debugging_loop():
    """A loop that checks how it is used."""
    loop = asyncio.new_event_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 60.0
    return loop


KINDS = [new_asyncio_loop, new_uvloop, new_eager_loop, new_debugging_loop]


@pytest.fixture(params=KINDS)
def loop(request):
    """A loop of each kind. It complains into the test."""
    loop = request.param()
    complaints = []
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    gc.collect()
    assert complaints == []


async def query(conn):
    cursor = await conn.execute("select pg_backend_pid()")
    (pid,) = await cursor.fetchone()
    assert pid == conn.pgconn.backend_pid
    return pid


@pytest.mark.parametrize("cls", [fastpool.AsyncConnectionPool, fastpool.AsyncNullConnectionPool])
def test_all_of_it_works_in_each_kind_of_loop(loop, cls, dsn, eventually):
    async def check(conn):
        await conn.execute("")
        await conn.rollback()

    async def reset(conn):
        await asyncio.sleep(0)

    async def work(pool, way):
        async with getattr(pool, way)(timeout=10.0) as conn:
            return await query(conn)

    async def main():
        least = 2 if cls is fastpool.AsyncConnectionPool else 0
        options = {"min_size": least, "max_size": 4, "open": False}
        async with cls(dsn, check=check, reset=reset, **options) as pool:
            await pool.wait(10.0)
            assert pool.snapshot().size == least
            pids = await asyncio.gather(*[work(pool, "connection") for _ in range(20)])
            pids += await asyncio.gather(*[work(pool, "connect") for _ in range(20)])
            if least:
                assert len(set(pids)) <= 4
            conns = await asyncio.gather(*[pool.getconn(10.0) for _ in range(4)])
            with pytest.raises(fastpool.PoolTimeout):
                await pool.getconn(timeout=0.01)
            waiting = asyncio.ensure_future(pool.getconn(10.0))
            await eventually(lambda: pool.snapshot().waiting == 1)
            waiting.cancel()
            for conn in conns:
                await pool.putconn(conn)
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await eventually(lambda: pool.snapshot().counts["in_use"] == 0)
            await pool.check()
            await pool.drain()
            await pool.resize(least, 5)
            assert isinstance(await work(pool, "connection"), int)
            await eventually(lambda: pool.snapshot().counts["returning"] == 0)
            pool._table.verify()
        assert pool.closed
        await eventually(lambda: pool.snapshot().size == 0)
        await eventually(lambda: len(asyncio.all_tasks()) == 1)

    loop.run_until_complete(main())


# --- another loop ---------------------------------------------------------------------------------


@pytest.fixture
def foreign(dsn):
    """A pool that is open in a loop that does not run now: (pool, that loop, a lent connection)."""
    loop = asyncio.new_event_loop()
    pool = fastpool.AsyncConnectionPool(dsn, min_size=2, open=False, name="theirs")
    loop.run_until_complete(pool.open(wait=True, timeout=5.0))
    conn = loop.run_until_complete(pool.getconn())
    yield pool, loop, conn
    if not loop.is_closed():
        loop.run_until_complete(pool.putconn(conn))
        loop.run_until_complete(pool.close())
        loop.close()


async def enter(block):
    async with block:
        pytest.fail("entered")


USES = {
    "open": lambda pool, conn: pool.open(),
    "open and wait": lambda pool, conn: pool.open(wait=True),
    "a block of the pool": lambda pool, conn: enter(pool),
    "close": lambda pool, conn: pool.close(),
    "wait": lambda pool, conn: pool.wait(timeout=0.5),
    "getconn": lambda pool, conn: pool.getconn(),
    "getconn that would wait": lambda pool, conn: pool.getconn(timeout=0.5),
    "getconn at once": lambda pool, conn: pool.getconn(timeout=0),
    "putconn": lambda pool, conn: pool.putconn(conn),
    "connection": lambda pool, conn: enter(pool.connection()),
    "connect": lambda pool, conn: _awaited(pool.connect()),
    "a block of connect": lambda pool, conn: enter(pool.connect()),
    "resize": lambda pool, conn: pool.resize(1, 3),
    "drain": lambda pool, conn: pool.drain(),
    "check": lambda pool, conn: pool.check(),
}


async def _awaited(awaitable):
    return await awaitable


@pytest.mark.parametrize("use", USES)
def test_use_in_another_loop_is_refused_by_name(foreign, use):
    pool, _, conn = foreign
    before = pool.snapshot()
    with pytest.raises(RuntimeError, match=r"the pool 'theirs' was opened in another event loop"):
        asyncio.run(USES[use](pool, conn))
    after = pool.snapshot()
    assert (after.counts, after.size, after.waiting) == (before.counts, before.size, before.waiting)
    assert pool.closed is False
    assert not conn.closed


@pytest.mark.parametrize("lent_by", ["connect", "close_returns"])
def test_closing_a_connection_in_another_loop_is_refused(dsn, lent_by):
    loop = asyncio.new_event_loop()
    pool = fastpool.AsyncConnectionPool(
        dsn, min_size=1, open=False, close_returns=lent_by == "close_returns"
    )
    loop.run_until_complete(pool.open(wait=True))
    lend = pool.connect() if lent_by == "connect" else pool.getconn()
    conn = loop.run_until_complete(_awaited(lend))
    with pytest.raises(RuntimeError, match="opened in another event loop"):
        asyncio.run(conn.close())
    assert pool.snapshot().counts["in_use"] == 1
    loop.run_until_complete(conn.close())
    assert pool.snapshot().counts["available"] == 1
    loop.run_until_complete(pool.close())
    loop.close()


def test_figures_may_be_read_in_any_loop_and_any_thread(foreign):
    pool, _, _ = foreign

    async def read():
        return pool.get_stats()["pool_size"], pool.snapshot().size, pool.pop_stats()["pool_size"]

    assert asyncio.run(read()) == (2, 2, 2)
    results = []
    thread = threading.Thread(target=lambda: results.append(asyncio.run(read())))
    thread.start()
    thread.join()
    assert results == [(2, 2, 2)]


def test_use_without_a_loop_is_refused(foreign):
    pool, _, conn = foreign
    for coroutine in (pool.getconn(), pool.putconn(conn), pool.check()):
        with pytest.raises(RuntimeError, match="opened in another event loop"):
            at_once(coroutine)


def test_use_in_another_thread_while_the_loop_runs_is_refused(dsn):
    errors = []

    async def main():
        async with fastpool.AsyncConnectionPool(dsn, min_size=1, open=False) as pool:
            await pool.wait()

            def intrude():
                try:
                    asyncio.run(pool.getconn())
                except RuntimeError as error:
                    errors.append(str(error))

            await asyncio.get_running_loop().run_in_executor(None, intrude)
            assert pool.snapshot().counts["available"] == 1

    asyncio.run(main())
    assert len(errors) == 1
    assert "opened in another event loop" in errors[0]


# --- a loop that ended ----------------------------------------------------------------------------


def test_a_pool_whose_loop_has_ended_can_be_closed_in_another(dsn, sessions, eventually):
    pool = fastpool.AsyncConnectionPool(dsn, min_size=2, open=False, kwargs=sessions.kwargs)
    asyncio.run(pool.open(wait=True))
    assert len(sessions.pids()) == 2
    asyncio.run(pool.close())
    assert pool.closed
    assert pool.snapshot().size == 0
    asyncio.run(eventually(lambda: not sessions.pids()))


def test_a_pool_whose_loop_has_ended_is_refused_to_all_other_use(dsn):
    pool = fastpool.AsyncConnectionPool(dsn, min_size=1, open=False)
    asyncio.run(pool.open(wait=True))
    for use in ("getconn", "check", "wait"):
        with pytest.raises(RuntimeError, match="opened in another event loop"):
            asyncio.run(getattr(pool, use)())
    asyncio.run(pool.close())
    with pytest.raises(fastpool.PoolClosed):
        asyncio.run(pool.getconn())


def test_one_who_waited_when_the_loop_ended_does_not_hinder_the_close(dsn):
    """The loop is closed by hand, with a task still pending, and no one cancelled it."""
    pool = fastpool.AsyncConnectionPool(dsn, min_size=1, open=False)
    loop = asyncio.new_event_loop()
    complaints = []
    loop.set_exception_handler(lambda loop, context: complaints.append(context["message"]))

    async def main():
        await pool.open(wait=True)
        conn = await pool.getconn()
        task = asyncio.ensure_future(pool.getconn(timeout=30.0))
        await asyncio.sleep(0)
        assert pool.snapshot().waiting == 1
        return conn, task

    conn, task = loop.run_until_complete(main())
    loop.close()
    asyncio.run(pool.close())
    assert pool.closed
    assert pool.snapshot().waiting == 0
    del task, loop
    gc.collect()
    # It is asyncio's to complain of, and there is nothing else to.
    assert complaints == ["Task was destroyed but it is pending!"]
    asyncio.run(pool.putconn(conn))
    assert conn.closed
    assert pool.snapshot().size == 0
    pool._table.verify()


def test_one_who_was_granted_a_connection_when_the_loop_ended_does_not_keep_it(dsn):
    pool = fastpool.AsyncConnectionPool(dsn, min_size=1, open=False)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)

    async def main():
        await pool.open(wait=True)
        conn = await pool.getconn()
        task = asyncio.ensure_future(pool.getconn(timeout=30.0))
        await asyncio.sleep(0)
        at_once(pool.putconn(conn))  # granted; the loop ends before the task goes on
        asyncio.get_running_loop().stop()
        return task

    # run_until_complete() ends when main() does, and the waiter's turn does not come.
    task = loop.run_until_complete(main())
    granted = not task.done()
    loop.close()
    del task, loop
    gc.collect()
    assert granted
    assert pool.snapshot().counts["in_use"] == 0
    asyncio.run(pool.close())
    assert pool.snapshot().size == 0
    pool._table.verify()


def test_a_connection_may_be_dropped_after_its_loop_has_ended(dsn):
    pool = fastpool.AsyncConnectionPool(dsn, min_size=1, open=False)

    async def main():
        await pool.open(wait=True)
        return await pool.getconn()

    conn = asyncio.run(main())
    with pytest.warns(ResourceWarning, match="was collected without being given back"):
        del conn
        gc.collect()
    asyncio.run(pool.close())
    assert pool.snapshot().size == 0
    pool._table.verify()


def test_a_pool_may_be_dropped_after_its_loop_has_ended(dsn, sessions, eventually):
    pool = fastpool.AsyncConnectionPool(dsn, min_size=2, open=False, kwargs=sessions.kwargs)
    asyncio.run(pool.open(wait=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del pool
        gc.collect()
    asyncio.run(eventually(lambda: not sessions.pids()))


# --- which loop -----------------------------------------------------------------------------------


def test_a_pool_made_outside_of_a_loop_belongs_to_the_one_it_is_opened_in(dsn):
    pool = fastpool.AsyncConnectionPool(dsn, min_size=1, open=False)

    async def refused():
        with pytest.raises(fastpool.PoolClosed):
            await pool.getconn()
        await pool.resize(2, 2)
        await pool.close()

    async def main():
        async with pool, pool.connection(timeout=5.0) as conn:
            return await query(conn)

    asyncio.run(refused())
    assert asyncio.run(main())


def test_each_thread_may_have_a_loop_and_a_pool(dsn):
    results = []
    barrier = threading.Barrier(4)

    async def main(number):
        async with fastpool.AsyncConnectionPool(dsn, min_size=1, max_size=2, open=False) as pool:
            await pool.wait(10.0)
            barrier.wait(10.0)

            async def work():
                async with pool.connection(timeout=10.0) as conn:
                    return await query(conn)

            pids = await asyncio.gather(*[work() for _ in range(50)])
            pool._table.verify()
            results.append(set(pids))

    threads = [threading.Thread(target=lambda n=n: asyncio.run(main(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert len(results) == 4
    assert all(1 <= len(pids) <= 2 for pids in results)
    assert len(set.union(*results)) == sum(len(pids) for pids in results)


# --- asyncio.run() ends ---------------------------------------------------------------------------

PREAMBLE = """
    import asyncio, sys, psycopg
    from fastpool import AsyncConnectionPool, AsyncNullConnectionPool

    dsn = sys.argv[1]

    class Stuck(psycopg.AsyncConnection):
        @classmethod
        async def connect(cls, *args, **kwargs):
            await asyncio.sleep(3600)

    class Failing(psycopg.AsyncConnection):
        @classmethod
        async def connect(cls, *args, **kwargs):
            raise psycopg.OperationalError("down")

    async def forever(conn):
        await asyncio.sleep(3600)

    # Not the connects that fail, nor that a step took long; of destroyed tasks, yes.
    import logging
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.ERROR)
"""

LEFT_OPEN = {
    "idle": """
        async def main():
            global pool
            pool = AsyncConnectionPool(dsn, min_size=2, open=False)
            await pool.open(wait=True)
    """,
    "just opened": """
        async def main():
            global pool
            pool = AsyncConnectionPool(dsn, min_size=2, open=False)
            await pool.open()
    """,
    "opened, and the loop turned once": """
        async def main():
            global pool
            pool = AsyncConnectionPool(dsn, min_size=2, open=False)
            await pool.open()
            await asyncio.sleep(0)
    """,
    "connecting": """
        async def main():
            global pool
            pool = AsyncConnectionPool(dsn, connection_class=Stuck, min_size=3, open=False)
            await pool.open()
            await asyncio.sleep(0.02)
    """,
    "connecting for real": """
        async def main():
            global pool
            pool = AsyncConnectionPool(dsn, min_size=3, open=False)
            await pool.open()
            for _ in range(3):
                await asyncio.sleep(0)
    """,
    "configuring": """
        async def main():
            global pool
            pool = AsyncConnectionPool(dsn, configure=forever, min_size=1, open=False)
            await pool.open()
            await asyncio.sleep(0.1)
    """,
    "in backoff": """
        async def main():
            global pool
            pool = AsyncConnectionPool(dsn, connection_class=Failing, min_size=2, open=False)
            await pool.open()
            await asyncio.sleep(0.05)
    """,
    "in backoff, an attempt due as it ends": """
        import time
        from fastpool.base import AttemptWithBackoff
        AttemptWithBackoff.INITIAL_DELAY = AttemptWithBackoff.MAX_DELAY = 0.1

        class StuckNext(Failing):
            @classmethod
            async def connect(cls, *args, **kwargs):
                StuckNext.connect = Stuck.connect
                return await super().connect(*args, **kwargs)

        async def main():
            global pool
            pool = AsyncConnectionPool(dsn, connection_class=StuckNext, min_size=1, open=False)
            await pool.open()
            while pool._last_error is None:
                await asyncio.sleep(0)
            time.sleep(0.3)
    """,
    "with requests that wait": """
        async def main():
            global pool, tasks
            pool = AsyncConnectionPool(dsn, min_size=1, open=False)
            await pool.open(wait=True)
            conn = await pool.getconn()
            tasks = [asyncio.create_task(pool.getconn()) for _ in range(5)]
            await asyncio.sleep(0.02)
            await pool.putconn(conn)
    """,
    "with a wait until full": """
        async def main():
            global pool, task
            pool = AsyncConnectionPool(dsn, connection_class=Stuck, min_size=1, open=False)
            await pool.open()
            task = asyncio.create_task(pool.wait())
            await asyncio.sleep(0.02)
    """,
    "with connections lent": """
        async def main():
            global pool, conn, lease, block
            pool = AsyncConnectionPool(dsn, min_size=3, open=False)
            await pool.open(wait=True)
            conn = await pool.getconn()
            await conn.execute("select 1")
            lease = await pool.connect()
            block = pool.connection()
            await block.__aenter__()
    """,
    "with tasks in blocks": """
        async def work():
            async with pool.connection() as conn:
                await conn.execute("select pg_sleep(3600)")

        async def main():
            global pool, tasks
            pool = AsyncConnectionPool(dsn, min_size=2, open=False)
            await pool.open(wait=True)
            tasks = [asyncio.create_task(work()) for _ in range(4)]
            await asyncio.sleep(0.05)
    """,
    "resetting": """
        async def main():
            global pool
            pool = AsyncConnectionPool(dsn, reset=forever, min_size=2, num_workers=1, open=False)
            await pool.open(wait=True)
            for conn in [await pool.getconn() for _ in range(2)]:
                await pool.putconn(conn)
            await asyncio.sleep(0.02)
    """,
    "about to reset": """
        async def main():
            global pool
            pool = AsyncConnectionPool(dsn, reset=forever, min_size=2, num_workers=1, open=False)
            await pool.open(wait=True)
            for conn in [await pool.getconn() for _ in range(2)]:
                await pool.putconn(conn)
    """,
    "closing": """
        async def main():
            global pool, task
            pool = AsyncConnectionPool(dsn, connection_class=Stuck, min_size=2, open=False)
            await pool.open()
            await asyncio.sleep(0.02)
            task = asyncio.create_task(pool.close(timeout=3600))
            await asyncio.sleep(0.02)
    """,
    "and the program fails": """
        async def main():
            global pool
            pool = AsyncConnectionPool(dsn, connection_class=Stuck, min_size=1, open=False)
            await pool.open()
            await asyncio.sleep(0.02)
            raise SystemExit
    """,
    "a null pool's, connecting": """
        async def main():
            global pool, tasks
            pool = AsyncNullConnectionPool(dsn, connection_class=Stuck, max_size=2, open=False)
            await pool.open()
            tasks = [asyncio.create_task(pool.getconn()) for _ in range(4)]
            await asyncio.sleep(0.02)
    """,
    "a null pool's, lent": """
        async def main():
            global pool, conn
            pool = AsyncNullConnectionPool(dsn, max_size=2, open=False)
            await pool.open()
            conn = await pool.getconn()
    """,
}

ENDS = {
    "asyncio.run": "asyncio.run(main())",
    "uvloop.run": "import uvloop; uvloop.run(main())",
    "eager tasks": """
async def eager():
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    await main()
asyncio.run(eager())
""",
}


@pytest.mark.parametrize(
    "ends",
    [
        "asyncio.run",
        pytest.param(
            "uvloop.run", marks=pytest.mark.skipif(not HAS_UVLOOP, reason="uvloop is not installed")
        ),
        pytest.param(
            "eager tasks",
            marks=pytest.mark.skipif(
                sys.version_info < (3, 12), reason="eager tasks came with Python 3.12"
            ),
        ),
    ],
)
@pytest.mark.parametrize("state", LEFT_OPEN)
def test_a_program_ends_quietly_though_it_left_its_pool(script, state, ends):
    source = [textwrap.dedent(PREAMBLE), textwrap.dedent(LEFT_OPEN[state]), ENDS[ends]]
    done = script("\n".join(source))
    assert done.stderr == ""
    assert done.returncode == 0
