"""Compile the core for systems and processors that are not this one: does the C hold up there?

usage: python cross.py FOLDER      by a Python that has Cython and ziglang (zig's clang and the
system headers of its targets), on Linux. Objects go to FOLDER; nothing is linked or run.

Python's headers are those of this interpreter. They suit every 64-bit Unix; for Windows the one
that describes the system is replaced, see cross/pyconfig-windows.h.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent
HERE = ROOT / "scripts" / "cross"
UNIX = (
    "x86_64-linux-musl",
    "aarch64-linux-gnu",
    "aarch64-linux-musl",
    "x86_64-macos",
    "aarch64-macos",
)
WINDOWS = ("x86_64-windows-gnu", "aarch64-windows-gnu")
DIRECTIVES = ("language_level=3", "freethreading_compatible=True", "auto_pickle=False")


def main() -> int:
    """Compile everything for everybody; 1 when something does not compile or warns."""
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    headers = {"": unix_headers(folder / "unix")}
    headers["windows"] = windows_headers(folder / "windows", headers[""])
    sources = [generate(name, folder) for name in modules()]
    failed = False
    for target in (*UNIX, *WINDOWS):
        is_windows = target in WINDOWS
        include = headers["windows" if is_windows else ""]
        units = [(source, ["-w"]) for source in sources]
        if is_windows:
            units.append((HERE / "msvc.c", ["-fms-extensions", "-Wall", "-Werror"]))
        for source, flags in units:
            answer = compile_for(target, source, include, folder, flags)
            failed = failed or bool(answer)
            print(f"{target:<20} {source.name:<12} {'FAILED' if answer else 'compiles'}")
            print(answer, end="", file=sys.stderr)
    return int(failed)


def modules() -> list[str]:
    """Return the names of the modules that are compiled."""
    return sorted(path.stem for path in (ROOT / "fastpool").glob("*.pyx"))


def unix_headers(folder: Path) -> Path:
    """Copy this Python's headers; the description of the system in full, not Debian's index."""
    include = Path(sysconfig.get_path("include"))
    shutil.copytree(include, folder)
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    described = include.parent / multiarch / include.name / "pyconfig.h"
    if multiarch and described.is_file():
        shutil.copy(described, folder / "pyconfig.h")
    return folder


def windows_headers(folder: Path, unix: Path) -> Path:
    """Copy Python's headers with a description of Windows in them."""
    shutil.copytree(unix, folder)
    shutil.copy(HERE / "pyconfig-windows.h", folder / "pyconfig.h")
    return folder


def generate(name: str, folder: Path) -> Path:
    """Have Cython write a module's C."""
    out = folder / f"{name}.c"
    options = [word for each in DIRECTIVES for word in ("-X", each)]
    command = [sys.executable, "-m", "cython", *options, f"fastpool/{name}.pyx", "-o", str(out)]
    subprocess.run(command, cwd=ROOT, check=True)
    return out


def compile_for(target: str, source: Path, include: Path, folder: Path, flags: list[str]) -> str:
    """Compile *source* for *target*; return what the compiler had against it."""
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-c", "-O1", *flags]
    command += ["-Werror=incompatible-pointer-types", "-Werror=implicit-function-declaration"]
    command += ["-I", str(include), "-I", str(ROOT / "fastpool")]
    command += ["-o", str(folder / f"{source.stem}-{target}.o"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout + done.stderr if done.returncode or done.stderr else ""


if __name__ == "__main__":
    sys.exit(main())
