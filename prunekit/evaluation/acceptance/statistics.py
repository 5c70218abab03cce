"""Statistics of paired right and wrong answers: intervals, McNemar's test, non-inferiority, sample size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Above it the exact test would take seconds; Tango's normal approximation is close there.
MOST_EXACT = 1000
# Nuisance values at which the exact test looks for its largest error of the first kind.
_NUISANCES = 64
_LARGEST_SAMPLE = 10**9


@dataclass(frozen=True)
class Interval:
    """A ``value`` and its interval from ``low`` to ``high``."""

    value: float
    low: float
    high: float


def effective_count(weights: Sequence[float]) -> float:
    """Kish's effective sample size, (Σw)² / Σw²: the number of values where all weigh the same."""
    total = math.fsum(weights)
    return total * total / math.fsum(each * each for each in weights)


def share(value: float, count: float, alpha: float = 0.05) -> Interval:
    """A share ``value`` of ``count`` trials with the interval of Clopper and Pearson (Biometrika 26, 1934), which holds
    at least 1 - ``alpha``. Of weighted trials ``count`` is the effective one, as Korn and Graubard do it (Survey
    Methodology 24, 1998)."""
    from scipy.special import betaincinv

    hits = value * count
    low = 0.0 if hits <= 0 else float(betaincinv(hits, count - hits + 1, alpha / 2))
    high = 1.0 if hits >= count else float(betaincinv(hits + 1, count - hits, 1 - alpha / 2))
    return Interval(value, min(low, value), max(high, value))


def mcnemar(worse: int, better: int) -> float:
    """The exact two-sided p of McNemar's test: of ``worse`` + ``better`` answers that changed, either way is as likely
    where the models are equally good. 1 where none changed."""
    from scipy.stats import binomtest

    return 1.0 if worse + better == 0 else float(binomtest(worse, worse + better, 0.5).pvalue)


def tango(worse: float, better: float, count: float, difference: float) -> float:
    """Tango's score (Statistics in Medicine 17, 1998) for the hypothesis that error rates of paired answers differ by
    ``difference``: standard normal under it, negative where the answers say less.

    Of ``count`` pairs ``worse`` went from right to wrong and ``better`` from wrong to right.
    """
    gap = worse - better - count * difference
    other = _constrained(worse, better, count, difference)
    variance = count * (2 * other + difference - difference * difference)
    if variance <= 1e-12 * count:
        return 0.0 if abs(gap) <= 1e-9 * count else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


def _constrained(worse: float, better: float, count: float, difference: float) -> float:
    """The likeliest share of pairs that get better, where the shares differ by ``difference``."""
    b = worse + better - difference * (2 * count - worse + better)
    c = better * difference * (1 - difference)
    root = (b + math.sqrt(max(0.0, b * b + 8 * count * c))) / (4 * count)
    return min(max(root, 0.0, -difference), (1 - difference) / 2)


def difference_interval(worse: float, better: float, count: float, alpha: float) -> Interval:
    """The difference of error rates, (worse - better) / count, with Tango's score interval of 1 - 2 · ``alpha``: its
    upper end is the one-sided bound at ``alpha``."""
    from scipy.optimize import brentq
    from scipy.special import ndtri

    value = (worse - better) / count
    z = -float(ndtri(alpha))
    edge = 1 - 1e-9

    def end(sign: float, far: float) -> float:
        def beyond(difference: float) -> float:
            return max(-1e9, min(1e9, sign * tango(worse, better, count, difference))) - z

        return far if beyond(far) < 0 or beyond(value) > 0 else float(brentq(beyond, min(value, far), max(value, far)))

    return Interval(value, end(1.0, -edge), end(-1.0, edge))


def noninferiority(worse: float, better: float, count: float, margin: float) -> tuple[float, str]:
    """The one-sided p of the hypothesis that the error rate rises by ``margin`` or more, and how it was computed.

    Up to 1,000 pairs an unconditional test that orders outcomes by Tango's score and takes the largest probability over
    all shares of changed answers (Sidik, Statistics in Medicine 22, 2003), so that it never accepts too often. Of
    weighted pairs ``count`` is the effective number: it is rounded down, and the shares are kept. Above 1,000 the
    normal approximation, whose error is near ``alpha``, and may be a little above.
    """
    from scipy.special import ndtr

    whole = max(1, math.floor(count + 1e-9))
    if whole > MOST_EXACT:
        return float(ndtr(tango(worse, better, count, margin))), "Tango's score test, normal approximation"
    part = whole / count
    how = "exact unconditional test by Tango's score"
    if abs(part - 1) > 1e-9:
        how += f", for an effective number of {whole:,} records"
    return _exact_p(whole, margin, tango(worse * part, better * part, whole, margin)), how


