"""Connections that are proxies, as tracing libraries hand them out: a wrapt proxy around each.

What is set on such a proxy lands on the connection inside, which finds its own way back to the pool
when its `close()` returns it; so both are handles of one lending. Each test runs on the pool for
threads and on the one for tasks; what psycopg_pool does as well runs on it too.

The proxies are made with wrapt. `INSTRUMENTED_BY=ddtrace` (or another name in LIBRARIES) in the
environment has that library make them instead; ../test_instrumentation.py runs this file so.
"""

from __future__ import annotations

import gc
import os
import warnings
import weakref
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

import psycopg
import pytest
import wrapt
import wrapt.wrappers
from driver import needs_close_returns, needs_compiled
from shared.both import available, done, entered, scalar, until

import fastpool

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("proxied")]

NOT_OURS = "doesn't come from any pool"

# --- proxies ----------------------------------------------------------------------------------


class Blocks:
    """What a tracing proxy does about blocks: entering one yields the proxy."""

    __wrapped__: Any

    def __enter__(self) -> Any:
        self.__wrapped__.__enter__()
        return self

    def __exit__(self, *exc: Any) -> Any:
        return self.__wrapped__.__exit__(*exc)

    async def __aenter__(self) -> Any:
        await self.__wrapped__.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> Any:
        return await self.__wrapped__.__aexit__(*exc)


class CompiledProxy(Blocks, wrapt.ObjectProxy):
    """A wrapt proxy, whose base is written in C."""


class PlainProxy(Blocks, wrapt.wrappers.ObjectProxy):
    """A wrapt proxy where wrapt could not be compiled."""


def with_ddtrace() -> None:
    import ddtrace

    ddtrace.patch(psycopg=True)


def with_newrelic() -> None:
    from newrelic.hooks import database_psycopg as hooks

    hooks.instrument_psycopg(psycopg)


def with_opentelemetry() -> None:
    from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor

    PsycopgInstrumentor().instrument(skip_dep_check=True)


LIBRARIES = {
    "ddtrace": with_ddtrace,
    "newrelic": with_newrelic,
    "opentelemetry": with_opentelemetry,  # its connections are no proxies, only its cursors differ
}
LIBRARY = os.environ.get("INSTRUMENTED_BY", "")
PROXIES = {"compiled": CompiledProxy, "plain": PlainProxy}


@pytest.fixture(scope="module")
def library() -> None:
    """Have the library patch the driver, for as long as the process lives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries do at import is theirs
        LIBRARIES[LIBRARY]()


@pytest.fixture(params=[LIBRARY] if LIBRARY else list(PROXIES))
def proxied(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whose proxies the driver's `connect()` returns."""
    kind: str = request.param
    if kind not in PROXIES:
        request.getfixturevalue("library")
        return kind

    def sync(connect: Any, _: Any, args: Any, kwargs: Any) -> Any:
        return PROXIES[kind](connect(*args, **kwargs))

    async def async_(connect: Any, _: Any, args: Any, kwargs: Any) -> Any:
        return PROXIES[kind](await connect(*args, **kwargs))

    for cls, wrapper in ((psycopg.Connection, sync), (psycopg.AsyncConnection, async_)):
        monkeypatch.setattr(cls, "connect", wrapt.FunctionWrapper(cls.connect, wrapper))
    return kind


own = pytest.mark.parametrize("package", ["fastpool"], indirect=True)
handles = pytest.mark.parametrize("handle", ["proxy", "inner"])


def inner(conn: Any) -> Any:
    """Return the driver's connection inside a proxy."""
    return getattr(conn, "__wrapped__", conn)


def chosen(conn: Any, handle: str) -> Any:
    return conn if handle == "proxy" else inner(conn)


# --- lending ----------------------------------------------------------------------------------


async def test_a_proxy_is_lent_and_passes_for_a_connection(
    open_pool: Callable[..., Awaitable[Any]], kind: str, proxied: str
) -> None:
    pool = await open_pool()
    conn = await done(pool.getconn())
    assert isinstance(conn, getattr(psycopg, kind + "Connection"))
    if proxied != "opentelemetry":
        assert inner(conn) is not conn
    assert await scalar(conn, "select 1") == 1
    await done(pool.putconn(conn))


