"""The report as one HTML page.

Owns: what is shown, in which order and words. Refuses: drawing (charts), and anything from outside:
the page has no script, and its style and images are part of it.

It can be read without colours, without a mouse and on a phone: every chart names its peers, every
number is in a table too, and what is wider than the screen scrolls in a frame of its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from . import charts, units
from .headlines import (
    CYCLES,
    Measure,
    about,
    elapsed,
    figure,
    per_operation,
    rows,
)
from .history import History, trend
from .markup import element, scrolling, table, text
from .results import FIGURES, PARAMETERS, PEERS, YARDSTICKS, Parameter, Result, Run

TITLE = "fastpool: benchmark report"
PERCENTILES = {
    "p50": "wait_p50",
    "p90": "wait_p90",
    "p99": "wait_p99",
    "p99.9": "wait_p999",
    "max": "wait_max",
}
WORKLOADS = {
    "cycle": "One borrower: what a checkout costs",
    "contended": "Threads that compete for connections",
    "contended_async": "Tasks that compete for connections",
    "spike": "A spike of clients",
    "open": "Opening a pool",
    "memory": "What an idle pool adds",
    "import": "Importing",
    "scaling": "From one thread to many, without a GIL",
}
_HOLDING = {
    "nothing": "Giving it back at once",
    "SELECT 1": "Holding it for a SELECT 1",
    "1 ms": "Holding it for 1 ms",
}
_FORMS: dict[str, units.Format] = {
    "rate": units.rate,
    "share": units.share,
    "opened": units.count,
    "value": units.count,
}
_NAMES = {
    "rate": "requests",
    "share": "least / most served",
    "cpu_per_op": "CPU time a request",
    **{name: f"wait {label}" for label, name in PERCENTILES.items()},
}
_HEAT_STEPS = 7


def page(runs: Sequence[Run], history: History | None = None) -> str:
    """Return the page about *runs*, and about the *history* of their headlines if there is one."""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", text(TITLE)),
        element("style", style),
    )
    sections = [part for n, run in enumerate(runs) for part in _run(run, f"run{n}")]
    if history is not None:
        sections.append(_history(history))
    body = element(
        "body",
        element("a", "Skip to the figures", class_="skip", href="#figures"),
        element("header", element("h1", text(TITLE)), _contents(runs, history)),
        element("main", *sections, id="figures"),
    )
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"


def _contents(runs: Sequence[Run], history: History | None) -> str:
    """Return links to the sections."""
    links = []
    for n, run in enumerate(runs):
        places = {"headlines": "Headlines"} | {
            workload: name for workload, name in WORKLOADS.items() if run.of(workload)
        }
        places["raw"] = "All numbers"
        items = (
            element("li", element("a", text(name), href=f"#run{n}-{place}"))
            for place, name in places.items()
        )
        title = element("p", text(run.title)) if len(runs) > 1 else ""
        links.append(title + element("ul", *items))
    if history is not None:
        links.append(element("ul", element("li", element("a", "History", href="#history"))))
    return element("nav", *links, aria_label="Sections")


def _run(run: Run, name: str) -> Iterator[str]:
    """Yield the sections about one run."""
    header, lines = rows(run)
    ratios = _note("Medians. The ratio says how many times better fastpool's figure is.")
    yield _section(
        f"{name}-headlines",
        f"{run.title}: headlines",
        ratios + table("Headlines", header, lines) if lines else "",
        _facts(run),
        _legend(run),
        level=2,
    )
    workloads: dict[str, Callable[[Run], Iterable[str]]] = {
        "cycle": _cycle,
        "contended": _contended,
        "contended_async": _contended_async,
        "spike": _spike,
        "open": _open,
        "memory": _memory,
        "import": _import,
        "scaling": _scaling,
    }
    for workload, parts in workloads.items():
        if run.of(workload):
            yield _section(f"{name}-{workload}", WORKLOADS[workload], *parts(run), level=2)
    yield _section(f"{name}-raw", "All numbers", *_raw(run), level=2)


def _facts(run: Run) -> str:
    """Tell on what was measured, with what, and what was not."""
    facts = run.facts
    versions = ", ".join(
        f"{PEERS.get(peer, peer)} {version}" for peer, version in run.versions.items()
    )
    entries = {
        "machine": f"{facts['machine']}, {facts['cores']} cores",
        "Python": run.title.removeprefix("Python "),
        "PostgreSQL": facts["postgres"],
        "psycopg": facts["psycopg"],
        "commit": facts["commit"],
        "date": facts["date"],
        "command": facts["command"] or "unknown",
        "measured": versions,
        "left out": "; ".join(f"{PEERS.get(p, p)}: {why}" for p, why in run.left_out) or "none",
    }
    pairs = (
        element("div", element("dt", text(name)), element("dd", text(value)))
        for name, value in entries.items()
    )
    return element("dl", *pairs, class_="facts")


def _legend(run: Run) -> str:
    """Tell each peer's mark, and which of them are no pools."""
    keys = (
        charts.key(charts.PEER_SHAPES.get(peer, "circle"), PEERS.get(peer, peer), peer)
        for peer in run.versions
    )
    notes = [
        f"{PEERS[peer]} is {what}." for peer, what in YARDSTICKS.items() if peer in run.versions
    ]
    notes.append("Thin lines across bars and points are spreads over the rounds.")
    return element("p", *keys, class_="keys") + _note(" ".join(notes))


