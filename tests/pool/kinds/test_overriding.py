"""Pools whose methods are overridden, patched or mocked, as programs and their tests do.

psycopg_pool calls its own methods through the pool, so that an override is called wherever the
method is; and so does fastpool, in the same way: `timeout` by its name, a connection by position.
"""

from __future__ import annotations

import copy
import inspect
import pickle
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from unittest import mock

import psycopg
import pytest
import wrapt
from shared.both import available, done, entered, scalar

pytestmark = pytest.mark.anyio

own = pytest.mark.parametrize("package", ["fastpool"], indirect=True)


def recording(cls: Any, calls: list[Any], *names: str) -> Any:
    """Derive a class that notes how its methods *names* are called, and calls them."""

    def wrapper(name: str) -> Any:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append((name, args, kwargs))
            return getattr(cls, name)(self, *args, **kwargs)

        return method

    return type("Recording", (cls,), {name: wrapper(name) for name in names})


# --- subclasses -------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "timeout"), [((), None), ((3.0,), 3.0)])
async def test_a_block_calls_the_overrides_as_psycopg_pool_does(
    given: Any, timeout: float | None, pool_class: Any, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    calls: list[Any] = []
    pool = await open_pool(recording(pool_class, calls, "getconn", "putconn"))
    async with entered(pool.connection(*given)) as conn:
        assert calls == [("getconn", (), {"timeout": timeout})]
    assert calls[1:] == [("putconn", (conn,), {})]


@own
@pytest.mark.parametrize(("given", "timeout"), [((), None), ((3.0,), 3.0)])
async def test_connect_calls_the_overrides_too(
    given: Any, timeout: float | None, pool_class: Any, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    calls: list[Any] = []
    pool = await open_pool(recording(pool_class, calls, "getconn", "putconn"))
    lease = await done(pool.connect(*given))
    assert calls == [("getconn", (), {"timeout": timeout})]
    await done(lease.close())
    assert [name for name, _, _ in calls] == ["getconn", "putconn"]
    async with entered(pool.connect(*given)):
        pass
    assert [name for name, _, _ in calls] == ["getconn", "putconn"] * 2
    assert pool.get_stats()["pool_available"] == 1


@own
async def test_an_overridden_putconn_may_use_what_a_lease_gives_back(
    pool_class: Any, kind: str, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    seen: list[Any] = []

    class Sync(pool_class):  # type: ignore[misc]
        def putconn(self, conn: Any) -> None:
            seen.append(conn.execute("select 1").fetchone())
            conn.rollback()
            super().putconn(conn)

    class Async(pool_class):  # type: ignore[misc]
        async def putconn(self, conn: Any) -> None:
            seen.append(await (await conn.execute("select 1")).fetchone())
            await conn.rollback()
            await super().putconn(conn)

    pool = await open_pool(Async if kind else Sync)
    async with entered(pool.connect()):
        pass
    assert seen == [(1,)]
    assert pool.get_stats()["pool_available"] == 1


async def test_an_override_may_take_its_timeout_by_name_only(
    pool_class: Any, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    class Named(pool_class):  # type: ignore[misc]
        def getconn(self, *, timeout: float | None = None) -> Any:
            return super().getconn(timeout=timeout)

        def wait(self, *, timeout: float = 30.0) -> Any:
            return super().wait(timeout=timeout)

    pool = await open_pool(Named)
    async with entered(pool.connection(timeout=5.0)) as conn:
        assert await scalar(conn, "select 1") == 1
    if hasattr(pool, "connect"):
        async with entered(pool.connect(timeout=5.0)) as conn:
            assert await scalar(conn, "select 1") == 1


async def test_an_override_may_lend_another_object_and_take_it_back(
    pool_class: Any, kind: str, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    class Blocks(wrapt.ObjectProxy):
        async def __aenter__(self) -> Any:
            return await self.__wrapped__.__aenter__()

        async def __aexit__(self, *exc: Any) -> Any:
            return await self.__wrapped__.__aexit__(*exc)

    class Sync(pool_class):  # type: ignore[misc]
        def getconn(self, timeout: float | None = None) -> Any:
            return Blocks(super().getconn(timeout))

        def putconn(self, conn: Any) -> None:
            assert isinstance(conn, Blocks)
            super().putconn(conn.__wrapped__)

    class Async(pool_class):  # type: ignore[misc]
        async def getconn(self, timeout: float | None = None) -> Any:
            return Blocks(await super().getconn(timeout))

        async def putconn(self, conn: Any) -> None:
            assert isinstance(conn, Blocks)
            await super().putconn(conn.__wrapped__)

    pool = await open_pool(Async if kind else Sync)
    for _ in range(2):
        async with entered(pool.connection()) as conn:
            assert type(conn) is Blocks
            assert await scalar(conn, "select 1") == 1
    assert pool.get_stats()["pool_available"] == 1


async def test_an_overridden_block_prepares_what_it_lends(
    pool_class: Any, kind: str, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    class Sync(pool_class):  # type: ignore[misc]
        @contextmanager
        def connection(self, timeout: float | None = None) -> Iterator[Any]:
            with super().connection(timeout=timeout) as conn:
                conn.execute("set local application_name = 'mine'")
                yield conn

    class Async(pool_class):  # type: ignore[misc]
        @asynccontextmanager
        async def connection(self, timeout: float | None = None) -> AsyncIterator[Any]:
            async with super().connection(timeout=timeout) as conn:
                await conn.execute("set local application_name = 'mine'")
                yield conn

    pool = await open_pool(Async if kind else Sync)
    async with entered(pool.connection()) as conn:
        assert await scalar(conn, "show application_name") == "mine"
    assert pool.get_stats()["pool_available"] == 1


async def test_what_opening_waiting_and_closing_call_can_be_overridden(
    pool_class: Any, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    calls: list[Any] = []
    pool = await open_pool(recording(pool_class, calls, "wait", "close", "open"))
    await done(pool.close())
    assert calls == [
        ("open", (), {"wait": True, "timeout": 5.0}),
        ("wait", (), {"timeout": 5.0}),
        ("close", (), {}),
    ]


async def test_close_of_a_connection_calls_an_overridden_putconn(
    pool_class: Any, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    calls: list[Any] = []
    pool = await open_pool(recording(pool_class, calls, "putconn"), close_returns=True)
    conn = await done(pool.getconn())
    await done(conn.close())
    assert calls == [("putconn", (conn,), {})]
    assert not conn.closed


async def test_every_connect_goes_through_the_overrides(
    pool_class: Any, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    calls: list[Any] = []
    names = ["_connect", "_resolve_conninfo", "_resolve_kwargs"]
    pool = await open_pool(recording(pool_class, calls, *names))
    expected: list[Any] = [(name, (), {}) for name in names]
    assert calls == expected
    await done(pool.drain())
    await available(pool)
    assert calls == expected * 2


async def test_an_overridden_connect_may_add_to_what_it_made(
    pool_class: Any, kind: str, open_pool: Callable[..., Awaitable[Any]], break_connection: Any
) -> None:
    class Sync(pool_class):  # type: ignore[misc]
        def _connect(self, timeout: float | None = None) -> Any:
            conn = super()._connect(timeout)
            conn.token = "fresh"
            return conn

    class Async(pool_class):  # type: ignore[misc]
        async def _connect(self, timeout: float | None = None) -> Any:
            conn = await super()._connect(timeout)
            conn.token = "fresh"
            return conn

    pool = await open_pool(Async if kind else Sync)
    async with entered(pool.connection()) as conn:
        assert conn.token == "fresh"
    conn = await done(pool.getconn())
    await break_connection(conn)
    await done(pool.putconn(conn))
    async with entered(pool.connection()) as again:
        assert again is not conn
        assert again.token == "fresh"


async def test_check_calls_an_overridden_check_connection(
    pool_class: Any, kind: str, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    seen: list[Any] = []

    class Sync(pool_class):  # type: ignore[misc]
        @staticmethod
        def check_connection(conn: Any) -> None:
            seen.append(conn)
            raise psycopg.OperationalError("not good enough")

    class Async(pool_class):  # type: ignore[misc]
        @staticmethod
        async def check_connection(conn: Any) -> None:
            seen.append(conn)
            raise psycopg.OperationalError("not good enough")

    pool = await open_pool(Async if kind else Sync)
    idle = pool._pool[0]
    await done(pool.check())
    assert seen == [idle]
    await available(pool)
    assert pool._pool[0] is not idle


# --- connection classes -----------------------------------------------------------------------


async def test_a_connection_class_may_connect_in_its_own_way(
    kind: str, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    class Sync(psycopg.Connection[Any]):
        @classmethod
        def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
            return super().connect(conninfo, **kwargs, application_name="mine")

    class Async(psycopg.AsyncConnection[Any]):
        @classmethod
        async def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
            return await super().connect(conninfo, **kwargs, application_name="mine")

    cls = Async if kind else Sync
    pool = await open_pool(connection_class=cls)
    async with entered(pool.connection()) as conn:
        assert type(conn) is cls
        assert await scalar(conn, "show application_name") == "mine"


async def test_all_that_a_connection_class_needs_is_connect(
    kind: str, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    maker = types.SimpleNamespace(connect=getattr(psycopg, kind + "Connection").connect)
    pool = await open_pool(connection_class=maker)
    async with entered(pool.connection()) as conn:
        assert await scalar(conn, "select 1") == 1
    if hasattr(pool, "connect"):
        async with entered(pool.connect()) as conn:
            assert await scalar(conn, "select 1") == 1


# --- patches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["class", "instance"])
async def test_a_block_calls_what_is_patched_and_later_what_was(
    where: str, pool_class: Any, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    pool = await open_pool()
    target = pool_class if where == "class" else pool
    for name in ("getconn", "putconn"):
        with mock.patch.object(target, name, wraps=getattr(pool, name)) as patched:
            async with entered(pool.connection()) as conn:
                assert await scalar(conn, "select 1") == 1
        expected = mock.call(timeout=None) if name == "getconn" else mock.call(conn)
        assert patched.call_args_list == [expected]
        async with entered(pool.connection()):
            pass
        assert patched.call_count == 1
    assert vars(pool).keys().isdisjoint({"getconn", "putconn"})
    assert pool.get_stats()["pool_available"] == 1


@own
@pytest.mark.parametrize("where", ["class", "instance"])
async def test_connect_calls_what_is_patched_and_later_what_was(
    where: str, pool_class: Any, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    pool = await open_pool()
    target = pool_class if where == "class" else pool
    for name in ("getconn", "putconn"):
        with mock.patch.object(target, name, wraps=getattr(pool, name)) as patched:
            async with entered(pool.connect()) as conn:
                assert await scalar(conn, "select 1") == 1
        assert patched.call_count == 1
        async with entered(pool.connect()):
            pass
        assert patched.call_count == 1
    assert pool.get_stats()["pool_available"] == 1


@pytest.mark.parametrize("name", ["ConnectionPool", "NullConnectionPool"])
@pytest.mark.parametrize("derived", [False, True], ids=["itself", "derived"])
async def test_a_patch_on_the_class_reaches_those_derived_from_it(
    derived: bool, name: str, pool_class: Any, package: Any, kind: str, open_pool: Any
) -> None:
    cls = getattr(package, kind + name)
    pool = await open_pool(
        type("NullMine" if "Null" in name else "Mine", (cls,), {}) if derived else cls
    )
    async with entered(pool.connection()):
        pass
    for method in ("getconn", "putconn"):
        with mock.patch.object(pool_class, method, wraps=getattr(pool, method)) as patched:
            async with entered(pool.connection()) as conn:
                assert await scalar(conn, "select 1") == 1
        assert patched.call_count == 1, method


@pytest.mark.parametrize("where", ["class", "instance"])
async def test_a_patched_connection_is_what_is_entered(
    where: str, pool_class: Any, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    pool = await open_pool()
    target = pool_class if where == "class" else pool
    with mock.patch.object(target, "connection") as patched:
        async with entered(pool.connection(2.0)) as conn:
            pass
        assert patched.call_args_list == [mock.call(2.0)]
        assert isinstance(conn, mock.Mock)
    async with entered(pool.connection()) as conn:
        assert await scalar(conn, "select 1") == 1


@pytest.mark.parametrize("where", ["class", "instance"])
async def test_a_patched_connect_makes_the_connections(
    where: str, pool_class: Any, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    pool = await open_pool()
    target = pool_class if where == "class" else pool
    with mock.patch.object(target, "_connect", wraps=pool._connect) as patched:
        await done(pool.drain())
        await available(pool)
    assert patched.call_args_list == [mock.call()]


async def test_a_pool_patched_to_fail_fails(open_pool: Callable[..., Awaitable[Any]]) -> None:
    pool = await open_pool()
    with mock.patch.object(pool, "getconn", side_effect=psycopg.OperationalError("no more")):
        with pytest.raises(psycopg.OperationalError, match="no more"):
            async with entered(pool.connection()):
                pytest.fail("entered")
    assert pool.get_stats()["pool_available"] == 1


@pytest.mark.parametrize("name", ["getconn", "putconn", "connection", "_connect"])
async def test_a_patch_made_by_its_signature_is_given_the_pool(
    name: str, pool_class: Any, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    pool = await open_pool()
    original = getattr(pool_class, name)
    with mock.patch.object(pool_class, name, autospec=True, side_effect=original) as patched:
        if name == "_connect":
            await done(pool.drain())
            await available(pool)
        else:
            async with entered(pool.connection()) as conn:
                assert await scalar(conn, "select 1") == 1
    assert [call.args[0] for call in patched.call_args_list] == [pool]


# --- mocks ------------------------------------------------------------------------------------

# What the signatures refuse.
WRONG_CALLS: dict[str, Callable[[Any], Any]] = {
    "getconn of two": lambda pool: pool.getconn(1.0, 2.0),
    "getconn of an unknown name": lambda pool: pool.getconn(patience=1.0),
    "putconn of none": lambda pool: pool.putconn(),
    "putconn of two": lambda pool: pool.putconn(1, 2),
    "connection of two": lambda pool: pool.connection(1.0, 2.0),
    "resize of none": lambda pool: pool.resize(),
    "close of two": lambda pool: pool.close(1.0, 2.0),
}


async def imitation(how: str, pool_class: Any, open_pool: Callable[..., Awaitable[Any]]) -> Any:
    """A pool that mock makes: of the class, by calling what it makes of that, or of a pool."""
    if how == "class":
        return mock.create_autospec(pool_class)("conninfo", min_size=1)
    if how == "class as instance":
        return mock.create_autospec(pool_class, instance=True)
    return mock.create_autospec(await open_pool())


imitations = pytest.mark.parametrize("how", ["class", "class as instance", "pool"])


@imitations
async def test_a_mock_passes_for_a_pool(
    how: str, pool_class: Any, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    pool = await imitation(how, pool_class, open_pool)
    assert isinstance(pool, pool_class)
    await done(pool.getconn(timeout=1.0))
    await done(pool.putconn("a connection"))
    pool.getconn.assert_called_once_with(timeout=1.0)
    pool.putconn.assert_called_once_with("a connection")
    assert isinstance(pool.get_stats(), mock.Mock)
    with pytest.raises(AttributeError):
        _ = pool.borrow


@imitations
async def test_what_a_mock_returns_is_awaitable_where_it_is_of_a_pool_for_tasks(
    how: str, kind: str, pool_class: Any, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    pool = await imitation(how, pool_class, open_pool)
    calls = {"getconn": (), "putconn": (1,), "open": (), "close": (), "wait": (), "resize": (1, 2)}
    for name, args in calls.items():
        result = getattr(pool, name)(*args)
        assert inspect.isawaitable(result) == bool(kind), name
        await done(result)
    assert not inspect.isawaitable(pool.get_stats())


@imitations
@pytest.mark.parametrize("wrong", WRONG_CALLS)
async def test_a_mock_refuses_what_the_pool_would(
    wrong: str, how: str, pool_class: Any, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    pool = await imitation(how, pool_class, open_pool)
    with pytest.raises(TypeError):
        await done(WRONG_CALLS[wrong](pool))


async def test_a_mock_of_the_class_refuses_what_the_constructor_would(pool_class: Any) -> None:
    mocked = mock.create_autospec(pool_class)
    with pytest.raises(TypeError):
        mocked("conninfo", "more")
    with pytest.raises(TypeError):
        mocked("conninfo", size=1)


# --- copies -----------------------------------------------------------------------------------

COPIES: dict[str, Callable[[Any], Any]] = {
    f"pickle {protocol}": lambda pool, protocol=protocol: pickle.dumps(pool, protocol)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
} | {"copy": copy.copy, "deepcopy": copy.deepcopy}


@own
@pytest.mark.parametrize("name", ["ConnectionPool", "NullConnectionPool"])
@pytest.mark.parametrize("how", COPIES)
async def test_a_pool_can_be_neither_pickled_nor_copied(
    how: str, name: str, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    pool = await open_pool(name)
    with pytest.raises(TypeError, match="connection pool can't be pickled or copied"):
        COPIES[how](pool)
    async with entered(pool.connection()) as conn:
        assert await scalar(conn, "select 1") == 1


@own
@pytest.mark.parametrize("how", COPIES)
async def test_nor_can_one_that_is_closed_or_derived(
    how: str, pool_class: Any, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    class Mine(pool_class):  # type: ignore[misc]
        pass

    pool = await open_pool(Mine)
    await done(pool.close())
    with pytest.raises(TypeError, match="connection pool can't be pickled or copied"):
        COPIES[how](pool)


@own
async def test_what_holds_a_pool_is_not_copied_by_accident(
    open_pool: Callable[..., Awaitable[Any]],
) -> None:
    with pytest.raises(TypeError, match="connection pool can't be pickled or copied"):
        copy.deepcopy({"app": [await open_pool()]})


async def test_the_class_itself_can_be_pickled(pool_class: Any) -> None:
    assert pickle.loads(pickle.dumps(pool_class)) is pool_class
