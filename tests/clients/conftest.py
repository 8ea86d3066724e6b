"""What the tests of real clients share: a database, and an interpreter to run a scenario in.

A scenario is a function of a module in scenarios/: a small program that uses a client the way its
manual says, imports psycopg_pool and knows of no other pool. Every test runs one twice, each time
in an interpreter and a database of its own: on psycopg_pool, and on fastpool in its place. A
scenario returns what it saw; the test judges it. Owns no assertion about a client.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import psycopg
import pytest

IMPLEMENTATIONS = ("psycopg_pool", "fastpool")
CHILD = Path(__file__).with_name("child.py")
SCENARIOS = Path(__file__).with_name("scenarios")
# Below pytest's own limit, so that it is the scenario that says where it hangs.
TIME_LIMIT = 45.0

Seen = dict[str, Any]
Run = Callable[..., Seen]

numbers = itertools.count(1)


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> str:
    """The name of the package that the scenario gets when it imports psycopg_pool."""
    name: str = request.param
    return name


@pytest.fixture
def defect_of_psycopg_pool(request: pytest.FixtureRequest, implementation: str) -> None:
    """Expect this test to fail on psycopg_pool, by its assertions."""
    if implementation == "psycopg_pool":
        request.applymarker(xfail("a defect of psycopg_pool", strict=True))


@pytest.fixture
def rare_defect_of_psycopg_pool(request: pytest.FixtureRequest, implementation: str) -> None:
    """Let this test fail on psycopg_pool: a cancellation has to meet it at the wrong moment."""
    if implementation == "psycopg_pool":
        request.applymarker(xfail("loses a connection now and then", strict=False))


def xfail(reason: str, *, strict: bool) -> pytest.MarkDecorator:
    """Return a mark for what fails by its assertions, not by a scenario that crashed."""
    return pytest.mark.xfail(raises=AssertionError, reason=reason, strict=strict)


@pytest.fixture
def database(dsn: str) -> Iterator[str]:
    """The connection string of a new database; nobody may be connected to it afterwards."""
    name = f"client_{next(numbers)}"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"create database {name}")
        yield psycopg.conninfo.make_conninfo(dsn, dbname=name)
        # Waits 5 s for sessions to end, then raises ObjectInUse.
        conn.execute(f"drop database {name}")


@pytest.fixture
def run(implementation: str, database: str, tmp_path: Path) -> Run:
    """`run("with_django", "many_threads")` runs that scenario and returns what it saw.

    Keyword arguments are the scenario's. Fails when the scenario raises, hangs, or when anything
    went wrong where nobody could catch it: in a finalizer or a thread.
    """

    def run_scenario(module: str, scenario: str, **arguments: Any) -> Seen:
        seen = tmp_path / "seen.json"
        command = [
            *(sys.executable, "-W", "error", CHILD, implementation, str(TIME_LIMIT)),
            *(SCENARIOS / f"{module}.py", scenario, database, json.dumps(arguments), seen),
        ]
        done = subprocess.run(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            # On the way in and out there are imports and exit handlers.
            timeout=TIME_LIMIT + 10.0,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        )
        if done.returncode or not seen.exists():
            fail(done)
        facts: Seen = json.loads(seen.read_text(encoding="utf-8"))
        return facts

    return run_scenario


def fail(done: subprocess.CompletedProcess[str]) -> NoReturn:
    """Raise what the child's last line says; the lines before it are a note."""
    *before, last = done.stderr.strip().splitlines() or ["it said nothing"]
    error = ScenarioError(f"exit {done.returncode}: {last}")
    error.__notes__ = ["\n".join(before[-60:])]  # shown from Python 3.11 on
    raise error


class ScenarioError(Exception):
    """A scenario did not come to its end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all of them, so that one word leaves them out."""
    for item in items:
        if item.path.parent == CHILD.parent:
            item.add_marker(pytest.mark.clients)


@pytest.fixture(scope="module", autouse=True)
def installed(request: pytest.FixtureRequest) -> None:
    """Skip a file whose client is missing: it names the packages it needs in NEEDS."""
    for name in ("psycopg_pool", *request.module.NEEDS):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: make test-clients")
