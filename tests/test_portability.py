"""No call of one system without its guard: the package on a system that lacks what Unix has.

It runs on this system, in an interpreter of its own from which the calls that Windows and macOS
lack have been taken away, once everything that is not ours is imported. It is no Windows; that a
module reaches for a name which is not there shows all the same.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="takes away what Linux has")

PRELUDE = """
import importlib, os, pkgutil, select, signal, socket, sys
import fastpool

def modules():
    for each in pkgutil.walk_packages(fastpool.__path__, "fastpool."):
        if not each.name.endswith(("__main__", "sitecustomize")):
            yield each.name

for name in modules():
    importlib.import_module(name)
ours = [name for name in sys.modules if name.partition(".")[0] == "fastpool"]
for name in ours:
    if sys.modules[name].__file__.endswith(".py"):  # what is compiled, a process loads once
        del sys.modules[name]

def without(module, *names):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
"""
MACOS = """
without(select, "epoll", *[name for name in dir(select) if name.startswith("EPOLL")])
without(os, "sched_getaffinity", "pidfd_open", "eventfd", "timerfd_create", "O_PATH")
without(socket, "SOCK_CLOEXEC", "SOCK_NONBLOCK", "SO_PEERCRED", "TCP_USER_TIMEOUT")
sys.platform = "darwin"
"""
WINDOWS = """
without(select, "epoll", "poll", *[name for name in dir(select) if name[:4] in ("EPOL", "POLL")])
without(os, "fork", "forkpty", "register_at_fork", "geteuid", "getuid", "getgid", "setsid",
        "getpgid", "killpg", "statvfs", "waitid", "sched_getaffinity", "pidfd_open", "eventfd",
        "O_NONBLOCK", "set_blocking", "ST_NOEXEC", "WNOHANG")
without(signal, "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGALRM", "SIGPIPE", "SIGSTOP",
        "SIGCONT", "SIGCHLD", "pthread_kill", "pthread_sigmask", "set_wakeup_fd", "setitimer")
without(socket, "AF_UNIX", "MSG_DONTWAIT", "SOCK_CLOEXEC", "SOCK_NONBLOCK", "SO_REUSEPORT",
        "sendmsg", "recv_fds", "send_fds")
for name in ("fcntl", "grp", "pwd", "resource", "termios", "tty"):
    sys.modules[name] = None  # an import of it raises
sys.platform = "win32"
# os.name stays: the standard library would take paths for those of Windows.
"""
PROGRAM = """
import fastpool
for name in modules():
    importlib.import_module(name)
from fastpool.doctor.here import look
found = list(look())
assert [each for each in found if each.level == "error"] == [], found
print("works")
"""


@pytest.mark.parametrize("system", [MACOS, WINDOWS], ids=["macos", "windows"])
def test_it_imports_and_lends_without_what_only_other_systems_have(system: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + system + PROGRAM],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "works\n"
