"""`python -m fastpool doctor`: what it looks at, what it advises, and how it ends."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import fastpool
from fastpool.__main__ import main
from fastpool.demo.postgres import PostgresServer
from fastpool.doctor import command, here
from fastpool.doctor import server as doctor_server

LIBPQ = ("DATABASE_URL", "PGHOST", "PGHOSTADDR", "PGSERVICE", "PGPASSWORD", "PGAPPNAME")

Doctor = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(autouse=True)
def no_server_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LIBPQ:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Run it with --json; returns the exit code and the object."""

    def run(*words: str) -> tuple[int, dict[str, Any]]:
        code = main(["doctor", "--json", *words])
        return code, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def role(dsn: str) -> Iterator[Callable[[str], str]]:
    """Make a role with some options, and return a DSN for it."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("DROP ROLE IF EXISTS patient")

        def make(options: str = "", **settings: str) -> str:
            conn.execute(f"CREATE ROLE patient LOGIN {options}")
            for name, value in settings.items():
                conn.execute(f"ALTER ROLE patient SET {name} = '{value}'")
            return make_conninfo(dsn, user="patient")

        yield make
        conn.execute("DROP ROLE IF EXISTS patient")


def by_level(findings: Mapping[str, Mapping[str, Any]], level: str) -> set[str]:
    return {name for name, finding in findings.items() if finding["level"] == level}


# ---- the installation


def test_without_a_server_it_looks_at_the_installation(doctor: Doctor) -> None:
    code, report = doctor()
    installation = report["sections"]["installation"]
    assert code == report["exit_code"] == 0
    assert report["fastpool"] == fastpool.__version__
    assert report["sections"]["server"] is None
    assert installation["fastpool"]["value"].startswith(fastpool.__version__)
    assert installation["psycopg"]["value"] == psycopg.__version__
    assert installation["implementation"]["value"].split()[0] == psycopg.pq.__impl__
    assert installation["libpq"]["value"].startswith(str(psycopg.pq.version() // 10_000))
    assert sys.version.split()[0] in installation["Python"]["value"]
    assert installation["self-test"]["value"].startswith("400 leases")
    assert installation["self-test"]["level"] == "ok"


def test_a_core_that_lends_twice_fails_the_self_test(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    lent_to_everybody = here._Stub()
    monkeypatch.setattr(fastpool.ConnectionPool, "getconn", lambda *_, **__: lent_to_everybody)
    monkeypatch.setattr(fastpool.ConnectionPool, "putconn", lambda *_: None)
    barrier = threading.Barrier(here._THREADS)
    # All of them hold it before anybody looks who does.
    monkeypatch.setattr(here.time, "sleep", lambda _: barrier.wait(20))
    code, report = doctor()
    found = report["sections"]["installation"]["self-test"]
    assert code == 1
    assert report["level"] == found["level"] == "error"
    assert "lent to two threads" in found["value"]


def test_a_debug_build_is_warned_of(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here._core, "BUILD", "debug-address, gcc 12.2.0")
    code, report = doctor()
    assert code == 1
    assert by_level(report["sections"]["installation"], "warning") == {"fastpool"}


def test_the_pure_python_driver_is_noted_and_no_warning(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psycopg.pq, "__impl__", "python")
    code, report = doctor()
    found = report["sections"]["installation"]["implementation"]
    assert code == 0
    assert found["level"] == "note"
    assert "psycopg[binary]" in found["advice"]


def test_a_gil_that_came_back_is_warned_of(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here.sysconfig, "get_config_var", lambda name: 1)
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True, raising=False)
    code, report = doctor()
    assert code == 1
    assert report["sections"]["installation"]["GIL"]["level"] == "warning"


# ---- a server


def test_a_server_is_looked_at(doctor: Doctor, server: PostgresServer) -> None:
    code, report = doctor("--dsn", server.dsn)
    found = report["sections"]["server"]
    assert code == 0
    assert found["PostgreSQL"]["value"].startswith(server.version)
    assert "(Unix socket)" in found["connection"]["value"]
    assert found["pooler between"]["value"] == "no"
    assert "max_connections 200" in found["sessions"]["value"]
    assert found["idle_session_timeout"] == {"value": "0", "level": "ok", "advice": None}
    notes = {"role", "idle_in_transaction_session_timeout", "statement_timeout"}
    assert by_level(found, "note") == notes


def test_the_environment_names_a_server_too(
    doctor: Doctor, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", server.dsn)
    assert doctor()[1]["sections"]["server"]["connection"]["level"] == "ok"
    monkeypatch.delenv("DATABASE_URL")
    words = conninfo_to_dict(server.dsn)
    for name, word in (("PGHOST", "host"), ("PGPORT", "port"), ("PGUSER", "user")):
        monkeypatch.setenv(name, str(words[word]))
    monkeypatch.setenv("PGDATABASE", "postgres")
    assert doctor()[1]["sections"]["server"]["connection"]["level"] == "ok"


def test_an_idle_session_timeout_is_warned_of(
    doctor: Doctor, role: Callable[..., str], server: PostgresServer
) -> None:
    if int(server.version.partition(".")[0]) < 14:
        pytest.skip("idle_session_timeout came with PostgreSQL 14")
    dsn = role(idle_session_timeout="90s", statement_timeout="5s")
    code, report = doctor("--dsn", dsn)
    found = report["sections"]["server"]
    assert code == 1
    assert by_level(found, "warning") == {"idle_session_timeout"}
    assert found["idle_session_timeout"]["value"] == "90s"
    assert found["statement_timeout"] == {"value": "5s", "level": "ok", "advice": None}
    assert found["role"] == {"value": "no superuser", "level": "ok", "advice": None}


def test_pools_that_find_no_room_are_warned_of(doctor: Doctor, dsn: str) -> None:
    code, report = doctor("--dsn", dsn, "--size", "100")
    assert (code, report["sections"]["server"]["sessions"]["level"]) == (0, "ok")
    code, report = doctor("--dsn", dsn, "--size", "201")
    sessions = report["sections"]["server"]["sessions"]
    assert (code, sessions["level"]) == (1, "warning")
    assert "the 201 that your pools may open" in sessions["advice"]


def test_the_sessions_that_are_there_take_room(doctor: Doctor, role: Callable[..., str]) -> None:
    dsn = role("CONNECTION LIMIT 5")
    free = doctor("--dsn", dsn)[1]["sections"]["server"]["sessions"]
    assert free["value"].startswith("5 free")
    assert "the role's CONNECTION LIMIT" in free["value"]
    with psycopg.connect(dsn), psycopg.connect(dsn):
        code, report = doctor("--dsn", dsn)
    sessions = report["sections"]["server"]["sessions"]
    assert code == 1
    assert sessions["value"].startswith("3 free")
    assert sessions["level"] == "warning"


def test_a_read_only_server_is_noted(doctor: Doctor, role: Callable[..., str]) -> None:
    _, report = doctor("--dsn", role(default_transaction_read_only="on"))
    assert report["sections"]["server"]["read-only"]["value"] == "by default"
    assert report["sections"]["server"]["read-only"]["level"] == "note"


def test_a_server_across_the_network_is_judged_by_its_tls_and_keepalives(
    doctor: Doctor,
    own_server: Callable[..., PostgresServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dsn = own_server(tcp=True).dsn
    found = doctor("--dsn", dsn)[1]["sections"]["server"]
    assert by_level(found, "warning") == set()
    monkeypatch.setattr(doctor_server, "_is_remote", lambda conn: True)
    code, report = doctor("--dsn", dsn)
    assert code == 1
    assert by_level(report["sections"]["server"], "warning") == {"TLS", "keepalives"}
    words = make_conninfo(dsn, keepalives_idle="30")
    found = doctor("--dsn", words)[1]["sections"]["server"]
    assert by_level(found, "warning") == {"TLS"}
    assert found["keepalives"]["value"] == "after 30 s"


def test_a_pooler_between_is_noticed(
    doctor: Doctor, own_server: Callable[..., PostgresServer]
) -> None:
    server = own_server(tcp=True)
    with Renamer(server.port) as port:
        code, report = doctor("--dsn", make_conninfo(server.dsn, port=port), "--size", "100000")
    found = report["sections"]["server"]
    assert code == 0  # its limits are not the server's
    assert found["pooler between"]["value"] == "yes"
    assert "PgBouncer" in found["pooler between"]["advice"]
    assert "prepare_threshold" in found["pooler between"]["advice"]


class Renamer:
    """Forwards one connection to a server, and tells another backend's number, as poolers do."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> int:
        self._thread.start()
        port: int = self._listener.getsockname()[1]
        return port

    def __exit__(self, *raised: object) -> None:
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        server = socket.create_connection(("127.0.0.1", self._to))
        back = threading.Thread(target=self._pump, args=(server, client, True), daemon=True)
        back.start()
        self._pump(client, server, False)
        back.join(10)
        client.close()
        server.close()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket, renames: bool) -> None:
        while data := source.recv(65536):
            # BackendKeyData: its letter, its length, the process id, the secret.
            at = data.find(b"K\x00\x00\x00\x0c") if renames else -1
            if at >= 0:
                data = data[: at + 5] + struct.pack("!i", 1) + data[at + 9 :]
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


