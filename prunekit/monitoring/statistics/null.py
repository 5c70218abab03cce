"""What a signal's figures are while nothing has changed, from windows of the reference, and how far a window is off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

# Fewer windows say too little of how figures vary.
CALIBRATED = 30
LEAST = 8


@dataclass(frozen=True)
class Null:
    """``mean`` and ``sd`` of transformed figures over so many ``windows``; ``effective`` of them count where neighbours
    are alike (their correlation is ``neighbours``), and ``sd`` is that of long runs then."""

    mean: float
    sd: float
    windows: int
    effective: int
    neighbours: float
    transform: str
    typical: float
    skewness: float

    @property
    def calibrated(self) -> bool:
        """Whether there were enough windows to promise a rate of false alarms."""
        return self.effective >= CALIBRATED

    def z(self, value: float, trials: float | None = None) -> float:
        """How many standard deviations ``value`` is above the mean, matched by its quantile of Student's distribution
        to the normal one, since mean and deviation come from few windows. ``trials`` is what a share was counted of."""
        from scipy.special import ndtri, stdtr

        free = max(self.effective - 1, 1)
        t = (transformed(value, self.transform, trials) - self.mean) / (self.sd * math.sqrt(1 + 1 / self.effective))
        tail = float(stdtr(free, -abs(t)))
        return math.copysign(-float(ndtri(max(tail, 1e-300))), t)

    def at(self, z: float) -> float:
        """The figure that lies ``z`` standard deviations above the typical one."""
        return _back(self.mean + z * self.sd, self.transform)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self)


def fit(
    values: Sequence[float],
    transform: str,
    *,
    trials: Sequence[float] | None = None,
    pairs: Sequence[tuple[int, int]] = (),
    floor: float = 0.0,
) -> Null | None:
    """The null of a signal from its figures of reference windows; None where there are fewer than LEAST. ``pairs`` are
    places of windows that followed each other; ``floor`` the least standard deviation of transformed figures."""
    if len(values) < LEAST:
        return None
    counted: Sequence[float | None] = trials or [None] * len(values)
    made = np.array([transformed(value, transform, n) for value, n in zip(values, counted, strict=True)])
    sd = float(made.std(ddof=1))
    if transform == "arcsine" and trials:
        # What chance alone does to shares, even where none was seen yet.
        floor = max(floor, 0.5 / math.sqrt(float(np.median(trials))))
    alike = _neighbours(made, pairs) if sd > 1e-9 else 0.0
    wider = math.sqrt((1 + alike) / (1 - alike))
    used = max(sd * wider, floor, 1e-9)
    centred = (made - made.mean()) / sd if sd > 1e-9 else np.zeros(len(made))
    effective = max(2, round(len(values) / wider**2))
    return Null(
        mean=float(made.mean()),
        sd=used,
        windows=len(values),
        effective=effective,
        neighbours=alike,
        transform=transform,
        typical=float(np.median(np.asarray(values))),
        skewness=float((centred**3).mean()),
    )


def transformed(value: float, transform: str, trials: float | None = None) -> float:
    """``value`` on a scale on which a healthy log's figures are about normal."""
    if transform == "log":
        return math.log(max(value, 1e-12))
    if transform == "cube-root":  # Wilson and Hilferty, of what is distributed like a sum of squares
        return math.copysign(abs(value) ** (1 / 3), value)
    if transform == "arcsine":  # Anscombe's, of a share of ``trials``
        n = trials or 1e9
        return math.asin(math.sqrt((max(0.0, min(1.0, value)) * n + 0.375) / (n + 0.75)))
    return value


def _back(value: float, transform: str) -> float:
    if transform == "log":
        return math.exp(value)
    if transform == "cube-root":
        return value**3
    if transform == "arcsine":
        return math.sin(max(0.0, min(math.pi / 2, value))) ** 2
    return value


def _neighbours(made: np.ndarray[Any, Any], pairs: Sequence[tuple[int, int]]) -> float:
    """The correlation of windows that follow each other, 0 where it may be chance, and at most .9."""
    if len(pairs) < LEAST:
        return 0.0
    before, after = np.array(pairs).T
    centred = made - made.mean()
    found = float((centred[before] * centred[after]).mean() / (centred**2).mean())
    return min(found, 0.9) if found > 1.645 / math.sqrt(len(pairs)) else 0.0
