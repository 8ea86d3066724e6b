"""Try an installed fastpool as its users will: nothing but the wheel, its driver, and this file.

usage: python try_wheel.py [--demo] [--core] [TEST ...]

Imports it, looks at what was installed, asks the doctor, whose self-test lends connections, and
runs pytest on each TEST, a path. --demo puts it on a real PostgreSQL too, which has to be there.
--core is for a machine without libpq, where psycopg can't be imported: the compiled modules alone.
Ends with 0 when all is well.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import sysconfig
import types
from importlib import metadata
from pathlib import Path

NEEDED = {"py.typed", "_core.pyi", "_fastpath.pyi", "_core.pxd", "__init__.py"}
TIME_LIMIT = 600


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--core", action="store_true")
    parser.add_argument("tests", nargs="*", type=Path)
    args = parser.parse_args()

    look_at_files()
    without_driver = not is_importable("psycopg")
    if without_driver and not args.core:
        raise SystemExit("psycopg finds no libpq here; --core tries what needs none")
    (try_core if without_driver else try_package)()
    if args.demo:
        try_demo()
    if args.tests and not without_driver:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "not stress and not clients"]
        subprocess.run([*command, *map(str, args.tests)], check=True, timeout=TIME_LIMIT)
    print(f"fastpool {metadata.version('fastpool')} works on {platform.platform()}")
    return 0


def is_importable(name: str) -> bool:
    """Tell whether a module can be imported: psycopg is installed, but may find no libpq."""
    command = [sys.executable, "-c", f"import {name}"]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def look_at_files() -> None:
    """See that what was installed is whole, and nothing else."""
    spec = importlib.util.find_spec("fastpool")
    assert spec is not None, "fastpool is not installed"
    assert spec.origin is not None, "fastpool is a namespace: what was installed has no __init__.py"
    package = Path(spec.origin).parent
    assert package.is_relative_to(sys.prefix), f"{package} is not what was installed"
    there = {path.name for path in package.rglob("*") if path.is_file()}
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    needed = NEEDED | {path.stem + suffix for path in package.glob("_*.pyi")}
    assert needed <= there, f"missing: {needed - there}"
    sources = {name for name in there if name.endswith((".c", ".pyx", ".h"))}
    assert not sources, f"not needed to run: {sources}"


def check_gil() -> None:
    """See that importing the core has not turned the GIL on."""
    if sysconfig.get_config_var("Py_GIL_DISABLED") and os.environ.get("PYTHON_GIL") != "1":
        assert not sys._is_gil_enabled(), "an import has turned the GIL on"  # type: ignore[attr-defined]


def try_package() -> None:
    """Import it, see that it is a release, and ask the doctor."""
    import fastpool
    from fastpool import _core

    check_gil()
    assert fastpool.__version__ == metadata.version("fastpool")
    assert _core.BUILD.startswith("release, "), f"a build of kind {_core.BUILD!r}"
    said = run("doctor", "--json")
    report = json.loads(said)
    test = report["sections"]["installation"]["self-test"]
    assert (report["exit_code"], test["level"]) == (0, "ok"), said
    print(f"core: {_core.BUILD}\ndoctor: {test['value']}")


def try_core() -> None:
    """Lend and take back in the compiled modules, without the package around them."""
    spec = importlib.util.find_spec("fastpool")
    assert spec is not None
    bare = types.ModuleType("fastpool")
    bare.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["fastpool"] = bare
    from fastpool import _calls, _core

    check_gil()
    table = _core.SlotTable(1, 1)
    conn = types.SimpleNamespace()
    for debt in table.owed():
        table.install(debt, conn, None, 1, 2**62)
    for _ in range(3):
        assert table.checkout() is conn
        assert table.checkout() is None
        assert table.begin_return(conn) == _core.RETURN_TAKEN
        table.restore(conn)
        assert table.begin_return(conn) == _core.RETURN_NOT_LENT
    table.verify()
    assert callable(_calls.getconn)
    print(f"core, alone: {_core.BUILD}")


def try_demo() -> None:
    """Lend 4 connections of a real PostgreSQL to 64 threads for a second."""
    said = run("demo", "--json", "--seconds", "1", "--no-compare")
    result = json.loads(said)["pools"]["fastpool"]
    assert result["errors"]["count"] == 0, said
    assert result["requests"] > 0, said
    print(f"demo: {result['requests']} requests a second")


def run(*words: str) -> str:
    """Run a command of fastpool, every warning an error, and return its output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "fastpool", *words],
        cwd=sys.prefix,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    if done.returncode != 0:
        raise SystemExit(f"fastpool {words[0]}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
