"""What is shown while the load runs: plain lines, or a live picture where there is a terminal.

A view is given frames and draws them. It asks the pool for nothing and measures nothing. This file
holds the plain one, which needs no more than the standard library; `live` holds the other, and
`screen` chooses.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TextIO

from .contenders import Picture
from .text import LEGEND, Line, duration, encodable, paragraph, strip

_WIDEST = 100


@dataclass(frozen=True)
class Frame:
    """The run at one moment. *rate* is requests a second, over about the last second."""

    elapsed: float
    seconds: float
    requests: int
    rate: float
    picture: Picture


class View(Protocol):
    """Where the demonstration is shown."""

    @property
    def interval(self) -> float:
        """Seconds from one frame to the next."""

    @property
    def width(self) -> int:
        """Cells that a line may take."""

    def write(self, lines: Iterable[Line]) -> None:
        """Write *lines*; not between `begin` and `end`."""

    def begin(self, title: str, frame: Frame) -> None:
        """Start to show a run that is called *title*."""

    def update(self, frame: Frame) -> None:
        """Show the run as it is now."""

    def end(self) -> None:
        """Stop showing the run."""


# Heading and width of each column. Where the line is too narrow, the last ones are left out.
_COLUMNS = (
    ("time", 7),
    ("requests/s", 12),
    ("waiting", 9),
    ("oldest", 10),
    ("in use", 9),
    ("available", 11),
)
_GAP_BEFORE_SLOTS = "   "


class PlainView:
    """One line a second under a heading, without a single escape code."""

    interval = 1.0

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.width = min(shutil.get_terminal_size((80, 24)).columns, _WIDEST)

    def write(self, lines: Iterable[Line]) -> None:
        """Write *lines* and flush: whoever reads the pipe sees them as they come."""
        for line in lines:
            print(encodable(line.text.rstrip(), self._stream.encoding), file=self._stream)
        self._stream.flush()

    def begin(self, title: str, frame: Frame) -> None:
        """Write the headings of the columns; *frame* tells whether the pool shows its slots."""
        lines = [Line(), *paragraph(title, self.width)]
        heading = self._row([name for name, _ in _COLUMNS])
        if frame.picture.slots:
            lines += paragraph(LEGEND, self.width)
            heading += _GAP_BEFORE_SLOTS + "slots"
        self.write([*lines, Line(heading[: self.width])])

    def update(self, frame: Frame) -> None:
        """Write one line."""
        picture = frame.picture
        oldest = picture.oldest_wait * 1e9 if picture.waiting and picture.oldest_wait else None
        row = self._row(
            [
                f"{frame.elapsed:.1f} s",
                f"{frame.rate:,.0f}",
                f"{picture.waiting:,}",
                duration(oldest),
                f"{picture.counts['in_use']:,}",
                f"{picture.counts['available']:,}",
            ]
        )
        room = self.width - len(row) - len(_GAP_BEFORE_SLOTS)
        slots = strip((slot.state for slot in picture.slots), room)
        self.write([Line(row + _GAP_BEFORE_SLOTS + slots)])

    def end(self) -> None:
        """Nothing stands on the screen that would have to go."""

    def _row(self, cells: Sequence[str]) -> str:
        row = ""
        for cell, (_, width) in zip(cells, _COLUMNS, strict=True):
            if row and len(row) + width > self.width:
                break
            row += cell.rjust(width)
        return row
