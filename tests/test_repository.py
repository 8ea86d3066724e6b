"""What a checkout promises: a Makefile that explains itself, scripts that say what is missing,
pinned actions, and figures in the README that come from a run.
"""

from __future__ import annotations

import ast
import graphlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.sh"))
READY = {"version": "3.11", "supported": "yes", "venv": "yes", "cc": "cc", "include": "/nowhere"}

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not (ROOT / "Makefile").exists(),
    reason="these tests need the checkout around them, and a shell",
)


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run *command* in the checkout with *environment* on top of this one."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=50,
    )


@pytest.fixture
def python_that_says(tmp_path: Path) -> Callable[[Mapping[str, str]], Path]:
    """Make an interpreter that answers the preflight with the facts it is given."""

    def make(facts: Mapping[str, str]) -> Path:
        path = tmp_path / "python3"
        answers = "\n".join(facts[name] for name in READY)
        path.write_text(f"#!/bin/sh\ncat >/dev/null\ncat <<'EOF'\n{answers}\nEOF\n")
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def headers(tmp_path: Path) -> str:
    """A folder with a Python.h."""
    (tmp_path / "Python.h").touch()
    return str(tmp_path)


def test_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^\.PHONY: ([a-z-]+)$", text, re.MULTILINE))
    listed = re.findall(r"^  ([a-z-]+) +\S", run("make", "help").stdout, re.MULTILINE)
    assert {"demo", "test", "lint", "bench", "stress"} <= targets
    assert set(listed) == targets
    assert len(listed) == len(targets)


def test_preflight_accepts_the_interpreter_that_runs_the_tests() -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no compiler here")
    done = run("sh", "scripts/preflight.sh", sys.executable)
    assert (done.returncode, done.stderr) == (0, "")


def test_preflight_names_a_missing_python() -> None:
    done = run("sh", "scripts/preflight.sh", "no-such-python")
    assert done.returncode == 1
    assert "no Python (no-such-python): apt-get install python3" in done.stderr


@pytest.mark.parametrize(
    ("fact", "line"),
    [
        ({"supported": "no", "version": "3.9"}, "is not CPython 3.10 or later, but 3.9: "),
        ({"venv": "no"}, "no venv module in .*: apt-get install python3-venv"),
        ({"cc": "no-such-cc"}, r"no C compiler \(no-such-cc\): apt-get install gcc libc6-dev"),
        ({"cc": "false"}, "false cannot build a C program: apt-get install gcc libc6-dev"),
        ({"include": "/nowhere"}, "no Python headers .*: apt-get install python3-dev"),
    ],
    ids=["old-python", "no-venv", "no-compiler", "broken-compiler", "no-headers"],
)
def test_preflight_says_in_one_line_what_is_missing(
    python_that_says: Callable[[Mapping[str, str]], Path],
    headers: str,
    monkeypatch: pytest.MonkeyPatch,
    fact: dict[str, str],
    line: str,
) -> None:
    monkeypatch.delenv("CC", raising=False)
    facts = READY | {"cc": "true", "include": headers} | fact
    done = run("sh", "scripts/preflight.sh", python_that_says(facts))
    assert done.returncode == 1
    title, problem = done.stderr.splitlines()
    assert title == "fastpool cannot be built here:"
    assert re.search(line, problem)


