"""A bound on a rate, watched for ever: wealth of a bettor against "the rate is at most p₀", an e-process.

E = Π(1 + λ_t (x_t − p₀)) with λ_t from the past alone and 0 ≤ λ_t ≤ ½/p₀ (Waudby-Smith and Ramdas, J. R. Stat. Soc. B
2024). By Ville's inequality a log whose rate never passes p₀ brings E to 1/α with a chance of at most α, however long
and often one looks. A bettor who saw a long good time notices a bad one late, so a new one begins every 1,000 answers;
each has a share of the stake, 1/((j+1)(j+2)), and giving one up loses its share, which keeps the bound.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

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
        logs, counts, sums = (np.array(each, float) for each in (self.logs, self.counts, self.sums))
        p = self.bound
        for bad in outcomes:
            if self.seen % EVERY == 0:
                begun = self.seen // EVERY
                logs, counts, sums = (
                    np.append(logs, -np.log((begun + 1.0) * (begun + 2.0))),
                    *(np.append(each, 0.0) for each in (counts, sums)),
                )
                if len(logs) > _MOST_BETTORS:
                    kept = np.arange(len(logs)) != np.argmin(logs[:-1])
                    logs, counts, sums = logs[kept], counts[kept], sums[kept]
            above = (p + sums) / (1 + counts) - p
            stake = np.minimum(np.maximum(above, 0) / (p * (1 - p) + above * above), 0.5 / p)
            logs = logs + np.log1p(stake * (bad - p))
            counts, sums = counts + 1, sums + bad
            self.seen += 1
            self.bad += bad
            if bad:  # a good answer makes nobody richer
                self.highest = max(self.highest, _sum(logs))
        self.logs, self.counts, self.sums = logs.tolist(), counts.astype(int).tolist(), sums.astype(int).tolist()

    @property
    def wealth(self) -> float:
        """E now: about 1 while nothing is wrong."""
        return _sum(np.array(self.logs)) if self.logs else 1.0

    @property
    def alarm(self) -> bool:
        """Whether the rate has been above the bound, with a chance of at most alpha to be wrong."""
        return self.highest >= 1 / self.alpha

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def _sum(logs: Any) -> float:
    """Of the bettors' wealth; more than 10^290 is all the same."""
    return float(np.exp(np.minimum(logs, 667.0)).sum())
