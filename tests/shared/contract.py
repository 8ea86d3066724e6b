"""Fixtures of the contract's suites: the two implementations, and what their pools log.

Owns: what is the same for pools of threads, of tasks and null pools. Refuses: assertions about a
pool.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from types import ModuleType

import pytest

IMPLEMENTATIONS = ("psycopg_pool", "fastpool")


def implementation(name: str) -> ModuleType:
    """Import a package under test. psycopg_pool may be missing, fastpool may not."""
    if name == "psycopg_pool":
        reason = "psycopg_pool, the yardstick, is not installed"
        module: ModuleType = pytest.importorskip("psycopg_pool", reason=reason)
        return module
    return importlib.import_module(name)


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request: pytest.FixtureRequest) -> ModuleType:
    """The package under test."""
    return implementation(request.param)


@pytest.fixture
def base(impl: ModuleType) -> ModuleType:
    """The package's module `base`."""
    return importlib.import_module(f"{impl.__name__}.base")


@pytest.fixture
def quick_backoff(base: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the first delay between two attempts to connect 20 ms instead of a second."""
    monkeypatch.setattr(base.AttemptWithBackoff, "INITIAL_DELAY", 0.02)


class Log(logging.Handler):
    """The lines that pools log, each put into words when it's logged.

    A connection shown in a line would look different afterwards.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self._lines: list[tuple[int, str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append((record.levelno, record.levelname, record.getMessage()))

    def lines(self, level: int = logging.DEBUG) -> list[tuple[str, str]]:
        """Level and text of each line of at least *level*, oldest first."""
        return [(name, text) for number, name, text in list(self._lines) if number >= level]

    def texts(self, level: int = logging.INFO) -> list[str]:
        """The texts alone."""
        return [text for _, text in self.lines(level)]

    def warnings(self) -> list[str]:
        """The texts of WARNING and above."""
        return self.texts(logging.WARNING)

    def has(self, level: str, start: str) -> bool:
        """Whether a line of that level starts so."""
        return any(name == level and text.startswith(start) for name, text in self.lines())

    def clear(self) -> None:
        """Forget the lines so far."""
        self._lines.clear()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Log]:
    """What is logged on "psycopg.pool", at every level."""
    caplog.set_level(logging.DEBUG, logger="psycopg.pool")
    handler = Log()
    logging.getLogger("psycopg.pool").addHandler(handler)
    yield handler
    logging.getLogger("psycopg.pool").removeHandler(handler)
