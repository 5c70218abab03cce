"""Why a timing should not be believed: what the machine did meanwhile, and figures that contradict each other.

Standard library only: bench.py of an export carries this text.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

# Others may take this share of the CPUs, and the host of a virtual machine this one.
OTHERS, STOLEN = 0.10, 0.02
# p20 to p80 of what runs say may be this wide, and the 95 % interval of their median, each over the median.
WIDE, NARROW = 0.10, 0.05
# So far may a ratio be below what the work alone gives, and the ratio of the medians from the median of the ratios.
BETTER, CONTRADICTION = 0.03, 0.05
# The first half of the runs and the second may differ by this.
DRIFT = 0.10
# Fewer values have no 95 % interval of their median.
FEWEST = 6


@dataclass(frozen=True)
class Doubt:
    """One reason not to believe a figure: ``flag``, a word for programs, and ``why``, a sentence for people."""

    flag: str
    why: str


def quantile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between order statistics (numpy's default)."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """The order statistics between which the median lies with at least ``level``, whatever the distribution: the k-th
    smallest and the k-th largest of n, with the largest k for which 2 · P(Binomial(n, 1/2) < k) ≤ 1 - level. None for
    fewer than six values at 95 %, which have no such k."""
    count = len(values)
    cut = _rank(count, level)
    if cut < 1:
        return None
    ordered = sorted(values)
    return ordered[cut - 1], ordered[count - cut]


@lru_cache
def _rank(count: int, level: float) -> int:
    if count > 500:
        # The normal approximation, whose error is below one rank there.
        return int(count / 2 - statistics.NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(count) / 2)
    allowed = (1 - level) / 2 * 2.0**count
    below, rank, ways = 0.0, 0, 1
    while below + ways <= allowed:
        below += ways
        ways = ways * (count - rank) // (rank + 1)
        rank += 1
    return rank


def is_narrow(values: Sequence[float], width: float = NARROW) -> bool:
    """Whether the 95 % interval of the median of ``values`` is at most ``width`` of that median wide."""
    interval = median_interval(values)
    return interval is not None and interval[1] - interval[0] <= width * abs(quantile(values, 0.5))


def of_machine(
    others: float | None, stolen: float | None, swapped: int | None, cpus: int, throttled: float | None = None
) -> list[Doubt]:
    """``others`` and ``stolen`` are the CPUs that other processes and the host kept busy, of ``cpus``; ``swapped`` the
    pages that went from or to swap; ``throttled`` the share of the CPUs' time in which a container's limit held
    processes back. None is what the system does not tell."""
    made = []
    if others is not None and others > OTHERS * cpus:
        made.append(
            Doubt(
                "load", f"Other processes kept {others:.2f} of {cpus} CPUs busy meanwhile; stop them and run it again."
            )
        )
    if stolen is not None and stolen > STOLEN * cpus:
        made.append(
            Doubt(
                "steal",
                f"The host of this virtual machine took {stolen:.2f} of {cpus} CPUs away meanwhile; run it at a "
                "quieter time, or on a machine of its own.",
            )
        )
    if throttled is not None and throttled > STOLEN:
        made.append(
            Doubt(
                "throttled",
                f"The CPU limit of this container held processes back for {throttled:.0%} of the CPUs' time; raise "
                "the limit, or use fewer threads.",
            )
        )
    if swapped:
        made.append(Doubt("swap", f"{swapped:,} pages went from or to swap meanwhile; free memory, and run it again."))
    return made


def of_spread(values: Sequence[float], what: str, unit: str = "") -> list[Doubt]:
    """``values`` are of runs one after the other, ``what`` names them in a sentence, in which they have that
    ``unit``."""
    unit = f" {unit}" if unit else ""
    middle, low, high = (quantile(values, share) for share in (0.5, 0.2, 0.8))
    made = []
    if high - low > WIDE * abs(middle):
        made.append(
            Doubt(
                "wide",
                f"p20 to p80 of {what} is {_said(low)} to {_said(high)}{unit}, wider than {WIDE:.0%} of the "
                f"median {_said(middle)}{unit}; runs do not repeat.",
            )
        )
    interval = median_interval(values)
    if interval is None:
        made.append(
            Doubt("few", f"{len(values)} runs are too few for an interval of the median; take at least {FEWEST}.")
        )
    elif not is_narrow(values):
        made.append(
            Doubt(
                "unsettled",
                f"After {len(values)} runs the median of {what} is between {_said(interval[0])} and "
                f"{_said(interval[1])}{unit} (95 %), wider than {NARROW:.0%}; take more runs.",
            )
        )
    return made


def of_drift(seconds: Sequence[float], whose: str) -> list[Doubt]:
    """``seconds`` of runs in the order in which they were taken."""
    half = len(seconds) // 2
    if half < 2:
        return []
    first, second = (quantile(part, 0.5) for part in (seconds[:half], seconds[-half:]))
    if not first or not second:
        return [Doubt("clock", f"{whose} took less than the clock can tell; take more tokens.")]
    if abs(second / first - 1) <= DRIFT:
        return []
    return [
        Doubt(
            "drift",
            f"{whose} took {first * 1e3:,.2f} ms in the first half of the runs and {second * 1e3:,.2f} ms in the "
            f"second (more than {DRIFT:.0%} apart); the clock of the processor, or the machine, changed.",
        )
    ]


def of_ratio(dense: Sequence[float], pruned: Sequence[float], ideal: float) -> list[Doubt]:
    """Seconds of neighbouring runs of two models, and the ratio pruned/dense that the work alone gives."""
    ratios = [after / before for before, after in zip(dense, pruned)]  # noqa: B905  (of equal length)
    middle = quantile(ratios, 0.5)
    made = of_spread(ratios, "the ratio")
    if middle < (1 - BETTER) * ideal:
        made.append(
            Doubt(
                "better-than-ideal",
                f"The ratio {middle:.3f} is better than {ideal:.3f}, which the smaller work alone gives; something "
                "else differed between the models' runs, or the smaller model fits into a cache.",
            )
        )
    of_medians = quantile(pruned, 0.5) / quantile(dense, 0.5)
    sides = (of_medians - 1) * (middle - 1) < 0 and min(abs(of_medians - 1), abs(middle - 1)) > CONTRADICTION / 5
    if sides or abs(of_medians / middle - 1) > CONTRADICTION:
        differ = "one says slower, the other faster" if sides else f"they should agree within {CONTRADICTION:.0%}"
        made.append(
            Doubt(
                "contradiction",
                f"The ratio of the medians is {of_medians:.3f} and the median of the ratios {middle:.3f}; {differ}.",
            )
        )
    return [*made, *of_drift(dense, "The dense model"), *of_drift(pruned, "The pruned model")]


def _said(value: float) -> str:
    return f"{value:.3g}" if value < 0.1 else f"{value:.3f}"
