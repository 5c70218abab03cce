"""How sure an order of layers is: the same order of resampled text, so that nobody reads noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_RESAMPLES = 400
# Nine of ten resamples lie between.
_LOW, _HIGH = 5, 95
# Of fewer, resamples are too much alike to say anything.
FEWEST = 4


@dataclass(frozen=True)
class Stability:
    """``ranks`` of all layers (0 is the largest mean), the ranks ``low`` and ``high`` between which nine of ten
    resamples of the text put each, and the mean Kendall ``tau`` between a resample's order and the whole text's (1 is
    the same order, 0 none). ``samples`` of text were resampled."""

    ranks: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    tau: float
    samples: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def stability(samples: Sequence[Sequence[float]], seed: int = 0) -> Stability | None:
    """The stability of the order of layers by ``samples`` [samples, layers], each a layer's value on one piece of the
    text; all pieces count alike. A bootstrap over the pieces, the same for the same ``seed``. None where there are
    fewer than 4 pieces or 2 layers."""
    from scipy.stats import kendalltau

    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 2 or len(values) < FEWEST or values.shape[1] < 2:
        return None
    whole = values.mean(0)
    drawn = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
    means = values[drawn].mean(1)
    ranks = np.stack([_ranks(mean) for mean in means])
    low, high = np.percentile(ranks, [_LOW, _HIGH], axis=0, method="nearest").astype(int)
    # Layers that are all alike have no order: every one is as good as another.
    taus = [0.0 if np.isnan(tau) else tau for tau in (kendalltau(whole, mean).statistic for mean in means)]
    return Stability(
        tuple(_ranks(whole).tolist()), tuple(low.tolist()), tuple(high.tolist()), float(np.mean(taus)), len(values)
    )


def _ranks(values: np.ndarray) -> np.ndarray:
    """The place of each in falling order; of equals the first comes first."""
    order = np.argsort(-values, kind="stable")
    made = np.empty(len(values), dtype=int)
    made[order] = np.arange(len(values))
    return made
