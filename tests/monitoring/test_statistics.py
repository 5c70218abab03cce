"""Limits keep what they promise: run lengths of CUSUM by simulation, betting's false alarms, shares and distances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtri, stdtr

from prunekit.monitoring.baseline import bounds
from prunekit.monitoring.signals.divergence import jensen_shannon, psi
from prunekit.monitoring.statistics.betting import Wealth
from prunekit.monitoring.statistics.cusum import HIGHEST, Cusum, detectable, false_rate, limit, run_length
from prunekit.monitoring.statistics.null import fit


def simulated(h: float, shift: float = 0.0, streams: int = 2000, k: float = 0.5) -> float:
    """Mean windows until the first alarm of so many streams."""
    draw = np.random.default_rng(0)
    s, ended, steps = np.zeros(streams), np.zeros(streams), 0
    alive = np.ones(streams, bool)
    while alive.any() and steps < 20_000:
        steps += 1
        s = np.maximum(0, s + draw.normal(shift, 1, streams) - k)
        hit = alive & (s > h)
        ended[hit], alive[hit] = steps, False
    return float(ended.mean())


@pytest.mark.parametrize(("h", "table"), [(4.0, 335), (5.0, 931)])
def test_run_lengths_are_those_of_2000_streams(h: float, table: float) -> None:
    assert run_length(h) == pytest.approx(table, rel=0.01)  # Brook and Evans
    assert simulated(h) == pytest.approx(run_length(h), rel=0.06)


@pytest.mark.parametrize(("h", "delay"), [(4.0, 8.4), (5.0, 10.4), (6.0, 12.4)])
def test_delays_at_one_standard_deviation(h: float, delay: float) -> None:
    assert run_length(h, 1.0) == pytest.approx(delay, abs=0.15)
    assert simulated(h, 1.0) == pytest.approx(delay, rel=0.03)


def test_limits_of_many_and_few_windows() -> None:
    assert run_length(limit(2000.0, 10**6)) == pytest.approx(2000, rel=0.01)
    assert limit(2000.0, 30) > limit(2000.0, 60) > limit(2000.0, 1000) > limit(500.0, 1000)
    h = limit(2000.0, 100)
    assert run_length(h, detectable(h, 10)) == pytest.approx(10, rel=0.01)


@pytest.mark.parametrize("reference", [30, 100])
def test_few_reference_windows_keep_the_promised_rate(reference: int) -> None:
    """Over references of so many windows each: mean and deviation are wrong, and alarms are no more than promised."""
    draw, streams, steps, windows = np.random.default_rng(1), 1000, 1500, 1000.0
    h = limit(windows, reference)
    mean = draw.normal(size=streams) / math.sqrt(reference)
    sd = np.sqrt(draw.chisquare(reference - 1, streams) / (reference - 1))
    s, alarms = np.zeros(streams), 0
    for _ in range(steps):
        t = (draw.normal(size=streams) - mean) / sd / math.sqrt(1 + 1 / reference)
        s = np.maximum(0, s - np.sign(t) * ndtri(stdtr(reference - 1, -np.abs(t))) - 0.5)
        alarms += int((s > h).sum())
        s[s > h] = 0
    assert alarms / (streams * steps) < 1.1 / windows


def test_an_alarm_ends_where_its_cause_does() -> None:
    sums = Cusum()
    for _ in range(50):
        sums = sums.after(3.0, 5.0)
    assert sums.active and sums.s == 7.5
    for _ in range(14):
        sums = sums.after(0.0, 5.0)
    assert sums.active
    assert not sums.after(0.0, 5.0).active
    high = Cusum(33.0, True).after(8.0, 30.0)
    assert high == Cusum(34.0, True)
    assert sum(1 for _ in range(100) if (high := high.after(0.0, 30.0)).active) == 67


def test_a_limit_that_is_as_high_as_can_be_tells_what_it_gives() -> None:
    assert false_rate(limit(2000.0, 30), 30) == pytest.approx(1 / 2000, rel=1e-6)
    assert limit(1e9, 8) == HIGHEST and false_rate(HIGHEST, 8) > 1e-6


def test_the_null_of_skewed_and_rare_figures() -> None:
    draw = np.random.default_rng(2)
    squares = fit(draw.chisquare(8, 400), "cube-root")
    assert squares is not None and squares.calibrated and abs(squares.skewness) < 0.3
    z = np.array([squares.z(value) for value in draw.chisquare(8, 2000)])
    assert abs(z.mean()) < 0.15 and abs(z.std() - 1) < 0.1 and (z > 3).mean() < 0.004
    never = fit([0.0] * 40, "arcsine", trials=[200.0] * 40)
    assert never is not None and never.z(1 / 200, 200) < 1.5 and never.z(8 / 200, 200) > 3
    assert fit([1.0] * 7, "none") is None


def test_neighbours_that_are_alike_widen_the_null() -> None:
    draw = np.random.default_rng(3)
    values = [0.0]
    for step in draw.normal(size=400):
        values.append(0.7 * values[-1] + step)
    pairs = [(at, at + 1) for at in range(400)]
    alike, plain = fit(values, "none", pairs=pairs), fit(values, "none")
    assert alike is not None and plain is not None
    assert alike.neighbours == pytest.approx(0.7, abs=0.1) and alike.sd > 2 * plain.sd and alike.effective < 100
    independent = fit(draw.normal(size=401), "none", pairs=pairs)
    assert independent is not None and independent.neighbours < 0.12


def bet(rate: float, answers: int, seed: int, bound: float = 0.05) -> int | None:
    """After how many answers there is an alarm, in hundreds."""
    draw, wealth = np.random.default_rng(seed), Wealth(bound)
    for seen in range(0, answers, 100):
        wealth.add((draw.random(100) < rate).tolist())
        if wealth.alarm:
            return seen + 100
    return None


def test_betting_gives_false_alarms_of_at_most_alpha() -> None:
    alarms = sum(bet(0.05, 1500, seed) is not None for seed in range(100))
    assert alarms <= 5


def test_betting_finds_a_higher_rate() -> None:
    found = [bet(0.1, 1500, seed) for seed in range(20)]
    assert None not in found and np.median([each for each in found if each]) <= 400


def test_betting_finds_a_rise_after_long_good_times() -> None:
    wealth, draw = Wealth(0.05), np.random.default_rng(4)
    wealth.add((draw.random(20_000) < 0.02).tolist())
    assert not wealth.alarm and len(wealth.logs) == 20
    wealth.add((draw.random(1500) < 0.12).tolist())
    assert wealth.alarm
    again = Wealth(**wealth.to_dict())
    assert again.wealth == wealth.wealth and again.alarm


def test_distances() -> None:
    a, b = np.array([10.0, 0, 30]), np.array([20.0, 0, 60])
    assert jensen_shannon(a, b, 0) == pytest.approx(0, abs=1e-12)
    assert jensen_shannon(np.array([5.0, 0]), np.array([0.0, 5]), 0) == pytest.approx(1)
    p, q = np.array([0.25, 0.75]), np.array([0.5, 0.5])
    m = (p + q) / 2
    expected = (p * np.log2(p / m)).sum() / 2 + (q * np.log2(q / m)).sum() / 2
    assert jensen_shannon(p * 1e9, q * 1e9) == pytest.approx(expected)
    assert psi(p * 1e9, q * 1e9) == pytest.approx(((p - q) * np.log(p / q)).sum())


@pytest.mark.parametrize(("bad", "count"), ((0, 200), (1, 200), (37, 500), (199, 200), (200, 200), (12, 100_000)))
def test_the_bound_of_a_reference_is_the_one_sided_limit_of_clopper_and_pearson(bad: int, count: int) -> None:
    wanted = 1.0 if bad == count else float(stats.beta.ppf(0.95, bad + 1, count - bad))
    assert bounds._upper(bad, count) == pytest.approx(wanted, rel=1e-9)
