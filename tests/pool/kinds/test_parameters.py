"""Arguments that make no sense are refused, by name, by all four classes and their methods."""

from __future__ import annotations

import decimal
import functools
import math
from collections.abc import Awaitable, Callable
from datetime import timedelta
from types import ModuleType
from typing import Any

import psycopg
import pytest
from shared.both import done, entered, scalar

import fastpool

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("package", ["fastpool"], indirect=True),
]

NAN = math.nan
INF = math.inf


async def coroutine_function(*args: Any) -> None: ...


class AsyncCallable:
    async def __call__(self, *args: Any) -> None: ...


NUMBERS = ["1", b"1", None, True, [], 1j, timedelta(seconds=1), decimal.Decimal(1)]
WRONG_TYPES = {
    **dict.fromkeys(("timeout", "max_lifetime", "max_idle", "reconnect_timeout"), NUMBERS),
    **{name: ["1", None, True, 1.0, []] for name in ("num_workers", "max_connecting")},
    "max_waiting": ["1", None, True, 1.0, INF],
    "min_size": ["1", None, True, False, 1.0, []],
    "max_size": ["1", True, 4.0, INF, []],
    "conninfo": [b"", 1, ["host=x"], {"host": "x"}],
    "kwargs": ["password=x", [("dbname", "x")], 1, {1: "x"}],
    "connection_class": [None, "Connection", object, 1],
    "name": [1, b"p", object()],
    "order": [None, 1, b"fifo"],
    "role": [1, b"read-only", True],
    "open": ["no", 2, [], 0.0],
    "close_returns": ["no", 2, None, 0.0],
    **{name: ["f", 1, {}] for name in ("configure", "check", "reset", "reconnect_failed")},
}
OUT_OF_RANGE = {
    **{name: [-1, -0.001, NAN, -INF, 10**400] for name in ("timeout", "max_lifetime")},
    "reconnect_timeout": [-1, NAN],
    "max_idle": [0, 0.0, -1, NAN],
    "max_waiting": [-1],
    "num_workers": [0, -1, 2**31],
    "max_connecting": [0, -1, 2**31],
    "min_size": [-1, 16385],
    "max_size": [-1, 16385, 2**31, 10**400],
    "order": ["FIFO", "", "random"],
    "role": ["", "primary", "READ-ONLY"],
}


def pairs(table: dict[str, list[Any]]) -> Any:
    rows = [(name, value) for name, values in table.items() for value in values]
    ids = [f"{name}={str(value)[:20]}-{type(value).__name__}" for name, value in rows]
    return pytest.mark.parametrize(("name", "value"), rows, ids=ids)


@pytest.fixture(params=["ConnectionPool", "NullConnectionPool"], ids=["plain", "null"])
def any_class(request: pytest.FixtureRequest, package: ModuleType, kind: str) -> Any:
    """Each of the four classes in its turn."""
    return getattr(package, kind + request.param)


def make(cls: Any, **options: Any) -> Any:
    return cls(**{"open": False, **options})


@pairs(WRONG_TYPES)
def test_an_argument_of_the_wrong_type_is_refused(any_class: Any, name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"\b{name}\b"):
        make(any_class, **{name: value})


@pairs(OUT_OF_RANGE)
def test_an_argument_out_of_range_is_refused(any_class: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        make(any_class, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout", 0),
        ("timeout", INF),
        ("max_lifetime", 0),
        ("max_lifetime", INF),
        ("max_idle", INF),
        ("reconnect_timeout", 0),
        ("reconnect_timeout", INF),
        ("max_waiting", 10**30),
        ("max_size", 16384),
        ("num_workers", 2**31 - 1),
        ("max_connecting", 2**31 - 1),
        ("conninfo", None),
        ("kwargs", {}),
        ("name", ""),
        ("open", 0),
        ("close_returns", 0),
    ],
)
def test_a_value_at_the_edge_is_accepted(any_class: Any, name: str, value: Any) -> None:
    make(any_class, **{name: value})


