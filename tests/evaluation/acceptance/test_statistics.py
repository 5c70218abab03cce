"""Statistics of paired answers: known values, other ways to the same numbers, and simulations."""

from __future__ import annotations

import bisect
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from prunekit.evaluation.acceptance import statistics


@pytest.mark.parametrize(("hits", "count"), ((0, 10), (3, 10), (10, 10), (5, 100), (199, 200)))
def test_clopper_and_pearson(hits: int, count: int) -> None:
    wanted = stats.binomtest(hits, count).proportion_ci(0.95, "exact")
    found = statistics.share(hits / count, count)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_shares_of_weighted_records_have_wider_intervals() -> None:
    assert statistics.effective_count([2.0] * 50) == pytest.approx(50)
    assert statistics.effective_count([1.0] * 10 + [10.0]) == pytest.approx(400 / 110)
    narrow, wide = (statistics.share(0.2, count) for count in (50, 20.5))
    assert wide.low < narrow.low < 0.2 < narrow.high < wide.high


def test_mcnemar() -> None:
    assert statistics.mcnemar(0, 0) == 1
    # 2 · (1 + 10 + 45) / 2^10
    assert statistics.mcnemar(8, 2) == pytest.approx(2 * 56 / 1024)
    assert statistics.mcnemar(2, 8) == statistics.mcnemar(8, 2)


def by_likelihood(worse: int, better: int, count: int, difference: float) -> float:
    """Tango's score with the nuisance share found by a search."""

    def minus(other: float) -> float:
        rest = 1 - 2 * other - difference
        terms = [(worse, other + difference), (better, other), (count - worse - better, rest)]
        return -sum(n * math.log(max(p, 1e-300)) for n, p in terms if n)

    ends = max(0.0, -difference), (1 - difference) / 2
    other = optimize.minimize_scalar(minus, bounds=ends, method="bounded", options={"xatol": 1e-12}).x
    return (worse - better - count * difference) / math.sqrt(count * (2 * other + difference - difference**2))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(41, 300), st.floats(-0.3, 0.3))
def test_tango_by_another_way(worse: int, better: int, count: int, difference: float) -> None:
    found = statistics.tango(worse, better, count, difference)
    assert found == pytest.approx(by_likelihood(worse, better, count, difference), rel=1e-3, abs=1e-3)


def test_tango_at_no_difference_is_mcnemars_statistic() -> None:
    assert statistics.tango(9, 3, 80, 0.0) == pytest.approx(6 / math.sqrt(12))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(60, 400))
def test_ends_of_the_interval_are_where_the_score_says(worse: int, better: int, count: int) -> None:
    found = statistics.difference_interval(worse, better, count, 0.05)
    z = stats.norm.ppf(0.95)
    assert found.low < found.value < found.high
    assert statistics.tango(worse, better, count, found.high) == pytest.approx(-z, abs=1e-4)
    assert statistics.tango(worse, better, count, found.low) == pytest.approx(z, abs=1e-4)


def test_the_interval_holds_what_it_says() -> None:
    generator = np.random.default_rng(0)
    worse, better, count, runs = 0.08, 0.04, 200, 1500
    drawn = generator.multinomial(count, [worse, better, 1 - worse - better], runs)
    ends = [statistics.difference_interval(w, b, count, 0.025) for w, b, _ in drawn.tolist()]
    covered = np.mean([each.low <= worse - better <= each.high for each in ends])
    assert 0.935 <= covered <= 0.97


@pytest.mark.parametrize(("count", "better"), ((60, 0.02), (150, 0.10), (300, 0.05)))
def test_a_model_at_the_margin_is_accepted_no_more_often_than_alpha(count: int, better: float) -> None:
    margin, alpha, runs = 0.05, 0.05, 20_000
    generator = np.random.default_rng(1)
    drawn = generator.multinomial(count, [better + margin, better, 1 - 2 * better - margin], runs)
    pairs, times = np.unique(drawn[:, :2], axis=0, return_counts=True)
    accepted = 0
    for (worse, other), number in zip(pairs.tolist(), times.tolist(), strict=True):
        score = statistics.tango(worse, other, count, margin)
        # Only near the edge of the region does it matter, and each exact p takes milliseconds.
        if score < -1.3:
            p = statistics.noninferiority(worse, other, count, margin)[0]
            accepted += number * (p <= alpha)
    error = math.sqrt(alpha * (1 - alpha) / runs)
    assert accepted / runs <= alpha + 3 * error