def _cycle(run: Run) -> Iterator[str]:
    """Show what one lending and its return take."""
    yield _note(
        "Median time of one checkout and its return, while nobody else wants a connection; "
        "the spread is from the first to the third quartile."
    )
    for stub in run.values("cycle", "stub"):
        for mode in run.values("cycle", "mode", stub=stub):
            panels = []
            for scenario in run.values("cycle", "scenario", mode=mode, stub=stub):
                found = run.of("cycle", scenario=scenario, mode=mode, stub=stub)
                name = CYCLES.get(scenario, scenario)
                panels.append(_bars(name, found, units.seconds, per_operation))
            title = {"sync": "One thread", "async": "One task"}.get(mode, mode)
            yield _subsection(title + ", stub connections" * bool(stub), _grid(panels))


def _contended(run: Run) -> Iterator[str]:
    """Show throughput, waits, fairness and processor time of competing threads."""
    yield _note(
        "Each thread takes a connection, holds it and gives it back, over and over. Requests "
        "are medians over the rounds, the spread is from the worst to the best round. A wait is "
        "from asking for a connection to having it."
    )
    for hold in run.values("contended", "hold"):
        for burners in run.values("contended", "burners", hold=hold):
            parts = _contention(run, "contended", "threads", hold=hold, burners=burners)
            title = _HOLDING.get(hold, hold)
            if burners:
                title += f", beside {burners} CPU-bound threads"
                yield _details(title, *parts)
            else:
                yield _subsection(title, *parts)


def _contended_async(run: Run) -> Iterator[str]:
    """Show the same of competing tasks."""
    for hold in run.values("contended_async", "hold"):
        parts = _contention(run, "contended_async", "tasks", hold=hold)
        yield _subsection(_HOLDING.get(hold, hold), *parts)


def _contention(run: Run, workload: str, clients: str, **chosen: Parameter) -> Iterator[str]:
    """Yield the charts of one way of contending: *clients* is what the clients are called."""
    rate, p99 = figure("rate"), figure("wait_p99")
    sizes = run.values(workload, "connections", **chosen)
    panels = []
    for size in sizes:
        found = run.of(workload, connections=size, **chosen)
        title = f"Requests a second, {_connections(size)}"
        if len({each.parameters.get(clients) for each in found}) > 1:
            panels.append(_lines(title, found, clients, "requests/s"))
        else:
            number = found[0].parameters.get(clients)
            panels.append(_bars(f"{title}, {number} {clients}", found, units.rate, rate))
    yield _grid(panels)

    # One case of them all stands for the distribution of waits.
    size = _nearest(sizes, 4)
    number = _nearest(run.values(workload, clients, connections=size, **chosen), 64)
    case: dict[str, Parameter] = {**chosen, "connections": size, clients: number}
    found = [each for each in run.of(workload, **case) if p99(each) is not None]
    where = f"{number} {clients} on {_connections(size)}"
    panels = [_waits(f"Wait for a connection, {where}", found)] if found else []
    for name, form, title, limit in (
        ("share", units.share, "Least served over most served", 1.0),
        ("cpu_per_op", units.seconds, "CPU time a request", None),
    ):
        has = [each for each in run.of(workload, **case) if name in each.figures]
        if has:
            panels.append(_bars(f"{title}, {where}", has, form, figure(name), limit))
    yield _grid(panels)

    everywhere = [
        each
        for each in run.of(workload, **chosen)
        if each.figures.get("wait_p99") and each.peer != "bare"
    ]
    if len({(e.parameters["connections"], e.parameters[clients]) for e in everywhere}) > 1:
        yield _heat_maps(everywhere, clients)


def _spike(run: Run) -> Iterator[str]:
    """Show how a pool takes a sudden crowd."""
    found = run.of("spike")
    said = {name: str(value).removesuffix(".0") for name, value in found[0].parameters.items()}
    yield _note(
        "{clients} clients at once, {work_ms} ms of work each; a connect takes {connect_ms} ms; "
        "the pool has {min_size} connections and may have {max_size}.".format_map(
            dict.fromkeys(PARAMETERS["spike"], "?") | said
        )
    )
    opened = [each for each in found if "opened" in each.figures]
    yield _grid(
        [_bars("Time until all are served", found, units.seconds, elapsed)]
        + [_bars("Connections opened", opened, units.count, figure("opened"))] * bool(opened)
    )


