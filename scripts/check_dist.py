"""What a release may hold: the sources in an sdist, what runs and what types in a wheel.

usage: python check_dist.py [--same-as WHEEL] FILE ...
--same-as: the wheels named have the files of WHEEL and no other, no bundled library above all,
and a manylinux or musllinux tag. Ends with 1, and a line for each fault.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
import zipfile
from pathlib import Path

LARGEST = 1_000_000  # bytes
GENERATED = (".c", ".cpp", ".so", ".pyd", ".dylib", ".pyc", ".html")
NOT_IN_WHEELS = (".c", ".cpp", ".pyx", ".h", ".pyc", ".html", ".a", ".o")
IN_WHEELS = ("py.typed", "__init__.py", "_core.pyi", "_fastpath.pyi", "_core.pxd")
IN_SDISTS = (
    *(f"fastpool/{name}" for name in (*IN_WHEELS, "_core.pyx", "_fastpath.pyx", "_atomic.h")),
    *("LICENSE", "Makefile", "README.md", "pyproject.toml", "setup.py"),
    *("tests/conftest.py", "tests/test_packaging.py"),
)


def names_in(path: Path) -> list[str]:
    """Return the paths of all files in a wheel, or in an sdist below its one folder."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            return [name for name in archive.namelist() if not name.endswith("/")]
    with tarfile.open(path) as archive:
        return [each.name.partition("/")[2] for each in archive.getmembers() if each.isfile()]


def faults_of_sdist(names: list[str]) -> list[str]:
    """Return what is wrong with an sdist of these files."""
    faults = [f"no {name}" for name in IN_SDISTS if name not in names]
    return faults + [f"generated: {name}" for name in names if name.endswith(GENERATED)]


def faults_of_wheel(names: list[str]) -> list[str]:
    """Return what is wrong with a wheel of these files."""
    faults = [f"no fastpool/{name}" for name in IN_WHEELS if f"fastpool/{name}" not in names]
    for module in compiled(names):
        built = [name for name in names if name.startswith(f"{module}.") and is_built(name)]
        if len(built) != 1:
            faults.append(f"{module} is built {len(built)} times")
    for name in names:
        if not name.startswith(("fastpool/", "fastpool-")):
            faults.append(f"not ours: {name}")
        elif name.endswith(NOT_IN_WHEELS) or "/tests/" in name:
            faults.append(f"does not run: {name}")
    return faults


def compiled(names: list[str]) -> list[str]:
    """Return the modules that are to be there built: the private ones that have stubs."""
    stubs = (name for name in names if name.startswith("fastpool/_"))
    return [name.removesuffix(".pyi") for name in stubs if name.endswith(".pyi")]


def is_built(name: str) -> bool:
    """Tell whether a name is that of an extension module."""
    return name.endswith((".so", ".pyd"))


def faults_of_repair(path: Path, original: Path) -> list[str]:
    """Return what a repair has changed but the tag."""
    before, after = set(names_in(original)), set(names_in(path))
    faults = [f"bundled: {name}" for name in sorted(after - before) if "-sbom" not in name]
    faults += [f"lost: {name}" for name in sorted(before - after)]
    if not any(word in path.name for word in ("manylinux", "musllinux")):
        faults.append("no manylinux tag")
    return faults


def main() -> int:
    """Judge the files that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--same-as", type=Path, metavar="WHEEL")
    parser.add_argument("files", nargs="+", type=Path)
    args = parser.parse_args()
    failed = False
    for path in args.files:
        names = names_in(path)
        faults = (faults_of_wheel if path.suffix == ".whl" else faults_of_sdist)(names)
        if args.same_as:
            faults += faults_of_repair(path, args.same_as)
        size = path.stat().st_size
        if size >= LARGEST:
            faults.append(f"{size:,} bytes are too many")
        print(f"    {path.name}: {len(names)} files, {size:,} bytes")
        for fault in faults:
            print(f"{path.name}: {fault}", file=sys.stderr)
        failed = failed or bool(faults)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
