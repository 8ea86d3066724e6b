"""Ctrl-C and SIGTERM: at once by default, at the next convenient moment while a load runs.

It owns the two signal handlers for as long as it is entered, and nothing else. An interrupted
program still ends by its ordinary path, so that whatever it started is stopped.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME_KEYSTROKE = 1.0  # seconds; timeout(1), for one, signals its child and then the whole group


class Interrupts(AbstractContextManager["Interrupts"]):
    """Note SIGINT and SIGTERM, and raise KeyboardInterrupt unless they are deferred.

    To be entered in the main thread. A second signal, one second later or more, raises
    KeyboardInterrupt in any case.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._noted_at = 0.0
        self._deferred = False
        self._previous: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """The shell's code for a program that a signal ended; 0 without a signal."""
        return 0 if self.signum is None else 128 + self.signum

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note the first signal while the block runs; its code looks at `signum`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def __enter__(self) -> Interrupts:
        for signum in _SIGNALS:
            self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for signum, handler in self._previous.items():
            # None: the handler was not set from Python, and cannot be put back from here.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        first = self.signum is None
        if not first and now - self._noted_at < _SAME_KEYSTROKE:
            return
        self.signum, self._noted_at = signum, now
        if not (first and self._deferred):
            raise KeyboardInterrupt
