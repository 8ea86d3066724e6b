"""Numbers as people read them: three digits, and a unit.

Owns: rounding and units. Refuses: to know what the numbers are of.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

TIMES = "\N{MULTIPLICATION SIGN}"
# What stands where there is no number.
NOTHING = "\N{EN DASH}"

Format: TypeAlias = Callable[[float], str]

_SECONDS = ((1e-9, "ns"), (1e-6, "µs"), (1e-3, "ms"), (1.0, "s"))
_COUNTS = ((1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G"))
_BYTES = ((1.0, "B"), (1024.0, "KiB"), (1024.0**2, "MiB"), (1024.0**3, "GiB"))


def digits(value: float) -> str:
    """Write *value* with three significant digits, and never with an exponent."""
    if value == 0:
        return "0"
    after_point = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{after_point}f}"


def seconds(value: float) -> str:
    """Write *value*, in seconds: "260 ns", "3.10 µs"."""
    return _scaled(value, _SECONDS, " ")


def count(value: float) -> str:
    """Write *value*, of things: "64", "14.0k", "1.20M"."""
    if value == int(value) and abs(value) < 1000:
        return str(int(value))
    return _scaled(value, _COUNTS, "")


def rate(value: float) -> str:
    """Write *value*, of things a second: "14.0k/s"."""
    return f"{count(value)}/s"


def size(value: float) -> str:
    """Write *value*, in bytes: "16.0 KiB"."""
    if abs(value) < 1024:
        return f"{value:.0f} B"
    return _scaled(value, _BYTES, " ")


def share(value: float) -> str:
    """Write *value*, a part of one: "0.98"."""
    return f"{value:.2f}"


def factor(value: float) -> str:
    """Write *value*, a ratio: "12.1" and a times sign."""
    return f"{digits(value) if value < 1000 else round(value)} {TIMES}"


def tick(form: Format, value: float) -> str:
    """Write *value* at an axis: as *form* does, without zeros that say nothing."""
    number, space, unit = form(value).partition(" ")
    if "." in number:
        plain = number.rstrip("kMG/s")
        number = plain.rstrip("0").rstrip(".") + number[len(plain) :]
    return number + space + unit


def _scaled(value: float, units: tuple[tuple[float, str], ...], space: str) -> str:
    """Write *value* in the unit that leaves less than four digits before the point."""
    if value == 0:
        return "0"
    # 999.6 would be rounded to 1000.
    fitting = (each for each in units if abs(value) < 999.5 * each[0])
    scale, name = next(fitting, units[-1])
    return f"{digits(value / scale)}{space}{name}".rstrip()
