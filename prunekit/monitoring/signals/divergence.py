"""How far two distributions of counts are apart: Jensen and Shannon's divergence, and PSI as dashboards show it."""

from __future__ import annotations

from typing import Any

import numpy as np

Counts = np.ndarray[Any, np.dtype[np.float64]]
# Added to every count, so that what was never seen is only rare.
_SMOOTHING = 0.5


def jensen_shannon(a: Counts, b: Counts, smoothing: float = _SMOOTHING) -> float:
    """Divergence in bits, 0 to 1, of the counts ``a`` and ``b``, both [n]; ``smoothing`` is added to each."""
    p, q = _shares(a, smoothing), _shares(b, smoothing)
    middle = (p + q) / 2
    return max(0.0, (_relative(p, middle) + _relative(q, middle)) / 2)


def _relative(p: Counts, q: Counts) -> float:
    there = p > 0
    return float((p[there] * np.log2(p[there] / q[there])).sum())


def psi(a: Counts, b: Counts) -> float:
    """Population stability index Σ (p − q) ln(p / q) of the counts ``a`` and ``b``, both [n]. It grows as windows get
    smaller, so it is shown and decides nothing."""
    p, q = _shares(a), _shares(b)
    return float(((p - q) * np.log(p / q)).sum())


def _shares(counts: Counts, smoothing: float = _SMOOTHING) -> Counts:
    smoothed = np.maximum(counts, 0) + smoothing
    return smoothed / smoothed.sum()
