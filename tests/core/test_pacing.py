"""How many connections are lent at once while threads wait: a Pacer on a clock of the test's."""

from __future__ import annotations

import pytest
from core.loads import MS, US, Load, crowd
from hypothesis import given
from hypothesis import strategies as st

from fastpool._pacing import Pacer

crowds = pytest.mark.parametrize(
    ("best", "present"), [(1, 2), (1, 4), (2, 4), (2, 8), (4, 8), (2, 16), (8, 16), (3, 5), (4, 32)]
)


@crowds
def test_it_finds_the_width_that_serves_most(best: int, present: int) -> None:
    pacer = Pacer()
    load = crowd(best, present)
    now, _ = load.play(pacer, 1.0)
    _, served = load.play(pacer, 5.0, start=now)
    assert served[best] > 0.95 * served.total(), served


@crowds
def test_it_has_found_it_after_a_dozen_laps(best: int, present: int) -> None:
    found, _ = crowd(best, present).play(Pacer(), 10.0, until_width=best)
    assert found < 12 * 8 * MS


@crowds
@pytest.mark.parametrize("seed", range(5))
def test_noise_costs_it_a_tenth_at_most(best: int, present: int, seed: int) -> None:
    pacer = Pacer()
    load = crowd(best, present)
    load.noise, load.seed = 0.5, seed
    now, _ = load.play(pacer, 1.0)
    end, served = load.play(pacer, 5.0, start=now)
    assert served.total() > 0.9 * (end - now) / load.pace[best], served


def test_all_are_lent_where_waiters_run_as_soon_as_they_are_woken() -> None:
    # Of 1 ms that a connection is held 20 us are the lag: the server is what requests wait for.
    pacer = Pacer()
    load = Load({4: 250 * US, 2: 500 * US, 1: 1000 * US}, lag=0.02)
    _, served = load.play(pacer, 5.0)
    assert set(served) == {4}


def test_all_are_lent_where_hardly_any_connection_is_handed_over() -> None:
    # Newcomers overtake, and hold nothing for long: a waiter's lag says nothing about them.
    pacer = Pacer()
    load = Load({4: 1 * US, 2: 1 * US, 1: 1 * US}, lag=20)
    _, served = load.play(pacer, 1.0)
    assert set(served) == {4}


def test_all_are_lent_where_few_come_back() -> None:
    # Threads that compute have the GIL: all are slow, and waiters late.
    pacer = Pacer()
    load = Load({4: 6 * MS, 2: 8 * MS, 1: 11 * MS}, lag=0.4)
    _, served = load.play(pacer, 5.0)
    assert set(served) == {4}


def test_trials_that_fail_become_rare() -> None:
    # The GIL is short, and yet more connections get more done.
    pacer = Pacer()
    load = Load({8: 50 * US, 4: 80 * US, 2: 150 * US, 1: 290 * US}, lag=0.2)
    now, _ = load.play(pacer, 1.0)
    end, served = load.play(pacer, 5.0, start=now)
    assert served[4] > 0
    assert served.total() > 0.99 * (end - now) / load.pace[8], served


def test_all_are_lent_again_after_a_lap_in_which_waiters_came_at_once() -> None:
    pacer = Pacer()
    now, _ = crowd(2, 4).play(pacer, 1.0, until_width=2)
    other = Load({4: 100 * US, 2: 200 * US, 1: 400 * US}, lag=0.02)
    _, served = other.play(pacer, 1.0, start=now)
    assert served[2] < 4 * 128, served
    assert pacer.width == 0


def test_all_are_lent_again_as_soon_as_returns_are_slow() -> None:
    pacer = Pacer()
    now, _ = crowd(2, 4).play(pacer, 1.0, until_width=2)
    for turn in range(1, 20):
        pacer.returned(now + turn * 5 * MS, 10_000 + turn, 4)
    assert pacer.width == 0


