"""The search for the highest load within an SLO: what its interval covers, and which probes count."""

from __future__ import annotations

import math
import random

import pytest

from prunekit.profiling.server.config import Slo
from prunekit.profiling.server.load import Volley
from prunekit.profiling.server.slo import Bracket, Capacity, Probe, Search, begun, is_told
from tests.support.shots import shot


def found(limit: float, start: float, around: float | None, draw: random.Random) -> Search:
    """A search on a server that keeps the SLO up to ``limit`` requests a second."""
    bracket = begun(start, draw=draw, around=around)
    while (rate := bracket.next_rate()) is not None:
        bracket.add(Probe(rate, rate <= limit, "", 60, 0.0))
    return bracket.found


def capacities(noise: float, ratio: float, count: int) -> list[Capacity]:
    """Of ``count`` pairs of servers, three blocks each. A block's limit differs by ``noise`` from the server's own."""
    draw, made = random.Random(7), []
    for number in range(count):
        limits = [draw.uniform(2, 40)]
        limits.append(limits[0] * ratio)
        # A closed loop tells about what a server can do.
        starts = [0.5 * each * draw.uniform(0.8, 1.3) for each in limits]
        searches: list[list[Search]] = [[], []]
        for block in range(3):
            for side, limit in enumerate(limits):
                last = searches[side][-1].rate if searches[side] else None
                own = random.Random(f"{number}/{side}/{block}")
                at = limit * math.exp(draw.gauss(0, noise))
                searches[side].append(found(at, starts[side], last, own))
        made.append(Capacity(Slo(ttft=500), tuple(map(tuple, searches))))
    return made


@pytest.mark.parametrize(("noise", "ratio"), [(0.0, 1.0), (0.0, 1.2), (0.03, 1.0), (0.1, 1.0), (0.1, 0.7)])
def test_the_interval_of_the_capacity_ratio_covers(noise: float, ratio: float) -> None:
    """A 95 % interval holds the true ratio in at least 95 % of 500 pairs, and never has no width. Where nothing is left
    to chance it always holds it; and the estimate is right on average."""
    made = [each.ratio for each in capacities(noise, ratio, 500)]
    ends = [(each.low or math.inf, each.value or math.inf, each.high or 0.0) for each in made]
    missed = sum(not low <= ratio <= high for low, _, high in ends)
    # Three standard errors; of no noise none.
    assert missed <= (500 * 0.05 + 3 * math.sqrt(500 * 0.05 * 0.95) if noise else 0)
    assert min(high / low for low, _, high in ends) > 1.05
    mean = sum(math.log(value / ratio) for _, value, _ in ends) / 500
    assert abs(mean) < 3 * (noise + 0.04) * math.sqrt(2 / 3 / 500)


def test_blocks_begin_at_rates_of_their_own() -> None:
    """Blocks that try the same rates are all wrong by the same share of a step."""
    tried = [found(10.0, 4.0, 9.0, random.Random(block)).probes[0].rate for block in range(20)]
    assert len(set(tried)) == 20 and min(tried) >= 9 / 1.25**0.5 and max(tried) <= 9 * 1.25**0.5
    again = found(10.0, 4.0, 9.0, random.Random(3)).probes[0].rate
    assert again == tried[3]


def test_the_estimate_is_between_what_holds_and_what_fails() -> None:
    bracket = Bracket(4.0)
    while (rate := bracket.next_rate()) is not None:
        bracket.add(Probe(rate, rate <= 9.0, "", 10, 0.0))
    made = bracket.found
    assert made.holds is not None and made.fails is not None and made.rate is not None
    assert made.holds <= 9.0 < made.fails <= 1.1 * made.holds
    assert made.rate == pytest.approx(math.sqrt(made.holds * made.fails))
    assert made.doubt == pytest.approx(math.log(made.fails / made.holds) / 2)
    # What was not searched to its end is what held, and no more.
    assert Search("time was up", 4.0, (), 8.0).rate == 4.0


def test_what_a_capacity_says_of_each_block() -> None:
    capacity = Capacity(Slo(ttft=500), ((Search("found", 4.0, (), 4.4),) * 2, (Search("found", 8.0, (), 8.8),) * 2))
    said = capacity.to_dict()
    assert said["endpoints"][0]["blocks"][0] == {
        "status": "found",
        "rate": pytest.approx(4.0 * 1.1**0.5),
        "holds": 4.0,
        "fails": 4.4,
        "probes": [],
    }
    # Two brackets of 10 %: each end may be wrong by 10 %, though both blocks say 2.
    assert said["ratio"]["value"] == pytest.approx(2.0) and "widened" in said["ratio"]["how"]
    assert [said["ratio"][name] for name in ("low", "high")] == [pytest.approx(2 / 1.1), pytest.approx(2 * 1.1)]


@pytest.mark.parametrize(
    ("made", "slow", "failed", "cut", "told"),
    [
        # 60 were to be made: up to 3 may be slower than the SLO.
        (40, 0, 0, "time was up", False),
        (59, 3, 0, "time was up", False),
        (40, 4, 0, "time was up", True),
        (40, 0, 1, "time was up", True),
        (40, 4, 0, "the SLO was broken", True),
        (60, 0, 0, "", True),
    ],
)
def test_a_probe_that_was_cut_tells_only_of_an_slo_that_is_broken(
    made: int, slow: int, failed: int, cut: str, told: bool
) -> None:
    shots = [shot(0.1) for _ in range(made - slow - failed)] + [shot(0.9) for _ in range(slow)]
    shots += [shot(0.1, error="reset") for _ in range(failed)]
    assert is_told(Volley(tuple(shots), 8.0, 0.1, cut), Slo(ttft=500), 60) is told
