"""What the doctor finds out without a server: versions, how things were built, whether they work.

Owns: the facts about this Python, this package and its driver, and the self-test. Refuses: I/O.
"""

from __future__ import annotations

import platform
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import psycopg

import fastpool
from fastpool import _core

from .finding import ERROR, NOTE, WARNING, Finding

_SLOTS = 4
_THREADS = 8
_ROUNDS = 50
_PATIENCE = 30.0  # seconds for a self-test that takes some milliseconds

_IMPLEMENTATIONS = {
    "c": "compiled here, against the system's libpq",
    "binary": "psycopg's own build, with a libpq of its own",
    "python": "pure Python",
}


def look() -> Iterator[Finding]:
    """Yield what there is to say about this installation. Blocks for some milliseconds."""
    yield _package()
    yield Finding("Python", _python())
    yield _gil()
    yield Finding("psycopg", metadata.version("psycopg"))
    yield _implementation()
    yield Finding("libpq", _dotted(psycopg.pq.version()))
    yield _psycopg_pool()
    yield self_test()


def _package() -> Finding:
    value = f"{fastpool.__version__} ({_core.BUILD})"
    if _core.BUILD.startswith("debug"):
        advice = "A debug build checks itself at every step and is slow: install a wheel."
        return Finding("fastpool", value, WARNING, advice)
    return Finding("fastpool", value)


def _python() -> str:
    name, version = platform.python_implementation(), platform.python_version()
    return f"{name} {version}, {platform.system()} {platform.machine()}"


def _gil() -> Finding:
    is_enabled = getattr(sys, "_is_gil_enabled", lambda: True)()
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        return Finding("GIL", "on")
    if not is_enabled:
        return Finding("GIL", "off")
    advice = (
        "This Python can run without it. Something turned it on: PYTHON_GIL=1, -X gil=1, or an"
        " extension module that does not declare itself safe without it (python -W default shows"
        " which)."
    )
    return Finding("GIL", "on, in a free-threaded Python", WARNING, advice)


def _implementation() -> Finding:
    name = psycopg.pq.__impl__
    value = f"{name} ({_IMPLEMENTATIONS.get(name, 'unknown')})"
    if name != "python":
        return Finding("implementation", value)
    advice = (
        "It works, and each query costs several times more Python time: pip install"
        ' "psycopg[binary]", or "psycopg[c]" where there is a compiler and libpq\'s headers.'
    )
    return Finding("implementation", value, NOTE, advice)


def _psycopg_pool() -> Finding:
    try:
        version = metadata.version("psycopg-pool")
    except metadata.PackageNotFoundError:
        return Finding("psycopg_pool", None)
    advice = (
        "Installed too. Libraries that import it get it, unless fastpool.install() ran first, or"
        " the program was started by python -m fastpool run."
    )
    return Finding("psycopg_pool", version, NOTE, advice)


def _dotted(version: int) -> str:
    return f"{version // 10_000}.{version % 10_000}" if version else "unknown"


# ---- the self-test


class _Libpq:
    """What a pool asks of a libpq connection."""

    transaction_status = 0
    status = 0
    backend_pid = 0


class _Stub:
    """A connection to nothing, which notices when two threads hold it."""

    def __init__(self) -> None:
        self.pgconn = _Libpq()
        self.holders = 0
        self.closed = False

    @classmethod
    def connect(cls, conninfo: str = "", **kwargs: object) -> _Stub:
        return cls()

    def close(self) -> None:
        self.closed = True
        self.pgconn.status = 1


def self_test() -> Finding:
    """Share four connections to nothing among eight threads, and see that none is lent twice."""
    try:
        began = time.perf_counter()
        lent = _share()
        took = (time.perf_counter() - began) * 1000
    except Exception as error:
        text = str(error) or type(error).__name__
        advice = "Report it with the output of python -m fastpool doctor --json."
        return Finding("self-test", text, ERROR, advice)
    return Finding("self-test", f"{lent} leases of {_SLOTS} slots, {took:.0f} ms")


def _share() -> int:
    faults: list[str] = []

    def borrow() -> None:
        try:
            for _ in range(_ROUNDS):
                conn = pool.getconn(timeout=_PATIENCE)
                conn.holders += 1
                time.sleep(0)  # let another thread find what it should not
                if conn.holders != 1:
                    faults.append("a connection was lent to two threads at once")
                conn.holders -= 1
                pool.putconn(conn)
        except Exception as error:
            faults.append(str(error) or type(error).__name__)

    # A pool takes whatever has a connect(); the types say psycopg's, for its users.
    options: dict[str, Any] = {"connection_class": _Stub, "min_size": _SLOTS, "open": False}
    pool: fastpool.ConnectionPool[Any] = fastpool.ConnectionPool(name="doctor", **options)
    threads = [threading.Thread(target=borrow, daemon=True) for _ in range(_THREADS)]
    with pool:
        pool.wait(_PATIENCE)
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + _PATIENCE
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            faults.append(f"a thread still waits after {_PATIENCE:.0f} s")
        counts = pool.snapshot().counts
        if not faults and counts["available"] != _SLOTS:
            faults.append(f"a slot was lost: {counts}")
    if faults:
        raise RuntimeError(faults[0])
    return _THREADS * _ROUNDS