def test_it_is_a_stall_when_nothing_came_back_between_two_looks_a_millisecond_apart() -> None:
    pacer = Pacer()
    assert not pacer.has_stalled(1 << 40)
    now, _ = crowd(2, 4).play(pacer, 1.0, until_width=2)
    assert not pacer.has_stalled(now + MS - 1)
    assert not pacer.has_stalled(now + 50 * MS)
    assert pacer.patience_of(60) == MS
    assert not pacer.has_stalled(now + 51 * MS - 1)
    assert pacer.has_stalled(now + 51 * MS)
    pacer.relax()
    assert pacer.width == 0
    assert not pacer.has_stalled(now + 60 * MS)


def test_it_is_no_stall_when_the_machine_stood_still() -> None:
    pacer = Pacer()
    now, served = crowd(2, 4).play(pacer, 1.0, until_width=2)
    assert not pacer.has_stalled(now + 50 * MS)
    pacer.returned(now + 51 * MS, served.total() + 1, 4)
    assert pacer.patience_of(60) > MS
    assert not pacer.has_stalled(now + 51 * MS)
    assert not pacer.has_stalled(now + 53 * MS)
    assert pacer.width == 2


def test_a_lookout_waits_for_twice_as_long_as_those_before_it_need() -> None:
    pacer = Pacer()
    crowd(2, 4).play(pacer, 1.0, until_width=2)
    assert pacer.patience_of(60) == MS + 2 * 60 * pacer.pace


def test_what_was_found_outlasts_an_empty_queue() -> None:
    pacer = Pacer()
    now, _ = crowd(2, 4).play(pacer, 1.0)
    for _ in range(100):  # threads that start: the queue is short, and empty again and again
        pacer.pause()
    for burst in range(32):
        pacer.returned(now + burst * 10 * MS, burst, 4)
        assert pacer.width == 2
        pacer.pause()
    pacer.returned(now + 330 * MS, 40, 4)
    pacer.pause()
    assert pacer.width == 0


def test_what_is_no_better_with_half_may_be_with_two() -> None:
    load = Load({16: 110 * US, 8: 110 * US, 4: 75 * US, 2: 55 * US, 1: 70 * US}, lag=0.2)
    pacer = Pacer()
    load.play(pacer, 1.0)
    assert pacer.width == 2


def test_what_is_no_better_with_two_may_be_with_half() -> None:
    load = Load({8: 250 * US, 4: 190 * US, 2: 240 * US, 1: 340 * US}, lag=0.2)
    pacer = Pacer()
    load.play(pacer, 2.0)
    assert pacer.width == 4


def test_a_trial_ends_with_the_queue() -> None:
    pacer = Pacer()
    crowd(1, 4).play(pacer, 1.0, until_width=2)
    pacer.pause()
    assert pacer.width == 0


def test_one_connection_is_lent() -> None:
    pacer = Pacer()
    _, served = Load({1: 40 * US}, lag=0.2).play(pacer, 1.0)
    assert set(served) == {1}
    assert pacer.width == 0


steps = st.one_of(
    st.tuples(st.just("returned"), st.integers(0, 100 * MS), st.integers(1, 300)),
    st.tuples(st.just("came"), st.integers(0, 10 * MS)),
    st.tuples(st.just("pause")),
    st.tuples(st.just("relax")),
)


@given(st.integers(1, 40), st.lists(steps, max_size=300))
def test_whatever_happens_some_are_lent_and_no_more_than_there_are(
    present: int, happenings: list[tuple[object, ...]]
) -> None:
    pacer = Pacer()
    now, turn = MS, 0
    for what, *numbers in happenings:
        if what == "returned":
            passed, count = numbers
            assert isinstance(passed, int)
            assert isinstance(count, int)
            now, turn = now + passed, turn + count
            pacer.returned(now, turn, present)
        elif what == "came":
            assert isinstance(numbers[0], int)
            pacer.came(numbers[0])
        elif what == "pause":
            pacer.pause()
        else:
            pacer.relax()
        assert 0 <= pacer.width < present
        assert pacer.patience_of(100) >= MS
        assert pacer.pace > 0 or pacer.width == 0
