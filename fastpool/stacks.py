"""Who runs, and what threads and tasks are doing: their frames, and these as text.

Owns: whose stack is looked at and how far, and the chain of coroutines that a task awaits. Refuses:
lines of source, which are slow to find and may hold a password: files, lines and names are enough.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Collection, Iterable, Mapping
from types import FrameType
from typing import Any

from ._stacks import outwards, stacks_of_threads

# How many frames of a stack are told, the innermost.
TOLD = 30

HAS_GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()


def threads() -> Mapping[int, threading.Thread]:
    """Return the threads that were started in Python, by ident. Not by threading.enumerate(): that
    takes a lock, which an interrupt can leave locked for ever (Python 3.14), and no thread could be
    started any more."""
    known: dict[int, threading.Thread] = threading.__dict__["_active"].copy()
    return known


def of_threads(
    idents: Collection[int] | None = None, limit: int = sys.maxsize
) -> Mapping[int, list[FrameType]]:
    """Return the *limit* innermost frames of these threads, or of all that run Python, by ident;
    the innermost first. None without a GIL: nothing stops the others there while one looks."""
    return stacks_of_threads(idents, limit) if HAS_GIL else {}


def of_tasks(
    loop: asyncio.AbstractEventLoop,
    idents: Collection[int] | None = None,
    limit: int = sys.maxsize,
) -> Mapping[int, list[FrameType]]:
    """Return the *limit* innermost frames of these tasks of *loop*, or of all that are not done,
    by id(); the innermost first. Only the thread of the loop finds them: it is to call this."""
    current = asyncio.current_task(loop)
    return {
        id(task): outwards(sys._getframe(), limit) if task is current else _awaited(task)[:limit]
        for task in asyncio.all_tasks(loop)
        if idents is None or id(task) in idents
    }


def _awaited(task: asyncio.Task[Any]) -> list[FrameType]:
    """The frames of a suspended task: a task's own get_stack() ends at the first coroutine."""
    frames: list[FrameType] = []
    found: Any = task.get_coro()
    while found is not None:
        frame = getattr(found, "cr_frame", None) or getattr(found, "gi_frame", None)
        if frame is not None:
            frames.append(frame)
        found = getattr(found, "cr_await", None) or getattr(found, "gi_yieldfrom", None)
    frames.reverse()
    return frames


def forget(running: Mapping[int, list[FrameType]]) -> None:
    """Let go of these frames. To be called by who has looked at any: one that looks is among those
    that it finds, or is found by another that looks at the same time. They would hold each other,
    and all variables of all frames, until the garbage collector comes."""
    for frames in running.values():
        frames.clear()


def text(frames: Iterable[FrameType]) -> str:
    """Return a stack as a traceback would have it, the innermost frame last."""
    told = []
    for frame in frames:
        code = frame.f_code
        name = getattr(code, "co_qualname", code.co_name)
        told.append(f'  File "{code.co_filename}", line {frame.f_lineno}, in {name}')
    return "\n".join(reversed(told))
