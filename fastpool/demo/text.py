"""How the demonstration words what it shows: numbers, durations, slots, lines that fit.

Pure functions from values to text. Nothing here writes, or knows of a terminal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# One letter a state, for pools with more slots than there are lines.
STATE_LETTERS: Mapping[str, str] = {
    "available": "A",
    "in_use": "U",
    "connecting": "C",
    "returning": "R",
    "reserved": "S",
    "closing": "X",
    "empty": ".",
}
LEGEND = "A available, U in use, C connecting, R returning, S reserved, X closing, . empty"

_ASCII = str.maketrans(
    {"\N{MICRO SIGN}": "u", "\N{MIDDLE DOT}": "|", "\N{HORIZONTAL ELLIPSIS}": "~"}
)
_UNITS = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "\N{MICRO SIGN}s"))
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Line:
    """One line of text, and what it is: "", "heading", "faint" or "error"."""

    text: str = ""
    role: str = ""


def paragraph(text: str, width: int, role: str = "", indent: str = "") -> list[Line]:
    """Break *text* into lines of at most *width* cells; those after the first are indented."""
    return [
        Line(line, role)
        for line in textwrap.wrap(
            text, max(width, 20), subsequent_indent=indent, break_on_hyphens=False
        )
        or [""]
    ]


def duration(ns: float | None) -> str:
    """Word a duration in nanoseconds with three digits and its unit: 1.23 ms, 45.6 s."""
    if ns is None:
        return "-"
    for size, unit in _UNITS:
        # Just below a unit, three digits would round to "1000" of the smaller one.
        if ns >= size * 0.9995:
            return f"{_three_digits(ns / size)} {unit}"
    return f"{ns:.0f} ns"


def _three_digits(value: float) -> str:
    if value < 9.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def shorten(text: str, width: int) -> str:
    """Return *text* on one line, cut to *width* cells with an ellipsis where it is longer."""
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    return text[: max(width - 1, 0)] + "\N{HORIZONTAL ELLIPSIS}"[: max(width, 0)]


def strip(states: Iterable[str], width: int) -> str:
    """Return the letters of *states*, cut to *width*."""
    return shorten("".join(STATE_LETTERS.get(state, "?") for state in states), width)


def state_name(state: str) -> str:
    """Word a slot's state for people."""
    return state.replace("_", " ")


def sparkline(values: Sequence[float]) -> str:
    """Draw *values* as bars of up to eight levels, the largest one highest."""
    top = max(values, default=0.0) or 1.0
    return "".join(_BARS[min(len(_BARS) - 1, int(value / top * len(_BARS)))] for value in values)


def encodable(text: str, encoding: str | None) -> str:
    """Return *text* in such characters as *encoding* has, without ever failing."""
    encoding = encoding or "ascii"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    return text
