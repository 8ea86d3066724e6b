"""On what a run measures: machine, versions, commit, command, date.

Owns: finding that out. Refuses: to fail where something can't be told.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg


def facts_of(dsn: str) -> dict[str, Any]:
    """Return the facts that go into every benchmark's extra_info; connects to *dsn* once."""
    with psycopg.connect(dsn) as conn:
        server = conn.info.parameter_status("server_version")
    return {
        "machine": _machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
        "postgres": server,
        "psycopg": f"{version('psycopg')} ({psycopg.pq.__impl__})",
        "commit": _commit(),
        "command": _command(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _machine() -> str:
    """Name the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _command() -> str:
    """Return what was typed: the make target, which the Makefile tells, or this command."""
    here = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return os.environ.get("BENCH_COMMAND") or shlex.join(here)


def _commit() -> str:
    """Name the commit that the tree is at, with a + when the tree differs from it."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            cwd=Path(__file__).parent,
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