async def test_proxy_and_connection_name_the_pool_while_lent(
    open_pool: Callable[..., Awaitable[Any]],
) -> None:
    pool = await open_pool()
    conn = await done(pool.getconn())
    assert conn._pool is inner(conn)._pool is pool
    await done(pool.putconn(conn))
    assert conn._pool is inner(conn)._pool is None


async def test_a_returned_proxy_is_lent_again(open_pool: Callable[..., Awaitable[Any]]) -> None:
    pool = await open_pool()
    conn = await done(pool.getconn())
    await done(pool.putconn(conn))
    again = await done(pool.getconn())
    assert again is conn
    await done(pool.putconn(again))


async def test_a_block_lends_the_proxy_and_commits(
    open_pool: Callable[..., Awaitable[Any]], admin: psycopg.Connection[Any]
) -> None:
    pool = await open_pool()
    idle = pool._pool[0]
    admin.execute("create table proxied (x int)")
    try:
        async with entered(pool.connection()) as conn:
            assert conn is idle
            await done(conn.execute("insert into proxied values (1)"))
        assert admin.execute("select x from proxied").fetchall() == [(1,)]
        assert pool.get_stats()["pool_available"] == 1
    finally:
        admin.execute("drop table proxied")


async def test_callbacks_are_given_the_proxy(
    open_pool: Callable[..., Awaitable[Any]], kind: str
) -> None:
    seen: dict[str, Any] = {}

    def note(name: str) -> Any:
        def callback(conn: Any) -> None:
            seen[name] = conn

        async def async_callback(conn: Any) -> None:
            seen[name] = conn

        return async_callback if kind else callback

    pool = await open_pool(**{name: note(name) for name in ("configure", "check", "reset")})
    async with entered(pool.connection()) as conn:
        assert seen == {"configure": conn, "check": conn}
    await available(pool)
    assert [seen[name] is conn for name in ("configure", "check", "reset")] == [True] * 3


async def test_idle_proxies_are_checked_where_they_stand(
    open_pool: Callable[..., Awaitable[Any]],
) -> None:
    pool = await open_pool()
    idle = pool._pool[0]
    await done(pool.check())
    assert list(pool._pool) == [idle]


async def test_proxies_are_replaced_by_a_drain(open_pool: Callable[..., Awaitable[Any]]) -> None:
    pool = await open_pool()
    idle = pool._pool[0]
    await done(pool.drain())
    await available(pool)
    assert idle.closed
    assert not pool._pool[0].closed


async def test_the_end_of_the_pool_closes_what_is_idle(
    open_pool: Callable[..., Awaitable[Any]],
) -> None:
    pool = await open_pool()
    idle = pool._pool[0]
    await done(pool.close())
    assert idle.closed


# --- returning --------------------------------------------------------------------------------


