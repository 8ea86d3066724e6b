"""The report as text: what the page says, and the table in Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

MakeRun = Callable[..., Path]
Command = Callable[..., Any]
Data = dict[str, Any]

TIMES = "\N{MULTIPLICATION SIGN}"
BEGIN, END = "<!-- figures: written by make bench-readme -->\n", "<!-- end of figures -->\n"
AIMS_BEGIN = "<!-- aims: written by make bench-readme -->\n"
AIMS_END = "<!-- end of aims -->\n"


class Page(HTMLParser):
    """The elements of a page, each with its attributes, and the text in them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def labels(self) -> Iterator[str]:
        """Yield what the charts say to those who do not see them."""
        for attributes in self.all("svg"):
            if attributes.get("role") == "img":
                yield attributes["aria-label"] or ""


@pytest.fixture
def page_of(tmp_path: Path, bench: Command) -> Callable[..., Page]:
    """Write the page about some result files, and read it."""

    def page_of(*files: Path) -> Page:
        out = tmp_path / "report.html"
        done = bench("report", *files, "-o", out)
        assert (done.returncode, done.stderr) == (0, "")
        return Page(out)

    return page_of


def only(workload: str) -> Callable[[Data], None]:
    """Return what leaves only *workload* in a made-up run."""

    def change(data: Data) -> None:
        data["benchmarks"] = [
            each for each in data["benchmarks"] if each["extra_info"]["workload"] == workload
        ]

    return change


def with_facts(**facts: object) -> Callable[[Data], None]:
    """Return what makes a made-up run one of another machine or commit."""

    def change(data: Data) -> None:
        for each in data["benchmarks"]:
            each["extra_info"].update(facts)

    return change


def test_the_page_needs_nothing_from_elsewhere(
    make_run: MakeRun, page_of: Callable[..., Page]
) -> None:
    page = page_of(make_run())
    assert page.open == []
    names = {name for name, _ in page.elements}
    assert names.isdisjoint({"script", "link", "img", "iframe", "object", "base", "image", "use"})
    assert all("src" not in attributes for _, attributes in page.elements)
    assert all((each["href"] or "").startswith("#") for each in page.all("a"))
    assert re.search(r"https?:|url\(|@import", page.source) is None


def test_headings_go_down_one_level_at_a_time(
    make_run: MakeRun, page_of: Callable[..., Page]
) -> None:
    page = page_of(make_run())
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_links_lead_to_sections(make_run: MakeRun, page_of: Callable[..., Page]) -> None:
    page = page_of(make_run("a.json"), make_run("b.json", with_facts(python="3.13.5", gil=False)))
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    assert {(each["href"] or "")[1:] for each in page.all("a")} <= set(names)


def test_every_result_is_a_row_of_a_table(make_run: MakeRun, page_of: Callable[..., Page]) -> None:
    run = make_run()
    page = page_of(run)
    count = len(json.loads(run.read_text(encoding="utf-8"))["benchmarks"])
    rows = sum(map(int, re.findall(r"\((\d+) rows\)", page.text)))
    assert rows == count
    assert page.source.count('<th scope="row">') > count


def test_every_chart_says_its_values(make_run: MakeRun, page_of: Callable[..., Page]) -> None:
    labels = list(page_of(make_run()).labels())
    assert "getconn() + putconn(): fastpool 260 ns, psycopg_pool 3.12 µs" in "\n".join(labels)
    for wanted in (
        "Requests a second, 4 connections",
        "Wait for a connection, 64 threads on 4 connections",
        "Least served over most served, 64 threads on 4 connections",
        "CPU time a request, 64 tasks on 4 connections",
        "Time until all are served",
        "Connections opened",
        "Opening 100 connections",
        "Additional bytes",
        "Import, beyond import psycopg",
        "Requests a second, by threads",
    ):
        assert any(label.startswith(f"{wanted}: fastpool ") for label in labels), wanted


def test_p99_is_shown_over_threads_and_connections(
    make_run: MakeRun, page_of: Callable[..., Page]
) -> None:
    page = page_of(make_run("run.json", only("contended")))
    assert "fastpool: p99 of the wait" in page.text
    shades = {each["class"] for each in page.all("td") if (each.get("class") or "").startswith("h")}
    assert shades == {f"h{n}" for n in range(7)}


def test_the_page_tells_on_what_was_measured_and_what_was_not(
    make_run: MakeRun, page_of: Callable[..., Page]
) -> None:
    text = page_of(make_run()).text
    for fact in ("Made-up Processor, 2 cores", "18.6", "0123abc", "make bench", "2026-11-22T"):
        assert fact in text
    assert "asyncpg: not installed <here>" in text


