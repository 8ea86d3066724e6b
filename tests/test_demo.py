"""`python -m fastpool demo`, run as people run it: a process, a pipe or a terminal, signals."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fastpool.__main__ import main
from fastpool.demo.histogram import Histogram
from fastpool.demo.load import Load
from fastpool.demo.postgres import PostgresServer
from fastpool.demo.text import duration, encodable, shorten

SHORT = ("--seconds", "0.3", "--threads", "8")
PATIENCE = 30.0
PROGRESS = re.compile(r"^ +\d+\.\d s ")
STYLE = re.compile(r"\x1b\[[0-9;]*m")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def environment(**changes: str) -> dict[str, str]:
    """Return our environment without what would change the demo's looks or its server."""
    ours = {"COLUMNS", "LINES", "DATABASE_URL", "NO_COLOR", "FORCE_COLOR", "PYTHONIOENCODING"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**kept, "TERM": "xterm-256color", **changes}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fastpool", "demo", *arguments]


def demo(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the demo to its end, with pipes."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=PATIENCE,
        env=environment(**changes),
        check=False,
    )


class Piped:
    """A demo that runs now, its output in one pipe."""

    def __init__(self, *arguments: str, **changes: str) -> None:
        self.process = subprocess.Popen(
            command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            env=environment(**changes),
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout

    def read_until_progress(self) -> None:
        """Read up to the first line of the load in progress; a demo that ends before fails."""
        read = []
        for line in self.output:
            read.append(line)
            if PROGRESS.match(line):
                return
        pytest.fail("no progress was shown:\n" + "".join(read))

    def finish(self) -> tuple[int, str]:
        """Return the exit code and the rest of the output."""
        rest, _ = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, rest


@pytest.fixture
def piped() -> Iterator[Callable[..., Piped]]:
    """Start a demo with pipes: `piped("--seconds", "5")`."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, **changes: str) -> Piped:
            run = Piped(*arguments, **changes)
            stack.enter_context(run.process)
            stack.callback(run.process.kill)
            return run

        yield start


@pytest.fixture
def place() -> Iterator[Path]:
    """A temporary directory of the demo's own, in which its server lives too."""
    directory = Path(tempfile.mkdtemp(prefix="fpd-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def left_in(place: Path) -> list[str]:
    """Return the files below *place* and the processes that name it."""
    ps = subprocess.run(["ps", "-axo", "pid,args"], capture_output=True, text=True, check=True)
    processes = [line for line in ps.stdout.splitlines() if str(place) in line]
    return [*map(str, place.iterdir()), *processes]


def on_terminal(*arguments: str, interrupt: bool = False, **changes: str) -> tuple[int, str]:
    """Run the demo on a terminal of 80 by 24; return its exit code and all that it wrote.

    With *interrupt*, it gets a SIGINT as soon as it shows slots.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        command(*arguments), stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**changes)
    )
    os.close(theirs)
    written = b""
    deadline = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 0.1)[0]:
                continue
            try:
                some = os.read(ours, 65536)
            except OSError:  # Linux: the other end was closed
                some = b""
            if not some:
                break
            written += some
            if interrupt and b"held by" in written:
                interrupt = False
                process.send_signal(signal.SIGINT)
        return process.wait(PATIENCE), written.decode()
    finally:
        os.close(ours)
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def plain(dsn: str) -> subprocess.CompletedProcess[str]:
    """A demo of both pools, piped, in 80 columns."""
    return demo(*SHORT, "--dsn", dsn, COLUMNS="80")


@pytest.fixture(scope="module")
def as_json(dsn: str) -> subprocess.CompletedProcess[str]:
    """A demo of both pools with --json."""
    return demo(*SHORT, "--dsn", dsn, "--size", "3", "--json")


# Plain output


def test_a_piped_demo_shows_progress_and_ends_with_a_table_of_both_pools(
    plain: subprocess.CompletedProcess[str],
) -> None:
    assert (plain.returncode, plain.stderr) == (0, "")
    lines = plain.stdout.splitlines()
    assert sum(1 for line in lines if PROGRESS.match(line)) >= 2
    header = next(line.split() for line in lines if line.split()[-1:] == ["ratio"])
    assert header == ["fastpool", "psycopg_pool", "ratio"]
    labels = ("requests", "requests/s", *(f"checkout wait {p}" for p in ("p50", "p99", "p99.9")))
    for label in (*labels, "checkout wait max", "least served", "most served", "errors"):
        assert re.search(rf"^  {re.escape(label)} .*\d", plain.stdout, re.MULTILINE), label


def test_progress_shows_the_slots_by_their_states(
    plain: subprocess.CompletedProcess[str],
) -> None:
    shown = [line.split()[-1] for line in plain.stdout.splitlines() if PROGRESS.match(line)]
    assert re.fullmatch("[AUCRSX.]{4}", shown[0])


def test_piped_output_has_no_escape_codes_and_fits_80_columns(
    plain: subprocess.CompletedProcess[str],
) -> None:
    assert "\x1b" not in plain.stdout
    assert max(map(len, plain.stdout.splitlines())) <= 80


def test_a_narrow_width_sets_the_pools_one_below_the_other(dsn: str) -> None:
    run = demo(*SHORT, "--dsn", dsn, COLUMNS="40")
    assert run.returncode == 0
    assert max(map(len, run.stdout.splitlines())) <= 40
    assert len(re.findall("checkout wait p99.9", run.stdout)) == 2


def test_an_ascii_pipe_gets_ascii(dsn: str) -> None:
    run = demo(
        *SHORT, "--dsn", dsn, "--no-compare", "--query", "SELECT 'ä'", PYTHONIOENCODING="ascii"
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.isascii()
    assert " us" in run.stdout or " ms" in run.stdout


# JSON


def test_json_is_one_object_on_stdout_with_the_progress_on_stderr(
    as_json: subprocess.CompletedProcess[str],
) -> None:
    assert as_json.returncode == 0
    assert isinstance(json.loads(as_json.stdout), dict)
    assert any(PROGRESS.match(line) for line in as_json.stderr.splitlines())


def test_json_has_the_documented_keys(as_json: subprocess.CompletedProcess[str]) -> None:
    result = json.loads(as_json.stdout)
    assert set(result) == {
        "fastpool",
        "machine",
        "settings",
        "interrupted",
        "pools",
        "ratio",
        "notes",
    }
    assert set(result["machine"]) == {
        "python",
        "gil",
        "psycopg",
        "psycopg_impl",
        "postgresql",
        "server",
        "cores",
        "system",
    }
    assert result["settings"] == {
        "size": 3,
        "threads": 8,
        "seconds": 0.3,
        "warmup_seconds": 0.3,
        "query": "SELECT 1",
        "order": "fifo",
    }
    assert set(result["pools"]) == {"fastpool", "psycopg_pool"}
    for pool in result["pools"].values():
        assert set(pool) == {
            "version",
            "seconds",
            "requests",
            "throughput",
            "wait_ms",
            "checkouts",
            "fairness",
            "per_thread",
            "errors",
        }
        assert list(pool["wait_ms"]) == ["p50", "p99", "p999", "max"]
    assert set(result["ratio"]) == {"throughput", "wait_ms", "fairness"}


def test_the_figures_agree_with_each_other(as_json: subprocess.CompletedProcess[str]) -> None:
    result = json.loads(as_json.stdout)
    for pool in result["pools"].values():
        assert pool["requests"] == sum(pool["per_thread"]) > 0
        assert len(pool["per_thread"]) == 8
        assert pool["requests"] <= pool["checkouts"] <= pool["requests"] + 8
        assert pool["seconds"] >= 0.3
        assert pool["throughput"] == pytest.approx(pool["requests"] / pool["seconds"], rel=1e-3)
        assert pool["fairness"]["least"] == min(pool["per_thread"])
        assert pool["fairness"]["most"] == max(pool["per_thread"])
        waits = list(pool["wait_ms"].values())
        assert waits == sorted(waits)
        assert waits[0] > 0
        assert waits[-1] <= pool["seconds"] * 1000
        assert pool["errors"] == {"count": 0, "causes": []}
    ours, theirs = (result["pools"][name] for name in ("fastpool", "psycopg_pool"))
    ratio = ours["throughput"] / theirs["throughput"]
    assert result["ratio"]["throughput"] == pytest.approx(ratio, rel=1e-2)


@pytest.mark.parametrize(("order", "backends"), [("fifo", 3), ("lifo", 1)])
def test_order_decides_how_many_connections_one_thread_meets(
    dsn: str, order: str, backends: int
) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS demo_served (pid int)")
        conn.execute("TRUNCATE demo_served")
        run = demo(
            "--dsn",
            dsn,
            "--size",
            "3",
            "--threads",
            "1",
            "--seconds",
            "0.2",
            "--no-compare",
            "--query",
            "INSERT INTO demo_served VALUES (pg_backend_pid())",
            "--order",
            order,
        )
        served = conn.execute("SELECT count(DISTINCT pid) FROM demo_served").fetchone()
        conn.execute("DROP TABLE demo_served")
    assert run.returncode == 0, run.stderr
    assert served == (backends,)


# What is not installed


def hide(directory: Path, module: str) -> str:
    """Return a PYTHONPATH on which *module* cannot be imported."""
    (directory / f"{module}.py").write_text("raise ImportError('hidden')\n")
    return os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH", ""))))


def test_without_psycopg_pool_one_line_says_so(dsn: str, tmp_path: Path) -> None:
    run = demo(*SHORT, "--dsn", dsn, PYTHONPATH=hide(tmp_path, "psycopg_pool"))
    assert (run.returncode, run.stderr) == (0, "")
    said = [line for line in run.stdout.splitlines() if "psycopg_pool" in line]
    assert len(said) == 1
    assert "not installed" in said[0]


def test_without_rich_a_terminal_gets_plain_lines(dsn: str, tmp_path: Path) -> None:
    path = hide(tmp_path, "rich")
    code, output = on_terminal(*SHORT, "--dsn", dsn, "--no-compare", PYTHONPATH=path)
    assert code == 0
    assert "\x1b" not in output
    assert "rich" not in output
    assert any(PROGRESS.match(line) for line in output.splitlines())


# On a terminal


@pytest.fixture(scope="module")
def live(dsn: str) -> str:
    """What a demo of both pools writes to a terminal."""
    code, output = on_terminal(*SHORT, "--dsn", dsn)
    assert code == 0, output
    return output


def test_a_terminal_shows_the_slots_live_and_then_the_table(live: str) -> None:
    assert "\x1b[1A" in live, "nothing was redrawn"
    picture, _, table = live.rpartition("\x1b[?25h")
    assert re.search(r"\b3\b.*(in use|available)", picture)
    assert "held by" in picture
    assert "waiting" in picture
    assert "checkout wait p99.9" in table
    assert "held by" not in table


def test_a_terminal_of_80_columns_sees_no_longer_line(live: str) -> None:
    lines = ESCAPE.sub("", live).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= 80


def test_no_color_takes_the_colours_and_leaves_the_picture(dsn: str, live: str) -> None:
    code, output = on_terminal(*SHORT, "--dsn", dsn, "--no-compare", NO_COLOR="1")
    assert code == 0
    assert STYLE.search(live)
    assert not STYLE.search(output)
    assert "\x1b[1A" in output


def test_a_dumb_terminal_gets_plain_lines(dsn: str) -> None:
    code, output = on_terminal(*SHORT, "--dsn", dsn, "--no-compare", TERM="dumb")
    assert code == 0
    assert "\x1b" not in output


def test_an_interrupt_gives_the_cursor_back(dsn: str) -> None:
    code, output = on_terminal("--dsn", dsn, "--seconds", "20", interrupt=True)
    assert code == 130
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l") >= 0
    assert "checkout wait max" in output.rpartition("\x1b[?25h")[2]


# Interrupts and ends


def test_an_interrupt_ends_the_load_with_its_table_and_stops_the_server(
    piped: Callable[..., Piped], place: Path
) -> None:
    run = piped("--seconds", "20", TMPDIR=str(place))
    run.read_until_progress()
    assert left_in(place), "the server is not where the test looks for it"
    run.process.send_signal(signal.SIGINT)
    code, rest = run.finish()
    assert code == 130, rest
    assert re.search(r"^  requests +[1-9]", rest, re.MULTILINE), rest
    assert "Interrupted" in rest
    assert "psycopg_pool" not in rest
    assert left_in(place) == []


def test_sigterm_ends_it_as_an_interrupt_does_with_json_too(
    piped: Callable[..., Piped], dsn: str
) -> None:
    run = piped("--seconds", "20", "--dsn", dsn, "--json")
    run.read_until_progress()
    run.process.terminate()
    code, rest = run.finish()
    result = json.loads(rest.splitlines()[-1])
    assert code == 143
    assert result["interrupted"] is True
    assert result["pools"]["fastpool"]["requests"] > 0


def test_an_interrupt_does_not_wait_for_a_slow_query(piped: Callable[..., Piped], dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE demo_pace AS SELECT 0.0::float8 AS seconds")
        run = piped(
            "--seconds", "60", "--dsn", dsn, "--query", "SELECT pg_sleep(seconds) FROM demo_pace"
        )
        run.read_until_progress()
        conn.execute("UPDATE demo_pace SET seconds = 60")
        run.process.send_signal(signal.SIGINT)
        began = time.monotonic()
        code, rest = run.finish()
        conn.execute("DROP TABLE demo_pace")
    assert code == 130, rest
    assert time.monotonic() - began < 10
    assert re.search(r"^  errors +0$", rest, re.MULTILINE), rest


def test_a_killed_demo_leaves_neither_server_nor_directory(
    piped: Callable[..., Piped], place: Path, eventually: Callable[..., Any]
) -> None:
    run = piped("--seconds", "20", TMPDIR=str(place))
    run.read_until_progress()
    assert left_in(place), "the server is not where the test looks for it"
    run.process.kill()
    eventually(lambda: not left_in(place), timeout=10, what="server and directory gone")


def test_a_reader_that_leaves_ends_the_demo(piped: Callable[..., Piped], dsn: str) -> None:
    run = piped("--seconds", "20", "--dsn", dsn)
    run.read_until_progress()
    run.output.close()
    assert run.process.wait(PATIENCE) == 1


# Errors


def test_a_dsn_that_is_refused_exits_3_with_the_servers_error(dsn: str) -> None:
    run = demo(*SHORT, "--dsn", f"{dsn} dbname=nowhere", "--json")
    assert (run.returncode, run.stdout) == (3, "")
    assert 'database "nowhere" does not exist' in run.stderr
    assert "--dsn" in run.stderr
    assert "Traceback" not in run.stderr


def test_without_any_postgresql_the_message_says_what_to_do(tmp_path: Path) -> None:
    run = demo(*SHORT, FASTPOOL_PG_BIN=str(tmp_path))
    assert run.returncode == 3
    assert str(tmp_path) in run.stderr
    assert "--dsn" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--size", "0"),
        ("--threads", "many"),
        ("--seconds", "nan"),
        ("--order", "random"),
        ("--dsn", "nonsense words"),
        ("surplus",),
    ],
    ids=" ".join,
)
def test_bad_arguments_exit_2(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["demo", *arguments])
    assert exit_.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_a_query_that_fails_exits_1_with_its_cause_and_is_not_compared(dsn: str) -> None:
    run = demo(*SHORT, "--dsn", dsn, "--query", "SELECT nope")
    assert run.returncode == 1
    assert '8 x UndefinedColumn: column "nope" does not exist' in run.stdout
    assert "No comparison" in run.stdout


def test_more_connections_than_the_server_takes_exits_1_with_the_servers_error(
    own_server: Callable[..., PostgresServer],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = own_server(settings={"max_connections": "5", "superuser_reserved_connections": "0"})
    monkeypatch.setattr("fastpool.demo.command.OPEN_TIMEOUT", 0.5)
    code = main(["demo", *SHORT, "--dsn", server.dsn, "--size", "10"])
    assert code == 1
    assert "too many clients" in " ".join(capsys.readouterr().out.split())


def test_a_server_that_dies_ends_the_load_with_its_cause(
    piped: Callable[..., Piped], own_server: Callable[..., PostgresServer]
) -> None:
    server = own_server()
    run = piped("--seconds", "60", "--dsn", server.dsn)
    run.read_until_progress()
    server.stop("immediate")
    began = time.monotonic()
    code, rest = run.finish()
    assert code == 1, rest
    assert time.monotonic() - began < 20
    said = " ".join(rest.split())
    assert re.search("terminating connection|server closed the connection", said), rest


# The load, without a database


class Ledger:
    """A pool of nothing: `checkout` counts, and may be told to fail."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.lock = threading.Lock()
        self.executed = 0
        self.fail_after = fail_after

    @contextlib.contextmanager
    def checkout(self) -> Iterator[Ledger]:
        yield self

    def execute(self, query: str) -> None:
        with self.lock:
            if self.executed == self.fail_after:
                raise LookupError("enough")
            self.executed += 1


def test_requests_are_the_queries_that_ran() -> None:
    ledger = Ledger()
    load = Load(ledger.checkout, "", 5)
    load.start(0.1)
    assert load.join(PATIENCE)
    result = load.result(count_unfinished=True)
    assert result.requests == sum(result.per_thread) == ledger.executed > 0
    assert result.requests <= result.waits.count <= result.requests + 5
    assert result.seconds >= 0.1


def test_a_thread_that_fails_keeps_its_error_and_ends() -> None:
    ledger = Ledger(fail_after=100)
    load = Load(ledger.checkout, "", 3)
    load.start(PATIENCE)
    assert load.join(PATIENCE)
    result = load.result(count_unfinished=True)
    assert dict(result.errors) == {"LookupError: enough": 3}
    assert result.requests == 100


def test_a_request_without_end_counts_as_unfinished_and_not_when_the_user_stopped() -> None:
    gate = threading.Event()

    class Stuck(Ledger):
        def execute(self, query: str) -> None:
            assert gate.wait(PATIENCE)
            raise LookupError("cut")

    load = Load(Stuck().checkout, "", 2)
    load.start(0.05)
    assert not load.join(0.1)
    load.abandon()
    gate.set()
    assert load.join(PATIENCE)
    [(message, count)] = load.result(count_unfinished=True).errors.items()
    assert (count, "unfinished" in message, "cut" in message) == (2, True, True)
    assert not load.result(count_unfinished=False).errors


# The figures


@pytest.mark.parametrize("percent", [1, 50, 99, 99.9, 100])
def test_a_percentile_is_within_half_a_percent_of_the_exact_one(percent: float) -> None:
    values = sorted(int(1.01**n * 37) for n in range(1500))
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    exact = values[max(0, -(-len(values) * percent // 100).__int__() - 1)]
    assert histogram.percentile(percent) == pytest.approx(exact, rel=0.005)


def test_a_histogram_of_small_values_is_exact_and_an_empty_one_has_no_percentile() -> None:
    histogram = Histogram()
    assert histogram.percentile(50) is None
    for value in range(256):
        histogram.record(value)
    assert [histogram.percentile(p) for p in (25, 50, 100)] == [63, 127, 255]


def test_merged_histograms_count_as_one() -> None:
    one, other, both = Histogram(), Histogram(), Histogram()
    for value in range(1, 20_000, 7):
        (one if value % 2 else other).record(value)
        both.record(value)
    one.merge(other)
    assert (one.count, one.max_ns) == (both.count, both.max_ns)
    assert one.percentile(90) == both.percentile(90)


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, "-"),
        (0, "0 ns"),
        (999, "999 ns"),
        (999_400, "999 µs"),
        (999_600, "1.00 ms"),
        (1_234_000, "1.23 ms"),
        (99_960_000, "100 ms"),
        (12_340_000_000, "12.3 s"),
    ],
)
def test_a_duration_has_three_digits_and_its_unit(ns: int | None, text: str) -> None:
    assert duration(ns) == text


def test_text_is_cut_to_its_width_and_to_what_the_encoding_has() -> None:
    assert shorten("SELECT\n  1", 20) == "SELECT 1"
    assert [shorten("abcdef", width) for width in (6, 5, 1, 0)] == ["abcdef", "abcd…", "…", ""]
    assert encodable("1.2 µs…", "ascii") == "1.2 us~"
    assert encodable("日", "ascii") == "?"