# ---- a server that is not to be had


def test_a_server_out_of_reach_is_exit_code_3(doctor: Doctor) -> None:
    code, report = doctor("--dsn", "host=127.0.0.1 port=1 dbname=app")
    assert code == report["exit_code"] == 3
    assert report["level"] == "error"
    assert report["sections"]["server"]["connection"]["level"] == "error"
    assert "refused" in report["sections"]["server"]["connection"]["value"]
    assert report["sections"]["installation"]["self-test"]["level"] == "ok"


@pytest.mark.parametrize("json_too", [(), ("--json",)], ids=["text", "json"])
def test_no_password_is_shown(
    own_server: Callable[..., PostgresServer],
    capfd: pytest.CaptureFixture[str],
    json_too: tuple[str, ...],
) -> None:
    server = own_server(tcp=True)
    password = str(conninfo_to_dict(server.dsn)["password"])
    wrong = make_conninfo(server.dsn, password="Tr0mbone")
    assert main(["doctor", "--dsn", server.dsn, *json_too]) == 0
    assert main(["doctor", "--dsn", wrong, *json_too]) == 3
    shown = "".join(capfd.readouterr())
    assert "password authentication failed" in " ".join(shown.split())
    assert password not in shown
    assert "Tr0mbone" not in shown


@pytest.mark.parametrize(
    "words",
    [["--dsn", "host=x Tr0mbone"], ["--size", "0"], ["--size", "many"], ["--no-such-option"]],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *words])
    assert caught.value.code == 2
    assert "Tr0mbone" not in capsys.readouterr().err


