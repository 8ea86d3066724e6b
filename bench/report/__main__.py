"""The command: python -m bench.report RESULT.json... -o report.html"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import aims, headlines
from .history import History
from .page import page
from .results import ResultError, read

DESCRIPTION = """\
Tell what a benchmark run measured: as an HTML page (-o), as a table in Markdown (--markdown), or as
that table between the markers of a document (--readme). Or tell how far the aims are reached, in
another document (--aims).
"""
EPILOG = """\
Result files are those of pytest-benchmark (make bench). Files of the same machine, Python and
commit are taken as one run; others get sections of their own.

exit status: 0 done; 1 --check found other figures; 2 a file cannot be read, or wrong usage
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.report",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    parser.add_argument("-o", "--output", type=Path, metavar="PAGE.html", help="write the page")
    parser.add_argument("--markdown", action="store_true", help="print the table")
    parser.add_argument(
        "--readme",
        type=Path,
        metavar="README.md",
        help="write the table into this document, between its two markers",
    )
    parser.add_argument(
        "--aims",
        type=Path,
        metavar="PERFORMANCE.md",
        help="write the table of aims into this document, between its two markers",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing into the documents: fail unless the tables are there",
    )
    parser.add_argument(
        "--history",
        type=Path,
        metavar="HISTORY.json",
        help="add the first run's headlines to this file, and show all that are in it on the page",
    )
    args = parser.parse_args(arguments)
    if not (args.output or args.markdown or args.readme or args.aims or args.history):
        parser.error("nothing to do: give -o, --markdown, --readme, --aims or --history")
    if args.check and not (args.readme or args.aims):
        parser.error("--check is about --readme and --aims")
    try:
        return _report(args)
    except (ResultError, OSError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2


def _report(args: argparse.Namespace) -> int:
    """Do what *args* ask for."""
    runs = read(args.results)
    history = None
    if args.history:
        history = History.load(args.history).with_run(runs[0])
        history.save(args.history)
    if args.output:
        args.output.write_text(page(runs, history), encoding="utf-8")
    if args.markdown:
        # The console of a job need not be set to the encoding that the units are in.
        sys.stdout.buffer.write(headlines.markdown(runs).encode())
    shown = True
    for document, module in ((args.readme, headlines), (args.aims, aims)):
        if document:
            markers = (module.BEGIN, module.END)
            shown &= _write(document, module.markdown(runs), markers, args)
    return 0 if shown else 1


def _write(path: Path, figures: str, markers: tuple[str, str], args: argparse.Namespace) -> bool:
    """Put *figures* into the document at *path*; with --check only tell whether they are there."""
    document = path.read_text(encoding="utf-8")
    try:
        new = headlines.with_figures(document, figures, markers)
    except ValueError as error:
        raise ResultError(f"{path} {error}") from error
    if not args.check:
        path.write_text(new, encoding="utf-8")
        return True
    if new != document:
        names = ", ".join(map(str, args.results))
        print(f"{path} does not show the figures of {names}", file=sys.stderr)
    return new == document


if __name__ == "__main__":
    sys.exit(main())
