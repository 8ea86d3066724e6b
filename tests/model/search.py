"""Breadth-first search through every state that a protocol can reach.

Owns: the set of visited states, and the shortest way to a violation. Refuses: to know the
protocol; it asks for the initial state, the steps, the canonical form and the two checks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter

from protocol import PC, Protocol, Scene, State, Violation

Origins = dict[State, "State | None"]


@dataclass(frozen=True)
class Explored:
    """A search that found nothing wrong."""

    states: int
    steps: int
    at_rest: int
    taken: frozenset[str]  # the steps that were taken, by the names of their methods
    seconds: float


class Counterexample(AssertionError):
    """A violation, and the shortest way to it, a line a step."""

    def __init__(self, message: str, trace: list[str], states: int) -> None:
        super().__init__("\n".join([message, *trace]))
        self.message = message
        self.trace = trace
        self.states = states


def explore(protocol: Protocol) -> Explored:
    """Visit every state and check each. Raises Counterexample at the first violation.

    Last it checks that the pool comes to rest: that the steps which nobody chose to take are no
    part of a circle.
    """
    started = time.perf_counter()
    start = protocol.canonical(protocol.initial())
    came_from: Origins = {start: None}
    due: dict[State, list[State]] = {}
    steps = at_rest = 0
    frontier = [start]
    while frontier:
        found: list[State] = []
        for state in frontier:
            suspect = state
            try:
                for step in protocol.steps(state):
                    steps += 1
                    after = protocol.canonical(step.after)
                    if not step.voluntary:
                        due.setdefault(state, []).append(after)
                    if after not in came_from:
                        came_from[after] = state
                        found.append(after)
                        suspect = after
                        protocol.check(after)
                        suspect = state
                if state not in due:
                    at_rest += 1
                    protocol.check_at_rest(state)
            except Violation as violation:
                raise counterexample(protocol, str(violation), suspect, came_from) from None
        frontier = found
    try:
        TopologicalSorter(due).prepare()
    except CycleError as error:
        state = error.args[1][0]
        raise counterexample(protocol, "the pool never comes to rest", state, came_from) from None
    taken = frozenset(fields[PC] for state in came_from for fields in state.threads)
    return Explored(len(came_from), steps, at_rest, taken, time.perf_counter() - started)


@cache
def search(scene: Scene) -> Explored:
    """Explore a scene, once a process."""
    return explore(Protocol(scene))


def counterexample(
    protocol: Protocol, message: str, state: State, came_from: Origins
) -> Counterexample:
    way = [state]
    while (before := came_from[way[-1]]) is not None:
        way.append(before)
    return Counterexample(message, replay(protocol, way[::-1]), len(came_from))


def replay(protocol: Protocol, way: list[State]) -> list[str]:
    """Walk that way again with threads that keep their names, and tell each step."""
    state = protocol.initial()
    told = []
    for canonical in way[1:]:
        step = next(
            step for step in protocol.steps(state) if protocol.canonical(step.after) == canonical
        )
        told.append(f"  {protocol.name(step.thread):12} {step.text}")
        state = step.after
    return told