def test_preflight_names_all_that_is_missing_at_once(
    python_that_says: Callable[[Mapping[str, str]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    facts = READY | {"venv": "no", "cc": "no-such-cc"}
    done = run("sh", "scripts/preflight.sh", python_that_says(facts))
    assert len(done.stderr.splitlines()) == 1 + 3


def test_make_stops_at_what_preflight_says(tmp_path: Path) -> None:
    done = run("make", "test", f"VENV={tmp_path / 'venv'}", "PYTHON=no-such-python")
    assert done.returncode != 0
    assert "no Python (no-such-python)" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_make_leaves_a_folder_alone_that_is_no_environment(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    done = run("sh", "scripts/venv.sh", sys.executable, tmp_path)
    assert done.returncode != 0
    assert "is in the way" in done.stderr
    assert (tmp_path / "precious").exists()


def test_an_index_out_of_reach_is_called_no_network(tmp_path: Path) -> None:
    done = run(
        *("sh", "scripts/pip.sh", sys.executable, "download", "--no-cache-dir", "fastpool-absent"),
        *("--dest", tmp_path),
        PIP_CONFIG_FILE=os.devnull,
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_RETRIES="1",
    )
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("no network: ")


def test_another_failure_of_pip_is_not_called_no_network() -> None:
    done = run("sh", "scripts/pip.sh", sys.executable, "install", "./no-such-folder")
    assert done.returncode not in (0, 3)
    assert "no network" not in done.stderr
    assert "no-such-folder" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_posix_shell(script: str) -> None:
    path = ROOT / "scripts" / script
    assert path.read_text(encoding="utf-8").startswith("#!/bin/sh\n")
    assert run("sh", "-n", path).returncode == 0


def test_ci_ends_with_pytest() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == "step make stress"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_pin_their_actions_and_hold_no_rights(workflow: Path) -> None:
    text = workflow.read_text(encoding="utf-8")
    uses = re.findall(r"uses: (.+)", text)
    assert uses
    assert [
        use for use in uses if not re.fullmatch(r"\S+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use)
    ] == []
    assert "\npermissions: {}\n" in text
    assert text.count("persist-credentials: false") == text.count("actions/checkout@")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_every_job_has_a_time_limit(workflow: Path) -> None:
    jobs = workflow.read_text(encoding="utf-8").partition("\njobs:\n")[2]
    names = re.findall(r"^  ([a-z]+):$", jobs, re.MULTILINE)
    assert names
    assert len(re.findall(r"^    timeout-minutes: \d+$", jobs, re.MULTILINE)) == len(names)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_jobs_only_call_the_makefile(workflow: Path) -> None:
    commands = re.findall(r"run: (.+)", workflow.read_text(encoding="utf-8"))
    others = [each for each in commands if not each.startswith("make ")]
    assert [each for each in others if not each.startswith('test "$RESULTS" = ')] == []


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_every_target_that_a_job_calls_exists(workflow: Path) -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^\.PHONY: ([a-z-]+)$", text, re.MULTILINE))
    called = re.findall(r"run: make ([^\s=]+)(?:\s|$)", workflow.read_text(encoding="utf-8"))
    assert called
    assert set(called) - targets == set()


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_end_what_a_newer_run_replaces(workflow: Path) -> None:
    head = workflow.read_text(encoding="utf-8").partition("\njobs:\n")[0]
    assert "\nconcurrency:\n  group: " in head


def test_one_action_is_pinned_to_one_commit() -> None:
    pins: dict[str, set[str]] = {}
    for workflow in WORKFLOWS:
        for action, pin in re.findall(r"uses: (\S+)@(.+)", workflow.read_text(encoding="utf-8")):
            pins.setdefault(action, set()).add(pin)
    assert {action: found for action, found in pins.items() if len(found) > 1} == {}


def test_the_gate_waits_for_every_job() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    jobs = re.findall(r"^  ([a-z]+):$", text.partition("\njobs:\n")[2], re.MULTILINE)
    (needed,) = re.findall(r"^    needs: \[(.+)\]$", text, re.MULTILINE)
    (wanted,) = re.findall(r'run: test "\$RESULTS" = "(.+)"', text)
    assert needed.split(", ") == [job for job in jobs if job != "gate"]
    assert wanted.split() == ["success"] * len(needed.split(", "))


def test_each_wheel_of_the_release_is_one_that_python_is_tested_with() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (built,) = re.findall(r"^\[tool\.cibuildwheel\]\nbuild = \[(.+)\]$", text, re.MULTILINE)
    versions = {f"3.{each}" for each in re.findall(r"cp3(\d+t?)-\*", built)}
    ci = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert set(re.findall(r'- \{python: "(.+?)"', ci)) == versions
    classified = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)
    assert set(classified) == {version for version in versions if not version.endswith("t")}


def test_what_upstreams_tests_leave_out_has_a_reason() -> None:
    text = (ROOT / "tests" / "upstream-left-out.txt").read_text(encoding="utf-8")
    entries = [line for line in text.splitlines() if not line.startswith("#")]
    assert entries
    assert [line for line in entries if len(line.split(" ")) < 4] == []


def test_upstreams_tests_are_for_ci_alone() -> None:
    done = run("sh", "scripts/upstream.sh", "no-venv", "no-tag", "no-dsn", CI="")
    assert done.returncode == 1
    assert "in CI only" in done.stderr


def test_a_tag_is_the_version() -> None:
    version = re.findall(
        r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )[0]
    assert run("make", "tag-check", f"TAG=v{version}").returncode == 0
    done = run("make", "tag-check", "TAG=v99.0")
    assert done.returncode != 0
    assert "v99.0 is not the version" in done.stderr


def test_the_readme_shows_what_was_tested() -> None:
    done = run(sys.executable, "scripts/versions.py", "check")
    assert done.returncode == 0, done.stderr


def test_the_readme_shows_the_figures_of_the_stored_run() -> None:
    stored = ("bench/results/readme.json", "--readme", "README.md", "--check")
    done = run(sys.executable, "-m", "bench.report", *stored)
    assert done.returncode == 0, done.stderr


def test_the_readme_names_only_files_that_exist() -> None:
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (ROOT / link).exists(), f"{document.name} links to {link}"


def test_the_design_names_every_part_of_the_package() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    parts = {path.name for path in (ROOT / "fastpool").glob("*.py") if path.stem[:2] != "__"}
    parts |= {path.name for path in (ROOT / "fastpool").glob("*.pyx")}
    parts |= {path.name for path in (ROOT / "fastpool").glob("*.pxd")}
    parts |= {path.name for path in (ROOT / "fastpool").glob("*.h")}
    parts |= {f"{path.parent.name}/" for path in (ROOT / "fastpool").glob("*/*.py")}
    rows = re.findall(r"^\| (`.+?) \|", text, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([\w.]+[/.]\w*)`", row)}
    assert parts == named


def imported(source: Path) -> set[str]:
    """Return what a file of the package imports of the package: at once, later, or for types."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module} if node.module else {each.name for each in node.names}
    return found


def test_imports_make_no_circle() -> None:
    for folder in (ROOT / "fastpool", ROOT / "fastpool" / "demo", ROOT / "fastpool" / "doctor"):
        graph = {path.stem: imported(path) for path in folder.glob("*.py")}
        assert any(graph.values())
        graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_contributing_says_where_things_are() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("\n## Where things are\n")[2].partition("\n## ")[0]
    rows = [row for row in table.splitlines() if row.startswith("|") and "`" in row]
    assert len(rows) >= 3
    for row in rows:
        files = re.findall(r"\]\(([^)#]+\.(?:py|pyx|pxd))\)", row)
        sources = "".join((ROOT / file).read_text(encoding="utf-8") for file in files)
        for name in re.findall(r"`(\w+)`", row):
            assert re.search(rf"\b{name}\b", sources), f"no {name} in {files}"


def test_each_mutant_fits_the_sources_in_one_place() -> None:
    """`make mutants` is for now and then: a change that moves what it breaks is told of here."""
    found = runpy.run_path(str(ROOT / "scripts" / "mutants.py"))["MUTANTS"]
    assert len(found) > 6
    counts = {mutant.name: (ROOT / mutant.file).read_text().count(mutant.old) for mutant in found}
    assert counts == dict.fromkeys(counts, 1)
    names = {test for mutant in found for test in mutant.tests}
    assert {name for name in names if not (ROOT / name).exists()} == set()