def _open(run: Run) -> Iterator[str]:
    """Show how long a pool takes to open."""
    yield _note("From the constructor to all connections being there, with as many workers.")
    yield _grid(
        [
            _bars(
                f"Opening {_connections(size)}",
                run.of("open", connections=size),
                units.seconds,
                elapsed,
            )
            for size in run.values("open", "connections")
        ]
    )


def _memory(run: Run) -> Iterator[str]:
    """Show what an idle pool costs."""
    yield _note("An open pool that nobody uses, besides its connections.")
    value = figure("value")
    yield _grid(
        [
            _bars(
                f"Additional {what}",
                [each for each in run.of("memory", what=what) if "value" in each.figures],
                units.size if what == "bytes" else units.count,
                value,
            )
            for what in run.values("memory", "what")
        ]
    )


def _import(run: Run) -> Iterator[str]:
    """Show what importing costs."""
    found = run.of("import")
    yield _grid([_bars("Import, beyond import psycopg", found, units.seconds, elapsed)])


def _scaling(run: Run) -> Iterator[str]:
    """Show what more threads bring where they run at the same time."""
    found = run.of("scaling")
    yield _grid([_lines("Requests a second, by threads", found, "threads", "requests/s")])


def _bars(
    title: str,
    found: Sequence[Result],
    form: units.Format,
    measure: Measure,
    limit: float | None = None,
) -> str:
    """Return a panel with one bar a result."""
    bars = []
    for each in found:
        value = measure(each)
        if value is None:
            continue
        low = high = value
        if measure is per_operation or (measure is elapsed and value == each.time.median):
            low, high = each.time.q1, each.time.q3
        elif value == each.figures.get("rate") and each.rates is not None:
            low, high = each.rates.min, each.rates.max
        bars.append(charts.Bar(each.peer, each.label, value, low, high))
    if not bars:
        return ""
    said = ", ".join(f"{bar.label} {form(bar.value)}" for bar in bars)
    return _figure(title, charts.bars(f"{title}: {said}", bars, form, limit))


def _waits(title: str, found: Sequence[Result]) -> str:
    """Return a panel with the percentiles of the waits."""
    ranges = [
        charts.Range(
            each.peer,
            each.label,
            {name: each.figures[key] for name, key in PERCENTILES.items() if key in each.figures},
        )
        for each in found
    ]
    said = ", ".join(
        f"{each.label} {name} {units.seconds(value)}"
        for each in ranges
        for name, value in each.marks.items()
    )
    names = [name for name in PERCENTILES if any(name in each.marks for each in ranges)]
    keys = (
        charts.key(shape, name)
        for shape, name in zip(charts.PERCENTILE_SHAPES, names, strict=False)
    )
    legend = element("p", *keys, class_="keys")
    chart = charts.ranges(f"{title}: {said}", ranges, units.seconds)
    return _figure(title, legend, chart)


def _lines(title: str, found: Sequence[Result], by: str, unit: str) -> str:
    """Return a panel with the rate of each peer over the parameter *by*."""
    series = []
    for peer in dict.fromkeys(each.peer for each in found):
        points = []
        for each in found:
            value, x = each.figures.get("rate"), each.parameters.get(by)
            if each.peer == peer and value and isinstance(x, (int, float)):
                low, high = (each.rates.min, each.rates.max) if each.rates else (value, value)
                points.append(charts.Point(x, value, low, high))
        if points:
            points.sort(key=lambda point: point.x)
            series.append(charts.Line(peer, PEERS.get(peer, peer), points))
    if not series:
        return ""
    said = ", ".join(
        f"{line.label} {units.rate(line.points[-1].value)} at {line.points[-1].x:g}"
        for line in series
    )
    return _figure(title, charts.lines(f"{title}: {said}", by, unit, series, units.count))


