"""Which view a stream gets: the live one where it can be shown, else the plain one.

The live one needs rich, and is imported only where it is chosen.
"""

from __future__ import annotations

import os
import shutil
from typing import TextIO

from .view import PlainView, View

_LEAST_COLUMNS, _LEAST_ROWS = 60, 18  # for the live picture


def make_view(stream: TextIO) -> View:
    """Return the live view when *stream* is a terminal that can do it and rich is there.

    Everywhere else, and where the terminal is too small for the picture, it is the plain view.
    """
    columns, rows = shutil.get_terminal_size((80, 24))
    capable = stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
    if capable and columns >= _LEAST_COLUMNS and rows >= _LEAST_ROWS:
        try:
            from .live import LiveView
        except ImportError:  # rich is optional
            pass
        else:
            return LiveView(stream)
    return PlainView(stream)