@handles
async def test_each_handle_returns_the_lending(
    handle: str, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    pool = await open_pool()
    conn = await done(pool.getconn())
    await done(pool.putconn(chosen(conn, handle)))
    assert pool.get_stats()["pool_available"] == 1


@own
@handles
async def test_whatever_returned_it_the_proxy_is_lent_again(
    handle: str, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    # Else a program would be traced until it first returns the connection inside.
    pool = await open_pool()
    conn = await done(pool.getconn())
    await done(pool.putconn(chosen(conn, handle)))
    again = await done(pool.getconn())
    assert again is conn
    await done(pool.putconn(again))


@pytest.mark.parametrize("second", ["proxy", "inner"])
@pytest.mark.parametrize("first", ["proxy", "inner"])
async def test_a_second_return_is_refused(
    first: str, second: str, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    pool = await open_pool()
    conn = await done(pool.getconn())
    await done(pool.putconn(chosen(conn, first)))
    with pytest.raises(ValueError, match=NOT_OURS):
        await done(pool.putconn(chosen(conn, second)))
    assert pool.get_stats()["pool_available"] == 1


@handles
async def test_another_pool_refuses_it(
    handle: str, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    pool = await open_pool()
    other = await open_pool()
    conn = await done(pool.getconn())
    with pytest.raises(ValueError, match="comes from pool"):
        await done(other.putconn(chosen(conn, handle)))
    await done(pool.putconn(conn))


@handles
async def test_an_open_transaction_is_rolled_back(
    handle: str, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    pool = await open_pool()
    conn = await done(pool.getconn())
    await done(conn.execute("create table never_kept (x int)"))
    await done(pool.putconn(chosen(conn, handle)))
    async with entered(pool.connection()) as again:
        assert await scalar(again, "select to_regclass('never_kept')") is None


@handles
async def test_a_broken_one_is_replaced(
    handle: str, open_pool: Callable[..., Awaitable[Any]], break_connection: Any
) -> None:
    pool = await open_pool()
    conn = await done(pool.getconn())
    await break_connection(conn)
    await done(pool.putconn(chosen(conn, handle)))
    async with entered(pool.connection()) as again:
        assert await scalar(again, "select 1") == 1


# --- close() ----------------------------------------------------------------------------------


@handles
async def test_close_closes_it_for_good(
    handle: str, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    pool = await open_pool()
    conn = await done(pool.getconn())
    await done(chosen(conn, handle).close())
    assert conn.closed
    await done(pool.putconn(conn))
    async with entered(pool.connection()) as again:
        assert await scalar(again, "select 1") == 1


@needs_close_returns
@handles
async def test_close_returns_it_where_the_pool_says_so(
    handle: str, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    pool = await open_pool(close_returns=True)
    conn = await done(pool.getconn())
    await done(chosen(conn, handle).close())
    assert not conn.closed
    assert pool.get_stats()["pool_available"] == 1
    with pytest.raises(ValueError, match=NOT_OURS):
        await done(pool.putconn(conn))


@own
@needs_close_returns
@handles
async def test_close_of_a_broken_one_frees_its_slot_though_the_client_keeps_it(
    handle: str, open_pool: Callable[..., Awaitable[Any]], break_connection: Any
) -> None:
    pool = await open_pool(close_returns=True)
    conn = await done(pool.getconn())
    await break_connection(conn)
    await done(chosen(conn, handle).close())
    async with entered(pool.connection(timeout=5.0)) as again:
        assert await scalar(again, "select 1") == 1
    await done(pool.putconn(conn))  # late, and so accepted


@own
async def test_the_end_of_a_pool_whose_close_returns_closes_what_is_idle(
    open_pool: Callable[..., Awaitable[Any]],
) -> None:
    pool = await open_pool(close_returns=True)
    idle = pool._pool[0]
    await done(pool.close())
    assert idle.closed


# --- null pools -------------------------------------------------------------------------------


@handles
async def test_a_null_pool_closes_what_is_returned(
    handle: str, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    pool = await open_pool("NullConnectionPool")
    for _ in range(2):
        conn = await done(pool.getconn(timeout=5.0))
        assert await scalar(conn, "select 1") == 1
        await done(pool.putconn(chosen(conn, handle)))
        assert conn.closed


@own
@handles
async def test_closing_what_a_null_pool_lent_frees_its_slot(
    handle: str, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    pool = await open_pool("NullConnectionPool")
    conn = await done(pool.getconn(timeout=5.0))
    await done(chosen(conn, handle).close())
    assert conn.closed
    async with entered(pool.connection(timeout=5.0)) as again:
        assert await scalar(again, "select 1") == 1


# --- connect() --------------------------------------------------------------------------------


@own
async def test_a_lease_of_a_proxy_is_a_connection(
    open_pool: Callable[..., Awaitable[Any]], kind: str
) -> None:
    pool = await open_pool()
    lease = await done(pool.connect())
    assert isinstance(lease, getattr(psycopg, kind + "Connection"))
    assert await scalar(lease, "select 1") == 1
    await done(lease.close())
    assert lease.closed
    assert pool.get_stats()["pool_available"] == 1


@own
async def test_a_block_over_a_lease_of_a_proxy_commits_and_gives_back(
    open_pool: Callable[..., Awaitable[Any]], admin: psycopg.Connection[Any]
) -> None:
    pool = await open_pool()
    admin.execute("create table leased (x int)")
    try:
        async with entered(pool.connect()) as lease:
            await done(lease.execute("insert into leased values (1)"))
        assert lease.closed
        assert admin.execute("select x from leased").fetchall() == [(1,)]
        assert pool.get_stats()["pool_available"] == 1
    finally:
        admin.execute("drop table leased")


@own
async def test_an_old_lease_of_a_proxy_leaves_the_next_borrower_alone(
    open_pool: Callable[..., Awaitable[Any]],
) -> None:
    pool = await open_pool()
    lease = await done(pool.connect())
    await done(lease.close())
    async with entered(pool.connection()) as conn:
        await done(lease.close())
        with pytest.raises(psycopg.OperationalError, match="closed"):
            await scalar(lease, "select 1")
        assert await scalar(conn, "select 1") == 1
    assert pool.get_stats()["pool_available"] == 1


@own
async def test_a_broken_lease_of_a_proxy_is_replaced(
    open_pool: Callable[..., Awaitable[Any]], break_connection: Any
) -> None:
    pool = await open_pool()
    lease = await done(pool.connect())
    await break_connection(lease)
    await done(lease.close())
    async with entered(pool.connect(timeout=5.0)) as again:
        assert await scalar(again, "select 1") == 1


# --- figures, losses --------------------------------------------------------------------------


@own
async def test_a_snapshot_names_the_backend_and_a_timeout_who_holds_it(
    open_pool: Callable[..., Awaitable[Any]],
) -> None:
    pool = await open_pool()
    conn = await done(pool.getconn())
    pid = await scalar(conn, "select pg_backend_pid()")
    (slot,) = pool.snapshot().slots
    assert (slot.state, slot.backend_pid) == ("in_use", pid)
    with pytest.raises(fastpool.PoolTimeout, match=f"backend {pid}"):
        await done(pool.getconn(timeout=0.02))
    await done(pool.putconn(conn))


async def drop(pool: Any, lend: str) -> None:
    """Borrow, and forget."""
    assert await scalar(await done(getattr(pool, lend)()), "select 1") == 1


@own
@needs_compiled
@pytest.mark.parametrize("lend", ["getconn", "connect"])
async def test_a_lost_proxy_is_warned_of_and_its_slot_freed(
    lend: str, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    pool = await open_pool()
    with pytest.warns(ResourceWarning, match="without being given back"):
        await drop(pool, lend)
        gc.collect()
        await available(pool)
    assert pool.get_stats()["connections_lost"] == 1


@own
async def test_keeping_the_connection_inside_keeps_the_lending(
    open_pool: Callable[..., Awaitable[Any]],
) -> None:
    pool = await open_pool()
    kept = inner(await done(pool.getconn()))
    gc.collect()
    assert pool.snapshot().counts["in_use"] == 1
    await done(pool.putconn(kept))
    assert pool.snapshot().counts["available"] == 1


@own
async def test_a_dropped_pool_of_proxies_is_collected_with_its_sessions(
    package: ModuleType, kind: str, dsn: str, admin: psycopg.Connection[Any]
) -> None:
    pool = getattr(package, kind + "ConnectionPool")(dsn, min_size=1, open=False)
    await done(pool.open(wait=True, timeout=5.0))
    async with entered(pool.connection()) as conn:
        pid = conn.pgconn.backend_pid
    this = weakref.ref(pool)
    del pool, conn

    def gone() -> bool:
        gc.collect()
        return this() is None

    def ended() -> bool:
        gc.collect()  # without a GIL, what a sleeping thread made is freed by it, or by this
        query = "select from pg_stat_activity where pid = %s"
        return admin.execute(query, [pid]).fetchone() is None

    await until(gone, "the pool is gone")
    await until(ended, "its session has ended")
