"""Breadth-first search through every state that a protocol can reach.

Owns: the set of visited states, and the shortest way to a violation. Refuses: to know the
protocol; it asks for the initial state, the steps, the canonical form and the two checks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from protocol import Protocol, State, Step, Violation


@dataclass(frozen=True)
class Explored:
    """A search that found nothing wrong."""

    states: int
    steps: int
    at_rest: int
    seconds: float


class Counterexample(AssertionError):
    """A violation, and the shortest way to it, one line a step."""

    def __init__(self, message: str, trace: list[str], states: int) -> None:
        super().__init__("\n".join([message, *trace]))
        self.message = message
        self.trace = trace
        self.states = states


def explore(protocol: Protocol, max_states: int = 10_000_000) -> Explored:
    """Visit every state, and check each. Raises Counterexample at the first violation."""
    started = time.perf_counter()
    start = protocol.canonical(protocol.initial())
    came_from: dict[State, State | None] = {start: None}
    frontier = [start]
    steps = at_rest = 0
    while frontier:
        found: list[State] = []
        for state in frontier:
            looked_at = state
            try:
                resting = True
                for step in protocol.steps(state):
                    steps += 1
                    resting = resting and step.voluntary
                    after = protocol.canonical(step.after)
                    if after not in came_from:
                        came_from[after] = state
                        found.append(after)
                        looked_at = after
                        protocol.check(after)
                        looked_at = state
                if resting:
                    at_rest += 1
                    protocol.check_at_rest(state)
            except Violation as violation:
                way = way_to(looked_at, came_from)
                trace = replay(protocol, way)
                raise Counterexample(str(violation), trace, len(came_from)) from None
        if len(came_from) > max_states:
            raise RuntimeError(f"more than {max_states} states")
        frontier = found
    return Explored(len(came_from), steps, at_rest, time.perf_counter() - started)


def way_to(state: State, came_from: dict[State, State | None]) -> list[State]:
    """The states that lead to this one, from the first."""
    way = [state]
    while (before := came_from[way[-1]]) is not None:
        way.append(before)
    return way[::-1]


def replay(protocol: Protocol, way: list[State]) -> list[str]:
    """Walk that way again with threads that keep their names, and tell each step."""
    state = protocol.initial()
    told = []
    for canonical in way[1:]:
        step = next(
            step for step in protocol.steps(state) if protocol.canonical(step.after) == canonical
        )
        told.append(f"{protocol.name(step.thread):12} {step.text}")
        state = step.after
    return told