def _heat_maps(found: Sequence[Result], clients: str) -> str:
    """Return a table a peer of p99 over clients and connections, all on one scale of shades.

    A peer of which only a few combinations were measured has no map: most of it would be empty.
    """
    cases = Counter(each.peer for each in found)
    found = [each for each in found if cases[each.peer] * 2 > max(cases.values())]
    waits = [each.figures["wait_p99"] for each in found]
    low, high = math.log(min(waits)), math.log(max(waits))

    def shade(wait: float) -> int:
        part = (math.log(wait) - low) / (high - low) if high > low else 0.0
        return min(_HEAT_STEPS - 1, int(part * _HEAT_STEPS))

    tables = []
    for peer in dict.fromkeys(each.peer for each in found):
        mine = {
            (each.parameters[clients], each.parameters["connections"]): each.figures["wait_p99"]
            for each in found
            if each.peer == peer
        }
        sizes = sorted({size for _, size in mine}, key=_number)
        head = element(
            "tr",
            element("th", text(f"{clients} \N{RIGHTWARDS ARROW} connections"), scope="col"),
            *(element("th", text(size), scope="col") for size in sizes),
        )
        body = [
            element(
                "tr",
                element("th", text(number), scope="row"),
                *(_heat_cell(mine.get((number, size)), shade) for size in sizes),
            )
            for number in sorted({number for number, _ in mine}, key=_number)
        ]
        caption = f"{PEERS.get(peer, peer)}: p99 of the wait"
        parts = (element("caption", text(caption)), element("thead", head), element("tbody", *body))
        tables.append(scrolling(caption, element("table", *parts, class_="heat")))
    note = (
        f"p99 of the wait by {clients} and connections. The darker or stronger the shade, the "
        f"longer, in equal factors from {units.seconds(min(waits))} to {units.seconds(max(waits))}."
    )
    return _note(note) + element("div", *tables, class_="grid heats")


def _heat_cell(wait: float | None, shade: Callable[[float], int]) -> str:
    """Return one cell of a heat map."""
    if wait is None:
        return element("td", units.NOTHING)
    return element("td", text(units.seconds(wait)), class_=f"h{shade(wait)}")


def _raw(run: Run) -> Iterator[str]:
    """Yield a table a workload with everything that was measured."""
    for workload, name in WORKLOADS.items():
        found = run.of(workload)
        if not found:
            continue
        parameters = [p for p in PARAMETERS[workload] if any(p in e.parameters for e in found)]
        figures = [f for f in FIGURES if any(f in each.figures for each in found)]
        header = ["peer", *parameters, "median", "q1", "q3", "min", "max", "rounds"]
        header += [_NAMES.get(each, each) for each in figures]
        lines = [_raw_row(each, parameters, figures) for each in found]
        caption = f"{name}: seconds for one operation over the rounds, and figures"
        yield _details(f"{name} ({len(lines)} rows)", table(caption, header, lines))
    yield _note(about(run))


def _raw_row(result: Result, parameters: Sequence[str], figures: Sequence[str]) -> list[str]:
    """Return the row of one result."""
    time = result.time
    row = [result.label, *(str(result.parameters.get(each, units.NOTHING)) for each in parameters)]
    row += [units.seconds(v) for v in (time.median, time.q1, time.q3, time.min, time.max)]
    row.append(str(time.rounds))
    for name in figures:
        value = result.figures.get(name)
        form = _FORMS.get(name, units.seconds)
        row.append(units.NOTHING if value is None else form(value))
    return row


def _history(history: History) -> str:
    """Show how the headlines' ratios went from run to run."""
    header, lines = history.table()
    panels = (_figure(label, trend(label, points)) for label, points in history.gains().items())
    return _section(
        "history",
        "History",
        _note(
            "How many times better fastpool's figure was than psycopg_pool's in the same run, from "
            "the oldest run to the newest. Machines differ from run to run; ratios tell more."
        ),
        _grid(list(panels)),
        _details("The runs", table("Ratios to psycopg_pool, newest first", header, lines)),
        level=2,
    )


def _section(name: str, title: str, *parts: str, level: int) -> str:
    """Return a section with a heading."""
    heading = element(f"h{level}", text(title), id=f"{name}-title")
    return element("section", heading, *parts, id=name, aria_labelledby=f"{name}-title")


def _subsection(title: str, *parts: str) -> str:
    """Return a part of a section with a heading of its own."""
    return element("section", element("h3", text(title)), *parts)


def _details(title: str, *parts: str) -> str:
    """Return what is shown when it is asked for."""
    return element("details", element("summary", element("h3", text(title))), *parts)


def _figure(title: str, *parts: str) -> str:
    """Return a chart with its title."""
    return element("figure", element("figcaption", text(title)), *parts)


def _grid(panels: Sequence[str]) -> str:
    """Lay *panels* side by side, as many as have room."""
    return element("div", *panels, class_="grid") if any(panels) else ""


def _note(words: str) -> str:
    return element("p", text(words), class_="note")


def _connections(size: object) -> str:
    return f"{size} connection" if size == 1 else f"{size} connections"


def _nearest(values: Sequence[float], wanted: float) -> float:
    """Choose *wanted* of *values*, or what is nearest to it."""
    return min(values, key=lambda value: abs(value - wanted))


def _number(value: Parameter) -> float:
    return float(value)
