"""The waiting protocol holds under every interleaving of a few threads over a few slots.

Each test is one exhaustive search; what is checked stands in Protocol.check, check_at_rest, and in
the steps that raise Violation. MODEL_DEEP=1 adds scenes that take minutes.
"""

from __future__ import annotations

import os

import pytest
from protocol import RESTING, Scene
from search import search

SCENES = {
    "two callers, one connection": Scene(),
    "four callers, one connection": Scene(borrowers=4),
    "four callers, two connections": Scene(slots=2, borrowers=4),
    "four callers, three connections": Scene(slots=3, borrowers=4),
    "growth from nothing": Scene(slots=2, ready=0, connectors=1),
    "growth by two at once": Scene(slots=2, ready=0, connectors=2, max_connecting=2),
    "broken returns": Scene(slots=2, ready=1, connectors=1, breakage=True),
    "broken returns that are replaced": Scene(connectors=2, breakage=True, replacement=True),
    "maintenance": Scene(keeper=True, connectors=1),
    "second returns": Scene(slots=2, borrowers=3, second_return=True),
    "late wake-ups": Scene(borrowers=3, shared_gate=True),
    "closing": Scene(closer=True),
    "closing while it grows": Scene(ready=0, connectors=1, closer=True),
    "closing while it is maintained": Scene(keeper=True, closer=True),
    "resized down and up": Scene(slots=2, resizes=(1, 2), connectors=1),
    "resized up and down": Scene(slots=2, ready=1, limit=1, resizes=(2, 1), connectors=1),
    "drained": Scene(drainer=True, connectors=1),
    "drained and refilled": Scene(drainer=True, connectors=1, replacement=True),
    "closing while it is drained": Scene(drainer=True, closer=True),
    "deaths while lent": Scene(watchman=True, connectors=1),
    "deaths while lent, and replacements": Scene(watchman=True, connectors=1, replacement=True),
    "closing among deaths": Scene(watchman=True, closer=True),
    "forks": Scene(forks=True, borrowers=3, connectors=1),
    "forks with two connections": Scene(slots=2, forks=True, connectors=1),
}

DEEP_SCENES = {
    "six callers, three connections": Scene(slots=3, borrowers=6),
    "three callers, growth": Scene(slots=2, ready=0, borrowers=3, connectors=1),
    "three callers, growth by two at once": Scene(
        slots=3, ready=0, borrowers=3, connectors=2, max_connecting=2
    ),
    "three callers, broken returns": Scene(slots=2, borrowers=3, connectors=1, breakage=True),
    "three callers, maintenance": Scene(borrowers=3, keeper=True, connectors=1),
    "three callers, late wake-ups": Scene(slots=2, borrowers=3, shared_gate=True),
    "three callers, closing": Scene(slots=2, borrowers=3, closer=True),
    "closing, growing, breaking": Scene(slots=2, ready=1, connectors=1, breakage=True, closer=True),
    "closing, growing, maintained": Scene(keeper=True, connectors=1, closer=True),
    "deaths of two connections": Scene(slots=2, watchman=True, connectors=1),
    "deaths while lent and while idle": Scene(watchman=True, keeper=True, connectors=1),
    "closing while it is resized": Scene(
        slots=2, ready=1, limit=1, resizes=(2,), connectors=1, closer=True
    ),
    "two connections drained": Scene(slots=2, drainer=True, connectors=1),
    "drained and resized": Scene(slots=2, resizes=(1,), drainer=True, connectors=1),
    "drained, and forks": Scene(forks=True, drainer=True, connectors=1),
    "deaths, and forks": Scene(forks=True, watchman=True, connectors=1),
}

deep = pytest.mark.skipif("MODEL_DEEP" not in os.environ, reason="MODEL_DEEP=1 runs it")


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES.keys())
def test_every_interleaving_keeps_the_invariants_and_comes_to_rest(scene: Scene) -> None:
    explored = search(scene)
    print(explored)
    assert explored.at_rest


@deep
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scene", DEEP_SCENES.values(), ids=DEEP_SCENES.keys())
def test_every_interleaving_of_a_larger_scene_does_too(scene: Scene) -> None:
    explored = search(scene)
    print(explored)
    assert explored.at_rest


def test_the_searches_take_every_step_of_the_protocol() -> None:
    taken = frozenset().union(*(search(scene).taken for scene in SCENES.values()))
    assert taken == {
        *RESTING,
        *("claim", "enqueue", "look", "leave", "abandon", "attend", "serve", "grant"),
        *("begin_return", "restore", "recheck", "recycle"),
        *("grow", "install", "land", "deliver", "vacate"),
        *("announce", "shut", "sweep"),
        *("checkout", "compare", "sweep_old"),
        *("read_fate", "swap", "read_fate_again", "retire"),
    }
