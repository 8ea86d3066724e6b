"""A FastAPI app whose lifespan opens an async and a sync pool; every request borrows from one."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
import httpx
import psycopg
import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import PlainTextResponse, StreamingResponse
from psycopg_pool import AsyncConnectionPool, ConnectionPool

Seen = dict[str, Any]

SIZE = 4
# More requests at once than threads that serve them, all waiting for a connection, and those that
# have one find no thread to go on in: FastAPI has 40 threads.
AT_ONCE = 30


async def async_connection(request: Request) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """Lend a connection to a request."""
    async with request.app.state.pools[0].connection() as conn:
        yield conn


def sync_connection(request: Request) -> Iterator[psycopg.Connection[Any]]:
    """Lend one to a request served by threads: this begins in one of them, ends in another."""
    state = request.app.state
    conn = state.pools[1].getconn()
    thread = threading.get_ident()
    try:
        yield conn
    finally:
        state.moves.append(thread != threading.get_ident())
        state.pools[1].putconn(conn)


AsyncConnection = Annotated[psycopg.AsyncConnection[Any], Depends(async_connection)]
Connection = Annotated[psycopg.Connection[Any], Depends(sync_connection)]

QUERY = "select %s::int, pg_sleep(%s)"


def make_app(dsn: str) -> FastAPI:
    """Return the app."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sizes = {"min_size": SIZE, "max_size": SIZE, "timeout": 20.0}
        async with AsyncConnectionPool(dsn, open=False, **sizes) as pool:
            with ConnectionPool(dsn, open=False, **sizes) as sync_pool:
                app.state.pools = (pool, sync_pool)
                yield

    app = FastAPI(lifespan=lifespan)
    app.state.moves = []

    @app.get("/async/{number}")
    async def answer_async(number: int, conn: AsyncConnection, rest: float = 0) -> int:
        cursor = await conn.execute(QUERY, [number, rest])
        return (await cursor.fetchone() or [-1])[0]

    @app.get("/sync/{number}")
    def answer_sync(number: int, conn: Connection, rest: float = 0) -> int:
        return (conn.execute(QUERY, [number, rest]).fetchone() or [-1])[0]

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            async with app.state.pools[0].connection() as conn:
                for number in range(1000):
                    await conn.execute("select pg_sleep(0.01)")
                    yield f"{number}\n"

        return StreamingResponse(lines())

    @app.exception_handler(psycopg.OperationalError)
    async def unavailable(request: Request, error: psycopg.OperationalError) -> PlainTextResponse:
        return PlainTextResponse(type(error).__name__, status_code=503)

    return app


async def all_back(app: FastAPI) -> bool:
    """Wait up to 5 s for both pools to have all their connections, and these to be idle."""
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        stats = [pool.get_stats() for pool in app.state.pools]
        if all(now["pool_size"] == now["pool_available"] == SIZE for now in stats):
            return True
        await asyncio.sleep(0.01)
    return False


