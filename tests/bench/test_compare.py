"""The comparison of two commits: what it catches, and what it takes for noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

MakeRun = Callable[..., Path]
Command = Callable[..., Any]
Change = Callable[..., Callable[[dict[str, Any]], None]]
Extra = dict[str, Any]


def fastpool(extra: Extra) -> bool:
    return bool(extra["peer"] == "fastpool")


def fastpools_cycle(extra: Extra) -> bool:
    return fastpool(extra) and extra["workload"] == "cycle"


def everybody(extra: Extra) -> bool:
    return True


def compared(done: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the comparisons of a --json run by benchmark and figure."""
    return {(e["benchmark"], e["figure"]): e for e in json.loads(done.stdout)["comparisons"]}


def test_a_commit_compared_with_itself_is_the_same(make_run: MakeRun, bench: Command) -> None:
    done = bench("compare", "--json", make_run("a.json"), make_run("b.json"))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert not result["failed"]
    assert {each["verdict"] for each in result["comparisons"]} == {"same"}
    assert {each["figure"] for each in result["comparisons"]} == {"time", "wait p99"}


def test_a_slower_commit_is_caught(make_run: MakeRun, bench: Command, slowed: Change) -> None:
    slower = make_run("b.json", slowed(2.0, fastpools_cycle))
    done = bench("compare", "--json", make_run("a.json"), slower)
    assert done.returncode == 1
    assert json.loads(done.stdout)["failed"]
    for (benchmark, _), each in compared(done).items():
        assert each["verdict"] == ("too slow" if benchmark.startswith("cycle") else "same")
        if benchmark.startswith("cycle"):
            assert each["ratio"] == pytest.approx(2.0)
            assert each["spread"][0] < 2.0 < each["spread"][1]


def test_a_faster_commit_passes(make_run: MakeRun, bench: Command, slowed: Change) -> None:
    faster = make_run("b.json", slowed(0.5, fastpool))
    done = bench("compare", "--json", make_run("a.json"), faster)
    assert done.returncode == 0
    verdicts = {each["verdict"] for (_, figure), each in compared(done).items() if figure == "time"}
    # What was measured only once has a ratio, and no spread that could prove it.
    assert verdicts == {"faster", "same"}


@pytest.mark.parametrize(("limit", "status"), [("1.2", 1), ("1.4", 0)])
def test_the_limit_decides(
    make_run: MakeRun, bench: Command, limit: str, status: int, slowed: Change
) -> None:
    slower = make_run("b.json", slowed(1.3, fastpools_cycle))
    done = bench("compare", "--limit", limit, make_run("a.json"), slower)
    assert done.returncode == status
    assert f"above {limit} for time" in done.stdout


def test_a_slower_machine_is_not_taken_for_a_slower_commit(
    make_run: MakeRun, bench: Command, slowed: Change
) -> None:
    slower = make_run("b.json", slowed(2.0, everybody))
    done = bench("compare", "--json", make_run("a.json"), slower)
    assert done.returncode == 0
    controls = [each["control"] for each in compared(done).values() if each["figure"] == "time"]
    assert max(controls) == pytest.approx(2.0)


def test_a_wide_spread_is_unclear_and_does_not_fail(
    make_run: MakeRun, bench: Command, scattered: Change
) -> None:
    scatter = scattered((0.5, 0.6, 2.0, 2.1, 2.2), fastpools_cycle)
    done = bench("compare", "--json", make_run("a.json"), make_run("b.json", scatter))
    assert done.returncode == 0
    verdicts = {each["verdict"] for (name, _), each in compared(done).items() if "cycle" in name}
    assert verdicts == {"unclear"}


def test_longer_waits_at_the_same_throughput_are_caught(make_run: MakeRun, bench: Command) -> None:
    def starve(data: dict[str, Any]) -> None:
        for each in data["benchmarks"]:
            if fastpool(each["extra_info"]) and each["extra_info"].get("threads") == 256:
                each["extra_info"]["wait_p99"] = 2.0

    done = bench("compare", "--json", make_run("a.json"), make_run("b.json", starve))
    assert done.returncode == 1
    caught = [e for e in compared(done).values() if e["verdict"] == "too slow"]
    assert {each["figure"] for each in caught} == {"wait p99"}
    assert all("threads 256" in each["benchmark"] for each in caught)


