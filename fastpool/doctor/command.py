"""`python -m fastpool doctor`: the options, the progress, the words, the exit code."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

import fastpool
from fastpool.demo.screen import make_view
from fastpool.demo.text import Line, paragraph

from . import here, server
from .finding import ERROR, LEVELS, NOTE, OK, WARNING, Finding

EXIT_OK = 0
EXIT_WARNINGS = 1
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130

QUIET_FOR = 2.0  # seconds until it says what it waits for
REMIND_AFTER = 5.0

HELP = "look at this installation and at a server, and advise"
_DESCRIPTION = """\
Say what a pool has to know: versions, how fastpool and psycopg were built, the
GIL, and whether the core works, by a short self-test. With a server, also its
version, the room that is left for sessions, and the timeouts and keepalives
that end or keep a pool's connections. Nothing is changed there, and no
password is shown.

The server is that of --dsn, else of DATABASE_URL, else of libpq's variables
(PGHOST, PGSERVICE ...). Without any of them no server is looked at."""
_EPILOG = """\
exit codes: 0 fine, notes included; 1 a warning, or the self-test failed; 2
wrong usage; 3 the server cannot be reached; 130 after Ctrl-C.

the object of --json: fastpool (version), level (the worst), exit_code,
sections: installation and server (null when there is none to look at), each an
object by name of value, level (ok, note, warning, error) and advice or null."""

_MARKS = {OK: "  ", NOTE: "- ", WARNING: "! ", ERROR: "x "}
_ROLES = {OK: "", NOTE: "faint", WARNING: "error", ERROR: "error"}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `doctor` command to *commands*."""
    parser = commands.add_parser(
        "doctor",
        help=HELP,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(handler=run)
    parser.add_argument(
        "--dsn",
        type=_dsn,
        metavar="DSN",
        help="the PostgreSQL to look at, a URL or key=value words",
    )
    parser.add_argument(
        "--size",
        type=_size,
        metavar="N",
        help="connections that all pools on this server together may open, max_size times"
        " processes: is there room?",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object to stdout")


def run(args: argparse.Namespace) -> int:
    """Look, report, and return the exit code. Blocks as long as the server takes to answer."""
    sections: dict[str, Sequence[Finding] | None] = {}
    try:
        with patience("the self-test"):
            sections["installation"] = list(here.look())
        sections["server"], is_reached = _look_at_server(args)
    except KeyboardInterrupt:
        print("fastpool doctor: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    worst = max(finding.rank for findings in sections.values() for finding in findings or ())
    code = EXIT_WARNINGS if worst >= LEVELS.index(WARNING) else EXIT_OK
    if not is_reached:
        code = EXIT_UNREACHABLE
    if args.json:
        print(json.dumps(_object(sections, LEVELS[worst], code)), flush=True)
    else:
        view = make_view(sys.stdout)
        view.write(_lines(sections, view.width))
    return code


def _look_at_server(args: argparse.Namespace) -> tuple[Sequence[Finding] | None, bool]:
    """Return what was found, or None without a server, and whether nothing stood in the way."""
    dsn = args.dsn if args.dsn is not None else os.environ.get("DATABASE_URL", "")
    if not dsn and args.dsn is None and not server.given_by_environment():
        return None, True
    try:
        _check(dsn)
        with patience("the server"):
            return list(server.look(dsn, args.size)), True
    except (server.Unreachable, argparse.ArgumentTypeError) as error:
        return [server.unreachable(str(error))], False


@contextlib.contextmanager
def patience(what: str) -> Iterator[None]:
    """Say on stderr that we wait for *what*, once it takes longer than one likes."""
    done = threading.Event()
    began = time.monotonic()

    def remind() -> None:
        pause = QUIET_FOR
        while not done.wait(pause):
            waited = time.monotonic() - began
            print(f"fastpool doctor: waiting for {what}, {waited:.0f} s so far", file=sys.stderr)
            pause = REMIND_AFTER

    reminder = threading.Thread(target=remind, daemon=True)
    reminder.start()
    try:
        yield
    finally:
        done.set()
        reminder.join()


# ---- words


def _lines(sections: Mapping[str, Sequence[Finding] | None], width: int) -> Iterator[Line]:
    for title, findings in sections.items():
        yield Line(title, "heading")
        if findings is None:
            yield from paragraph(
                "  not looked at: name one with --dsn or DATABASE_URL", width, "faint"
            )
            continue
        column = max(len(finding.name) for finding in findings)
        for finding in findings:
            value = "none" if finding.value is None else str(finding.value)
            text = f"{_MARKS[finding.level]}{finding.name:<{column}}  "
            yield from paragraph(
                text + " ".join(value.split()),
                width,
                _ROLES[finding.level] if finding.rank >= LEVELS.index(WARNING) else "",
                " " * len(text),
            )
            if finding.advice:
                yield from paragraph(f"      {finding.advice}", width, "faint", " " * 6)
        yield Line()
    yield Line(_verdict(sections))


def _verdict(sections: Mapping[str, Sequence[Finding] | None]) -> str:
    findings = [finding for each in sections.values() for finding in each or ()]
    counts = {level: sum(finding.level == level for finding in findings) for level in LEVELS}
    words = [
        f"{count} {level}{'s' if count > 1 else ''}"
        for level, count in reversed(counts.items())
        if count and level != OK
    ]
    return ", ".join(words) or "nothing to remark"


def _object(
    sections: Mapping[str, Sequence[Finding] | None], worst: str, code: int
) -> dict[str, Any]:
    return {
        "fastpool": fastpool.__version__,
        "level": worst,
        "exit_code": code,
        "sections": {
            title: None
            if findings is None
            else {
                finding.name: {
                    "value": finding.value,
                    "level": finding.level,
                    "advice": finding.advice or None,
                }
                for finding in findings
            }
            for title, findings in sections.items()
        },
    }


# ---- arguments


def _check(dsn: str) -> None:
    try:
        conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        # The reason quotes the part that it does not understand, which may be a password.
        raise argparse.ArgumentTypeError("not a connection string") from None


def _dsn(text: str) -> str:
    _check(text)
    return text


def _size(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"not a whole number from 1 on: {text!r}")
    return int(text)
