"""The live picture on a terminal: the slots, who holds them, who waits, how fast it goes.

The only file that imports rich. It redraws when it is given a frame, never by a thread of its own,
which would compete with the load for the processor.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fastpool import SlotInfo

from .contenders import Picture
from .text import (
    LEGEND,
    STATE_LETTERS,
    Line,
    duration,
    encodable,
    shorten,
    sparkline,
    state_name,
)
from .view import Frame

_WIDEST = 100
_INTERVAL = 0.2
_SHARE = 0.02  # of the processor: the load is to have the rest
_LINES_BESIDE_THE_SLOTS = 11
_ROLE_STYLES = {"heading": "bold", "faint": "dim", "error": "red"}
_STATE_STYLES = {
    "available": "green",
    "in_use": "yellow",
    "connecting": "cyan",
    "returning": "magenta",
    "reserved": "blue",
    "closing": "red",
    "empty": "dim",
}


class LiveView:
    """A picture that is redrawn in place, and gone when its run is over."""

    def __init__(self, stream: TextIO) -> None:
        plain = bool(os.environ.get("NO_COLOR"))
        self._console = Console(
            file=stream,
            force_terminal=True,
            color_system=None if plain else "auto",
            highlight=False,
            emoji=False,
            markup=False,
            soft_wrap=False,
        )
        self.interval = _INTERVAL
        self._live: Live | None = None
        self._title = ""
        self._rates: deque[float] = deque(maxlen=30)

    @property
    def width(self) -> int:
        """Cells that a line may take; follows the terminal."""
        return min(self._console.width, _WIDEST)

    def write(self, lines: Iterable[Line]) -> None:
        """Write *lines*, styled by their role."""
        for line in lines:
            text = encodable(line.text.rstrip(), self._console.encoding)
            self._console.print(Text(text, style=_ROLE_STYLES.get(line.role, "")))

    def begin(self, title: str, frame: Frame) -> None:
        """Put up the first picture."""
        self._title = title
        self._rates.clear()
        self._live = Live(
            self._draw(frame),
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._live.start(refresh=True)

    def update(self, frame: Frame) -> None:
        """Redraw, and do so less often where that takes much of the processor."""
        began = time.thread_time()
        self._rates.append(frame.rate)
        if self._live is not None:
            self._live.update(self._draw(frame), refresh=True)
        self.interval = max(_INTERVAL, (time.thread_time() - began) / _SHARE)

    def end(self) -> None:
        """Take the picture away and give the cursor back."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self, frame: Frame) -> RenderableType:
        return Group(
            Text(),
            *self._progress(frame),
            Text(),
            *self._slots(frame.picture),
            Text(),
            *self._figures(frame),
        )

    def _progress(self, frame: Frame) -> Iterable[RenderableType]:
        done = min(frame.elapsed, frame.seconds)
        yield Text(encodable(self._title, self._console.encoding), style="bold")
        bar = ProgressBar(
            total=frame.seconds,
            completed=done,
            width=max(self.width - 20, 8),
            style="dim",
            complete_style="cyan",
            finished_style="cyan",
        )
        row = Table.grid(padding=(0, 2))
        row.add_row(bar, f"{done:.1f} of {frame.seconds:g} s")
        yield row

    def _slots(self, picture: Picture) -> Iterable[RenderableType]:
        if picture.slots:
            if len(picture.slots) <= self._console.height - _LINES_BESIDE_THE_SLOTS:
                yield self._slot_table(picture)
            else:
                yield self._slot_strip(picture)
        counts = Text("  ")
        always = ("in_use", "available")
        for state in dict.fromkeys((*always, *picture.counts)):
            count = picture.counts[state]
            if count or state in always:
                counts.append(f"{count:,} {state_name(state)}   ", _STATE_STYLES.get(state, ""))
        yield counts

    def _slot_table(self, picture: Picture) -> Text:
        # Lines of our own: a rich table takes several times as long to draw.
        heading = f"  {'slot':>4}  {'state':<10}  {'backend':>7}  {'held by':<12}  {'for':>8}"
        table = Text(no_wrap=True)
        table.append(f"{heading}  {'uses':>9}", "dim")
        for slot in picture.slots:
            style = _STATE_STYLES.get(slot.state, "")
            backend = "" if slot.backend_pid is None else slot.backend_pid
            rest = f"  {backend:>7}  {shorten(slot.owner_name or '', 12):<12}  {_held(slot):>8}"
            table.append(f"\n  {slot.index:>4}  ")
            table.append(f"{state_name(slot.state):<10}", style)
            table.append(encodable(f"{rest}  {slot.uses:>9,}", self._console.encoding))
        return table

    def _slot_strip(self, picture: Picture) -> RenderableType:
        """One letter a slot, as many as fit, where a line a slot does not."""
        across = max(self.width - 4, 1)
        down = max(self._console.height - _LINES_BESIDE_THE_SLOTS, 1)
        shown = picture.slots[: across * down]
        strip = Text()
        for position, slot in enumerate(shown):
            if position % across == 0:
                strip.append("\n  " if position else "  ")
            strip.append(STATE_LETTERS.get(slot.state, "?"), _STATE_STYLES.get(slot.state, ""))
        hidden = len(picture.slots) - len(shown)
        if hidden:
            strip.append(f"\n  and {hidden:,} more: " + _tally(picture, len(shown)))
        return Group(strip, Text(f"  {LEGEND}", style="dim"))

    def _figures(self, frame: Frame) -> Iterable[RenderableType]:
        waiting = f"{frame.picture.waiting:,} threads"
        if frame.picture.waiting and frame.picture.oldest_wait is not None:
            waiting += f", the oldest for {duration(frame.picture.oldest_wait * 1e9)}"
        bars = sparkline(list(self._rates))
        table = Table.grid(padding=(0, 3, 0, 0))
        table.add_column(style="dim")
        table.add_column()
        rows = [
            ("  waiting", waiting),
            ("  requests", f"{frame.requests:,}"),
            ("  requests/s", f"{frame.rate:,.0f}   {bars}" if bars else f"{frame.rate:,.0f}"),
        ]
        for label, value in rows:
            table.add_row(label, encodable(value, self._console.encoding))
        yield table


def _held(slot: SlotInfo) -> str:
    """Word how long *slot* has been lent; its clock has ticks of up to 10 ms."""
    if slot.state != "in_use":
        return ""
    return "< 10 ms" if slot.time_in_state < 0.01 else duration(slot.time_in_state * 1e9)


def _tally(picture: Picture, start: int) -> str:
    """Count the states of the slots from *start* on."""
    states = Counter(slot.state for slot in picture.slots[start:])
    return ", ".join(f"{count:,} {state_name(state)}" for state, count in states.items())