def run(dsn: str, work: Callable[[FastAPI, httpx.AsyncClient], Any]) -> Seen:
    """Run *work* with the app, started, and a client of it."""

    async def main() -> Seen:
        app = make_app(dsn)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
                seen: Seen = await work(app, client)
        return seen | {"closed": [pool.closed for pool in app.state.pools]}

    return asyncio.run(main())


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[int]:
    """Serve *app* on a port of this machine, which is told."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        serving = asyncio.ensure_future(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await serving


# ---- the scenarios


def under_load(dsn: str) -> Seen:
    """Six hundred requests, thirty at a time, every other one served by a thread."""

    async def work(app: FastAPI, client: httpx.AsyncClient) -> Seen:
        turn = asyncio.Semaphore(AT_ONCE)

        async def request(number: int) -> bool:
            kind = ("async", "sync")[number % 2]
            async with turn:
                answer = await client.get(f"/{kind}/{number}", params={"rest": 0.001})
            return bool(answer.json() == number)

        right = await asyncio.gather(*[request(number) for number in range(600)])
        return {
            "right": right.count(True),
            "borrowed": len(app.state.moves),
            "moved": any(app.state.moves),
            "all_back": await all_back(app),
        }

    return run(dsn, work)


def cancelled(dsn: str, kind: str, way: str, seed: int) -> Seen:
    """Requests are cancelled at random moments, then others must be answered.

    A task is cancelled once, what is inside an anyio scope at each of its awaits. Cancelling a
    task that waits for a thread abandons the thread, with the connection it uses: not for us.
    """
    dice = random.Random(seed)

    async def work(app: FastAPI, client: httpx.AsyncClient) -> Seen:
        ends: Counter[str] = Counter()

        async def request(number: int, rest: float) -> None:
            answer = await client.get(f"/{kind}/{number}", params={"rest": rest})
            ends["answered" if answer.json() == number else "wrong"] += 1

        async def in_a_scope(number: int, rest: float, patience: float) -> None:
            with anyio.move_on_after(patience) as scope:
                await request(number, rest)
            ends["cancelled"] += scope.cancelled_caught

        async def in_a_task(number: int, rest: float, patience: float) -> None:
            task = asyncio.ensure_future(request(number, rest))
            done, _ = await asyncio.wait([task], timeout=patience)
            if not done:
                task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                ends["cancelled"] += 1

        patiently = {"scope": in_a_scope, "task": in_a_task}[way]
        for _ in range(30):
            await asyncio.gather(
                *[
                    patiently(number, dice.uniform(0, 0.01), dice.uniform(0, 0.05))
                    for number in range(AT_ONCE)
                ]
            )
        back = await all_back(app)
        answers = [(await client.get(f"/{kind}/{number}")).json() for number in range(2 * SIZE)]
        return {
            "total": ends["answered"] + ends["cancelled"],
            "some_of_each": min(ends["answered"], ends["cancelled"]) > 0,
            "all_back": back,
            "answers": answers == [*range(2 * SIZE)],
        }

    return run(dsn, work)


def disconnected(dsn: str) -> Seen:
    """Clients of a real server leave in the middle of a response, or before it."""

    async def main() -> Seen:
        app = make_app(dsn)
        async with served(app) as port:

            async def leave(path: bytes, lines: int) -> int:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: app\r\n\r\n")
                read = 0
                while read < lines:
                    await asyncio.wait_for(reader.readline(), 10)
                    read += 1
                writer.close()
                await writer.wait_closed()
                return read

            # A response's head alone has more than 3 lines, and 3 lines come without it.
            read = await asyncio.gather(
                *[leave(b"/stream", 8 + number % 4) for number in range(12)],
                *[leave(b"/async/1?rest=0.02", 0) for _ in range(12)],
                *[leave(b"/sync/1?rest=0.02", 0) for _ in range(12)],
            )
            back = await all_back(app)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                answers = [
                    (await client.get(f"/{kind}/{number}")).json()
                    for number in range(SIZE + 1)
                    for kind in ("async", "sync")
                ]
        return {
            "streams_left": sum(each > 0 for each in read),
            "all_back": back,
            "answers": answers == [number for number in range(SIZE + 1) for _ in range(2)],
            "closed": [pool.closed for pool in app.state.pools],
        }

    return asyncio.run(main())


def terminated(dsn: str) -> Seen:
    """The server ends the sessions of all requests in flight; later ones are answered."""

    async def work(app: FastAPI, client: httpx.AsyncClient) -> Seen:
        codes: Counter[int] = Counter()

        async def request(kind: str, rest: float) -> int:
            answer = await client.get(f"/{kind}/1", params={"rest": rest})
            codes[answer.status_code] += 1
            return answer.status_code

        def sleeping() -> list[Any]:
            with psycopg.connect(dsn, autocommit=True) as conn:
                return conn.execute(
                    "select pid, pg_terminate_backend(pid, 5000) from pg_stat_activity"
                    " where datname = current_database() and query like '%pg_sleep%'"
                    " and state = 'active' and pid <> pg_backend_pid()"
                ).fetchall()

        hurt = [request(kind, 30) for kind in ("async", "sync") for _ in range(SIZE)]
        tasks = [asyncio.ensure_future(each) for each in hurt]
        ended = 0
        while ended < 2 * SIZE:
            ended += len(await asyncio.to_thread(sleeping))
        await asyncio.gather(*tasks)
        failed = dict(codes)
        back = await all_back(app)
        later = [await request(kind, 0) for kind in ("async", "sync") for _ in range(SIZE)]
        return {
            "failed": {str(code): count for code, count in failed.items()},
            "later": later == [200] * 2 * SIZE,
            "all_back": back,
        }

    return run(dsn, work)
