"""Every public method takes what psycopg_pool's takes: compared with psycopg_pool itself.

tests/contract_both/test_surface.py says in words what the signatures are, on both. Here the four
classes of the one are held against those of the other, so that nothing is left out. More parameters
may follow: keyword-only ones with a default, for those disturb no caller.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import fastpool

psycopg_pool = pytest.importorskip("psycopg_pool", reason="the yardstick is not installed")

CLASSES = (
    "ConnectionPool",
    "NullConnectionPool",
    "AsyncConnectionPool",
    "AsyncNullConnectionPool",
)
BLOCKS = ("__enter__", "__exit__", "__aenter__", "__aexit__")
# How its worker threads and tasks are fed: no business of a program's.
WORKINGS = {"run_task", "schedule_task", "worker"}


def public(cls: Any) -> list[str]:
    """The public names of a class, its constructor and its block."""
    named = [name for name in dir(cls) if not name.startswith("_") and name not in WORKINGS]
    return [*named, "__init__", *(name for name in BLOCKS if hasattr(cls, name))]


def attribute(module: Any, cls: str, name: str) -> Any:
    return inspect.getattr_static(getattr(module, cls), name)


def plain(found: Any) -> Any:
    """The function behind a static or class method."""
    return getattr(found, "__func__", found)


EVERY = [(cls, name) for cls in CLASSES for name in public(getattr(psycopg_pool, cls))]
FUNCTIONS = [
    (cls, name)
    for cls, name in EVERY
    if not isinstance(attribute(psycopg_pool, cls, name), property)
]

every = pytest.mark.parametrize(("cls", "name"), EVERY)
functions = pytest.mark.parametrize(("cls", "name"), FUNCTIONS)
# The methods of a block are called by position.
named = pytest.mark.parametrize(
    ("cls", "name"), [(cls, name) for cls, name in FUNCTIONS if name not in BLOCKS]
)


def parameters(module: Any, cls: str, name: str) -> list[inspect.Parameter]:
    return list(inspect.signature(plain(attribute(module, cls, name))).parameters.values())


def names_of(kinds: Any) -> Any:
    """What a caller can rely on of each parameter: name, kind, default."""
    return [(parameter.name, parameter.kind, parameter.default) for parameter in kinds]


@every
def test_the_name_is_there_and_of_the_same_kind(cls: str, name: str) -> None:
    theirs, ours = attribute(psycopg_pool, cls, name), attribute(fastpool, cls, name)
    for kind in (property, staticmethod, classmethod):
        assert isinstance(ours, kind) == isinstance(theirs, kind)
    assert callable(plain(ours)) == callable(plain(theirs))


@named
def test_it_takes_the_same_parameters(cls: str, name: str) -> None:
    theirs = parameters(psycopg_pool, cls, name)
    known = {parameter.name for parameter in theirs}
    ours = [p for p in parameters(fastpool, cls, name) if p.name in known]
    assert names_of(ours) == names_of(theirs)


@named
def test_what_it_takes_beyond_is_optional_and_keyword_only(cls: str, name: str) -> None:
    known = {parameter.name for parameter in parameters(psycopg_pool, cls, name)}
    further = [p for p in parameters(fastpool, cls, name) if p.name not in known]
    assert {p.kind for p in further} <= {inspect.Parameter.KEYWORD_ONLY}
    assert inspect.Parameter.empty not in {p.default for p in further}


@functions
def test_it_is_a_coroutine_function_where_theirs_is(cls: str, name: str) -> None:
    theirs, ours = (attribute(module, cls, name) for module in (psycopg_pool, fastpool))
    assert inspect.iscoroutinefunction(plain(ours)) == inspect.iscoroutinefunction(plain(theirs))


@pytest.mark.parametrize("cls", CLASSES)
def test_the_class_itself_is_called_with_the_same_parameters(cls: str) -> None:
    theirs = inspect.signature(getattr(psycopg_pool, cls)).parameters.values()
    ours = inspect.signature(getattr(fastpool, cls)).parameters.values()
    known = {parameter.name for parameter in theirs}
    assert names_of(p for p in ours if p.name in known) == names_of(theirs)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_bound_method_does_not_show_self(cls: str) -> None:
    options = {} if "Null" in cls else {"min_size": 1}
    pool = getattr(fastpool, cls)("", open=False, **options)
    assert list(inspect.signature(pool.getconn).parameters) == ["timeout"]
    assert list(inspect.signature(pool.putconn).parameters) == ["conn"]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", ["getconn", "putconn", "connection"])
def test_a_method_knows_its_name_and_its_documentation(cls: str, name: str) -> None:
    method = getattr(getattr(fastpool, cls), name)
    assert method.__name__ == name
    assert inspect.getdoc(method)
