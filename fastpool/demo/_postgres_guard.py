"""The process beside a PostgresServer: it owns the postmaster and the directory, and ends both.

It is run as `python -I -S _postgres_guard.py OWNER_PID`, in a session of its own, with a pipe from
its owner as standard input. The first line on that pipe describes the server, each further line is
a command, each reply is one line on standard output; all are JSON. When the pipe ends or the owner
is no longer its parent, however the owner died, it stops the server, removes the directory and
exits.

It decides nothing: which binaries, which user, which options come from its owner. It imports only
the standard library, and little of it, because its start is a part of each server's start. The
owner imports `stop_postmaster`, `remove` and the like from here, to do this work itself when the
guard was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

MODES = ("fast", "immediate", "kill")

# How long each way to stop may take before the next harsher one, in seconds. The postmaster
# itself kills its children 5 s after an immediate shutdown began.
PATIENCE = 10.0
POLL = 0.005

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_IPC_RMID = 0


class OwnerGone(BaseException):
    """The owner closed the pipe, died, or somebody asked the guard to end."""


def _libc() -> Any:
    """Return the C library through ctypes, or None where there is none to call."""
    try:
        from ctypes import CDLL, c_int, c_ulong, c_void_p

        libc = CDLL(None)
        libc.shmctl.argtypes = (c_int, c_int, c_void_p)
        if sys.platform == "linux":
            libc.prctl.argtypes = (c_int, c_ulong, c_ulong, c_ulong, c_ulong)
    except (ImportError, OSError, AttributeError):
        return None
    return libc


def children_of(pid: int) -> list[int]:
    """Return the living children of a process; empty where there is no /proc."""
    found = []
    try:
        entries = [entry for entry in os.listdir("/proc") if entry.isdigit()]
    except OSError:
        return []
    for entry in entries:
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != b"Z":
            found.append(int(entry))
    return found


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that waits to be reaped does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return not os.path.isdir("/proc/self")


def pid_file(data: str) -> list[str]:
    """Return the lines of a data directory's postmaster.pid; empty when there is none."""
    try:
        with open(os.path.join(data, "postmaster.pid"), encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []


def stop_postmaster(pid: int, mode: str, ended: Callable[[], bool]) -> None:
    """Stop a postmaster, each time the last way did not end it in time by a harsher one.

    *mode* is one of MODES; *ended* tells whether the postmaster is gone. Blocks until it is, at
    most for three times PATIENCE.
    """
    ways = (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)
    for way in ways[MODES.index(mode) :]:
        # A frozen process answers no signal but SIGKILL.
        for target, number in (
            (pid, way),
            (pid, signal.SIGCONT),
            *((child, signal.SIGCONT) for child in children_of(pid)),
        ):
            with contextlib.suppress(ProcessLookupError):
                os.kill(target, number)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if ended():
                return
            time.sleep(POLL)


def forget_shared_memory(data: str) -> None:
    """Remove the System V segment of a postmaster that died without doing it."""
    lines = pid_file(data)
    libc = _libc()
    if len(lines) < 7 or libc is None:
        return
    words = lines[6].split()
    if len(words) == 2 and all(word.isdigit() for word in words):
        libc.shmctl(int(words[1]), _IPC_RMID, None)


def remove(directory: str) -> None:
    """Remove a directory with all that is in it, also while a last process still writes there."""
    deadline = time.monotonic() + PATIENCE
    while os.path.lexists(directory) and time.monotonic() < deadline:
        shutil.rmtree(directory, ignore_errors=True)
        if os.path.lexists(directory):
            time.sleep(POLL)


def log_tail(path: str, lines: int = 20) -> str:
    """Return the last lines of a log file; "" when there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return "\n".join(file.read().splitlines()[-lines:])
    except OSError:
        return ""


def copy_readable(source: str, target: str) -> None:
    """Copy a tree so that every user may read it and run its programs; leave the source alone.

    Static libraries stay behind: no server needs them.
    """
    for here, _, names in os.walk(source):
        there = os.path.join(target, os.path.relpath(here, source))
        os.makedirs(there, exist_ok=True)
        for name in names:
            if name.endswith(".a"):
                continue
            copy = os.path.join(there, name)
            shutil.copyfile(os.path.join(here, name), copy)
            runnable = os.stat(os.path.join(here, name)).st_mode & 0o100
            os.chmod(copy, 0o755 if runnable else 0o644)


class Guard:
    """One server's guard: carries out the owner's commands until `run` returns.

    Single-threaded, so that it may fork. Every wait while a server starts goes through `_pause`,
    which notices that the owner is gone.
    """

    def __init__(self, owner: int) -> None:
        self._owner = owner
        self._buffer = b""
        self._ended: dict[int, int] = {}
        self._initdb: int | None = None
        self._postmaster: int | None = None
        self._prepared = False
        self._unfinished: str | None = None
        self._spec: dict[str, Any] = {}
        self._libc = _libc()
        if self._libc is not None and sys.platform == "linux":
            # The backends of a postmaster that was killed become our children, and so can be ended.
            self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def run(self) -> None:
        """Read the description and the commands, reply to each; end it all with the owner."""
        try:
            self._spec = self._next_line()
            try:
                os.mkdir(self._spec["directory"], 0o700)
            except OSError as error:
                self._reply({"error": str(error)})
                return
            try:
                while True:
                    self._reply(self._obey(self._next_line()))
            finally:
                self._end()
        except OwnerGone:
            pass

    def _obey(self, command: dict[str, Any]) -> dict[str, Any]:
        try:
            if command["do"] == "start":
                return self._start(command)
            self._stop(command["mode"])
            return {}
        except OSError as error:
            return {"error": str(error), "log": log_tail(self._spec["log"])}
        except Exception:
            return {"error": traceback.format_exc()}

    # ---- the owner

    def _pause(self, seconds: float) -> None:
        """Wait up to *seconds* for the owner to say something; raise OwnerGone when it can't."""
        readable, _, _ = select.select([0], [], [], seconds)
        if readable:
            heard = os.read(0, 65536)
            if not heard:
                raise OwnerGone
            self._buffer += heard
        # A forked child of the owner may hold the pipe open.
        if os.getppid() != self._owner:
            raise OwnerGone

    def _next_line(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            self._pause(0.5)
            self._reap()
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _reply(self, message: dict[str, Any]) -> None:
        try:
            os.write(1, json.dumps(message).encode() + b"\n")
        except OSError:
            raise OwnerGone from None

    # ---- processes

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._ended[pid] = os.waitstatus_to_exitcode(status)

    def _has_ended(self, pid: int) -> bool:
        self._reap()
        return pid in self._ended

    def _spawn(self, argv: list[str], death_signal: int) -> int:
        """Start a program as the server's user, in a session of its own; return its pid.

        It writes to the log. When the guard dies it gets *death_signal* (on Linux).
        """
        guard = os.getpid()
        log = os.open(self._spec["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        pid = os.fork()
        if pid:
            os.close(log)
            os.close(null)
            self._ended.pop(pid, None)
            return pid
        try:
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            os.dup2(null, 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(self._spec["home"])
            self._become_the_account()
            if self._libc is not None and sys.platform == "linux":
                # After the change of user, which would forget it.
                self._libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
                if os.getppid() != guard:
                    os._exit(1)
            os.execve(argv[0], argv, self._spec["environment"])
        except BaseException as error:
            os.write(2, f"cannot run {argv[0]}: {error}\n".encode())
        finally:
            os._exit(127)

    def _become_the_account(self) -> None:
        if self._spec["account"] is not None:
            uid, gid = self._spec["account"]
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)

    def _end_initdb(self) -> None:
        """End an initdb that runs; its own programs end with their input, and clean up then."""
        if self._initdb is None or self._has_ended(self._initdb):
            return
        os.kill(self._initdb, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and children_of(os.getpid()):
            time.sleep(POLL)
            self._reap()

    def _sweep(self) -> None:
        """End what a killed postmaster left behind."""
        deadline = time.monotonic() + PATIENCE
        self._reap()
        while time.monotonic() < deadline and (left := children_of(os.getpid())):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL)
            self._reap()

    # ---- the server

    def _give(self, path: str) -> None:
        if self._spec["account"] is not None:
            os.chown(path, *self._spec["account"])

    def _prepare(self) -> None:
        spec = self._spec
        if spec["account"] is not None:
            # The way to what is inside; what is inside decides who may read it.
            os.chmod(spec["directory"], 0o711)
        os.mkdir(spec["home"], 0o700)
        self._give(spec["home"])
        for source, target in spec["copies"]:
            copy_readable(source, target)
        self._prepared = True

    def _init_data(self, argv: list[str], password: str, deadline: float) -> str | None:
        """Run initdb; return None when it worked, else what went wrong."""
        spec = self._spec
        if not os.path.lexists(spec["data"]):
            os.mkdir(spec["data"], 0o700)
            self._unfinished = spec["data"]
            self._give(spec["data"])
        secret = os.path.join(spec["home"], "password")
        with open(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(password)
        self._give(secret)
        pid = self._initdb = self._spawn([*argv, f"--pwfile={secret}"], signal.SIGKILL)
        while not self._has_ended(pid):
            if time.monotonic() > deadline:
                return "initdb did not end in time"
            self._pause(POLL)
        os.unlink(secret)
        if self._ended[pid] != 0:
            return f"initdb ended with {self._ended[pid]}"
        self._unfinished = None
        return None

    def _start(self, command: dict[str, Any]) -> dict[str, Any]:
        if self._postmaster is not None and not self._has_ended(self._postmaster):
            return {"pid": self._postmaster}
        deadline = time.monotonic() + command["timeout"]
        # The backends of a postmaster that was killed would keep its successor from starting.
        self._sweep()
        if not self._prepared:
            self._prepare()
        data = self._spec["data"]
        if not os.path.exists(os.path.join(data, "PG_VERSION")):
            trouble = self._init_data(command["initdb"], command["password"], deadline)
            if trouble is not None:
                return {"error": trouble, "log": log_tail(self._spec["log"])}
        pid = self._postmaster = self._spawn(command["postgres"], signal.SIGQUIT)
        while True:
            if self._has_ended(pid):
                trouble = f"the server ended with {self._ended[pid]} while it started"
                break
            lines = pid_file(data)
            if len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready":
                return {"pid": pid}
            if time.monotonic() > deadline:
                trouble = f"the server was not ready after {command['timeout']:g} s"
                break
            self._pause(POLL)
        self._stop("immediate")
        return {"error": trouble, "log": log_tail(self._spec["log"])}

    def _stop(self, mode: str) -> None:
        pid = self._postmaster
        if pid is None:
            return
        if not self._has_ended(pid):
            stop_postmaster(pid, mode, lambda: self._has_ended(pid))
        self._sweep()
        self._postmaster = None

    def _forget_shared_memory(self) -> None:
        # As the account: a root with few capabilities, as in a container, has no right to.
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            return
        try:
            self._become_the_account()
            forget_shared_memory(self._spec["data"])
        finally:
            os._exit(0)

    def _end(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            self._end_initdb()
            self._stop("fast" if self._spec["keep_data"] else "immediate")
            self._sweep()
            if not self._spec["keep_data"]:
                self._forget_shared_memory()
            if self._unfinished is not None:
                remove(self._unfinished)
        finally:
            remove(self._spec["directory"])


def main(owner: int) -> None:
    """Guard a server for the process *owner*, until that process is gone."""

    def end(*_: object) -> None:
        raise OwnerGone

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o022)
    Guard(owner).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
