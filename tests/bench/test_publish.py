"""The history of runs on a branch: made, continued, and left alone when nothing is new."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / "scripts").exists(),
    reason="these tests need git, and the checkout around them",
)


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=50
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_runs_are_added_to_the_branch_and_nothing_else_changes(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    repository = tmp_path / "remote.git"
    run("git", "init", "--quiet", "--bare", repository)

    def publish(path: Path) -> str:
        script = ROOT / "scripts" / "publish.sh"
        return run("sh", script, sys.executable, path, repository, "gh-pages")

    def of_commit(commit: str) -> Callable[[dict[str, Any]], None]:
        def change(data: dict[str, Any]) -> None:
            for each in data["benchmarks"]:
                each["extra_info"]["commit"] = commit

        return change

    first, second = (make_run(f"{name}.json", of_commit(name)) for name in ("aaa1111", "bbb2222"))
    assert [publish(each) for each in (first, second, second)] == [
        "published to gh-pages\n",
        "published to gh-pages\n",
        "gh-pages has this already\n",
    ]
    show = ("git", "-C", repository, "show")
    entries = json.loads(run(*show, "gh-pages:history.json"))
    assert [each["commit"] for each in entries] == ["aaa1111", "bbb2222"]
    assert "aaa1111" in run(*show, "gh-pages:index.html")
    log = run("git", "-C", repository, "log", "--format=%s", "gh-pages").splitlines()
    assert len(log) == 2
    assert run("git", "-C", repository, "branch", "--format=%(refname:short)") == "gh-pages\n"
