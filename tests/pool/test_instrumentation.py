"""The pools under tracing libraries, which patch the driver for good: in processes of their own.

What holds for any proxy holds for each library's: kinds/test_proxies.py is run again, with the
library making the connections. Beyond that, it must go on seeing what it is there to see.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

MODULES = {
    "ddtrace": "ddtrace",
    "newrelic": "newrelic",
    "opentelemetry": "opentelemetry.instrumentation.psycopg",
}
# They send nothing anywhere.
SILENCE = {
    "DD_TRACE_ENABLED": "false",
    "DD_REMOTE_CONFIGURATION_ENABLED": "false",
    "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
    "NEW_RELIC_MONITOR_MODE": "false",
    "OTEL_SDK_DISABLED": "false",
}


def require(library: str) -> None:
    """Skip unless the library is there; it must not be imported into this process."""
    name = ""
    for part in MODULES[library].split("."):
        name = f"{name}.{part}" if name else part
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{library} is not installed")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("library", MODULES)
def test_what_holds_for_proxies_holds_for_those_of_the_library(
    library: str, tmp_path: Path
) -> None:
    require(library)
    command = [sys.executable, "-m", "pytest", "-c", str(HERE.parents[1] / "pyproject.toml")]
    options = ["-q", "-p", "no:cacheprovider", "--tb=line", str(HERE / "kinds" / "test_proxies.py")]
    # In a directory of its own: `-m` puts the current one first on the path.
    result = subprocess.run(
        [*command, *options],
        cwd=tmp_path,
        env={**os.environ, **SILENCE, "INSTRUMENTED_BY": library},
        capture_output=True,
        text=True,
        timeout=170.0,
        check=False,
    )
    assert result.returncode == 0, "\n" + result.stdout[-5000:]


OPENTELEMETRY = """
import sys
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

spans = InMemorySpanExporter()
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(spans))
PsycopgInstrumentor().instrument(skip_dep_check=True, tracer_provider=provider)

import psycopg
import {package} as package

def statements():
    texts = [span.attributes["db.statement"] for span in spans.get_finished_spans()]
    spans.clear()
    return texts

"""


@pytest.mark.parametrize("package", ["psycopg_pool", "fastpool"])
@pytest.mark.parametrize("mine", [False, True], ids=["plain", "subclass"])
def test_opentelemetry_sees_the_queries(
    package: str, mine: bool, script: Callable[..., Any], dsn: str
) -> None:
    require("opentelemetry")
    pytest.importorskip(package, reason="psycopg_pool, the yardstick, is not installed")
    result = script(
        OPENTELEMETRY.format(package=package)
        + """
class Mine(psycopg.Connection):
    @classmethod
    def connect(cls, *args, **kwargs):
        return super().connect(*args, **kwargs)

cls = Mine if sys.argv[2] == "True" else psycopg.Connection
with package.ConnectionPool(sys.argv[1], connection_class=cls, min_size=1, open=False) as pool:
    for number in range(2):
        with pool.connection() as conn:
            conn.execute(f"select {number}")
    conn = pool.getconn()
    conn.execute("select 2")
    conn.rollback()
    pool.putconn(conn)
    print(statements())
""",
        dsn,
        str(mine),
    )
    assert (result.stdout, result.stderr) == ("['select 0', 'select 1', 'select 2']\n", "")


def test_opentelemetry_sees_the_queries_of_leases(script: Callable[..., Any], dsn: str) -> None:
    require("opentelemetry")
    result = script(
        OPENTELEMETRY.format(package="fastpool")
        + """
with package.ConnectionPool(sys.argv[1], min_size=1, open=False) as pool:
    with pool.connect() as conn:
        conn.execute("select 1")
        with conn.cursor() as cursor:
            cursor.execute("select 2")
    print(statements())
""",
        dsn,
    )
    assert (result.stdout, result.stderr) == ("['select 1', 'select 2']\n", "")


WRAPPED = """
import sys, warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    {patch}
import psycopg, fastpool

def makers(conn):
    return [type(conn.cursor()).__module__.split(".")[0], conn.execute.__module__.split(".")[0]]

with fastpool.ConnectionPool(sys.argv[1], min_size=1, open=False) as pool:
    with pool.connection() as conn:
        print(*makers(conn))
    with pool.connect() as lease:
        print(*makers(lease))
"""


@pytest.mark.parametrize(
    ("library", "patch"),
    [
        ("ddtrace", "import ddtrace; ddtrace.patch(psycopg=True)"),
        (
            "newrelic",
            "import psycopg, newrelic.hooks.database_psycopg as hooks;"
            " hooks.instrument_psycopg(psycopg)",
        ),
    ],
    ids=["ddtrace", "newrelic"],
)
def test_queries_go_through_the_library(
    library: str,
    patch: str,
    script: Callable[..., Any],
    dsn: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require(library)
    for name, value in SILENCE.items():
        monkeypatch.setenv(name, value)
    result = script(WRAPPED.format(patch=patch), dsn)
    assert result.stdout.split() == [library] * 4, result.stderr
