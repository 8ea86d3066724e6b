"""Where in the program a connection was borrowed: in snapshots, timeouts and warnings."""

from __future__ import annotations

import asyncio
import gc
import inspect
import re
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import pytest
from shared.both import done, entered, until

import fastpool

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("package", ["fastpool"], indirect=True),
]

HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()


def here() -> str:
    """Return the caller's line, as a call site is written up to the function's name."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return f"{__file__}:{frame.f_back.f_lineno} in "


def site_of(pool: Any) -> str:
    """Return the call site of the one connection that is lent."""
    (site,) = [slot.call_site for slot in pool.snapshot().slots if slot.state == "in_use"]
    return str(site)


both_classes = pytest.mark.parametrize("cls", ["ConnectionPool", "NullConnectionPool"])


@both_classes
async def test_getconn_is_known_by_its_line(
    open_pool: Callable[..., Awaitable[Any]], cls: str, kind: str
) -> None:
    pool = await open_pool(cls)
    for _ in range(3):
        conn, line = (await pool.getconn() if kind else pool.getconn()), here()
        assert site_of(pool).startswith(line)
        assert site_of(pool).endswith("test_getconn_is_known_by_its_line")
        await done(pool.putconn(conn))
    conn, line = (await pool.getconn(1.0) if kind else pool.getconn(1.0)), here()
    assert site_of(pool).startswith(line)
    await done(pool.putconn(conn))
    assert [slot.call_site for slot in pool.snapshot().slots[:1]] == [None]


@both_classes
async def test_a_block_is_known_by_its_line(
    open_pool: Callable[..., Awaitable[Any]], kind: str, cls: str
) -> None:
    pool = await open_pool(cls)
    if kind:
        async with pool.connection():
            line = here()
            site = site_of(pool)
    else:
        with pool.connection():
            line = here()
            site = site_of(pool)
    assert site.rpartition(" in ")[0] == f"{__file__}:{int(line.split(':')[1][:-4]) - 1}"


async def test_a_lease_is_known_by_its_line(
    open_pool: Callable[..., Awaitable[Any]], kind: str
) -> None:
    pool = await open_pool()
    lease, line = (await pool.connect() if kind else pool.connect()), here()
    assert site_of(pool).startswith(line)
    await done(lease.close())


async def test_a_checkout_off_the_fast_path_is_known_by_its_line(
    open_pool: Callable[..., Awaitable[Any]], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level("INFO", logger="psycopg.pool")
    pool = await open_pool()
    conn, line = (await pool.getconn() if kind else pool.getconn()), here()
    assert site_of(pool).startswith(line)
    await done(pool.putconn(conn))


async def test_an_exit_stack_is_known_by_who_enters_it(
    open_pool: Callable[..., Awaitable[Any]], kind: str
) -> None:
    pool = await open_pool()
    if kind:
        async with AsyncExitStack() as stack:
            _, line = await stack.enter_async_context(pool.connection()), here()
            assert site_of(pool).startswith(line)
    else:
        with ExitStack() as sync_stack:
            _, line = sync_stack.enter_context(pool.connection()), here()
            assert site_of(pool).startswith(line)


async def test_an_overridden_getconn_is_the_programs_own_code(
    pool_class: Any, kind: str, open_pool: Callable[..., Awaitable[Any]]
) -> None:
    class Sync(pool_class):  # type: ignore[misc]
        def getconn(self, timeout: float | None = None) -> Any:
            return super().getconn(timeout)

    class Async(pool_class):  # type: ignore[misc]
        async def getconn(self, timeout: float | None = None) -> Any:
            return await super().getconn(timeout)

    pool = await open_pool(Async if kind else Sync)
    async with entered(pool.connection()):
        assert re.search(r"test_call_sites\.py:\d+ in .*getconn$", site_of(pool))


async def test_two_places_in_turn_are_told_apart(
    open_pool: Callable[..., Awaitable[Any]], kind: str
) -> None:
    pool = await open_pool()

    async def first() -> Any:
        return await pool.getconn() if kind else pool.getconn()

    async def second() -> Any:
        return await pool.getconn() if kind else pool.getconn()

    for _ in range(5):
        for function in (first, second):
            conn = await function()
            # 3.10 knows the bare name only.
            name = "qualname" if sys.version_info >= (3, 11) else "name"
            assert site_of(pool).endswith(f" in {getattr(function, f'__{name}__')}")
            await done(pool.putconn(conn))


async def test_code_that_is_gone_does_no_harm(open_pool: Callable[..., Awaitable[Any]]) -> None:
    pool = await open_pool()
    for number in range(50):
        scope: dict[str, Any] = {}
        exec(compile(f"\ndef f{number}(p): return p.getconn()", f"made-{number}.py", "exec"), scope)
        result = scope.pop(f"f{number}")(pool)
        scope.clear()
        gc.collect()
        conn = await done(result)
        assert "made-" in site_of(pool) or inspect.isawaitable(result)
        await done(pool.putconn(conn))


async def test_a_timeout_names_the_call_site_and_notes_the_stack(
    open_pool: Callable[..., Awaitable[Any]],
    kind: str,
) -> None:
    pool = await open_pool()
    conn, line = (await pool.getconn() if kind else pool.getconn()), here()
    with pytest.raises(fastpool.PoolTimeout) as caught:
        await done(pool.getconn(timeout=0.01))
    assert f") at {line}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not hasattr(caught.value, "__notes__")  # the holder is the caller itself
    await done(pool.putconn(conn))


async def test_a_connection_that_is_collected_is_warned_of_with_its_call_site(
    open_pool: Callable[..., Awaitable[Any]],
    kind: str,
) -> None:
    pool = await open_pool()
    with pytest.warns(ResourceWarning) as caught:
        conn, line = (await pool.getconn() if kind else pool.getconn()), here()
        del conn
        gc.collect()
        await until(lambda: len(caught) > 0, "a warning")
    assert any(f"sec before at {line}" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("kind", ["Async"], indirect=True, ids=["tasks"])
async def test_a_task_that_waited_is_known_by_its_own_line(
    open_pool: Callable[..., Awaitable[Any]],
) -> None:
    pool = await open_pool()
    held = await pool.getconn()

    async def wait() -> Any:
        return await pool.getconn()

    task = asyncio.create_task(wait())
    await until(lambda: pool.snapshot().waiting == 1, "one waiting")
    await pool.putconn(held)
    conn = await task
    assert re.search(r"test_call_sites\.py:\d+ in .*wait$", site_of(pool))
    await pool.putconn(conn)


async def test_a_timeout_notes_what_the_holders_do(
    open_pool: Callable[..., Awaitable[Any]], kind: str
) -> None:
    pool = await open_pool()
    if kind:
        gate = asyncio.Event()

        async def hold_in_task() -> None:
            async with pool.connection():
                await gate.wait()

        holding = asyncio.create_task(hold_in_task(), name="the holder")
    else:
        sync_gate = threading.Event()

        def hold_in_thread() -> None:
            with pool.connection():
                assert sync_gate.wait(10.0)

        holder = threading.Thread(target=hold_in_thread, name="the holder")
        holder.start()
    await until(lambda: pool.snapshot().counts["in_use"] == 1, "one in use")
    with pytest.raises(fastpool.PoolTimeout, match="held longest by .* 'the holder'") as caught:
        await done(pool.getconn(timeout=0.01))
    notes = getattr(caught.value, "__notes__", [])
    if kind or HAS_GIL:
        (note,) = notes
        assert note.startswith(f"{'task' if kind else 'thread'} 'the holder', which holds backend")
        assert re.search(r'File ".*test_call_sites\.py", line \d+, in .*hold_in', note)
        assert note.rstrip().endswith(" in wait" if sys.version_info < (3, 11) else ".wait")
    else:
        assert notes == []  # nothing stops another thread there while one looks at it
    if kind:
        gate.set()
        await holding
    else:
        sync_gate.set()
        holder.join()