def _exact_p(count: int, margin: float, score: float) -> float:
    """The largest probability, over the nuisance share, of outcomes whose score is at most ``score``."""
    import numpy as np
    from scipy.special import gammaln

    scores = _scores(count, margin)
    worse, better = np.nonzero(scores <= score + 1e-9)
    if not len(worse):
        return 0.0
    same = count - worse - better
    ways = gammaln(count + 1) - gammaln(worse + 1) - gammaln(better + 1) - gammaln(same + 1)
    most = (1 - margin) / 2
    # Denser at both ends, where the probability changes most.
    shares = most * (1 - np.cos(np.linspace(0, math.pi, _NUISANCES))) / 2
    largest = 0.0
    for other in np.clip(shares, 1e-12, most - 1e-12):
        rest = max(1 - 2 * other - margin, 1e-300)
        logs = ways + worse * math.log(other + margin) + better * math.log(other) + same * math.log(rest)
        largest = max(largest, float(np.exp(logs).sum()))
    return min(1.0, largest)


def _scores(count: int, margin: float) -> Any:
    """:func:`tango` for all outcomes, float64 [worse, better], +inf where there are more than ``count``."""
    import numpy as np

    numbers = np.arange(count + 1, dtype=np.float64)
    worse, better = numbers[:, None], numbers[None, :]
    b = worse + better - margin * (2 * count - worse + better)
    root = (b + np.sqrt(b * b + 8 * count * better * margin * (1 - margin))) / (4 * count)
    other = np.clip(root, 0, (1 - margin) / 2)
    variance = count * (2 * other + margin - margin * margin)
    made = (worse - better - count * margin) / np.sqrt(variance)
    made[worse + better > count] = np.inf
    return made


def needed(changed: float, margin: float, alpha: float, power: float) -> int:
    """How many pairs show non-inferiority with probability ``power`` where both models are in truth equally good, and
    a share ``changed`` of answers changes from right to wrong or back:

        n = ((z_α √v₀ + z_power √v₁) / margin)²

    v₁ = ``changed`` is the variance of a pair's difference in truth, v₀ that under the hypothesis, at what the score
    test takes for the share then (Nam, Biometrics 53, 1997). Not fewer than log(``alpha``) / log(1 - ``margin``): of so
    many pairs without any change the exact p, (1 - margin)ⁿ or more, is ``alpha``.
    """
    from scipy.special import ndtri

    changed = min(max(changed, 0.0), 1.0)
    other = _constrained(changed / 2, changed / 2, 1.0, margin)
    under = 2 * other + margin - margin * margin
    root = -float(ndtri(alpha)) * math.sqrt(under) + float(ndtri(power)) * math.sqrt(changed)
    least = 1 if margin >= 1 else math.ceil(math.log(alpha) / math.log1p(-margin))
    return min(_LARGEST_SAMPLE, max(1, least, math.ceil((max(0.0, root) / margin) ** 2)))


def ratio(made: Sequence[float], wanted: Sequence[float], weights: Sequence[float], alpha: float = 0.05) -> Interval:
    """Σ w·made / Σ w·wanted over pairs, with a normal interval of its logarithm by the delta method (Cochran, Sampling
    Techniques, 6.4). The interval is from 0 to infinity where there are fewer than two pairs. ``wanted`` adds up to
    more than 0."""
    from scipy.special import ndtri

    above, below = (math.fsum(w * x for w, x in zip(weights, each, strict=True)) for each in (made, wanted))
    value = above / below
    if len(made) < 2 or above == 0:
        return Interval(value, 0.0, math.inf)
    squares = math.fsum((w * (x - value * y)) ** 2 for w, x, y in zip(weights, made, wanted, strict=True))
    error = math.sqrt(squares * len(made) / (len(made) - 1)) / above
    reach = math.exp(min(50.0, -float(ndtri(alpha / 2)) * error))
    return Interval(value, value / reach, value * reach)
