"""A fresh interpreter for what can only be measured in one.

Owns: how it is started, so that it finds the installed fastpool first and this package last.
Refuses: to know what it measures.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent.parent
_TIMEOUT = 120.0


def run(code: str, *arguments: str) -> Any:
    """Run *code* in a new interpreter with *arguments*; return the JSON that it prints.

    Blocks until it has ended. Raises AssertionError with what it said when it fails.
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        # Not the checkout, whose fastpool/ would be found first.
        cwd=_ROOT.anchor,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run_main(module: str, *arguments: str) -> Any:
    """Run main() of this package's *module* in a new interpreter, as run() does."""
    path = f"import sys; sys.path.append({str(_ROOT)!r})"
    return run(f"{path}; from {__package__}.{module} import main; main()", *arguments)
