"""What threads and tasks are doing: their frames, and these as text.

Owns: walking a thread's stack, and the chain of coroutines that a task awaits. Refuses: lines of
source, which are slow to find and may hold a password: files, lines and names are enough.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any

# How many frames of a stack are told, the innermost.
_TOLD = 30


def of_threads() -> Mapping[int, list[FrameType]]:
    """Return the frames of every thread that runs Python, by ident; the innermost first."""
    return {ident: _outwards(frame) for ident, frame in sys._current_frames().items()}


def of_tasks(loop: asyncio.AbstractEventLoop) -> Mapping[int, list[FrameType]]:
    """Return the frames of every task of *loop* that is not done, by id(); the innermost first.
    Only of those that the thread of the loop finds, which is to call this."""
    current = asyncio.current_task(loop) if asyncio._get_running_loop() is loop else None
    stacks = {id(task): _awaited(task) for task in asyncio.all_tasks(loop) if task is not current}
    if current is not None:
        stacks[id(current)] = _outwards(sys._getframe())
    return stacks


def _outwards(frame: FrameType | None) -> list[FrameType]:
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


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


def text(frames: Iterable[FrameType]) -> str:
    """Return a stack as a traceback would have it, the innermost frame last."""
    told = []
    for frame in list(frames)[:_TOLD]:
        code = frame.f_code
        name = getattr(code, "co_qualname", code.co_name)
        told.append(f'  File "{code.co_filename}", line {frame.f_lineno}, in {name}')
    return "\n".join(reversed(told))
