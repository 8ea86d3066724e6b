"""One thing that the doctor looked at, and how it judges it. Looks at nothing itself."""

from __future__ import annotations

from dataclasses import dataclass

Value = str | int | float | bool | None

OK = "ok"
NOTE = "note"  # nothing is wrong; there is something to know
WARNING = "warning"  # a pool will have trouble with it, or has it already
ERROR = "error"  # it does not work

LEVELS = (OK, NOTE, WARNING, ERROR)


@dataclass(frozen=True)
class Finding:
    """A fact, its level (one of LEVELS), and what to do about it where that is not obvious."""

    name: str
    value: Value
    level: str = OK
    advice: str = ""

    @property
    def rank(self) -> int:
        """The level as a number; the worst one is the largest."""
        return LEVELS.index(self.level)