def test_what_is_in_a_file_cannot_become_markup(
    make_run: MakeRun, page_of: Callable[..., Page]
) -> None:
    evil = '"><script>alert(1)</script>'
    page = page_of(make_run("run.json", with_facts(commit=evil, version=evil, hold=evil)))
    assert page.all("script") == []
    assert evil in page.text


def test_files_of_one_commit_are_one_run(make_run: MakeRun, page_of: Callable[..., Page]) -> None:
    page = page_of(*(make_run(name, only("import")) for name in ("a.json", "b.json")))
    assert page.text.count("3.11.7: headlines") == 1
    assert "(3 rows)" in page.text
    assert "10" in re.findall(r'<td class="n">(\d+)</td>', page.source)


def test_another_python_has_sections_of_its_own(
    make_run: MakeRun, page_of: Callable[..., Page]
) -> None:
    page = page_of(make_run("a.json"), make_run("b.json", with_facts(python="3.13.5", gil=False)))
    assert "Python 3.11.7: headlines" in page.text
    assert "Python 3.13.5, free-threaded: headlines" in page.text


@pytest.mark.parametrize(
    "workload",
    ["cycle", "contended", "contended_async", "spike", "open", "memory", "import", "scaling"],
)
def test_a_run_of_one_workload_has_a_page(
    make_run: MakeRun, page_of: Callable[..., Page], workload: str
) -> None:
    assert list(page_of(make_run("run.json", only(workload))).labels())


def test_a_run_without_figures_or_peers_has_a_page(
    make_run: MakeRun, page_of: Callable[..., Page]
) -> None:
    figures = {"rate", "rates", "share", "cpu_per_op", "elapsed", "opened", "value"}

    def bare(data: Data) -> None:
        data["benchmarks"] = [
            each for each in data["benchmarks"] if each["extra_info"]["peer"] == "fastpool"
        ]
        for each in data["benchmarks"]:
            extra = each["extra_info"]
            for name in [*extra]:
                if name in figures or name.startswith("wait_"):
                    del extra[name]
        del data["machine_info"]

    assert "fastpool" in page_of(make_run("run.json", bare)).text


def test_figures_of_zero_can_be_drawn(make_run: MakeRun, page_of: Callable[..., Page]) -> None:
    zeros = dict.fromkeys(("rate", "share", "cpu_per_op", "wait_p50", "wait_p99", "value"), 0)

    def nothing(data: Data) -> None:
        for each in data["benchmarks"]:
            each["extra_info"].update({k: v for k, v in zeros.items() if k in each["extra_info"]})

    page = page_of(make_run("run.json", nothing))
    assert re.search(r"\b(nan|inf)\b", page.source) is None


def test_markdown_names_fastpool_first_and_the_ratio(make_run: MakeRun, bench: Command) -> None:
    done = bench("report", make_run(), "--markdown")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "|  | fastpool | psycopg_pool | ratio | best other pool |"
    cells = ["260 ns", "3.12 µs", f"12.0 {TIMES}", "182 ns (HikariCP)"]
    assert lines[2] == f"| getconn() + putconn(), one thread | {' | '.join(cells)} |"
    assert "fastpool 1.0 at 0123abc" in lines[-1]
    assert "`make bench`" in lines[-1]
    assert "Left out: asyncpg (not installed <here>)." in lines[-1]


def test_more_requests_are_better_and_longer_waits_are_worse(
    make_run: MakeRun, bench: Command
) -> None:
    def halve(data: Data) -> None:
        for each in data["benchmarks"]:
            extra = each["extra_info"]
            if extra["peer"] == "psycopg_pool" and "rate" in extra:
                extra |= {"rate": 500.0, "wait_p99": 0.2}
            elif extra["peer"] == "fastpool" and "rate" in extra:
                extra |= {"rate": 1000.0, "wait_p99": 0.1}

    table = bench("report", make_run("run.json", halve), "--markdown").stdout
    name = "64 threads on 4 connections, 1 ms"
    assert f"| {name}: requests | 1.00k/s | 500/s | 2.00 {TIMES} |" in table
    assert f"| {name}: wait p99 | 100 ms | 200 ms | 2.00 {TIMES} |" in table


def test_the_readme_is_written_between_its_markers(
    make_run: MakeRun, bench: Command, tmp_path: Path
) -> None:
    readme, run = tmp_path / "README.md", make_run()
    readme.write_text(f"before\n{BEGIN}old\n{END}after\n", encoding="utf-8")
    arguments = (run, "--readme", readme)
    assert bench("report", *arguments, "--check").returncode == 1
    assert "old" in readme.read_text(encoding="utf-8")
    assert bench("report", *arguments).returncode == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{BEGIN}|  | fastpool |")
    assert text.endswith(f"{END}after\n")
    assert "old" not in text
    assert bench("report", *arguments, "--check").returncode == 0