def test_a_database_url_that_is_none_is_exit_code_3(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "host=x Tr0mbone")
    code, report = doctor()
    assert code == 3
    assert report["sections"]["server"]["connection"]["value"] == "not a connection string"


def test_one_that_waits_long_says_for_what(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "QUIET_FOR", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        port = silent.getsockname()[1]
        dsn = f"host=127.0.0.1 port={port} connect_timeout=2 sslmode=disable gssencmode=disable"
        assert main(["doctor", "--json", "--dsn", dsn]) == 3
    output = capsys.readouterr()
    assert "fastpool doctor: waiting for the server, 0 s so far" in output.err
    assert json.loads(output.out)["exit_code"] == 3


def test_a_server_that_stops_answering_is_given_up(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, dsn: str
) -> None:
    monkeypatch.setattr(doctor_server, "ANSWER_TIMEOUT", 0.3)
    monkeypatch.setattr(doctor_server, "_QUESTION", "SELECT pg_sleep(30)")
    code, report = doctor("--dsn", dsn)
    assert code == 3
    assert "no answer" in report["sections"]["server"]["connection"]["value"]


def test_a_server_that_refuses_the_questions_says_why(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, dsn: str
) -> None:
    monkeypatch.setattr(doctor_server, "_QUESTION", "SELECT 1/0")
    code, report = doctor("--dsn", dsn)
    assert code == 3
    assert "division by zero" in report["sections"]["server"]["connection"]["value"]


# ---- how it reads


def test_for_people_it_is_plain_text_that_ends_with_a_verdict(dsn: str, tmp_path: Path) -> None:
    path = os.environ.get("PYTHONPATH", "")
    entries = [str(Path(entry).absolute()) for entry in path.split(os.pathsep) if entry]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "fastpool", "doctor", "--dsn", dsn],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(entries), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stdout.splitlines()[0] == "installation"
    assert "self-test" in done.stdout
    assert "- statement_timeout" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("notes")


def test_the_self_test_passes_each_time() -> None:
    assert {here.self_test().level for _ in range(50)} == {"ok"}
