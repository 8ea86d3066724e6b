"""What every benchmark shares: a PostgreSQL, how long to measure, and on what it was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fastpool.demo.postgres import connect_or_start
from interleave import Depth

FULL = Depth(cycle_rounds=40, cycle_seconds=0.03, contended_rounds=5, contended_seconds=1.0)
QUICK = Depth(cycle_rounds=10, cycle_seconds=0.01, contended_rounds=3, contended_seconds=0.4)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="measure briefly")


def pytest_configure(config: pytest.Config) -> None:
    # It warns when nothing was measured; as an error that would hide why.
    config.addinivalue_line(
        "filterwarnings", "default::pytest_benchmark.logger.PytestBenchmarkWarning"
    )


@pytest.fixture(scope="session")
def depth(request: pytest.FixtureRequest) -> Depth:
    """How much to measure, by --quick."""
    return QUICK if request.config.getoption("--quick") else FULL


@pytest.fixture(scope="session")
def dsn() -> Iterator[str]:
    """A PostgreSQL: that of DATABASE_URL, or one started for this run."""
    with connect_or_start(settings={"max_connections": "100", "fsync": "off"}) as source:
        yield source.dsn


@pytest.fixture(scope="session")
def facts(dsn: str) -> dict[str, Any]:
    """On what this run measures: goes into every benchmark's extra_info."""
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
    }


def _machine() -> str:
    """Name the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


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