def test_waits_under_a_millisecond_are_not_told_apart(make_run: MakeRun, bench: Command) -> None:
    def wait(seconds: float, data: dict[str, Any]) -> None:
        for each in data["benchmarks"]:
            if "wait_p99" in each["extra_info"]:
                each["extra_info"]["wait_p99"] = seconds

    runs = make_run("a.json", partial(wait, 1e-7)), make_run("b.json", partial(wait, 9e-4))
    done = bench("compare", "--json", *runs)
    assert done.returncode == 0
    assert {e["ratio"] for e in compared(done).values() if e["figure"] == "wait p99"} == {1.0}


def test_of_several_pairs_the_median_counts_and_one_bad_turn_does_not(
    make_run: MakeRun, bench: Command, slowed: Change
) -> None:
    once = [make_run(f"a{n}.json") for n in range(3)]
    factors = (1.0, 3.0, 1.1)
    again = [make_run(f"b{n}.json", slowed(by, fastpools_cycle)) for n, by in enumerate(factors)]
    done = bench("compare", "--json", "--base", *once, "--head", *again)
    assert done.returncode == 0
    cycles = [each for (name, _), each in compared(done).items() if name.startswith("cycle")]
    assert cycles
    for each in cycles:
        assert each["ratio"] == pytest.approx(1.1)
        assert each["spread"] == [pytest.approx(1.0), pytest.approx(3.0)]


def test_several_slow_turns_are_caught(make_run: MakeRun, bench: Command, slowed: Change) -> None:
    once = [make_run(f"a{n}.json") for n in range(3)]
    slower = slowed(1.8, fastpools_cycle)
    again = [make_run(f"b{n}.json", slower) for n in range(3)]
    done = bench("compare", "--base", *once, "--head", *again)
    assert done.returncode == 1
    assert "too slow" in done.stdout


def test_what_only_one_commit_measured_is_named(make_run: MakeRun, bench: Command) -> None:
    def without_spike(data: dict[str, Any]) -> None:
        data["benchmarks"] = [
            e for e in data["benchmarks"] if e["extra_info"]["workload"] != "spike"
        ]

    def newer(data: dict[str, Any]) -> None:
        for each in data["benchmarks"]:
            each["extra_info"]["commit"] = "fed9876"

    runs = make_run("a.json", without_spike), make_run("b.json", newer)
    for shape in ("--json", "--markdown"):
        done = bench("compare", shape, *runs)
        assert done.returncode == 0
        assert "spike: clients 50" in done.stdout
    assert "Only fed9876 has: spike: clients 50" in done.stdout
    assert "0123abc → fed9876" in done.stdout


def test_markdown_shows_first_what_is_remarkable(
    make_run: MakeRun, bench: Command, slowed: Change
) -> None:
    slower = make_run("b.json", slowed(2.0, fastpools_cycle))
    done = bench("compare", "--markdown", make_run("a.json"), slower)
    first, _, everything = done.stdout.partition("<details>")
    assert first.count("| too slow |") == 6
    assert "| same |" not in first
    assert "| same |" in everything


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.json"],
        ["a.json", "b.json", "c.json"],
        ["--base", "a.json", "b.json", "--head", "c.json"],
        ["a.json", "b.json", "--limit", "0.9"],
        ["absent.json", "absent.json"],
        [__file__, __file__],
        [],
    ],
)
def test_wrong_usage_ends_with_status_2(bench: Command, arguments: list[str]) -> None:
    done = bench("compare", *arguments)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_help_states_the_limits_and_the_exit_status(bench: Command) -> None:
    done = bench("compare", "--help")
    assert done.returncode == 0
    for words in ("default: 1.5", "default: 3.0", "exit status: 0", "too slow", "unclear"):
        assert words in done.stdout
