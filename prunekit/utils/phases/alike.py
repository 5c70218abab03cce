"""Phases that do the same kind of work: the first ones tell how long the others take, and of a later run how long its
first ones do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prunekit.utils.phases.lasted import recall, remember
from prunekit.utils.phases.phase import Phase


@dataclass
class Alike:
    """``work`` is how much each phase is, by its title, in any unit; ``what`` says in JSON values what that is and on
    which machine, for later runs to know it by."""

    work: Mapping[str, float]
    what: Sequence[object]
    _over: list[tuple[float, float]] = field(default_factory=list)
    _last: float | None = None

    def __post_init__(self) -> None:
        self._last = recall(self.what)

    def add(self, phase: Phase, now: float) -> None:
        """``phase`` has ended; what was kept of it says nothing."""
        share = 1 - phase.kept / phase.pace.total if phase.pace.total else 0.0
        if phase.title in self.work and share > 0:
            self._over.append((self.work[phase.title] * share, now - phase.began))

    def unit(self, under_way: Sequence[Phase], now: float) -> float | None:
        """Seconds for one of :attr:`work`, by phases that are over, else those ``under_way``, else the last run; None
        while nobody knows."""
        seen = list(self._over)
        if not seen:
            for each in under_way:
                if each.title in self.work:
                    share, spent = each.seen(now)
                    seen.append((self.work[each.title] * share, spent))
        unit = _unit(seen)
        return self._last if unit is None else unit

    def keep(self) -> None:
        """For later runs."""
        unit = _unit(self._over)
        if unit is not None:
            remember(self.what, unit)


def _unit(seen: Sequence[tuple[float, float]]) -> float | None:
    """Seconds for one, of pairs of work done and seconds spent."""
    done, spent = (sum(each) for each in zip(*seen, strict=True)) if seen else (0.0, 0.0)
    return spent / done if done > 0 and spent > 0 else None
