"""The figures that stand for a run, and their table in Markdown.

Owns: which figures these are, and the table between README.md's markers. Refuses: measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from . import units
from .results import PEERS, YARDSTICKS, Result, Run

BEGIN, END = "<!-- figures: written by make bench-readme -->\n", "<!-- end of figures -->\n"

CYCLES = {
    "getconn_putconn": "getconn() + putconn()",
    "connect_close": "connect() + close()",
    "connection_block": "with connection()",
}
HOLDS = {"nothing": "no work", "SELECT 1": "SELECT 1", "1 ms": "1 ms"}
Measure = Callable[[Result], "float | None"]


@dataclass(frozen=True)
class Headline:
    """One figure of all peers that have it."""

    label: str
    form: units.Format
    more_is_better: bool
    values: dict[str, float]
    """By peer, in the order of PEERS."""

    @property
    def gain(self) -> float | None:
        """How many times better fastpool's figure is than psycopg_pool's.

        None without both, and for shares, whose ratio says nothing.
        """
        ours, theirs = self.values.get("fastpool"), self.values.get("psycopg_pool")
        if not ours or not theirs or self.form is units.share:
            return None
        return ours / theirs if self.more_is_better else theirs / ours

    @property
    def best_other(self) -> str | None:
        """The best of the pools besides fastpool and psycopg_pool; None when there is none."""
        others = [p for p in self.values if p not in ("fastpool", "psycopg_pool", *YARDSTICKS)]
        best = max if self.more_is_better else min
        return best(others, key=self.values.__getitem__, default=None)


def headlines(run: Run) -> list[Headline]:
    """Choose the figures that stand for *run*: those of them that it has."""
    return [each for each in _candidates(run) if "fastpool" in each.values]


def figure(name: str) -> Measure:
    """Return what reads the figure *name* of a result."""
    return lambda result: result.figures.get(name)


def per_operation(result: Result) -> float:
    """Return the median seconds for one operation."""
    return result.time.median


def elapsed(result: Result) -> float:
    """Return how long the whole took, in seconds."""
    return result.figures.get("elapsed", result.time.median)


def _candidates(run: Run) -> Iterator[Headline]:
    """Yield all headlines, in the order of the table."""

    def headline(
        label: str, form: units.Format, get: Measure, found: Sequence[Result], more: bool = False
    ) -> Headline:
        measured = ((each.peer, get(each)) for each in found)
        return Headline(label, form, more, {p: v for p, v in measured if v is not None})

    for mode in ("sync", "async"):
        for scenario, name in CYCLES.items():
            found = run.of("cycle", scenario=scenario, mode=mode, stub=False)
            label = f"{name}, one {'thread' if mode == 'sync' else 'task'}"
            yield headline(label, units.seconds, per_operation, found)
    for workload, clients in (("contended", "threads"), ("contended_async", "tasks")):
        for hold, name in HOLDS.items():
            about: dict[str, str | int] = {"hold": hold, "connections": 4, clients: 64}
            if workload == "contended":
                about["burners"] = 0
            found = run.of(workload, **about)
            label = f"64 {clients} on 4 connections, {name}"
            yield headline(f"{label}: requests", units.rate, figure("rate"), found, more=True)
            yield headline(f"{label}: wait p99", units.seconds, figure("wait_p99"), found)
            least = f"{label}: least / most served"
            yield headline(least, units.share, figure("share"), found, more=True)
    found = run.of("spike")
    yield headline("spike: until all are served", units.seconds, elapsed, found)
    yield headline("spike: connections opened", units.count, figure("opened"), found)
    found = run.of("open", connections=100)
    yield headline("opening 100 connections", units.seconds, elapsed, found)
    for what, form in (("threads", units.count), ("bytes", units.size)):
        found = run.of("memory", what=what)
        yield headline(f"idle open pool: {what}", form, figure("value"), found)


def rows(run: Run) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table of headlines, as texts."""
    found = headlines(run)
    with_other = any(each.best_other for each in found)
    header = ["", "fastpool", "psycopg_pool", "ratio"] + ["best other pool"] * with_other
    return header, [_row(each, with_other) for each in found]


def _row(headline: Headline, with_other: bool) -> list[str]:
    """Return one row."""
    written = {peer: headline.form(value) for peer, value in headline.values.items()}
    ratio = "" if headline.gain is None else units.factor(headline.gain)
    row = [headline.label, written["fastpool"], written.get("psycopg_pool", units.NOTHING), ratio]
    other = headline.best_other
    if with_other:
        row.append(
            units.NOTHING if other is None else f"{written[other]} ({PEERS.get(other, other)})"
        )
    return row


def markdown(runs: Sequence[Run]) -> str:
    """Render the headlines of *runs*, and on what they were measured."""
    return "\n".join(_markdown(run, title=len(runs) > 1) for run in runs)


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Render a table; all columns but the first are set to the right."""
    rules = ["---"] + ["---:"] * (len(header) - 1)
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in (header, rules, *lines))
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def about(run: Run) -> str:
    """Tell in one sentence on what *run* was measured, when, and by which command."""
    facts = run.facts
    versions = ", ".join(
        f"{PEERS.get(peer, peer)} {version}" + f" at {facts['commit']}" * (peer == "fastpool")
        for peer, version in run.versions.items()
        if peer not in YARDSTICKS
    )
    cores = f"{facts['machine']}, {facts['cores']} cores"
    servers = f"PostgreSQL {facts['postgres']}, psycopg {facts['psycopg']}"
    command = f"; `{facts['command']}`" if facts["command"] else ""
    return f"{cores}; {run.title}, {servers}; {versions}; {facts['date'][:10]}{command}."


def with_figures(document: str, figures: str, markers: tuple[str, str] = (BEGIN, END)) -> str:
    """Return *document* with *figures* between its two *markers*.

    Raises ValueError when it lacks them.
    """
    before, begin, rest = document.partition(markers[0])
    _, end, after = rest.partition(markers[1])
    if not (begin and end):
        raise ValueError(f"lacks the markers {markers[0].strip()} and {markers[1].strip()}")
    return before + begin + figures + end + after


def _markdown(run: Run, title: bool) -> str:
    header, lines = rows(run)
    left_out = "".join(f" Left out: {PEERS.get(p, p)} ({why})." for p, why in run.left_out)
    return (
        (f"### {run.title}\n\n" if title else "")
        + markdown_table(header, lines)
        + f"\n{about(run)} Medians; the pools were measured in turns, round by round.{left_out}\n"
    )
