"""Estimates of what is left, by a clock of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prunekit.utils.phases.pace import Pace, correction
from prunekit.utils.phases.run import running
from prunekit.utils.phases.telling import phases
from prunekit.utils.phases.words import line
from prunekit.utils.progress import progress
from tests.support.watched_runs import Clock, Heard, made


def work_through(pace: Pace, clock: Clock, steps: list[tuple[str, float, float]]) -> list[tuple[float, float | None]]:
    """Take ``steps`` (kind, cost, seconds). Returns, after each, the seconds that are really left and the estimate."""
    seen = []
    ahead = sum(seconds for _, _, seconds in steps)
    for kind, cost, seconds in steps:
        clock.now += seconds
        ahead -= seconds
        pace.step(1, clock.now, kind=kind, cost=cost)
        seen.append((ahead, pace.left(clock.now)))
    return seen


def test_more_steps_than_expected() -> None:
    """12 of 11 is never said."""
    run, clock = made(heard := Heard())
    with running(run), phases("scoring"), progress("scoring", 2) as advance:
        for _ in range(3):
            clock.now += 1
            advance()
    assert [(each.done, each.total) for each in heard.events if each.what == "step"] == [(1, 2), (2, 2), (3, 3)]


def test_phases_alike_tell_how_long_the_others_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path))
    run, clock = made(heard := Heard())
    with running(run), phases("dense reads", "pruned reads") as told:
        assert told is run
        run.weigh({"dense reads": 10, "pruned reads": 8}, ["test", "alike"])
        with progress("dense reads", 4) as advance:
            clock.now += 5
            advance()
            # 15 s of this one, and 16 s of the other, of which 2 s a unit are seen so far.
            assert heard.events[-1].left_in_all == pytest.approx(15 + 16)
            for _ in range(3):
                clock.now += 5
                advance()
        with progress("pruned reads", 4):
            assert heard.events[-1].left == pytest.approx(16)
            clock.now += 16
    run, clock = made(heard := Heard())
    with running(run), phases("dense reads"):
        run.weigh({"dense reads": 5}, ["test", "alike"])
        with progress("dense reads", 4):
            # As long a unit as the last time.
            assert heard.events[-1].left == pytest.approx(10)


def test_a_phase_of_several_is_not_taken_for_the_whole() -> None:
    """Where nobody knows how long the next one takes."""
    run, clock = made(heard := Heard())
    with running(run), phases("one", "two"):
        with progress("one", 2) as advance:
            clock.now += 20
            advance()
            assert "about 20 s left of this phase, 5.0 GB" in line(heard.events[-1])
        with progress("two", 2) as advance:
            clock.now += 20
            advance()
            assert "about 20 s left, 5.0 GB" in line(heard.events[-1])


def test_the_first_step_also_warms_up() -> None:
    """50 s in place of 20: three steps later nothing is left of it in the estimate."""
    clock = Clock()
    pace = Pace(10, now=clock.now)
    seen = work_through(pace, clock, [("", 1, 50), *[("", 1, 20)] * 9])
    assert seen[0] == (180, 450)
    assert [left for _, left in seen[2:]] == pytest.approx([really for really, _ in seen[2:]])


def test_even_steps() -> None:
    clock = Clock()
    pace = Pace(10, now=clock.now)
    assert pace.left(clock.now) is None
    clock.now += 3
    pace.step(1, clock.now)
    assert pace.left(clock.now) == pytest.approx(27)
    clock.now += 2
    assert pace.left(clock.now) == pytest.approx(25)
    # A step that takes far longer still leaves the eight after it.
    clock.now += 50
    assert pace.left(clock.now) == pytest.approx(24)


def test_steps_that_cost_less_and_less() -> None:
    """As loss curves do, whose scale is measured from each layer on: by counts, they seem to take twice as long."""
    layers = 30
    clock = Clock()
    steps = [("", layers - index, 0.4 * (layers - index)) for index in range(layers)]
    pace = Pace(layers, {"": sum(cost for _, cost, _ in steps)}, now=clock.now)
    for real, found in work_through(pace, clock, steps):
        assert found == pytest.approx(real, abs=1e-6)


def test_kinds_are_timed_by_themselves() -> None:
    clock = Clock()
    steps = [each for index in range(20) for each in (("solve", 7.0, 3.0), ("scale", 20.0 - index, (20 - index) / 10))]
    work = {kind: sum(cost for each, cost, _ in steps if each == kind) for kind in ("solve", "scale")}
    found = work_through(Pace(40, work, now=clock.now), clock, steps)
    for real, left in found[1:]:
        assert left == pytest.approx(real, abs=1e-6)


def test_work_that_was_kept_takes_no_time() -> None:
    clock = Clock()
    pace = Pace(10, now=clock.now)
    pace.step(6, clock.now, kept=True)
    clock.now += 5
    pace.step(1, clock.now)
    assert pace.left(clock.now) == pytest.approx(15)


def test_what_was_foreseen_counts_until_steps_tell_more() -> None:
    clock = Clock()
    pace = Pace(100, foreseen=200.0, now=clock.now)
    assert pace.left(clock.now) == pytest.approx(200)
    for _ in range(20):
        clock.now += 1
        pace.step(1, clock.now)
    # Really 80: what was foreseen was twice as long, and counts little by now.
    assert 80 < (pace.left(clock.now) or 0) < 95


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.01, 9), st.floats(0.001, 50)), min_size=1, max_size=9),
    st.one_of(st.none(), st.floats(0.1, 1e4)),
)
def test_estimates_are_never_nonsense(steps: list[tuple[str, float, float]], foreseen: float | None) -> None:
    clock = Clock()
    work = {"a": 0.0, "b": 0.0}
    for kind, cost, _ in steps:
        work[kind] += cost
    pace = Pace(len(steps), work, foreseen, clock.now)
    for _, found in work_through(pace, clock, steps):
        assert found is None or 0 <= found < 1e6
    assert pace.left(clock.now) == pytest.approx(0, abs=1e-6)


def test_a_slow_machine_is_noticed() -> None:
    assert correction([], 100) == 1
    # A tenth of the run took twice as long as was foreseen.
    assert 1.7 < correction([(10, 20)], 100) < 2
    assert correction([(0.1, 10)], 100) < 5
