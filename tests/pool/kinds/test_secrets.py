"""No password is shown: in no log line, repr, snapshot, warning, or text of an exception."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from shared.both import done, until

import fastpool
from fastpool.redaction import Redactor, hide

pytestmark = pytest.mark.anyio
own = pytest.mark.parametrize("package", ["fastpool"], indirect=True)

URL = "postgresql://scott:s3cr3t@127.0.0.1:1/app"
SOURCES: dict[str, tuple[Any, Any]] = {
    "url": (URL, None),
    "keywords": ("host=127.0.0.1 port=1 user=scott password=s3cr3t", None),
    "quoted": ("host=127.0.0.1 port=1 password='s3cr3t pass' dbname=app", None),
    "kwargs": ("host=127.0.0.1 port=1", {"password": "s3cr3t"}),
    "callables": (lambda: URL, lambda: {"password": "0ther-s3cr3t"}),
    "escaped": ("postgresql://scott:s3cr3t%20pass@127.0.0.1:1/app", None),
    "a URL in a pair": ("dbname=postgresql://scott:s3cr3t@127.0.0.1:1/app", None),
    # malformed
    "two words": ("host=127.0.0.1 password=my s3cr3t", None),
    "unterminated": ("host=127.0.0.1 password='s3cr3t", None),
    "bad escape": ("postgresql://scott:s3cr3t%zz@127.0.0.1/app", None),
    "bracket": ("postgresql://scott:s3cr3t@[::1/app", None),
    "an @": ("postgresql://scott:x@s3cr3t@127.0.0.1:1/app", None),
    "a slash": ("postgresql://scott:s3cr3t/x@127.0.0.1:1/app", None),
    "a second slash": ("postgresql://scott:1/s3cr3t@127.0.0.1:1/app", None),
    "a bad option": (URL + "?s3cr3t=1&bogus=2", {"password": "s3cr3t"}),
    "a quote": ('host=127.0.0.1 password=a"b s3cr3t"c', None),
}


class Telling(psycopg.Connection[Any]):
    """Its errors tell all that it was given."""

    @classmethod
    def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
        raise psycopg.OperationalError(f"no luck with {conninfo!r} and {kwargs!r}")


class AsyncTelling(psycopg.AsyncConnection[Any]):
    """The same for tasks."""

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
        raise psycopg.OperationalError(f"no luck with {conninfo!r} and {kwargs!r}")


@pytest.mark.parametrize("telling", [False, True], ids=["driver", "telling"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", ["", "Async"])
async def test_the_error_of_a_null_pools_connect_shows_no_password(
    kind: str, source: str, telling: bool
) -> None:
    conninfo, kwargs = SOURCES[source]
    options: dict[str, Any] = {"kwargs": kwargs, "max_size": 1, "open": False}
    if telling:
        options["connection_class"] = AsyncTelling if kind else Telling
    pool = getattr(fastpool, f"{kind}NullConnectionPool")(conninfo, **options)
    await done(pool.open())
    try:
        with pytest.raises(psycopg.Error) as caught:
            await done(pool.getconn(timeout=5.0))
    finally:
        await done(pool.close())
    error: BaseException | None = caught.value
    while error is not None:
        assert "s3cr3t" not in f"{error} {error!r}"
        error = error.__context__


@own
@pytest.mark.parametrize("telling", [False, True], ids=["driver", "telling"])
@pytest.mark.parametrize("source", SOURCES)
async def test_a_failing_connect_shows_no_password(
    pool_class: Any, kind: str, caplog: pytest.LogCaptureFixture, source: str, telling: bool
) -> None:
    caplog.set_level(logging.DEBUG, logger="psycopg.pool")
    conninfo, kwargs = SOURCES[source]
    options: dict[str, Any] = {"kwargs": kwargs, "min_size": 1, "open": False}
    if telling:
        options["connection_class"] = AsyncTelling if kind else Telling
    pool = pool_class(conninfo, **options)
    shown = []
    await done(pool.open())
    try:
        await until(lambda: pool._last_error is not None, "a failed connect")
        with pytest.raises(fastpool.PoolTimeout) as caught:
            await done(pool.getconn(timeout=0.01))
        assert "last connection attempt failed" in str(caught.value)
        shown.append(str(caught.value))
        with pytest.raises(fastpool.PoolTimeout) as caught:
            await done(pool.wait(timeout=0.01))
        shown.append(str(caught.value))
    finally:
        await done(pool.close())
    shown += [repr(pool), repr(pool.snapshot()), str(pool.snapshot().as_dict())]
    shown += [record.getMessage() for record in caplog.records if record.name == "psycopg.pool"]
    assert any("error connecting" in text for text in shown)
    assert not [text for text in shown if "s3cr3t" in text]


@own
@pytest.mark.parametrize("name", ["check", "reset", "configure"])
async def test_a_failing_callback_shows_no_password(
    open_pool: Callable[..., Awaitable[Any]],
    caplog: pytest.LogCaptureFixture,
    kind: str,
    name: str,
) -> None:
    caplog.set_level(logging.DEBUG, logger="psycopg.pool")
    calls = 0

    def fail(conn: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise psycopg.OperationalError(f"can't audit to {URL} with password = 's3cr3t too'")

    async def fail_async(conn: Any) -> None:
        fail(conn)

    pool = await open_pool(**{name: fail_async if kind else fail})
    for _ in range(2):
        await done(pool.putconn(await done(pool.getconn(timeout=5.0))))
    await until(lambda: calls >= 2, "a second call")
    lines = [record.getMessage() for record in caplog.records if record.name == "psycopg.pool"]
    assert any("can't audit to postgresql://scott:***@127" in line for line in lines)
    assert not [line for line in lines if "s3cr3t" in line]


@own
async def test_a_conninfo_that_is_put_into_the_pool_is_not_shown(
    open_pool: Callable[..., Awaitable[Any]],
) -> None:
    pool = await open_pool()
    with pytest.raises(ValueError, match="doesn't come from any pool") as caught:
        await done(pool.putconn(URL))
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        'FATAL:  password authentication failed for user "postgres"',
        'FATAL:  database "postgres" does not exist',
        'connection to server at "127.0.0.1", port 5432 failed: Connection refused',
        'missing "=" after "nonsense" in connection info string',
    ],
)
def test_what_is_no_secret_is_shown(text: str) -> None:
    conninfo = "host=127.0.0.1 user=postgres dbname=postgres password=postgres"
    assert Redactor().hide(text, conninfo, {}) == text == hide(text)
    assert Redactor().hide(text, "nonsense", {}) == text
