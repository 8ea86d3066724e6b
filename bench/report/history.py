"""The headlines of earlier runs: what a line over commits is drawn from.

Owns: the history file, a JSON list with one entry a run, oldest first:

    date, commit, machine, python   facts of the run
    values                          by headline, by peer: the figure, in seconds or as it is counted
    gains                           by headline: how many times better than psycopg_pool

Refuses: to keep whole results; those are artifacts of the run that made them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import charts, units
from .headlines import headlines
from .results import ResultError, Run

_KEPT = 500


@dataclass(frozen=True)
class History:
    """Entries of runs, oldest first."""

    entries: Sequence[dict[str, Any]]

    @classmethod
    def load(cls, path: Path) -> History:
        """Read the history at *path*; a file that is not there is an empty one.

        Raises ResultError when it is no history.
        """
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls([])
        except (OSError, ValueError) as error:
            raise ResultError(f"{path}: {error}") from error
        if not isinstance(entries, list) or not all("gains" in each for each in entries):
            raise ResultError(f"{path}: no history of benchmark runs")
        return cls(entries)

    def save(self, path: Path) -> None:
        """Write the history to *path*."""
        path.write_text(json.dumps(self.entries, indent=1) + "\n", encoding="utf-8")

    def with_run(self, run: Run) -> History:
        """Return the history with *run* at its end, in place of an earlier entry of that run."""
        found = headlines(run)
        names = ("date", "commit", "machine", "python", "gil")
        entry = {name: run.facts[name] for name in names} | {
            "values": {each.label: each.values for each in found},
            "gains": {each.label: each.gain for each in found if each.gain},
        }
        same = ("date", "commit", "python")
        others = [e for e in self.entries if any(e.get(n) != entry[n] for n in same)]
        return History([*others, entry][-_KEPT:])

    def gains(self) -> dict[str, list[float]]:
        """Return each headline's gains, oldest first: those that the newest run has."""
        newest = self.entries[-1]["gains"] if self.entries else {}
        return {
            label: [each["gains"][label] for each in self.entries if label in each["gains"]]
            for label in newest
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the header and the rows of a table of all gains, newest first."""
        labels = list(self.gains())
        rows = []
        for entry in reversed(self.entries):
            gains = (entry["gains"].get(label) for label in labels)
            written = (units.factor(gain) if gain else units.NOTHING for gain in gains)
            rows.append([f"{entry['date'][:10]} {entry['commit']}", entry["python"], *written])
        return ["run", "Python", *labels], rows


def trend(label: str, gains: Sequence[float]) -> str:
    """Draw *gains* from the oldest to the newest."""
    said = f"{label}: from {units.factor(gains[0])} to {units.factor(gains[-1])}, {len(gains)} runs"
    return charts.trend(said, gains, units.factor)