SECRET = "postgresql://scott:tiger@db/app"


@pytest.mark.parametrize("name", [name for name in WRONG_TYPES if name not in ("conninfo", "name")])
def test_a_conninfo_in_the_wrong_place_is_not_shown(any_class: Any, name: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        make(any_class, **{name: SECRET})
    assert "tiger" not in str(caught.value)


CALLBACKS = ("configure", "check", "reset", "reconnect_failed", "conninfo", "kwargs")
COROUTINE_FUNCTIONS = (coroutine_function, functools.partial(coroutine_function), AsyncCallable())


@pytest.mark.parametrize("kind", [""], indirect=True, ids=["threads"])
@pytest.mark.parametrize("function", COROUTINE_FUNCTIONS, ids=["def", "partial", "object"])
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_pool_for_threads_takes_no_coroutine_function(
    any_class: Any, name: str, function: Any
) -> None:
    with pytest.raises(TypeError, match=rf"\b{name} must not be a coroutine function"):
        make(any_class, **{name: function})


@pytest.mark.parametrize("kind", ["Async"], indirect=True, ids=["tasks"])
@pytest.mark.parametrize("function", COROUTINE_FUNCTIONS, ids=["def", "partial", "object"])
@pytest.mark.parametrize("name", CALLBACKS)
def test_an_async_pool_takes_coroutine_functions(any_class: Any, name: str, function: Any) -> None:
    make(any_class, **{name: function})


def test_anything_that_connects_is_a_connection_class(any_class: Any) -> None:
    class Factory:
        def connect(self, *args: Any, **kwargs: Any) -> Any: ...

    make(any_class, connection_class=Factory())


def test_sizes_go_before_workers_and_those_before_the_rest(any_class: Any) -> None:
    with pytest.raises(ValueError, match="min_size"):
        make(any_class, min_size=-1, num_workers=0, timeout="soon")
    with pytest.raises(ValueError, match="num_workers"):
        make(any_class, num_workers=0, timeout="soon", conninfo=1)


# --- methods ------------------------------------------------------------------------------------


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("method", ["getconn", "connection", "connect"])
@pytest.mark.parametrize(
    ("timeout", "error"), [("x", TypeError), (True, TypeError), (NAN, ValueError)]
)
async def test_a_method_refuses_what_is_no_timeout(
    open_pool: Callable[..., Awaitable[Any]], method: str, timeout: Any, error: Any, busy: bool
) -> None:
    pool = await open_pool()
    held = await done(pool.getconn()) if busy else None
    with pytest.raises(error, match="timeout"):
        if method == "getconn":
            await done(pool.getconn(timeout=timeout))
        else:
            async with entered(getattr(pool, method)(timeout=timeout)):
                pass
    if held is not None:
        await done(pool.putconn(held))
    assert pool.get_stats()["pool_available"] == 1


@pytest.mark.parametrize("method", ["wait", "close", "open"])
@pytest.mark.parametrize(("timeout", "error"), [("x", TypeError), (NAN, ValueError)])
async def test_a_method_that_takes_time_refuses_what_is_no_timeout(
    open_pool: Callable[..., Awaitable[Any]], method: str, timeout: Any, error: Any
) -> None:
    pool = await open_pool()
    options = {"wait": True} if method == "open" else {}
    with pytest.raises(error, match="timeout"):
        await done(getattr(pool, method)(timeout=timeout, **options))
    async with entered(pool.connection()) as conn:
        assert await scalar(conn, "select 1") == 1


@pytest.mark.parametrize("what", [None, 1, "conn", Exception])
async def test_what_is_no_connection_is_not_taken_back(
    open_pool: Callable[..., Awaitable[Any]], what: Any
) -> None:
    pool = await open_pool()
    for given in (what, pool, await open_pool()):
        with pytest.raises(ValueError, match="it doesn't come from any pool"):
            await done(pool.putconn(given))


@pytest.mark.parametrize("timeout", [None, INF])
async def test_wait_and_close_may_take_any_time(
    open_pool: Callable[..., Awaitable[Any]], timeout: Any
) -> None:
    pool = await open_pool()
    await done(pool.wait(timeout=timeout))
    await done(pool.close(timeout=timeout))
    assert pool.closed


@pytest.mark.parametrize(
    ("sizes", "error", "name"),
    [
        (("1",), TypeError, "min_size"),
        ((1.5,), TypeError, "min_size"),
        ((1, "2"), TypeError, "max_size"),
        ((1, 16385), ValueError, "max_size"),
        ((-1,), ValueError, "min_size"),
    ],
)
async def test_resize_refuses_what_the_constructor_does(
    open_pool: Callable[..., Awaitable[Any]], sizes: Any, error: Any, name: str
) -> None:
    pool = await open_pool()
    with pytest.raises(error, match=name):
        await done(pool.resize(*sizes))
    assert (pool.min_size, pool.max_size) == (1, 1)


async def test_no_limit_of_waiting_is_too_large(open_pool: Callable[..., Awaitable[Any]]) -> None:
    pool = await open_pool(max_waiting=10**30)
    async with entered(pool.connection()):
        with pytest.raises(fastpool.PoolTimeout):
            await done(pool.getconn(timeout=0.01))


@pytest.mark.parametrize("name", ["timeout", "max_lifetime", "max_idle", "reconnect_timeout"])
async def test_a_pool_works_with_an_endless_time(
    open_pool: Callable[..., Awaitable[Any]], name: str
) -> None:
    pool = await open_pool(**{name: INF})
    async with entered(pool.connection()) as conn:
        assert await scalar(conn, "select 1") == 1


@pytest.mark.parametrize("attribute", ["timeout"])
async def test_an_attribute_is_read_when_it_is_used(
    open_pool: Callable[..., Awaitable[Any]], attribute: str
) -> None:
    pool = await open_pool()
    pool.timeout = 0.01
    async with entered(pool.connection()):
        with pytest.raises(fastpool.PoolTimeout, match=r"after 0\.01 sec"):
            await done(pool.getconn())
        pool.timeout = NAN
        with pytest.raises(ValueError, match="timeout"):
            await done(pool.getconn())


# --- callbacks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("manner", ["raises", "returns garbage", "closes", "lends another"])
@pytest.mark.parametrize("name", ["configure", "check", "reset"])
@pytest.mark.parametrize("cls", ["ConnectionPool", "NullConnectionPool"])
async def test_a_callback_that_misbehaves_loses_nothing(
    open_pool: Callable[..., Awaitable[Any]],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    cls: str,
    name: str,
    manner: str,
) -> None:
    """The first time; from the second on it behaves."""
    monkeypatch.setattr(fastpool.base.AttemptWithBackoff, "INITIAL_DELAY", 0.02)
    times = 0
    inner = 0

    async def misbehave(conn: Any) -> Any:
        nonlocal times, inner
        times += 1
        if times > 1:
            return None
        if manner == "raises":
            raise RuntimeError("not today")
        if manner == "closes":
            conn._pool = None
            await done(conn.close())
        if manner == "lends another":
            other = await done(pool.getconn(timeout=2.0))
            inner += 1
            await done(pool.putconn(other))
        return object()

    def step(conn: Any) -> Any:
        try:
            misbehave(conn).send(None)
        except StopIteration as stop:
            return stop.value

    callback = misbehave if kind else step
    pool = await open_pool(cls, max_size=2, **{name: callback})
    for _ in range(4):
        try:
            async with entered(pool.connection(timeout=3.0)) as conn:
                assert await scalar(conn, "select 1") == 1
        except (RuntimeError, psycopg.Error):
            # A null pool connects in its caller's time.
            assert (cls, name) == ("NullConnectionPool", "configure")
    held = [await done(pool.getconn(timeout=3.0)) for _ in range(2)]
    assert pool.snapshot().counts["in_use"] == 2
    for conn in held:
        await done(pool.putconn(conn))
