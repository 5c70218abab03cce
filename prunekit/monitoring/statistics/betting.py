"""A bound on a rate, watched for ever: wealth of a bettor against "the rate is at most p₀", an e-process.

E = Π(1 + λ_t (x_t − p₀)) with λ_t from the past alone and 0 ≤ λ_t ≤ ½/p₀ (Waudby-Smith and Ramdas, J. R. Stat. Soc. B
2024). By Ville's inequality a log whose rate never passes p₀ brings E to 1/α with a chance of at most α, however long
and often one looks. A bettor who saw a long good time notices a bad one late, so a new one begins every 1,000 answers;
each has a share of the stake, 1/((j+1)(j+2)), and giving one up loses its share, which keeps the bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

EVERY = 1000
_MOST_BETTORS = 64


@dataclass
class Wealth:
    """The bettors against a rate of at most ``bound``, whose alarm is wrong with a chance of at most ``alpha``."""

    bound: float
    alpha: float = 0.05
    seen: int = 0
    bad: int = 0
    highest: float = 0.0
    # Of each bettor: the logarithm of stake times wealth, answers seen and bad ones among them.
    logs: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    sums: list[int] = field(default_factory=list)

    def add(self, outcomes: Iterable[bool]) -> None:
        """Bet on each answer in turn; True is a bad one."""
        logs, counts, sums, p = self.logs, self.counts, self.sums, self.bound
        for bad in outcomes:
            if self.seen % EVERY == 0:
                self._begin(self.seen // EVERY)
            for at, seen in enumerate(counts):
                # The mean so far, as if one more answer had had the bound's rate.
                above = (p + sums[at]) / (1 + seen) - p
                if above > 0:
                    stake = min(above / (p * (1 - p) + above * above), 0.5 / p)
                    logs[at] += math.log1p(stake * (bad - p))
                counts[at] = seen + 1
                sums[at] += bad
            self.seen += 1
            self.bad += bad
            if bad:  # a good answer makes nobody richer
                self.highest = max(self.highest, self.wealth)

    def _begin(self, begun: int) -> None:
        """One more bettor, after ``begun`` others; the poorest is given up where there are too many."""
        self.logs.append(-math.log((begun + 1) * (begun + 2)))
        self.counts.append(0)
        self.sums.append(0)
        if len(self.logs) > _MOST_BETTORS:
            poorest = min(range(len(self.logs) - 1), key=self.logs.__getitem__)
            for each in (self.logs, self.counts, self.sums):
                del each[poorest]

    @property
    def wealth(self) -> float:
        """E now: about 1 while nothing is wrong."""
        # More than 10^289 is all the same.
        return sum(math.exp(min(each, 667.0)) for each in self.logs) if self.logs else 1.0

    @property
    def alarm(self) -> bool:
        """Whether the rate has been above the bound, with a chance of at most alpha to be wrong."""
        return self.highest >= 1 / self.alpha

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self)