def test_the_exact_p_by_enumeration() -> None:
    worse, better, count, margin = 1, 1, 12, 0.2
    score = statistics.tango(worse, better, count, margin)
    largest = 0.0
    for other in np.linspace(1e-9, 0.4 - 1e-9, 400):
        law = stats.multinomial(count, [other + margin, other, 1 - 2 * other - margin])
        total = sum(
            law.pmf([w, b, count - w - b])
            for w in range(count + 1)
            for b in range(count + 1 - w)
            if statistics.tango(w, b, count, margin) <= score + 1e-9
        )
        largest = max(largest, total)
    found, how = statistics.noninferiority(worse, better, count, margin)
    assert found == pytest.approx(largest, rel=0.02) and "exact" in how


def test_the_sample_size_has_its_power() -> None:
    margin, changed = 0.05, 0.12
    count = statistics.needed(changed, margin, 0.05, 0.8)
    assert 250 < count < 320
    generator = np.random.default_rng(2)
    drawn = generator.multinomial(count, [changed / 2, changed / 2, 1 - changed], 3000)
    scored = sorted((statistics.tango(w, b, count, margin), w, b) for w, b, _ in drawn.tolist())
    # p rises with the score: a search in order finds how many are shown.
    shown = bisect.bisect_right(scored, 0.05, key=lambda each: statistics.noninferiority(*each[1:], count, margin)[0])
    assert shown / len(scored) == pytest.approx(0.8, abs=0.04)


def test_weighted_pairs_have_the_exact_test_of_their_effective_number() -> None:
    margin = 0.05
    for count in (64.1, 120.99, 300.5):
        whole = int(count)
        # The shares of 3 and 1 in ``whole``, in an effective number that is not whole.
        found, how = statistics.noninferiority(3 * count / whole, count / whole, count, margin)
        assert found == pytest.approx(statistics.noninferiority(3, 1, whole, margin)[0], rel=1e-6)
        assert how.endswith(f"for an effective number of {whole} records")
    # A sum of weights that should be 80, and isn't quite.
    assert statistics.noninferiority(2, 1, 80 - 1e-12, margin)[1] == "exact unconditional test by Tango's score"
    assert statistics.noninferiority(0.0, 0.0, 0.9999, margin)[0] == pytest.approx(0.95, rel=1e-3)
    assert "approximation" in statistics.noninferiority(3, 1, 1001, margin)[1]


@pytest.mark.parametrize("margin", (0.01, 0.02, 0.05, 0.3))
def test_without_a_change_the_number_needed_is_enough(margin: float) -> None:
    count = statistics.needed(0.0, margin, 0.05, 0.8)
    assert count == math.ceil(math.log(0.05) / math.log(1 - margin))
    assert (1 - margin) ** count <= 0.05 < (1 - margin) ** (count - 1)
    p = statistics.noninferiority(0, 0, count, margin)[0]
    # Where the margin is wide, other outcomes score as low: then it is more.
    assert p == pytest.approx((1 - margin) ** count, rel=1e-6) if margin < 0.1 else p > (1 - margin) ** count


def test_what_cannot_be_shown_needs_more() -> None:
    assert statistics.needed(0.1, 0.02, 0.05, 0.8) > statistics.needed(0.1, 0.05, 0.05, 0.8)
    assert statistics.needed(0.0, 0.02, 0.05, 0.8) == 149


def test_ratios_of_lengths() -> None:
    generator = np.random.default_rng(3)
    runs, held = 600, 0
    for _ in range(runs):
        wanted = generator.lognormal(3, 0.5, 120)
        made = wanted * generator.lognormal(0.2, 0.4, 120)
        found = statistics.ratio([*made], [*wanted], [1.0] * 120)
        held += found.low <= math.exp(0.2 + 0.4**2 / 2) <= found.high
    assert held / runs == pytest.approx(0.95, abs=0.035)
    same = statistics.ratio([3.0, 4.0], [3.0, 4.0], [1.0, 2.0])
    assert (same.low, same.value, same.high) == (1, 1, 1)
    assert statistics.ratio([3.0], [2.0], [1.0]).high == math.inf
