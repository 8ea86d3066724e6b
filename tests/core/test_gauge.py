"""Gauge: a count that is raised while it is below a limit, by any number of threads."""

from __future__ import annotations

import threading

import pytest
from core.stubs import in_threads

from fastpool._core import Gauge


def test_an_empty_gauge_lets_one_in() -> None:
    gauge = Gauge()
    assert gauge.inside == 0
    assert gauge.enter() is True
    assert gauge.inside == 1


def test_a_full_gauge_lets_nobody_in() -> None:
    gauge = Gauge()
    gauge.enter()
    assert gauge.enter() is False
    assert gauge.inside == 1


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_as_many_as_the_limit_may_be_inside(limit: int) -> None:
    gauge = Gauge()
    assert [gauge.enter(limit) for _ in range(limit + 2)] == [True] * limit + [False] * 2
    assert gauge.inside == limit


def test_whoever_leaves_makes_room_for_one() -> None:
    gauge = Gauge()
    gauge.enter(2)
    gauge.enter(2)
    gauge.leave()
    assert gauge.inside == 1
    assert [gauge.enter(2), gauge.enter(2)] == [True, False]


def test_a_limit_of_none_lets_nobody_in() -> None:
    gauge = Gauge()
    assert gauge.enter(0) is False
    assert gauge.inside == 0


def test_the_limit_is_each_callers_own() -> None:
    gauge = Gauge()
    assert gauge.enter(3)
    assert not gauge.enter(1)
    assert gauge.enter(2)
    assert gauge.inside == 2


def test_of_all_who_enter_one_is_elected() -> None:
    for _ in range(50):
        gauge = Gauge()
        barrier = threading.Barrier(4)

        def candidate(gauge: Gauge = gauge, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait(10)
            return gauge.enter()

        assert sorted(in_threads(*[candidate] * 4)) == [False, False, False, True]


def test_no_more_than_the_limit_are_ever_inside() -> None:
    limit, rounds = 2, 3000
    gauge = Gauge()
    seats = threading.Semaphore(limit)  # the ledger: never refuses whom the gauge lets in
    barrier = threading.Barrier(4)

    def visitor() -> int:
        barrier.wait(10)
        visits = 0
        for _ in range(rounds):
            if gauge.enter(limit):
                assert seats.acquire(blocking=False)
                visits += 1
                seats.release()
                gauge.leave()
        return visits

    assert sum(in_threads(*[visitor] * 4)) > 0
    assert gauge.inside == 0
