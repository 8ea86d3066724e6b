"""What the example programs beside this file do: what they say about types is so."""

from __future__ import annotations

import asyncio
import inspect
import re
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fastpool
import fastpool.abc

pytest.importorskip("typing_extensions", reason="the examples say what they claim with it")

HERE = Path(__file__).parent
POOLS = [
    fastpool.ConnectionPool,
    fastpool.NullConnectionPool,
    fastpool.AsyncConnectionPool,
    fastpool.AsyncNullConnectionPool,
]


def load(example: str, library: str) -> ModuleType:
    """Execute an example program that imports *library*."""
    path = HERE / f"{example}.py"
    text = re.sub(r"\bfastpool\b", library, path.read_text(encoding="utf-8"))
    module = ModuleType(f"{example}_with_{library}")
    exec(compile(text, path, "exec"), vars(module))
    return module


def steps(example: str) -> list[str]:
    """Return the names of the functions in *example* that run against a server."""
    text = (HERE / f"{example}.py").read_text(encoding="utf-8")
    return re.findall(r"^(?:async )?def (\w+)\(dsn: str\) -> None:$", text, re.MULTILINE)


def run_step(example: str, library: str, step: str, dsn: str) -> None:
    """Run one function of an example, to its end if it is a coroutine function."""
    result = getattr(load(example, library), step)(dsn)
    if inspect.iscoroutine(result):
        asyncio.run(result)


@pytest.mark.parametrize("library", ["fastpool", "psycopg_pool"])
@pytest.mark.parametrize("step", steps("drop_in"))
def test_a_program_for_psycopg_pool_runs(library: str, step: str, dsn: str) -> None:
    run_step("drop_in", library, step, dsn)


@pytest.mark.parametrize("step", steps("additions"))
def test_a_program_for_fastpool_runs(step: str, dsn: str) -> None:
    run_step("additions", "fastpool", step, dsn)


@pytest.mark.parametrize("pool_class", POOLS, ids=lambda pool_class: pool_class.__name__)
def test_pool_classes_can_be_subscripted(pool_class: Any) -> None:
    class Own:
        pass

    alias = pool_class[Own]
    assert (typing.get_origin(alias), typing.get_args(alias)) == (pool_class, (Own,))
    assert repr(alias).startswith(f"{pool_class.__module__}.{pool_class.__name__}[")


@pytest.mark.parametrize("pool_class", POOLS, ids=lambda pool_class: pool_class.__name__)
def test_annotations_of_attributes_can_be_resolved(pool_class: Any) -> None:
    assert "conninfo" in typing.get_type_hints(pool_class)


def public_functions() -> list[Any]:
    """Return the constructor and the public methods of each pool class."""
    return [
        pytest.param(function, id=f"{pool_class.__name__}.{name}")
        for pool_class in POOLS
        for name, function in inspect.getmembers(pool_class, callable)
        if not name.startswith("_") or name in ("__init__", "__enter__", "__aenter__")
    ]


@pytest.mark.parametrize("function", public_functions())
def test_annotations_can_be_resolved(function: Callable[..., Any]) -> None:
    assert "return" in typing.get_type_hints(function)


@pytest.mark.parametrize(
    ("name", "parameter"),
    [("ConnectionCB", fastpool.abc.CT), ("AsyncConnectionCB", fastpool.abc.ACT)],
)
def test_callback_types_can_be_subscripted(name: str, parameter: Any) -> None:
    callback: Any = getattr(fastpool.abc, name)
    assert callback.__parameters__ == (parameter,)
    assert typing.get_args(callback[int])[0] == [int]
