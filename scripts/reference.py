"""Write docs/reference.md from the docstrings of the installed fastpool.

usage: reference.py [--check]     exit status: 1 when --check finds the page out of date

Owns: how docstrings become Markdown. A line of a docstring that begins with `*name*:`, or with
several names, is an entry of a table; all else is text. Refuses: to know anything about fastpool
that its docstrings don't say.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import fastpool
from fastpool import errors, snapshot

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"
HEAD = """\
# Reference

All parameters, methods, statistics, states and exceptions. This page is written from the
docstrings by `make reference`: mend those, not this. Times are in seconds unless a name ends in
`_ms`.
"""
METHODS_OF = (
    "Those of `ConnectionPool`. In the async pools the same methods are coroutines, except"
    " `get_stats()`, `pop_stats()` and `snapshot()`; `connection()` and `connect()` are for"
    " `async with`."
)
METHODS = (
    *("open", "close", "wait", "getconn", "putconn", "connection", "connect"),
    *("resize", "drain", "check", "check_connection"),
    *("get_stats", "pop_stats", "snapshot"),
)
SIMPLE = re.compile(r"\*([\w ]+?(?:\(\w*\))?)\*")

Entry = tuple[list[str], str]


def parts(docstring: str) -> Iterator[str | list[Entry]]:
    """Split a docstring into paragraphs and tables of entries."""
    for paragraph in docstring.split("\n\n"):
        lines = paragraph.splitlines()
        starts = [bool(re.match(r"\*[\w (),*]+\*:|\*[\w ]+\*, \*", line)) for line in lines]
        if not starts or not starts[0]:
            yield emphasis(" ".join(lines))
            continue
        entries: list[Entry] = []
        for line, is_start in zip(lines, starts, strict=True):
            if is_start:
                names, _, text = line.partition(": ")
                entries.append((SIMPLE.findall(names), text))
            else:
                names_so_far, text = entries[-1]
                entries[-1] = (names_so_far, f"{text} {line}")
        yield entries


def emphasis(text: str) -> str:
    """Show the names of parameters as code."""
    return SIMPLE.sub(r"`\1`", text)


def sentence(text: str) -> str:
    """Return *text* as a cell of a table: what a name means, beginning with a capital."""
    text = emphasis(text).replace("|", "\\|").rstrip(".")
    return text if text[:1] in "`" else text[:1].upper() + text[1:]


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(name: str) -> str:
    """Return *name* as code."""
    return f"`{name}`"


def describe(docstring: str, head: tuple[str, str] = ("name", "meaning")) -> str:
    """Return a docstring as Markdown."""
    shown = []
    for part in parts(docstring):
        if isinstance(part, str):
            shown.append(wrapped(part))
        else:
            rows = [(", ".join(map(code, names)), sentence(text)) for names, text in part]
            shown.append(table(head, rows))
    return "\n\n".join(shown)


def wrapped(text: str) -> str:
    """Break a paragraph into lines."""
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def doc(thing: Any) -> str:
    """Return the docstring, without its indentation."""
    text = inspect.getdoc(thing)
    assert text, f"{thing!r} has no docstring"
    return text


def default(parameter: inspect.Parameter) -> str:
    """Return what a parameter is by default."""
    value = parameter.default
    return code(value.__name__ if inspect.isclass(value) else repr(value))


def parameters(cls: type[Any]) -> str:
    """Return the docstring of a pool's class, its parameters in a table with their defaults."""
    known = dict(inspect.signature(cls).parameters)
    shown = []
    for part in parts(doc(cls)):
        if isinstance(part, str):
            shown.append(wrapped(part))
            continue
        rows = []
        for names, text in part:
            defaults = [default(known.pop(name.partition("(")[0])) for name in names]
            rows.append((", ".join(map(code, names)), ", ".join(defaults), sentence(text)))
        shown.append(table(("parameter", "default", "meaning"), rows))
    assert not known, f"{cls.__name__} says nothing of {', '.join(known)}"
    return "\n\n".join(shown)


def signature(name: str, function: Callable[..., Any]) -> str:
    """Return how a function is called."""
    given = [
        each.name if each.default is each.empty else f"{each.name}={each.default!r}"
        for each in inspect.signature(function).parameters.values()
        if each.name != "self"
    ]
    return f"{name}({', '.join(given)})"


def methods(cls: type[Any]) -> Iterator[str]:
    """Describe the methods."""
    for name in METHODS:
        method = getattr(cls, name)
        head = ("key", "meaning") if "stats" in name else ("name", "meaning")
        yield f"### `{signature(name, method)}`\n\n{describe(doc(method), head)}"


def fields(cls: type[Any]) -> str:
    """Describe a dataclass: its docstring, and its fields with the strings that follow them."""
    tree = ast.parse(Path(inspect.getfile(cls)).read_text(encoding="utf-8"))
    body = next(
        each.body
        for each in tree.body
        if isinstance(each, ast.ClassDef) and each.name == cls.__name__
    )
    said: dict[str, str] = {}
    for statement, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            said[statement.target.id] = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                said[statement.target.id] = str(after.value.value)
    rows = [
        (
            code(each.name),
            code(str(each.type)).replace("|", "\\|"),
            sentence(" ".join(said[each.name].split())),
        )
        for each in dataclasses.fields(cls)
    ]
    text = describe(doc(cls), ("state", "the slot"))
    return f"{text}\n\n{table(('field', 'type', 'meaning'), rows)}"


def exceptions() -> str:
    """Describe the exceptions, those that derive from another one of ours after that."""
    rows = []
    for name, cls in vars(errors).items():
        if isinstance(cls, type) and cls.__module__ == "fastpool" and not name.startswith("_"):
            rows.append(
                (code(name), code(cls.__bases__[0].__name__), emphasis(" ".join(doc(cls).split())))
            )
    return table(("exception", "derives from", "meaning"), rows)


def page() -> str:
    """Return the whole page."""
    sections = [
        HEAD.rstrip(),
        f"## ConnectionPool\n\n{parameters(fastpool.ConnectionPool)}",
        f"## AsyncConnectionPool\n\n{describe(doc(fastpool.AsyncConnectionPool))}",
        f"## NullConnectionPool\n\n{describe(doc(fastpool.NullConnectionPool))}",
        f"## AsyncNullConnectionPool\n\n{describe(doc(fastpool.AsyncNullConnectionPool))}",
        f"## Methods\n\n{wrapped(METHODS_OF)}",
        *methods(fastpool.ConnectionPool),
        f"## Snapshot\n\n{fields(snapshot.Snapshot)}",
        f"## SlotInfo\n\n{fields(snapshot.SlotInfo)}",
        f"## Exceptions\n\n{exceptions()}",
        f"## Functions\n\n### `{signature('install', fastpool.install)}`\n\n"
        f"{describe(doc(fastpool.install))}",
    ]
    return "\n\n".join(sections) + "\n"


def main() -> int:
    """Write the page, or compare it."""
    text = page()
    if sys.argv[1:] == ["--check"]:
        same = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
        if not same:
            print(f"{PAGE.name} is not what the docstrings say: make reference", file=sys.stderr)
        return 0 if same else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
