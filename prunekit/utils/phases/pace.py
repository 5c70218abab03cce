"""How long work will take whose steps don't all cost the same."""

from __future__ import annotations

from collections.abc import Mapping

# What was foreseen counts as much as this share of the work done.
_TRUST = 0.04
# The share of a phase's time, foreseen, that what was seen so far has to reach before it says much of what follows.
_DOUBT = 0.03
# Of so many steps of a kind, the first one, which also loads and warms up, says nothing of those to come.
_SETTLED = 3


class Pace:
    """Tells how long a phase of ``total`` steps will take, from the steps it has made.

    ``work`` has, for every kind of step, what all of them cost together, in any unit: seconds for a unit are found for
    each kind by itself, so that kinds needn't be alike in anything. Without it, all steps cost the same. ``foreseen``
    is how many seconds the phase was expected to take (None: nobody knows). Times are in seconds, of any clock.
    """

    def __init__(
        self, total: float, work: Mapping[str, float] | None = None, foreseen: float | None = None, now: float = 0.0
    ):
        self.total = total
        self._left = dict(work) if work else {"": float(total)}
        self._whole = sum(self._left.values())
        self._spent = dict.fromkeys(self._left, 0.0)
        self._done = dict.fromkeys(self._left, 0.0)
        self._first = dict.fromkeys(self._left, (0.0, 0.0))
        self._made = dict.fromkeys(self._left, 0)
        self._guess = None if foreseen is None or self._whole <= 0 else foreseen / self._whole
        self.steps = 0.0
        self._last = now

    def step(self, steps: float, now: float, *, kind: str = "", cost: float | None = None, kept: bool = False) -> None:
        """``steps`` of that ``kind`` were made, which cost so much; ``kept`` ones were found done."""
        if kind not in self._left:
            kind = next(iter(self._left))
        if cost is None:
            cost = self._whole * steps / self.total if self.total else 0.0
        self._left[kind] = max(0.0, self._left[kind] - cost)
        if not kept:
            self._spent[kind] += now - self._last
            self._done[kind] += cost
            self._made[kind] += 1
            if self._made[kind] == 1:
                self._first[kind] = now - self._last, cost
        self.steps += steps
        # More came than was expected.
        self.total = max(self.total, self.steps)
        self._last = now

    def left(self, now: float) -> float | None:
        """Seconds that are left; None while nothing is known."""
        rates = {kind: self._rate(kind) for kind in self._left}
        if any(rate is None for kind, rate in rates.items() if self._left[kind] > 0):
            return None
        ahead = sum(self._left[kind] * (rate or 0.0) for kind, rate in rates.items())
        steps = self.total - self.steps
        # A step that takes longer than expected still leaves all that come after it.
        after = ahead * max(0.0, 1 - 1 / steps) if steps > 0 else 0.0
        return max(ahead - (now - self._last), after)

    @property
    def share_done(self) -> float:
        """The share of the work that was done, kept work left out."""
        return sum(self._done.values()) / self._whole if self._whole > 0 else 0.0

    @property
    def spent(self) -> float:
        """Seconds that the work done took."""
        return sum(self._spent.values())

    def _rate(self, kind: str) -> float | None:
        """Seconds for a unit of work."""
        spent, made = self._spent[kind], self._done[kind]
        first, cost = self._first[kind]
        if self._made[kind] >= _SETTLED and made > cost:
            spent, made = spent - first, made - cost
        if self._guess is not None:
            doubt = _TRUST * (self._done[kind] + self._left[kind])
            return (spent + self._guess * doubt) / (made + doubt) if made + doubt > 0 else self._guess
        if made > 0:
            return spent / made
        done = sum(self._done.values())
        return sum(self._spent.values()) / done if done > 0 else None


def correction(pairs: list[tuple[float, float]], in_all: float) -> float:
    """What later phases are multiplied by where earlier ones, foreseen and real, in seconds, went otherwise. ``in_all``
    is what the whole run was foreseen to take: a short phase says little."""
    foreseen, real = (sum(each) for each in zip(*pairs, strict=True)) if pairs else (0.0, 0.0)
    doubt = _DOUBT * in_all
    return (real + doubt) / (foreseen + doubt) if foreseen + doubt > 0 else 1.0
