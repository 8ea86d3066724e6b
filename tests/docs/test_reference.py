"""docs/reference.md says what the docstrings say, and names all there is to name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from docs.pages import ROOT

import fastpool
from fastpool._core import STATES

SCRIPT = ROOT / "scripts" / "reference.py"
PAGE = ROOT / "docs" / "reference.md"

pytestmark = pytest.mark.skipif(
    not SCRIPT.exists(), reason="these tests need the checkout around them"
)


@pytest.fixture(scope="module")
def rows() -> set[str]:
    """The names in the first column of the page's tables."""
    cells = re.findall(r"^\| (.+?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)(?:\(\w+\))?`", cell)}


def test_the_reference_is_what_the_docstrings_say() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"],
        env=os.environ | {"PYTHONPATH": str(Path(fastpool.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_reference_names_every_statistic_and_state(rows: set[str]) -> None:
    stats = fastpool.ConnectionPool(open=False).get_stats()
    assert set(stats) | set(STATES) <= rows


def test_the_reference_names_everything_that_the_package_exports() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in fastpool.__all__ if name not in text] == []
