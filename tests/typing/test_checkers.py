"""What mypy and pyright, at their strictest, say of the example programs beside this file.

Both read the package that the tests import: the installed wheel, with its py.typed and the stubs of
its compiled modules, or the checkout that PYTHONPATH names. The same programs are checked with
psycopg_pool in fastpool's place, as far as it has what they use.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

import fastpool

HERE = Path(__file__).parent
PACKAGE = Path(fastpool.__file__).parent
MARK = "# SEEN_HERE"
EXAMPLES = {"fastpool": ["drop_in", "additions", "refused"], "psycopg_pool": ["drop_in", "refused"]}
# TypeVar has a default in typing itself from Python 3.13 on.
VERSIONS = ["3.10", "3.14"]

Line = tuple[str, int]
Errors = dict[Line, list[str]]

pytestmark = pytest.mark.skipif(
    not (find_spec("mypy") and find_spec("pyright")), reason="make lint installs mypy and pyright"
)


def search_path() -> list[str]:
    """Return where a type checker shall look for fastpool before it looks into site-packages."""
    return [] if "site-packages" in PACKAGE.parts else [str(PACKAGE.parent)]


def run(command: list[str | Path], cwd: Path, **environment: str) -> str:
    """Run a type checker, which exits with 0 or 1 where it has done its work."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=170,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def mypy(programs: Path, version: str) -> Errors:
    """Return what mypy says of each line of *programs*."""
    output = run(
        [
            *("mypy", "--config-file=", "--cache-dir=.mypy_cache", "--output=json", "--strict"),
            *("--warn-unreachable", "--explicit-package-bases", f"--python-version={version}", "."),
        ],
        programs,
        MYPYPATH=os.pathsep.join(search_path()),
    )
    errors: Errors = {}
    for line in output.splitlines():
        if line.startswith("{"):
            found = json.loads(line)
            errors.setdefault((found["file"], found["line"]), []).append(found["message"])
    return errors


def pyright(programs: Path, version: str) -> Errors:
    """Return what pyright says of each line of *programs*."""
    settings = {
        "include": ["."],
        "extraPaths": search_path(),
        "pythonVersion": version,
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (programs / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    output = run(["pyright", "--outputjson", "--pythonpath", sys.executable], programs)
    report = json.loads(output[output.index("{") :])
    assert report["summary"]["filesAnalyzed"] == len(list(programs.rglob("*.py")))
    errors: Errors = {}
    for found in report["generalDiagnostics"]:
        file = Path(found["file"]).relative_to(programs.resolve()).as_posix()
        line = found["range"]["start"]["line"] + 1
        errors.setdefault((file, line), []).append(found["message"])
    return errors


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example programs, in one folder for each library that they import."""
    folder = tmp_path_factory.mktemp("programs")
    for library, names in EXAMPLES.items():
        (folder / f"with_{library}").mkdir()
        for name in names:
            text = (HERE / f"{name}.py").read_text(encoding="utf-8")
            program = re.sub(r"\bfastpool\b", library, text)
            (folder / f"with_{library}" / f"{name}.py").write_text(program, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def errors(programs: Path) -> Callable[[str, str], Errors]:
    """`errors("mypy", "3.10")`: what a checker says of all the programs. Each is run once."""
    checkers = {"mypy": mypy, "pyright": pyright}
    known: dict[tuple[str, str], Errors] = {}

    def check(checker: str, version: str) -> Errors:
        if (checker, version) not in known:
            known[checker, version] = checkers[checker](programs, version)
        return known[checker, version]

    return check


@pytest.mark.timeout(180)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
@pytest.mark.parametrize(
    ("library", "example"),
    [(library, name) for library, names in EXAMPLES.items() for name in names],
)
def test_checkers_see_what_the_examples_say(
    errors: Callable[[str, str], Errors],
    programs: Path,
    checker: str,
    version: str,
    library: str,
    example: str,
) -> None:
    file = f"with_{library}/{example}.py"
    expected = set()
    if (library, checker) == ("psycopg_pool", "pyright"):
        lines = (programs / file).read_text(encoding="utf-8").splitlines()
        expected = {number for number, line in enumerate(lines, 1) if line.endswith(MARK)}
    found = {
        line: messages
        for (path, line), messages in errors(checker, version).items()
        if path == file
    }
    unexpected = {line: found[line] for line in found.keys() - expected}
    assert (unexpected, expected - found.keys()) == ({}, set())
