"""Run the suite with old and new drivers and servers, and say in README.md what was tested where.

usage: python versions.py run MAKE VENV [PYTHON/PSYCOPG/POSTGRES ...]
       python versions.py check

A row is a Python, a psycopg and a PostgreSQL: "3.12/3.2.0/14". Each is `make test` with an
environment of its own, on the directories of SUITE. Its result goes to docs/versions.json, in place
of an earlier one of the same row, and from there into the table. A row whose Python is not here
keeps what it has. Ends with 1 when a row failed, or when the table is not that of the file.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
STORE = ROOT / "docs" / "versions.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- tested: written by make test-versions -->\n", "<!-- end of tested -->"
SUITE = (
    "core",
    "contract",
    "contract_async",
    "contract_both",
    "contract_null",
    "pool",
    "pool_async",
)
# Each version at least once, the oldest together, the newest together. psycopg 3.2.0 has no
# binary package for Python 3.13, nor any psycopg for a free-threaded one.
ROWS = (
    "3.10/3.2.0/14",
    "3.11/3.2.13/15",
    "3.12/3.3.0/16",
    "3.13/3.3.9/17",
    "3.11/3.3.9/18",
    "3.14/3.3.9/18",
    "3.15/3.3.9/18",
    "3.13t/3.3.7/18",
)
_FACTS = """
import json, platform, sys, sysconfig, psycopg
free = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
print(json.dumps({
    "python": platform.python_version() + free,
    "psycopg": psycopg.__version__,
    "implementation": psycopg.pq.__impl__,
    "libpq": f"{psycopg.pq.version() // 10000}.{psycopg.pq.version() % 10000}",
}))
"""


def run_row(make: str, venv: str, row: str) -> dict[str, Any] | None:
    """Run the suite for *row* and return what there is to say, or None without its Python."""
    version, psycopg, postgres = row.split("/")
    found = subprocess.run(
        ["sh", "scripts/find-python.sh", version], cwd=ROOT, capture_output=True, text=True
    )
    if found.returncode != 0:
        print(f"== {row}: no Python {version} on this machine", flush=True)
        return None
    print(f"== {row}", flush=True)
    home = Path(f"{venv}-{row.replace('/', '-')}").absolute()
    results = home / "tests.xml"
    results.unlink(missing_ok=True)
    paths = " ".join(f"tests/{name}" for name in SUITE)
    words = {
        "PYTHON": found.stdout.strip(),
        "VENV": str(home),
        "PSYCOPG": psycopg,
        "POSTGRES": postgres,
        "PYTEST_ARGS": f"{paths} -q --tb=line --junitxml={results}",
    }
    done = subprocess.run(
        [make, "--no-print-directory", "test", *(f"{key}={word}" for key, word in words.items())],
        cwd=ROOT,
    )
    if not results.exists():
        raise SystemExit(f"{row}: make test ended with {done.returncode} before any test")
    return {"row": row} | facts(home, postgres) | counts(results)


def facts(home: Path, postgres: str) -> dict[str, Any]:
    """Return what was really used, as it names itself."""
    said = subprocess.run(
        [home / "bin" / "python", "-I", "-c", _FACTS], check=True, capture_output=True, text=True
    )
    server = home / f"postgres-{postgres}" / "node_modules" / "postgres" / "native" / "bin"
    named = subprocess.run(
        [server / "postgres", "--version"], check=True, capture_output=True, text=True
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    answer: dict[str, Any] = json.loads(said.stdout)
    return answer | {
        "postgresql": named.stdout.split()[-1],
        "system": f"{system()} {platform.machine()}",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": commit.stdout.strip(),
    }


def system() -> str:
    """Return the name of the distribution, or of the system."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return f"{platform.system()} {platform.release()}"
    version = release.get("VERSION_ID") or release.get("VERSION_CODENAME", "")  # Debian's testing
    return f"{release.get('NAME', 'Linux').partition(' ')[0]} {version}"


def counts(results: Path) -> dict[str, int]:
    """Return how many tests passed, failed and were skipped, from pytest's XML."""
    (suite,) = ET.parse(results).getroot().iter("testsuite")
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    skipped = int(suite.get("skipped", 0))
    total = int(suite.get("tests", 0))
    return {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown of what was tested."""
    lines = [
        "| Python | psycopg | PostgreSQL | system | passed | failed | skipped | when, commit |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        driver = f"{row['psycopg']} ({row['implementation']}, libpq {row['libpq']})"
        cells = [row["python"], driver, row["postgresql"], row["system"]]
        cells += [f"{row[name]:,}" for name in ("passed", "failed", "skipped")]
        cells.append(f"{row['date']}, {row['commit']}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def load() -> list[dict[str, Any]]:
    """Return the results that are stored."""
    rows: list[dict[str, Any]] = json.loads(STORE.read_text("utf-8")) if STORE.exists() else []
    return rows


def with_table(text: str) -> str:
    """Return a README with the table of what is stored."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}{table(load())}{END}{after}"


def main() -> int:
    """Do what the command line says."""
    if sys.argv[1:] == ["check"]:
        text = README.read_text("utf-8")
        if text != with_table(text):
            print("README.md's table is not that of docs/versions.json", file=sys.stderr)
            return 1
        return 0
    _, _, make, venv, *rows = sys.argv
    failed = False
    for row in rows or ROWS:
        result = run_row(make, venv, row)
        if result is None:
            continue
        failed = failed or result["failed"] > 0
        kept = {each["row"]: each for each in load()} | {row: result}
        order = {name: number for number, name in enumerate(ROWS)}
        stored = sorted(kept.values(), key=lambda each: order.get(each["row"], len(order)))
        STORE.write_text(json.dumps(stored, indent=1) + "\n", "utf-8")
        README.write_text(with_table(README.read_text("utf-8")), "utf-8")
    return int(failed)


if __name__ == "__main__":
    os.environ.pop("DATABASE_URL", None)
    sys.exit(main())
