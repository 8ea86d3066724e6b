"""Compile the Cython modules. All other facts about the package are in pyproject.toml.

Owns: compiler directives, macros and flags, for every kind of build. Refuses: metadata.

The environment chooses the kind of build:

FASTPOOL_DEBUG=1                      assertions and consistency checks in, no optimisation
FASTPOOL_TRACE=1                      a debug build that reports its lines to coverage.py
FASTPOOL_SANITIZE=address,undefined   a debug build under these sanitizers (or =thread)
"""

import os
import sys
import sysconfig
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

TRACE = bool(os.environ.get("FASTPOOL_TRACE"))
SANITIZE = os.environ.get("FASTPOOL_SANITIZE", "")
DEBUG = bool(os.environ.get("FASTPOOL_DEBUG")) or TRACE or bool(SANITIZE)

# Each kind of build, for each Python, has a directory of its own: neither generated C nor
# objects of one are ever taken for another's, whatever their timestamps say.
KIND = "-".join(
    ["trace" if TRACE else "debug" if DEBUG else "release", *filter(None, SANITIZE.split(","))]
)
BUILD = os.path.join("build", f"{KIND}-{sysconfig.get_config_var('SOABI') or sys.platform}")

DIRECTIVES = {
    "language_level": 3,
    "freethreading_compatible": True,
    "auto_pickle": False,
    "autotestdict": False,
    "boundscheck": DEBUG,
    "initializedcheck": DEBUG,
    "wraparound": False,
    "cdivision": not DEBUG,
    "linetrace": TRACE,
}

MACROS: list[tuple[str, str | None]] = (
    [("FASTPOOL_DEBUG", "1")] if DEBUG else [("CYTHON_WITHOUT_ASSERTIONS", "1")]
)
MACROS.append(("FASTPOOL_BUILD", KIND))  # what _core.BUILD says
if TRACE:
    MACROS.append(("CYTHON_TRACE_NOGIL", "1"))
if sys.platform == "win32" and sysconfig.get_config_var("Py_GIL_DISABLED"):
    # Windows has one pyconfig.h for both builds, so the choice is the extension's to make.
    MACROS.append(("Py_GIL_DISABLED", "1"))

CFLAGS: list[str] = []
LDFLAGS: list[str] = []
if sys.platform != "win32":
    CFLAGS += ["-O0", "-g", "-UNDEBUG"] if DEBUG else ["-O3", "-g0"]
if SANITIZE:
    CFLAGS += [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer"]
    LDFLAGS += [f"-fsanitize={SANITIZE}"]


def extension(source: str) -> Extension:
    """Describe the module that is compiled from fastpool/*name*.pyx."""
    return Extension(
        f"fastpool.{Path(source).stem}",
        [source],
        include_dirs=["fastpool"],
        depends=glob("fastpool/*.h"),
        define_macros=MACROS,
        extra_compile_args=CFLAGS,
        extra_link_args=LDFLAGS,
    )


setup(
    ext_modules=cythonize(
        [extension(source) for source in sorted(glob("fastpool/*.pyx"))],
        build_dir=os.path.join(BUILD, "c"),
        compiler_directives=DIRECTIVES,
    ),
    options={"build": {"build_base": BUILD}},
)
