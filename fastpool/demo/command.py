"""`python -m fastpool demo`: the options, the order of things, the exit code.

It finds or starts a PostgreSQL, puts one pool after the other under the same load, shows them
meanwhile, and reports. What the load is, how it is shown and how it is reported are the business
of the modules beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from .contenders import CONTENDERS, Contender, Settings
from .histogram import Histogram
from .interrupts import Interrupts
from .load import Load, LoadNotStartedError, LoadResult, describe
from .postgres import PostgresUnavailable, connect_or_start
from .report import Machine, PoolResult, Report
from .screen import make_view
from .text import Line, paragraph, shorten
from .view import Frame, View

EXIT_OK = 0
EXIT_ERRORS = 1
EXIT_NO_POSTGRESQL = 3

LONGEST = 86_400  # seconds
WARMUP = 0.3
OPEN_TIMEOUT = 10.0
OPEN_TIMEOUT_EACH = 0.1  # more for each connection
CONNECT_TIMEOUT = 10
TICK = 0.05
GRACE = 5.0  # for requests in flight when the time is over
INTERRUPTED_GRACE = 1.0  # the same, when the user waits
HARSH_GRACE = 2.0  # after each harsher measure that had something to act on
STALL = 2.0  # without a request, once there have been errors

HELP = "lend connections to many threads, show it, measure it"
_DESCRIPTION = """\
Show what the pool does: a few connections, many threads. Each thread loops:
check out a connection, run the query, give it back. While it runs you see
every slot of the pool and its state, who waits, and how many requests a
second are served. A table ends it: how long a checkout waited, from the median
to the worst, and how evenly the threads were served.

