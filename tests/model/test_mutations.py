"""The search finds each deliberate fault of the waiting protocol: what it guards is needed.

`pytest -rP tests/model/test_mutations.py` prints the shortest way to each violation.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from protocol import FAULTS, SPARE, Scene
from search import Counterexample, search

LOST_WAKE_UP = "somebody waits while a connection is free"
ROOM_UNUSED = "somebody waits while there is room, and nobody connects"
LENT_OLD = "a connection from before the drain is lent after it"
KEPT = "a closed pool has kept a connection"

TWO = Scene()
CLOSING = Scene(closer=True)
CLOSING_GROWTH = Scene(ready=0, connectors=1, closer=True)
SECOND_RETURNS = Scene(second_return=True)
SHRINKING = Scene(slots=2, resizes=(1, 2), connectors=1)
GROWING = Scene(slots=2, ready=1, limit=1, resizes=(2,), connectors=1)
DRAIN = Scene(drainer=True, connectors=1)
DEATHS = Scene(watchman=True, connectors=1)
FORK = Scene(forks=True, connectors=1)

# Fault: the least scene that shows it, and what goes wrong.
CAUGHT = {
    "no second look": (TWO, LOST_WAKE_UP),
    "count after look": (TWO, LOST_WAKE_UP),
    "read before publish": (TWO, LOST_WAKE_UP),
    "relaxed bit": (TWO, LOST_WAKE_UP),
    "relaxed attention": (TWO, LOST_WAKE_UP),
    "grant dropped": (TWO, "slot 0 is in use, and has 0 owners"),
    "wake-up swallowed": (TWO, LOST_WAKE_UP),
    "no baton": (Scene(slots=2, borrowers=3), LOST_WAKE_UP),
    "token kept": (TWO, LOST_WAKE_UP),
    "token not set": (TWO, "a waiter is woken twice"),
    "token taken unwoken": (TWO, "a waiter is woken twice"),
    "spins": (Scene(shared_gate=True), "the pool never comes to rest"),
    "anyone looks": (TWO, "number 2 of the queue is served"),
    "anyone resumes": (Scene(borrowers=3, shared_gate=True), "number 2 of the queue is served"),
    "newcomers barge": (Scene(borrowers=3), "somebody has overtaken an overdue waiter twice"),
    "room seen early": (Scene(breakage=True, connectors=1), ROOM_UNUSED),
    "no grow after failure": (Scene(ready=0, connectors=1), ROOM_UNUSED),
    "no grow after eviction": (Scene(breakage=True, connectors=1), ROOM_UNUSED),
    "generation unchecked": (SECOND_RETURNS, "slot 0 is returning, and has 2 owners"),
    "word unchecked": (SECOND_RETURNS, "slot 0 is returning, its bit 1"),
    "close leaves waiters": (CLOSING, "somebody waits for a closed pool"),
    "close unannounced": (CLOSING, KEPT),
    "close overlooked": (CLOSING, KEPT),
    "install unchecked": (CLOSING_GROWTH, KEPT),
    "sweep first": (CLOSING_GROWTH, KEPT),
    "limit unread": (SHRINKING, "the pool grows to 2, beyond its maximum of 1"),
    "surplus kept": (SHRINKING, "a return keeps a connection beyond the maximum"),
    "no grow after resize": (GROWING, ROOM_UNUSED),
    "drained lent": (DRAIN, LENT_OLD),
    "drained granted": (DRAIN, LENT_OLD),
    "drained kept": (DRAIN, "a return keeps a connection from before the drain"),
    "word stored": (DEATHS, "slot 0 is returning, its bit 1"),
    "fate before word": (DEATHS, "slot 0 is returning, and has 2 owners"),
    "fate seen once": (DEATHS, "a borrower's return is refused: slot 0 is taken"),
    "grant evicted": (DEATHS, "slot 0 is returning, and has 2 owners"),
    "table kept": (FORK, "slot 0 is in use, and has 0 owners"),
    "table unchecked": (FORK, "slot 0 is returning, and has 2 owners"),
    "ghosts heard": (FORK, "a borrower is stuck before mourn"),
}

# What may be left out, and a scene in which it would matter if it mattered.
LEFT_OUT = {
    "no baton after look": Scene(slots=2, borrowers=3),
    "serve only if woken": Scene(borrowers=3),
}


def changed(scene: Scene, change: str) -> Scene:
    return replace(scene, changes=frozenset({change}))


def test_every_fault_and_every_spare_part_is_tried() -> None:
    assert CAUGHT.keys() == FAULTS.keys()
    assert LEFT_OUT.keys() == SPARE.keys()


@pytest.mark.parametrize("fault", CAUGHT)
def test_the_search_finds_the_fault(fault: str) -> None:
    scene, message = CAUGHT[fault]
    with pytest.raises(Counterexample) as caught:
        search(changed(scene, fault))
    print(f"{FAULTS[fault]}: after {caught.value.states} states,\n{caught.value}")
    assert caught.value.message == message


@pytest.mark.parametrize("fault", CAUGHT)
def test_the_same_scene_holds_without_the_fault(fault: str) -> None:
    assert search(CAUGHT[fault][0]).at_rest


@pytest.mark.parametrize("spare", LEFT_OUT)
def test_the_protocol_holds_without_what_it_does_beyond_need(spare: str) -> None:
    assert search(changed(LEFT_OUT[spare], spare)).at_rest


def test_nothing_is_lost_when_a_gate_bears_being_opened_twice() -> None:
    assert search(changed(Scene(shared_gate=True), "token taken unwoken")).at_rest


def test_a_counterexample_tells_the_shortest_way_step_by_step() -> None:
    with pytest.raises(Counterexample) as caught:
        search(changed(TWO, "no second look"))
    assert str(caught.value).splitlines() == [
        "somebody waits while a connection is free",
        "  borrower 1   getconn: closed False, first waiter overdue False",
        "  borrower 1   takes slot 0",
        "  borrower 1   putconn: slot 0 := RETURNING",
        "  borrower 2   getconn: closed False, first waiter overdue False",
        "  borrower 2   finds nothing free",
        "  borrower 1   slot 0 := AVAILABLE; sets its bit",
        "  borrower 1   reads attention 0",
        "  borrower 2   lock; queues up as number 1; attention += 1",
        "  borrower 2   second look: nothing; unlock",
    ]


def test_an_unknown_change_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown changes"):
        Scene(changes=frozenset({"no such fault"}))
