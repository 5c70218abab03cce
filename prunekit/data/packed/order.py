"""In which order the windows of a mix are read: a pure function of shares, seed and a window's number."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

_FINEST = 10_000
MOST_WEIGHT = 2 * _FINEST
"""More than all weights of a mix: its shares add up to one, but for what rounding adds."""


def weights_of(shares: Sequence[float]) -> tuple[int, ...]:
    """Shares as whole numbers in the same proportions, to four digits; none is 0."""
    counts = [max(1, round(_FINEST * share)) for share in shares]
    common = math.gcd(*counts)
    return tuple(count // common for count in counts)


class Turns:
    """Which part of a mix each window comes from, for ``weights`` in whole numbers; after their sum it repeats.

    Of part i, window m (from 0) comes no sooner than place ⌊m/s⌋ and before place ⌈(m+1)/s⌉, s its share. Taking the
    window that is due first always does that, and then the counts of every part differ from s·j by less than 1 at every
    j (Baruah, Cohen, Plaxton and Varvel, Proportionate progress, 1996).
    """

    def __init__(self, weights: Sequence[int]):
        self._weights = np.array(weights, np.int64)
        total = sum(weights)
        given = [0] * len(weights)
        turns = np.empty(total, np.int64)
        # Of each part, how many windows came before that place.
        self._before = np.zeros((total + 1, len(weights)), np.int64)
        for place in range(total):
            ready = [part for part, weight in enumerate(weights) if given[part] * total // weight <= place]
            turns[place] = part = min(ready, key=lambda part: -(-(given[part] + 1) * total // weights[part]))
            given[part] += 1
            self._before[place + 1] = given
        self._turns = turns

    def counts(self, windows: int) -> list[int]:
        """How many of the first ``windows`` come from each part."""
        rounds, rest = divmod(windows, len(self._turns))
        return [int(count) for count in rounds * self._weights + self._before[rest]]

    def of(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The part of each of these windows, and which of that part's it is, from 0."""
        rounds, rest = np.divmod(numbers, len(self._turns))
        parts = self._turns[rest]
        return parts, rounds * self._weights[parts] + self._before[rest, parts]


def permutation(count: int, *key: object) -> np.ndarray:
    """The numbers below ``count``, shuffled as ``key`` says, int64 [count].

    The same everywhere: numpy promises that RandomState never changes, as it does of no other generator.
    """
    digest = hashlib.sha256(":".join(map(str, key)).encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, "<u4")).permutation(count).astype(np.int64)
