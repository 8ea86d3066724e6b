"""Pages about more than one server, run with those servers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from docs.pages import ROOT, Runner, blocks, free_port
from psycopg.conninfo import conninfo_to_dict

import fastpool
from fastpool.demo.postgres import PostgresServer

HOWTO = ROOT / "docs" / "howto"
PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH')}:/usr/sbin")
INI = """
[databases]
app = host={host} port={port} user={user} password={password} dbname=app

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
"""

OwnServer = Callable[..., PostgresServer]

pytestmark = pytest.mark.skipif(
    not HOWTO.exists(), reason="these tests need the checkout around them"
)


def refuses(port: int) -> bool:
    """Tell whether nobody serves the port yet."""
    try:
        psycopg.connect(f"host=127.0.0.1 port={port} user=postgres dbname=app").close()
    except psycopg.OperationalError:
        return True
    return False


@pytest.fixture
def pgbouncer(
    own_server: OwnServer, tmp_path: Path, eventually: Callable[..., object]
) -> Iterator[int]:
    """The port of a PgBouncer in transaction mode, before a database called "app"."""
    if PGBOUNCER is None:
        pytest.skip("there is no pgbouncer here")
    server = own_server(tcp=True)
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute("create database app")
    port = free_port()
    ini = tmp_path / "pgbouncer.ini"
    place = conninfo_to_dict(server.dsn)
    ini.write_text(INI.format(listen_port=port, **place), encoding="utf-8")
    # It refuses to be root, and reads its file before it could change its user.
    user = "nobody" if os.geteuid() == 0 else None
    if user is not None:
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(0o755)
    process = subprocess.Popen(
        [PGBOUNCER, "-q", str(ini)], user=user, stderr=subprocess.PIPE, text=True
    )
    try:
        eventually(lambda: process.poll() is not None or not refuses(port), what="pgbouncer")
        assert process.poll() is None, process.communicate()[1]
        yield port
    finally:
        process.terminate()
        process.communicate(timeout=10)


def test_the_pgbouncer_page_runs_through_pgbouncer(pgbouncer: int, tmp_path: Path) -> None:
    environment = {
        "PGUSER": "postgres",
        "PYTHONPATH": str(Path(fastpool.__file__).parent.parent),
    }
    through = f'"host=127.0.0.1 port={pgbouncer} dbname=app"'
    page = HOWTO / "pgbouncer.md"
    assert any("NullConnectionPool" in block.text for block in blocks(page, {}))
    Runner(tmp_path, environment).run(page, {'"dbname=app"': through})


# Writes a note before the line that it reads and one after it.
WRITER = """
import notes

with notes.pool:
    print(notes.write("before"), flush=True)
    input()
    print(notes.write("after"), flush=True)
"""


def test_the_failover_page_follows_a_promotion(own_server: OwnServer, tmp_path: Path) -> None:
    primary = own_server()
    if not primary.bindir.joinpath("pg_basebackup").exists():
        pytest.skip("no pg_basebackup beside this server")
    with psycopg.connect(primary.dsn, autocommit=True) as conn:
        conn.execute("create database app")
    copy = primary.home / "standby"
    primary.run("pg_basebackup", "-D", copy, "-R", "-N", "-c", "fast", "-d", primary.dsn)
    standby = own_server(primary.settings | {"fsync": False}, data=copy)

    servers = (primary, standby)
    hosts = ",".join(str(server.socket_dir) for server in servers)
    ports = ",".join(str(server.port) for server in servers)
    environment = {
        "PGUSER": "postgres",
        "PYTHONPATH": str(Path(fastpool.__file__).parent.parent),
    }
    page = HOWTO / "failover.md"
    Runner(tmp_path, environment).run(page, {"host=db1,db2": f"host={hosts} port={ports}"})

    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER],
        cwd=tmp_path,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        try:
            assert writer.stdout.readline() == "2\n"
            primary.stop(keep=True)
            with psycopg.connect(standby.dsn, autocommit=True) as conn:
                conn.execute("select pg_promote()")
            written, _ = writer.communicate("go on\n", timeout=40)
        finally:
            writer.kill()
    assert written == "3\n"
