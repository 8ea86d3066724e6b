"""Runs a page of the manual: what its blocks mean, and how what they do is compared.

The pages are plain Markdown. Their blocks are run in order, in an empty directory, against a
database called "app" that libpq's environment variables lead to:

- python whose first line is a comment with a file name (`# app.py`) becomes that file;
- other python runs as a script; a text block right after it is what it prints;
- console: what stands after `$ ` is run, what follows is what it prints. A command that ends
  with `&` is a server: it ends with the page. Of `make` and `pip` it is only looked up
  whether there is such a target, such an extra.

Where a page says `...`, anything may stand. Owns no assertion about fastpool.
"""

from __future__ import annotations

import contextlib
import doctest
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent.parent
# Everything that pages may hold; a page with another kind of block has one that nobody looks at.
KINDS = ("python", "text", "console", "ini")
# Below pytest's own limit, so that it is the command that is named.
TIME_LIMIT = 40.0
POLL = 0.05
# What the pages' servers listen on.
PORT = "8000"

# From 3.12 on Python warns of each fork in a process that has threads.
WARNINGS = ("-W", "error", "-W", "ignore:This process:DeprecationWarning")

FILE_NAME = re.compile(r"# ([\w.]+\.py)\n")
TARGETS = re.compile(r"^\.PHONY: ([a-z-]+)$", re.MULTILINE)
EXTRAS = re.compile(r"^\[project.optional-dependencies\]$(.+?)^\[", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block. *follows*: nothing but white space stands between it and the last one."""

    kind: str
    text: str
    line: int
    follows: bool


def blocks(path: Path, replacements: Mapping[str, str]) -> list[Block]:
    """Return the blocks of a page, what it says replaced by what is true here."""
    text = path.read_text(encoding="utf-8")
    for old, new in replacements.items():
        assert old in text, f"{path.name} does not say {old!r} any more"
        text = text.replace(old, new)
    found: list[Block] = []
    fenced_before = False
    for token in MarkdownIt().parse(text):
        if token.type == "fence":
            kind = token.info.partition(" ")[0]
            line = token.map[0] + 1 if token.map else 0
            found.append(Block(kind, token.content, line, fenced_before))
        fenced_before = token.type == "fence"
    return found


def check_output(where: str, expected: str, seen: str) -> None:
    """Fail unless *seen* is what is expected, each `...` standing for anything."""
    same = doctest.OutputChecker().check_output(
        expected, seen, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert same, f"{where} shows\n{expected}\nbut this was printed:\n{seen}"


def free_port() -> int:
    """Return a port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Runner:
    """A directory and an environment in which the blocks of one page are run."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._directory = directory
        self._environment = {**os.environ, **environment}
        self._port = str(free_port())
        self._servers: list[tuple[str, subprocess.Popen[str], Path]] = []

    def run(self, page: Path, replacements: Mapping[str, str] | None = None) -> int:
        """Run all blocks of the page, and return how many there are."""
        printed: str | None = None
        found = blocks(page, replacements or {})
        with self._ending_servers():
            for block in found:
                where = f"{page.name}:{block.line}"
                assert block.kind in KINDS, f"{where}: who runs a block of {block.kind!r}?"
                last, printed = printed, None
                if block.kind == "python":
                    printed = self._python(where, block.text)
                elif block.kind == "console":
                    self._console(where, block.text)
                elif block.kind == "text" and block.follows and last is not None:
                    check_output(where, block.text, last)
                elif block.kind == "ini":
                    assert "=" in block.text, where
        return len(found)

    def _python(self, where: str, text: str) -> str | None:
        name = FILE_NAME.match(text)
        if name is not None:
            compile(text, where, "exec")
            (self._directory / name[1]).write_text(text, encoding="utf-8")
            return None
        script = self._directory / "block.py"
        script.write_text(text, encoding="utf-8")
        return self._finish(where, [sys.executable, *WARNINGS, str(script)])

    def _console(self, where: str, text: str) -> None:
        for command, expected in commands(text):
            words = shlex.split(command, comments=True)
            if words[0] == "make":
                check_target(where, words[1:])
            elif words[:2] == ["pip", "install"]:
                check_extras(where, words[2:])
            elif words[-1] == "&":
                self._serve(self._here(words[:-1]))
            elif words[0] == "curl":
                printed = self._fetch(where, *self._here(words[1:]))
                check_output(where, expected, printed)
            else:
                check_output(where, expected, self._finish(where, self._here(words)))

    def _here(self, words: list[str]) -> list[str]:
        words = [word.replace(PORT, self._port) for word in words]
        if words[0] == "python":
            return [sys.executable, *words[1:]]
        # What an environment has installed stands beside its interpreter.
        if "=" not in words[0] and (Path(sys.executable).parent / words[0]).exists():
            words[0] = str(Path(sys.executable).parent / words[0])
        return words

    def _finish(self, where: str, words: list[str]) -> str:
        done = subprocess.run(
            words,
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
        )
        # The doctor ends with 1 when it has a warning, as of a debug build.
        fine = (0, 1) if "doctor" in words else (0,)
        assert done.returncode in fine, f"{where}: {shlex.join(words)}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, f"{where}: {done.stderr}"
        return done.stdout

    def _serve(self, words: list[str]) -> None:
        log = self._directory / f"server-{len(self._servers)}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                words,
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self._servers.append((shlex.join(words), process, log))

    def _fetch(self, where: str, url: str) -> str:
        deadline = time.monotonic() + TIME_LIMIT
        while True:
            try:
                with urllib.request.urlopen(url, timeout=TIME_LIMIT) as answer:
                    body: bytes = answer.read()
                    return body.decode()
            except urllib.error.HTTPError as error:
                text = error.read().decode()
                raise AssertionError(f"{where}: {error}\n{text}\n{self._logs()}") from None
            except OSError as error:
                ended = all(process.poll() is not None for _, process, _ in self._servers)
                if ended or time.monotonic() > deadline:
                    raise AssertionError(f"{where}: {url}: {error}\n{self._logs()}") from None
                time.sleep(POLL)

    def _logs(self) -> str:
        return "\n".join(f"{name}:\n{log.read_text()}" for name, _, log in self._servers)

    @contextlib.contextmanager
    def _ending_servers(self) -> Iterator[None]:
        try:
            yield
            for name, process, _ in self._servers:
                assert process.poll() is None, f"{name} has ended\n{self._logs()}"
                process.send_signal(signal.SIGTERM)
            for name, process, _ in self._servers:
                code = process.wait(TIME_LIMIT)
                assert code in (0, -signal.SIGTERM), f"{name}: exit {code}\n{self._logs()}"
                assert "Traceback" not in self._logs(), self._logs()
        finally:
            for _, process, _ in self._servers:
                if process.poll() is None:
                    process.kill()
                    process.wait()


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Split a console block into what is typed and what is printed after it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, printed = part.partition("\n")
        yield command, printed


def check_target(where: str, words: list[str]) -> None:
    """Fail unless the Makefile has the target."""
    targets = TARGETS.findall((ROOT / "Makefile").read_text(encoding="utf-8"))
    named = [word for word in words if "=" not in word]
    assert set(named) <= set(targets), f"{where}: make {' '.join(words)}"


def check_extras(where: str, words: list[str]) -> None:
    """Fail unless fastpool has the extras that are named, where it is installed with any."""
    (text,) = EXTRAS.findall((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = re.findall(r"^([a-z]+) = ", text, re.MULTILINE)
    for word in words:
        named = re.fullmatch(r"(?:\.|fastpool)\[([a-z,]+)\]", word)
        if named is not None:
            assert set(named[1].split(",")) <= set(extras), f"{where}: {word}"