It needs no preparation: without --dsn and without DATABASE_URL it starts a
PostgreSQL of its own in a temporary directory, and removes it at the end.
Where psycopg_pool is installed, it gets the same load for the same time, and
its figures stand beside fastpool's."""
_EPILOG = """\
exit codes: 0 fine; 1 errors during the load; 2 wrong usage; 3 no PostgreSQL to
be had; 130 after Ctrl-C (the table then shows what was measured so far).

the object of --json: fastpool, machine, settings, interrupted, notes; pools, by
name: version, seconds, requests, throughput (a second), wait_ms (p50, p99,
p999, max), checkouts (waits measured), fairness (least, most, ratio),
per_thread, errors (count, causes); ratio, fastpool's figure divided by
psycopg_pool's, or null: throughput, wait_ms, fairness."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `demo` to *subparsers*; its `handler` default takes the parsed arguments."""
    parser = subparsers.add_parser(
        "demo",
        help=HELP,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(handler=run)
    add = parser.add_argument
    add(
        "--size",
        type=_whole(1, 10_000),
        default=4,
        metavar="N",
        help="connections in the pool (default: %(default)s)",
    )
    add(
        "--threads",
        type=_whole(1, 10_000),
        default=64,
        metavar="N",
        help="threads that want one (default: %(default)s)",
    )
    add(
        "--seconds",
        type=_seconds,
        default=5.0,
        metavar="S",
        help="how long each pool is measured (default: 5)",
    )
    add(
        "--query",
        default="SELECT 1",
        metavar="SQL",
        help="what each thread runs on its connection (default: %(default)s)",
    )
    add(
        "--dsn",
        type=_dsn,
        metavar="DSN",
        help="the PostgreSQL to use, as a URL or as key=value words "
        "(default: DATABASE_URL, else one that is started for this run)",
    )
    add(
        "--order",
        choices=("fifo", "lifo"),
        default="fifo",
        help="lend the connection that has been idle longest (fifo) or shortest (lifo) "
        "(default: %(default)s)",
    )
    add(
        "--no-compare",
        action="store_true",
        help="leave psycopg_pool out, even where it is installed",
    )
    add(
        "--json",
        action="store_true",
        help="print one JSON object to stdout instead of the table; progress goes to stderr",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demonstration and return its exit code. Blocks for as long as it takes."""
    view = make_view(sys.stderr if args.json else sys.stdout)
    server_settings = {"max_connections": max(100, args.size + 10)}
    with Interrupts() as interrupts:
        try:
            view.write(_introduction(args, view.width))
            with connect_or_start(args.dsn, server_settings) as server:
                report = _new_report(args, Machine.here(server.version, server.origin))
                view.write(paragraph(f"{report.machine}.", view.width, "faint"))
                _compare(args, server.dsn, view, interrupts, report)
                if args.json:
                    print(json.dumps(report.as_dict()), flush=True)
                else:
                    view.write(report.lines(view.width))
        except PostgresUnavailable as exc:
            print(f"fastpool demo: {exc}\n{_advice(args)}".rstrip(), file=sys.stderr)
            return EXIT_NO_POSTGRESQL
        except KeyboardInterrupt:
            print("fastpool demo: interrupted", file=sys.stderr)
    if interrupts.signum is not None:
        return interrupts.exit_code
    return EXIT_ERRORS if report.has_errors else EXIT_OK


def _compare(
    args: argparse.Namespace, dsn: str, view: View, interrupts: Interrupts, report: Report
) -> None:
    """Measure one pool after the other and put what they came to into *report*."""
    settings = Settings(dsn, _connect_kwargs(dsn), args.size, args.order)
    try:
        for make in CONTENDERS[: 1 if args.no_compare else None]:
            if report.has_errors:
                report.notes.append("No comparison, because of the errors.")
                break
            try:
                contender = make(settings)
            except ImportError:
                report.notes.append(
                    "No comparison: psycopg_pool is not installed (pip install psycopg-pool)."
                )
                break
            with _kept_warnings() as warnings:
                result = _measure(contender, args, view, interrupts)
            if result is not None:
                report.results.append(result)
                if result.load.errors:
                    report.notes += [
                        f"Logged by {result.name}: {text}" for text in warnings.values()
                    ]
            if interrupts.signum is not None:
                break
    except KeyboardInterrupt:
        pass  # while a pool was opened or closed; what was measured before still stands
    if interrupts.signum is not None:
        report.interrupted = True
        report.notes.append("Interrupted: these are the figures up to then.")


def _measure(
    contender: Contender, args: argparse.Namespace, view: View, interrupts: Interrupts
) -> PoolResult | None:
    """Warm *contender* up, put it under the load; None when a signal came before any figure."""
    try:
        contender.open(OPEN_TIMEOUT + args.size * OPEN_TIMEOUT_EACH)
        for seconds, shown_on in ((WARMUP, None), (args.seconds, view)):
            load = Load(contender.checkout, args.query, args.threads)
            with interrupts.deferred():
                _drive(load, contender, seconds, shown_on, interrupts)
            interrupted = interrupts.signum is not None
            outcome = load.result(count_unfinished=not interrupted)
            if interrupted and shown_on is None:
                return None
            if outcome.errors:
                break
    except (psycopg.Error, LoadNotStartedError) as exc:
        outcome = LoadResult(0.0, (), Histogram(), Counter([describe(exc)]))
    finally:
        contender.close()
    return PoolResult(contender.name, contender.version, outcome)


def _drive(
    load: Load,
    contender: Contender,
    seconds: float,
    view: View | None,
    interrupts: Interrupts,
) -> None:
    """Run *load* to its end and show it on *view*; afterwards no thread hangs on the server.

    Requests in flight at the end have a grace. Then their queries are cancelled, then their
    connections cut and the pool closed. A load that errors have brought to a standstill is over
    before its time.
    """
    harsher = iter((contender.cancel_queries, contender.cut))
    load.start(seconds)
    meter = _Meter(load, contender, seconds)
    give_up_at = seconds + GRACE
    stopped = False
    served, served_at = 0, 0.0
    if view is not None:
        view.begin(_title(contender, seconds), meter.frame())
    shown_at = 0.0
    try:
        while not load.join(TICK):
            elapsed = load.elapsed
            if load.requests != served:
                served, served_at = load.requests, elapsed
            stalled = load.has_errors and elapsed - served_at > STALL
            if (stalled or interrupts.signum is not None) and not stopped:
                stopped = True
                load.stop()
                give_up_at = min(give_up_at, elapsed + INTERRUPTED_GRACE)
            if elapsed > give_up_at:
                load.abandon()
                measure = next(harsher, None)
                if measure is None:
                    break
                give_up_at = load.elapsed + (HARSH_GRACE if measure() else 0)
            # A run that is shorter than the view's interval shows itself too.
            if view is not None and elapsed - shown_at >= min(view.interval, seconds / 2):
                shown_at = elapsed
                view.update(meter.frame())
        if view is not None and load.elapsed - shown_at >= min(view.interval, seconds / 2) / 2:
            view.update(meter.frame())
    finally:
        load.stop()
        if view is not None:
            view.end()


class _Meter:
    """Takes frames of a running load; knows the rate of the last second from the earlier ones."""

    def __init__(self, load: Load, contender: Contender, seconds: float) -> None:
        self._load = load
        self._contender = contender
        self._seconds = seconds
        self._marks = deque([(0.0, 0)])

    def frame(self) -> Frame:
        picture = self._contender.picture()
        elapsed, requests = self._load.elapsed, self._load.requests
        while len(self._marks) > 1 and elapsed - self._marks[0][0] > 1.1:
            self._marks.popleft()
        then, before = self._marks[0]
        rate = (requests - before) / (elapsed - then) if elapsed > then else 0.0
        self._marks.append((elapsed, requests))
        return Frame(elapsed, self._seconds, requests, rate, picture)


def _connect_kwargs(dsn: str) -> dict[str, Any]:
    """Name the session, and bound the connecting where the user has not."""
    kwargs: dict[str, Any] = {"application_name": "fastpool demo"}
    if "PGCONNECT_TIMEOUT" not in os.environ and "connect_timeout" not in conninfo_to_dict(dsn):
        kwargs["connect_timeout"] = CONNECT_TIMEOUT
    return kwargs


def _advice(args: argparse.Namespace) -> str:
    if args.dsn:
        return "Correct --dsn, or leave it out to have a PostgreSQL started."
    if os.environ.get("DATABASE_URL"):
        return "Correct or unset DATABASE_URL, or name another PostgreSQL with --dsn."
    return "Or name a PostgreSQL that runs with --dsn."


def _new_report(args: argparse.Namespace, machine: Machine) -> Report:
    return Report(
        machine,
        {
            "size": args.size,
            "threads": args.threads,
            "seconds": args.seconds,
            "warmup_seconds": WARMUP,
            "query": args.query,
            "order": args.order,
        },
    )


def _introduction(args: argparse.Namespace, width: int) -> Iterator[Line]:
    title = f"fastpool demo: {args.threads:,} threads, {args.size:,} connections"
    yield from paragraph(title, width, "heading")
    yield from paragraph(
        f"Each thread loops for {args.seconds:g} s: check out a connection, run "
        f"{shorten(args.query, 60)}, give it back.",
        width,
    )


def _title(contender: Contender, seconds: float) -> str:
    return (
        f"{contender.name} {contender.version}: {seconds:g} s, "
        f"after a warm-up of {WARMUP:g} s that does not count"
    )


@contextlib.contextmanager
def _kept_warnings() -> Iterator[Mapping[str, str]]:
    """Keep the pools' warnings off the screen; yield where the last of each kind is kept."""
    kept: dict[str, str] = {}

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept[str(record.msg)] = shorten(record.getMessage(), 300)

    keeper = Keeper(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("psycopg", "fastpool", "psycopg_pool")]
    propagation = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(keeper)
        logger.propagate = False
    try:
        yield kept
    finally:
        for logger, propagate in zip(loggers, propagation, strict=True):
            logger.removeHandler(keeper)
            logger.propagate = propagate


def _whole(least: int, most: int) -> Callable[[str], int]:
    """Return an argparse type for whole numbers from *least* to *most*."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"not a whole number: {text!r}") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not within {least} to {most}")
        return value

    return parse


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number: {text!r}") from None
    if not 0 < value <= LONGEST:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and up to {LONGEST:,}")
    return value


def _dsn(text: str) -> str:
    try:
        conninfo_to_dict(text)
    except psycopg.ProgrammingError as exc:
        message = " ".join(str(exc).split())
        raise argparse.ArgumentTypeError(f"not a connection string: {message}") from None
    return text
