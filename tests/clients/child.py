"""Run one scenario in this interpreter, with the pool it is told to use in psycopg_pool's place.

usage: child.py IMPLEMENTATION SECONDS FILE FUNCTION DSN ARGUMENTS RESULT

Writes what the function returns to RESULT, as JSON. Exits with 1 when something went wrong in a
finalizer or a thread, and with every stack on stderr when SECONDS have passed.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import runpy
import sys
import threading
from pathlib import Path
from typing import Any

unseen: list[str] = []


def note(what: Any) -> None:
    """Keep what an exception hook is told: where nobody catches it, nobody fails."""
    unseen.append(f"{what.exc_type.__name__}: {what.exc_value}")


def main(
    implementation: str,
    seconds: str,
    path: str,
    function: str,
    dsn: str,
    arguments: str,
    result: str,
) -> None:
    """Do what the module says."""
    faulthandler.dump_traceback_later(float(seconds), exit=True)
    sys.unraisablehook = note
    threading.excepthook = note
    logging.captureWarnings(False)
    if implementation == "fastpool":
        import fastpool

        fastpool.install()
    scenario = runpy.run_path(path)[function]
    import psycopg_pool

    # Else a test that passes on fastpool may have run on psycopg_pool, or the other way round.
    assert psycopg_pool.ConnectionPool.__module__.partition(".")[0] == implementation
    seen = scenario(dsn, **json.loads(arguments))
    if unseen:
        sys.exit("\n".join(unseen))
    Path(result).write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
