"""Compare two commits by what they measured: python -m bench.compare A.json B.json

Owns: ratios, their spreads, and the verdict on each. Refuses: measuring. See --help for the rules.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from .report import units
from .report.headlines import markdown_table
from .report.results import ResultError, Spread, describe, facts_of, load, samples_of

LIMIT = 1.5
WAIT_LIMIT = 3.0
PEER, CONTROL = "fastpool", "psycopg_pool"
# Shorter waits are as good as none, and their ratios are chance.
_SHORTEST_WAIT = 1e-3
_ALIKE = 1.05
_PAIRS_OF_ONE_ROUND = 3

DESCRIPTION = "Compare two commits by their benchmark results. A is the older one, B the newer."
EPILOG = f"""\
The ratio is B's median over A's: above 1, B is slower, or waits longer, or takes more memory. Its
spread is from B's first quartile over A's third to B's third over A's first. Give several files of
each, measured in turns (A, B, A, B), with --base and --head: the first of the one is compared with
the first of the other, and so on; the ratio is then the median of theirs, and the spread is from
their least to their greatest. What a file measured only once has a spread from three pairs on.

The peer that did not change, {CONTROL}, tells how the machine changed meanwhile: where it became
slower too, the limit is that much higher.

verdicts:
  too slow   the ratio is beyond the limit, and all of its spread above 1: the comparison fails
  unclear    the ratio is beyond the limit, but its spread reaches down to 1, or is not known
  slower     by more than 5 %, and all of its spread above 1
  faster     by more than 5 %, and all of its spread below 1
  same       anything else

exit status: 0 nothing is too slow; 1 something is; 2 a file cannot be read, or wrong usage
"""

Key: TypeAlias = tuple[object, ...]
Data: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """One figure of fastpool at one benchmark, in two commits."""

    benchmark: str
    figure: str
    base: float
    head: float
    ratio: float
    spread: tuple[float, float] | None
    """From the least to the greatest that the ratio may be; None where that is not known."""
    control: float | None
    """The same ratio of the peer that did not change."""
    limit: float
    verdict: str


@dataclass(frozen=True)
class Figure:
    """A figure that is compared: how it is read and written, and what is too much."""

    name: str
    read: Callable[[Data], Spread | None]
    form: Callable[[str], units.Format]
    """How it is written, by the benchmark's name."""


def _time(benchmark: Data) -> Spread | None:
    """Read the seconds for one operation; of a memory benchmark, what it measured."""
    extra = benchmark["extra_info"]
    if extra.get("workload") == "memory":
        return Spread.of(extra.get("values") or [extra["value"]])
    return Spread.of(samples_of(benchmark))


def _wait(benchmark: Data) -> Spread | None:
    """Read the 99th percentile of the waits: one number for all rounds."""
    wait = benchmark["extra_info"].get("wait_p99")
    if wait is None:
        return None
    return replace(Spread.of([max(wait, _SHORTEST_WAIT)]), rounds=benchmark["stats"]["rounds"])


def _time_form(benchmark: str) -> units.Format:
    if not benchmark.startswith("memory"):
        return units.seconds
    return units.size if "bytes" in benchmark else units.count


FIGURES = (
    Figure("time", _time, _time_form),
    Figure("wait p99", _wait, lambda benchmark: units.seconds),
)


def compare(pairs: Sequence[tuple[Data, Data]], limits: Mapping[str, float]) -> list[Comparison]:
    """Compare the two files of each of *pairs*, and judge by *limits*: a ratio by figure."""
    indexed = [(_index(base), _index(head)) for base, head in pairs]
    comparisons = []
    for workload, parameters in _benchmarks(indexed):
        name = name_of(workload, parameters)
        for figure in FIGURES:
            ours = _spreads(indexed, (workload, parameters, PEER), figure)
            if not ours:
                continue
            theirs = _spreads(indexed, (workload, parameters, CONTROL), figure)
            control = _ratio(theirs)[0] if theirs else None
            limit = limits[figure.name]
            ratio, spread = _ratio(ours)
            comparisons.append(
                Comparison(
                    benchmark=name,
                    figure=figure.name,
                    base=median(base.median for base, _ in ours),
                    head=median(head.median for _, head in ours),
                    ratio=ratio,
                    spread=spread,
                    control=control,
                    limit=limit,
                    verdict=verdict(ratio, spread, limit * max(1.0, control or 1.0)),
                )
            )
    return comparisons


