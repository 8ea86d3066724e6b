"""langgraph's PostgresSaver and AsyncPostgresSaver over pools, which they tell by isinstance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

NEEDS = ("langgraph", "langgraph.checkpoint.postgres")

Run = Callable[..., dict[str, Any]]

# Half of twelve conversations of five checkpoints are deleted.
ALL_WELL = {"right": 12, "left": 30, "connections_out": 0}


@pytest.mark.parametrize("kind", ["ConnectionPool", "NullConnectionPool"])
def test_threads_keep_their_checkpoints(run: Run, kind: str) -> None:
    assert run("with_langgraph", "checkpoints", kind=kind) == ALL_WELL


@pytest.mark.parametrize("kind", ["AsyncConnectionPool", "AsyncNullConnectionPool"])
def test_tasks_keep_their_checkpoints(run: Run, kind: str) -> None:
    assert run("with_langgraph", "checkpoints_async", kind=kind) == ALL_WELL


def test_a_connection_of_a_pool_will_do(run: Run) -> None:
    assert run("with_langgraph", "other_connections") == {
        "messages": ["1-0"] * 3,
        "connections_out": 0,
    }
