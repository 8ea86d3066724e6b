"""Show the figures of a benchmark run, or write them into README.md between its two markers.

usage: figures.py {show,write,check} [RESULTS] [README]

Owns: which figures the README shows, and how. Refuses: measuring, and figures of two runs.
"show" prints the table, "write" puts it into README.md, and "check" fails unless it is there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- figures: written by make bench-readme -->\n", "<!-- end of figures -->\n"

CYCLES = {
    "getconn_putconn": "`getconn()` + `putconn()`",
    "connect_close": "`connect()` + `close()`",
    "connection_block": "`with pool.connection()`",
}
HOLDS = {
    "nothing": "64 threads, no work",
    "SELECT 1": "64 threads, `SELECT 1`",
    "1 ms": "64 threads, 1 ms",
}


def table(results: dict[str, Any]) -> str:
    """Render *results*, pytest-benchmark's JSON, as Markdown."""
    runs = results["benchmarks"]
    cycles = {(r["extra_info"].get("scenario"), r["extra_info"]["peer"]): r for r in runs}
    contended = {(r["extra_info"].get("hold"), r["extra_info"]["peer"]): r for r in runs}
    facts = runs[0]["extra_info"]
    versions = {r["extra_info"]["peer"]: r["extra_info"]["version"] for r in runs}

    lines = ["| | fastpool | psycopg_pool | ratio |", "|---|---:|---:|---:|"]
    for scenario, label in CYCLES.items():
        ours, theirs = (
            cycles[scenario, peer]["stats"]["median"] * 1e6 for peer in ("fastpool", "psycopg_pool")
        )
        lines.append(f"| {label}: µs a cycle | {ours:.2f} | {theirs:.2f} | {theirs / ours:.1f} |")
    for hold, label in HOLDS.items():
        ours, theirs = (
            contended[hold, peer]["extra_info"] for peer in ("fastpool", "psycopg_pool")
        )
        rate = f"| {label}: requests/s | {ours['rate']:,.0f} | {theirs['rate']:,.0f} "
        lines.append(rate + f"| {ours['rate'] / theirs['rate']:.1f} |")
        lines.append(f"| {label}: wait p50 / p99, ms | {waits(ours)} | {waits(theirs)} | |")
        shares = f"{ours['share']:.2f} | {theirs['share']:.2f}"
        lines.append(f"| {label}: least / most served thread | {shares} | |")
    lines += [
        "",
        f"{facts['machine']}, {facts['cores']} cores; Python {facts['python']}"
        f"{'' if facts['gil'] else ' free-threaded'}, PostgreSQL {facts['postgres']}, "
        f"psycopg {facts['psycopg']}, fastpool {versions['fastpool']} at {facts['commit']}, "
        f"psycopg_pool {versions['psycopg_pool']}; {results['datetime'][:10]}; "
        "`make bench-readme`. Medians; 4 connections; rounds alternate between the two pools.",
    ]
    return "\n".join(lines) + "\n"


def waits(figures: dict[str, float]) -> str:
    """Render the median wait and the 99th percentile, in milliseconds."""
    return f"{figures['wait_p50'] * 1e3:.1f} / {figures['wait_p99'] * 1e3:.1f}"


def with_table(readme: str, figures: str) -> str:
    """Return *readme* with *figures* between its markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"README.md lacks the markers {BEGIN.strip()} and {END.strip()}")
    return before + begin + figures + end + after


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=["show", "write", "check"])
    parser.add_argument("results", nargs="?", type=Path, default=ROOT / "bench/results/readme.json")
    parser.add_argument("readme", nargs="?", type=Path, default=ROOT / "README.md")
    args = parser.parse_args()

    figures = table(json.loads(args.results.read_text(encoding="utf-8")))
    if args.action == "show":
        print(figures)
        return
    old = args.readme.read_text(encoding="utf-8")
    new = with_table(old, figures)
    if args.action == "write":
        args.readme.write_text(new, encoding="utf-8")
    elif new != old:
        raise SystemExit(f"{args.readme} does not show the figures of {args.results}")


if __name__ == "__main__":
    main()