def verdict(ratio: float, spread: tuple[float, float] | None, limit: float) -> str:
    """Judge a *ratio* that has this *spread*."""
    low, high = spread or (0.0, math.inf)
    if ratio > limit:
        return "too slow" if low > 1 else "unclear"
    if ratio > _ALIKE and low > 1:
        return "slower"
    if ratio < 1 / _ALIKE and high < 1:
        return "faster"
    return "same"


def unmatched(pairs: Sequence[tuple[Data, Data]]) -> tuple[list[str], list[str]]:
    """Name the benchmarks that only the older files have, and those that only the newer have."""
    base = {key for data, _ in pairs for key in _ours(data)}
    head = {key for _, data in pairs for key in _ours(data)}
    return _names(base - head), _names(head - base)


def name_of(workload: str, parameters: Iterable[tuple[str, object]]) -> str:
    """Name a benchmark by its workload and parameters."""
    words = [str(v) if isinstance(v, str) else f"{name} {v}" for name, v in parameters]
    return f"{workload}: {', '.join(words)}" if words else workload


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare",
        usage="%(prog)s [option...] A.json B.json\n"
        "       %(prog)s [option...] --base A.json... --head B.json...",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="A.json, then B.json")
    parser.add_argument("--base", nargs="+", type=Path, default=[], metavar="A.json")
    parser.add_argument("--head", nargs="+", type=Path, default=[], metavar="B.json")
    parser.add_argument(
        "--limit",
        type=_limit,
        default=LIMIT,
        metavar="RATIO",
        help="how many times slower B may be (default: %(default)s)",
    )
    parser.add_argument(
        "--wait-limit",
        type=_limit,
        default=WAIT_LIMIT,
        metavar="RATIO",
        help="how many times longer its p99 wait may be; less than 1 ms is not told apart "
        "(default: %(default)s)",
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print one JSON object")
    shape.add_argument("--markdown", action="store_true", help="print tables for a job summary")
    args = parser.parse_args(arguments)
    if args.files and not (args.base or args.head) and len(args.files) == 2:
        args.base, args.head = args.files[:1], args.files[1:]
    elif args.files or not args.base or len(args.base) != len(args.head):
        parser.error("give A.json B.json, or as many files with --base as with --head")

    try:
        pairs = [(load(a), load(b)) for a, b in zip(args.base, args.head, strict=True)]
    except ResultError as error:
        print(f"bench.compare: {error}", file=sys.stderr)
        return 2
    comparisons = compare(pairs, {"time": args.limit, "wait p99": args.wait_limit})
    if not comparisons:
        print("bench.compare: the files have no benchmark of fastpool in common", file=sys.stderr)
        return 2
    write = _as_json if args.json else _as_markdown if args.markdown else _as_text
    sys.stdout.buffer.write(write(pairs, comparisons).encode())
    return 1 if any(each.verdict == "too slow" for each in comparisons) else 0


def _limit(word: str) -> float:
    """Read a limit: a ratio, which is above 1."""
    value = float(word)
    if value <= 1:
        raise argparse.ArgumentTypeError(f"{word} is not above 1")
    return value


def _index(data: Data) -> dict[Key, Data]:
    """Return the benchmarks of a file by workload, parameters and peer."""
    index: dict[Key, Data] = {}
    for benchmark in data["benchmarks"]:
        extra = benchmark.get("extra_info", {})
        if "peer" in extra and benchmark.get("stats"):
            workload, parameters = describe(extra)
            # What is imported has each peer's own name.
            parameters.pop("module", None)
            index[workload, tuple(parameters.items()), extra["peer"]] = benchmark
    return index


def _ours(data: Data) -> list[tuple[str, tuple[tuple[str, object], ...]]]:
    """List what was measured of fastpool in a file."""
    keys: Iterable[Any] = _index(data)
    return [(workload, parameters) for workload, parameters, peer in keys if peer == PEER]


def _benchmarks(
    indexed: Sequence[tuple[dict[Key, Data], dict[Key, Data]]],
) -> list[tuple[str, tuple[tuple[str, object], ...]]]:
    """List what any pair may have in common."""
    keys: Iterable[Any] = (key for base, _ in indexed for key in base)
    return list(dict.fromkeys((w, parameters) for w, parameters, peer in keys if peer == PEER))


def _spreads(
    indexed: Sequence[tuple[dict[Key, Data], dict[Key, Data]]], key: Key, figure: Figure
) -> list[tuple[Spread, Spread]]:
    """Read *figure* of the benchmark *key* in every pair that has it twice."""
    spreads = []
    for base, head in indexed:
        if key in base and key in head:
            before, after = figure.read(base[key]), figure.read(head[key])
            if before and after and before.median > 0:
                spreads.append((before, after))
    return spreads


def _ratio(spreads: Sequence[tuple[Spread, Spread]]) -> tuple[float, tuple[float, float] | None]:
    """Return the ratio of the medians of *spreads*, and its spread."""
    ratios = [after.median / before.median for before, after in spreads]
    once = any(each.rounds == 1 for pair in spreads for each in pair)
    if once and len(ratios) < _PAIRS_OF_ONE_ROUND:
        return median(ratios), None
    if len(ratios) > 1:
        return median(ratios), (min(ratios), max(ratios))
    ((before, after),) = spreads
    return ratios[0], (after.q1 / before.q3, after.q3 / before.q1)


def _names(keys: Iterable[tuple[str, tuple[tuple[str, object], ...]]]) -> list[str]:
    return sorted(name_of(workload, parameters) for workload, parameters in keys)


def _commits(pairs: Sequence[tuple[Data, Data]]) -> tuple[str, str]:
    """Tell the commits that are compared."""
    base, head = pairs[-1]
    return facts_of(base)["commit"], facts_of(head)["commit"]


def _cells(each: Comparison) -> list[str]:
    """Write one comparison."""
    form = next(figure for figure in FIGURES if figure.name == each.figure).form(each.benchmark)
    return [
        f"{each.benchmark}" + f" ({each.figure})" * (each.figure != "time"),
        form(each.base),
        form(each.head),
        f"{each.ratio:.2f}",
        units.NOTHING if each.spread is None else f"{each.spread[0]:.2f} to {each.spread[1]:.2f}",
        units.NOTHING if each.control is None else f"{each.control:.2f}",
        each.verdict,
    ]


def _header(pairs: Sequence[tuple[Data, Data]]) -> list[str]:
    base, head = _commits(pairs)
    return ["benchmark", f"A: {base}", f"B: {head}", "B / A", "spread", CONTROL, "verdict"]


def _summary(comparisons: Sequence[Comparison]) -> str:
    """Count the verdicts, and state the limits."""
    verdicts = [each.verdict for each in comparisons]
    kinds = ("too slow", "unclear", "slower", "same", "faster")
    counts = ", ".join(f"{verdicts.count(kind)} {kind}" for kind in kinds if kind in verdicts)
    limits = {each.figure: each.limit for each in comparisons}
    stated = " and ".join(f"{limit:g} for {name}" for name, limit in limits.items())
    return f"{len(verdicts)} figures: {counts}. Too slow is a ratio above {stated}."


def _notes(pairs: Sequence[tuple[Data, Data]]) -> list[str]:
    """Tell what could not be compared."""
    sides = zip(_commits(pairs), unmatched(pairs), strict=True)
    return [f"Only {commit} has: {'; '.join(names)}." for commit, names in sides if names]


def _as_text(pairs: Sequence[tuple[Data, Data]], comparisons: Sequence[Comparison]) -> str:
    rows = [_header(pairs), *map(_cells, comparisons)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if n in (0, len(widths) - 1) else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", _summary(comparisons), *_notes(pairs)]) + "\n"


def _as_markdown(pairs: Sequence[tuple[Data, Data]], comparisons: Sequence[Comparison]) -> str:
    """Write first what is remarkable, and all of it folded away."""
    remarkable = [each for each in comparisons if each.verdict != "same"]
    parts = [f"### {' → '.join(_commits(pairs))}\n\n{_summary(comparisons)}\n"]
    if remarkable:
        parts.append(markdown_table(_header(pairs), [_cells(each) for each in remarkable]))
    everything = markdown_table(_header(pairs), [_cells(each) for each in comparisons])
    parts.append(f"<details><summary>All figures</summary>\n\n{everything}\n</details>\n")
    return "\n".join([*parts, *(f"{note}\n" for note in _notes(pairs))])


def _as_json(pairs: Sequence[tuple[Data, Data]], comparisons: Sequence[Comparison]) -> str:
    base, head = _commits(pairs)
    only_base, only_head = unmatched(pairs)
    result = {
        "base": base,
        "head": head,
        "failed": any(each.verdict == "too slow" for each in comparisons),
        "comparisons": [asdict(each) for each in comparisons],
        "only_in_base": only_base,
        "only_in_head": only_head,
    }
    return json.dumps(result, indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(main())
