"""Charts as inline SVG: bars, ranges and lines, each as wide as a phone.

Owns: scales, ticks, marks and the places of labels. Refuses: to know what is measured, and colours:
a mark has its peer's class, and the page's style says what that looks like.

A chart is 344 units wide and is never drawn much larger, so that its text is readable at any width
of the screen. A peer is told by the name beside its mark; its colour and shape only repeat that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .markup import element, text
from .units import Format, size, tick

WIDTH = 344.0
_LABELS = 96.0
_TICKS = 22.0


@dataclass(frozen=True)
class Bar:
    """One bar: a value, and between which values it lay in the rounds."""

    peer: str
    label: str
    value: float
    low: float
    high: float
    note: str = ""
    """What else to say of it, after the value."""


@dataclass(frozen=True)
class Range:
    """One line from the least to the greatest of *marks*, values by their names."""

    peer: str
    label: str
    marks: Mapping[str, float]


@dataclass(frozen=True)
class Point:
    """A point of a line, and between which values it lay in the rounds."""

    x: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """The points of one peer, by ascending x."""

    peer: str
    label: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Scale:
    """Where values lie between two ends, evenly or by their logarithms."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    unit: float = 1.0
    """What the ticks of an even scale are round numbers of."""

    def __call__(self, value: float) -> float:
        low, high = self._map(self.low), self._map(self.high)
        part = (self._map(max(value, self.low)) - low) / (high - low)
        return self.start + part * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Choose round values to write at the axis: at most about six."""
        if not self.log:
            step = self.unit * _nice((self.high - self.low) / 4 / self.unit)
            return [step * n for n in range(int(self.high / step + 1e-9) + 1)]
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        parts: Sequence[float] = (1,) if last - first > 3 else (1, 3)
        if self.high < 30 * self.low:
            parts = (1, 2, 5) if self.high > 4 * self.low else (1, 1.5, 2, 3, 4, 5, 6, 8)
        every = max(1, (last - first + 5) // 6)
        values = [part * 10.0**n for n in range(first, last + 1, every) for part in parts]
        return [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]

    def _map(self, value: float) -> float:
        return math.log10(value) if self.log else value


def log_scale(values: Sequence[float], start: float, end: float) -> Scale:
    """Return a logarithmic scale on which all *values* that are above zero have room."""
    above = [value for value in values if value > 0] or [1.0]
    low, high = min(above), max(above)
    return Scale(low / 1.25, high * 1.25, start, end, log=True)


def bars(summary: str, rows: Sequence[Bar], form: Format, limit: float | None = None) -> str:
    """Draw one horizontal bar a row, with its value at its end and its spread on it.

    Where the values differ by more than a factor of 40 a bar would say little: the scale is
    logarithmic then, and has dots in place of bars, for it has no zero to start from.

    *limit*: the greatest value that there can be, if there is one.
    """
    row, top = 26.0, 6.0
    bottom = top + row * len(rows)
    # The longest of the labels must fit behind the longest bar.
    room = 7.6 * max(len(form(each.value) + each.note) for each in rows) + 12
    end = WIDTH - room
    log = limit is None and _far_apart([each.value for each in rows])
    if log:
        scale = log_scale([v for each in rows for v in (each.low, each.high)], _LABELS, end)
    else:
        greatest = max(0.0, *(each.high for each in rows))
        unit = 1024.0 if form is size and greatest > 1024 else 1.0
        scale = Scale(0.0, limit or greatest or 1.0, _LABELS, end, unit=unit)
    marks = [_axis(scale, form, top, bottom)]
    for index, each in enumerate(rows):
        y = top + row * (index + 0.5)
        x = scale(each.value)
        mark = _dot(each.peer, x, y) if log else _bar(each.peer, scale.start, x, y)
        after = max(x, scale(each.high)) + 8
        value = element("tspan", text(form(each.value)), class_="strong")
        marks += [
            element("text", text(each.label), x=0, y=y + 4, class_="name"),
            mark,
            _whisker(scale(each.low), scale(each.high), y),
            element("text", value, text(each.note), x=after, y=y + 4),
        ]
    return _svg(bottom + _TICKS, summary, marks)


def ranges(summary: str, rows: Sequence[Range], form: Format) -> str:
    """Draw one line a row on a logarithmic scale, with a mark of its own shape for each value."""
    row, top = 40.0, 4.0
    bottom = top + row * len(rows)
    scale = log_scale([value for each in rows for value in each.marks.values()], 8, WIDTH - 8)
    marks = [_axis(scale, form, top, bottom)]
    for index, each in enumerate(rows):
        y = top + row * index + 28
        places = [scale(value) for value in each.marks.values()]
        words = " · ".join(f"{name} {form(each.marks[name])}" for name in _spoken(each.marks))
        marks += [
            element("text", text(each.label), x=0, y=y - 13, class_="name"),
            element("text", text(words), x=WIDTH, y=y - 13, class_="end small"),
            element(
                "path", d=f"M{places[0]:.1f} {y}H{places[-1]:.1f}", class_=f"line p-{each.peer}"
            ),
        ]
        marks += [
            _shape(PERCENTILE_SHAPES[n % len(PERCENTILE_SHAPES)], each.peer, place, y)
            for n, place in enumerate(places)
        ]
    return _svg(bottom + _TICKS, summary, marks)


def lines(summary: str, x_name: str, y_name: str, series: Sequence[Line], form: Format) -> str:
    """Draw values over x, both on logarithmic scales, each line with its name at its end."""
    top, bottom, left, right = 22.0, 232.0, 44.0, WIDTH - 118
    points = [point for line in series for point in line.points]
    xs = sorted({point.x for point in points})
    across = Scale(xs[0], max(xs[-1], xs[0] * 2), left + 8, right, log=True)
    # Drawn from below: the greatest value is at the top.
    up = log_scale([v for point in points for v in (point.low, point.high)], bottom, top)
    marks = [element("text", text(y_name), x=0, y=11, class_="tick")]
    for value in up.ticks():
        y = up(value)
        marks += [
            element("path", d=f"M{left} {y:.1f}H{right + 8:.1f}", class_="grid"),
            element("text", text(tick(form, value)), x=left - 5, y=y + 4, class_="tick end"),
        ]
    shown = -math.inf
    for x in xs:
        place = across(x)
        marks.append(element("path", d=f"M{place:.1f} {bottom}v4", class_="axis"))
        if place - shown > 22:
            label = element("text", text(f"{x:g}"), x=place, y=bottom + 17, class_="tick middle")
            marks.append(label)
            shown = place
    marks.append(element("path", d=f"M{left} {bottom}H{right + 8:.1f}", class_="axis"))
    marks.append(element("text", text(x_name), x=WIDTH, y=bottom + 17, class_="tick end"))
    # fastpool comes first and is drawn last, on top.
    for line in reversed(series):
        marks += _line(line, across, up)
    ends = [up(line.points[-1].value) for line in series]
    for line, y, label_y in zip(series, ends, spaced(ends, 14.0, top, bottom), strict=True):
        x = across(line.points[-1].x)
        path = f"M{x + 7:.1f} {y:.1f}L{right + 20:.1f} {label_y:.1f}"
        marks += [
            element("path", d=path, class_="leader"),
            _shape(PEER_SHAPES.get(line.peer, "circle"), line.peer, right + 26, label_y),
            element("text", text(line.label), x=right + 34, y=label_y + 4, class_="name"),
        ]
    return _svg(bottom + _TICKS + 2, summary, marks)


def trend(summary: str, values: Sequence[float], form: Format) -> str:
    """Draw *values* in their order, on a scale from zero, with the first and the last written."""
    top, bottom, left, right = 12.0, 112.0, 44.0, WIDTH - 60
    up = Scale(0.0, max(values), bottom, top)
    step = (right - left - 8) / max(1, len(values) - 1)
    places = [(left + 8 + step * n, up(value)) for n, value in enumerate(values)]
    marks = []
    for value in up.ticks():
        y = up(value)
        marks += [
            element("path", d=f"M{left} {y:.1f}H{right}", class_="grid"),
            element("text", text(tick(form, value)), x=left - 5, y=y + 4, class_="tick end"),
        ]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    marks.append(element("path", d=f"M{path}", class_="line p-fastpool"))
    marks.append(_shape("circle", "fastpool", *places[-1]))
    x, y = places[-1]
    marks.append(element("text", text(form(values[-1])), x=x + 9, y=y + 4, class_="strong"))
    return _svg(bottom + 8, summary, marks)


def spaced(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move *places* as little as keeps them *gap* apart and, if they fit, from *low* to *high*."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = [places[index] for index in order]
    for n in range(len(moved)):
        moved[n] = max(moved[n], moved[n - 1] + gap if n else low)
    for n in reversed(range(len(moved))):
        moved[n] = min(moved[n], moved[n + 1] - gap if n + 1 < len(moved) else high)
    result = [0.0] * len(places)
    for index, place in zip(order, moved, strict=True):
        result[index] = place
    return result


# Each around a centre, to be drawn at any place; about 9 units wide.
_SHAPES = {
    "circle": "m-4.2 0a4.2 4.2 0 1 0 8.4 0a4.2 4.2 0 1 0 -8.4 0z",
    "square": "m-3.8 -3.8h7.6v7.6h-7.6z",
    "diamond": "m0 -5.2l5.2 5.2l-5.2 5.2l-5.2 -5.2z",
    "up": "m0 -5l5 8.6h-10z",
    "down": "m0 5l5 -8.6h-10z",
    "plus": "m-1.5 -5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",
    "bar": "m-1.2 -6h2.4v12h-2.4z",
    "hexagon": "m-2.5 -4.4h5l2.5 4.4l-2.5 4.4h-5l-2.5 -4.4z",
    "flag": "m-4 -4h8l-4 4l4 4h-8z",
}
PEER_SHAPES = {
    "fastpool": "circle",
    "psycopg_pool": "square",
    "sqlalchemy": "diamond",
    "dbutils": "up",
    "psycopg2": "down",
    "asyncpg": "plus",
    "hikaricp": "hexagon",
    "simplequeue": "bar",
    "bare": "flag",
}
PERCENTILE_SHAPES = ("circle", "bar", "diamond", "up", "square")


def key(shape: str, label: str, peer: str = "") -> str:
    """Return an entry of a legend: a mark and its name."""
    mark = element(
        "svg", _shape(shape, peer or "none", 8, 8), width=16, height=16, aria_hidden="true"
    )
    return element("span", mark, text(label), class_="key")


def _line(line: Line, across: Scale, up: Scale) -> list[str]:
    """Draw a line, its points and their spreads."""
    path = "L".join(f"{across(p.x):.1f} {up(p.value):.1f}" for p in line.points)
    marks = [element("path", d=f"M{path}", class_=f"line p-{line.peer}")]
    for point in line.points:
        x, y, low, high = across(point.x), up(point.value), up(point.low), up(point.high)
        if low - high > 1:
            stroke = f"M{x:.1f} {low:.1f}V{high:.1f}"
            marks.append(element("path", d=stroke, class_=f"line p-{line.peer}"))
        marks.append(_shape(PEER_SHAPES.get(line.peer, "circle"), line.peer, x, y))
    return marks


def _axis(scale: Scale, form: Format, top: float, bottom: float) -> str:
    """Draw the grid of a horizontal scale and write its ticks, as many as have room."""
    marks = []
    free = -math.inf
    for value in scale.ticks():
        x = scale(value)
        words = tick(form, value)
        half = 3.1 * len(words)
        marks.append(element("path", d=f"M{x:.1f} {top}V{bottom}", class_="grid"))
        if x - half > free and x + half <= WIDTH:
            marks.append(element("text", text(words), x=x, y=bottom + 15, class_="tick middle"))
            free = x + half + 6
    return "".join(marks)


def _bar(peer: str, start: float, end: float, y: float) -> str:
    """Draw a bar; one that is too short to be seen is drawn as thick as a line."""
    width = max(end - start, 1.5)
    return element("rect", x=start, y=y - 7, width=width, height=14, class_=f"mark p-{peer}")


def _dot(peer: str, x: float, y: float) -> str:
    """Draw a dot, and a line that leads the eye to it."""
    lead = element("path", d=f"M{_LABELS} {y}H{x:.1f}", class_="leader")
    return lead + _shape(PEER_SHAPES.get(peer, "circle"), peer, x, y)


def _whisker(low: float, high: float, y: float) -> str:
    """Draw a spread."""
    if high - low < 1:
        return ""
    path = f"M{low:.1f} {y - 4}v8m0 -4H{high:.1f}m0 -4v8"
    return element("path", d=path, class_="whisker")


def _shape(shape: str, peer: str, x: float, y: float) -> str:
    """Draw the mark named *shape* around a place."""
    return element("path", d=f"M{x:.1f} {y:.1f}{_SHAPES[shape]}", class_=f"mark p-{peer}")


def _spoken(marks: Mapping[str, float]) -> list[str]:
    """Choose which marks of a range are also written: there is room for three."""
    chosen = [name for name in ("p50", "p99", "p99.9") if name in marks]
    return chosen or list(marks)[:3]


def _far_apart(values: Sequence[float]) -> bool:
    """Tell whether the smallest of *values* would vanish beside the greatest."""
    above = [value for value in values if value > 0]
    return len(above) == len(values) and max(above) > 40 * min(above)


def _nice(step: float) -> float:
    """Round *step* up to 1, 2 or 5 of some power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(part * power for part in (1, 2, 5, 10) if part * power >= step * 0.999)


def _svg(height: float, summary: str, marks: Sequence[str]) -> str:
    """Return the image; *summary* is what it says, for those who do not see it."""
    view = f"0 0 {WIDTH:g} {height:g}"
    return element("svg", *marks, viewBox=view, role="img", aria_label=summary)