def test_a_readme_without_markers_is_left_alone(
    make_run: MakeRun, bench: Command, tmp_path: Path
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("nothing\n", encoding="utf-8")
    done = bench("report", make_run(), "--readme", readme)
    assert done.returncode == 2
    assert "lacks the markers" in done.stderr
    assert readme.read_text(encoding="utf-8") == "nothing\n"


def test_history_keeps_one_entry_a_run_and_is_drawn(
    make_run: MakeRun, bench: Command, tmp_path: Path
) -> None:
    history, out = tmp_path / "history.json", tmp_path / "page.html"
    for n, commit in enumerate(("aaa1111", "bbb2222", "bbb2222")):
        run = make_run("run.json", with_facts(commit=commit, date=f"2026-11-2{min(n, 1)}"))
        done = bench("report", run, "--history", history, "-o", out)
        assert (done.returncode, done.stderr) == (0, "")
    entries = json.loads(history.read_text(encoding="utf-8"))
    assert [each["commit"] for each in entries] == ["aaa1111", "bbb2222"]
    assert entries[0]["gains"]["getconn() + putconn(), one thread"] == pytest.approx(12.0)
    page = Page(out)
    trend = f"from 12.0 {TIMES} to 12.0 {TIMES}, 2 runs"
    assert f"getconn() + putconn(), one thread: {trend}" in page.labels()
    assert "2026-11-20 aaa1111" in page.text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting"),
        ("{}", "not a file of pytest-benchmark"),
        ('{"benchmarks": []}', "no res"),
    ],
    ids=["broken", "other", "empty"],
)
def test_a_file_without_results_is_refused(
    bench: Command, tmp_path: Path, content: str, reason: str
) -> None:
    path = tmp_path / "run.json"
    path.write_text(content, encoding="utf-8")
    done = bench("report", path, "-o", tmp_path / "page.html")
    assert done.returncode == 2
    assert f"{path}: " in done.stderr
    assert reason in done.stderr
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("arguments", [[], ["run.json"], ["run.json", "--markdown", "--check"]])
def test_wrong_usage_ends_with_status_2(bench: Command, arguments: list[str]) -> None:
    done = bench("report", *arguments)
    assert done.returncode == 2
    assert "usage: python -m bench.report" in done.stderr


def test_help_states_the_exit_status(bench: Command) -> None:
    done = bench("report", "--help")
    assert done.returncode == 0
    assert "exit status: 0 done; 1 --check" in done.stdout


def test_the_aims_are_written_into_their_document_with_those_that_are_missed(
    make_run: MakeRun, bench: Command, tmp_path: Path
) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{AIMS_BEGIN}old\n{AIMS_END}after\n", encoding="utf-8")
    free = make_run("free.json", with_facts(python="3.13.0", gil=False))
    arguments = (make_run(), free, "--aims", document)
    assert bench("report", *arguments).returncode == 0
    text = document.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{AIMS_BEGIN}| workload |")
    assert text.endswith(f"{AIMS_END}after\n")
    assert "old" not in text
    assert "Python 3.13.0, free-threaded" in text

    def row(workload: str) -> str:
        [line] = [line for line in text.splitlines() if line.startswith(f"| {workload} |")]
        return line

    # In the made-up runs fastpool is 12 times faster than psycopg_pool, and HikariCP faster still.
    missed = f"| at least 18.0 {TIMES} | 12.0 {TIMES}: missed |"
    assert row("getconn() + putconn(), one thread").endswith(missed)
    assert row("with connection(), one thread").endswith(f"| 12.0 {TIMES} |")
    assert row("the same against HikariCP").endswith(f"0.700 {TIMES}: missed |")
    free_threaded = row("getconn() + putconn(), one thread, no GIL")
    assert free_threaded.endswith(f"| 12.0 {TIMES}: missed |")
    assert bench("report", *arguments, "--check").returncode == 0
    document.write_text(text.replace("12.0", "99.0"), encoding="utf-8")
    assert bench("report", *arguments, "--check").returncode == 1


def test_an_aim_that_was_not_measured_stays_in_the_table(
    make_run: MakeRun, bench: Command, tmp_path: Path
) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"{AIMS_BEGIN}{AIMS_END}", encoding="utf-8")
    assert bench("report", make_run("run.json", only("spike")), "--aims", document).returncode == 0
    lines = document.read_text(encoding="utf-8").splitlines()
    aims = [line for line in lines if line.startswith("|")][2:]
    assert len(aims) > 15
    assert all(line.endswith("| \N{EN DASH} |") for line in aims)
