"""Maximum mean discrepancy between the hidden states of a window's prompts and those of the reference.

Gretton et al., A Kernel Two-Sample Test (JMLR 13, 2012): the unbiased estimate of their lemma 6, with the kernel
exp(-d² / 2 s²) and s the median distance of the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prunekit.errors import PrunekitError

Array = Any  # numpy arrays: their shapes and types are in the docstrings

MOST = 256
"""Of each side at most so many are compared, so that the work is bounded."""


@dataclass(frozen=True)
class Reference:
    """Features of the reference, float32 [n, d] with unit spread, how they were ``centre``d and ``scale``d, float32
    [d], the ``width`` s of the kernel, and whose features they are (``ids``)."""

    features: Array
    centre: Array
    scale: Array
    width: float
    ids: tuple[str, ...]

    def distance(self, features: Array, ids: tuple[str, ...] = ()) -> float:
        """MMD² of ``features`` [m, d], which are of the requests ``ids``, from the reference. It is near 0, and may lie
        below, where both have one distribution. Requests that are in the reference too are left out of that, so that a
        window of the reference itself is compared with the rest."""
        import numpy as np

        own = set(ids)
        others = self.features[[place for place, each in enumerate(self.ids) if each not in own]]
        window = (np.asarray(features[:MOST], dtype=np.float32) - self.centre) / self.scale
        if len(window) < 2 or len(others) < 2:
            raise PrunekitError("At least two prompts of a window, and two others of the reference, are compared.")
        within = _mean_off_diagonal(self._kernel(window, window)) + _mean_off_diagonal(self._kernel(others, others))
        return within - 2 * float(self._kernel(window, others).mean())

    def _kernel(self, a: Array, b: Array) -> Array:
        import numpy as np

        return np.exp(_squared(a, b) / (-2 * self.width**2))


def reference(features: Array, ids: tuple[str, ...]) -> Reference:
    """What later windows are compared with, of ``features`` [n, d], n at least 8 and at most MOST, of requests
    ``ids``. Raises PrunekitError where there are too few, or all are alike."""
    import numpy as np

    if len(features) < 8:
        raise PrunekitError(
            f"The reference has {len(features)} prompts that can be read, and at least 8 are needed; give a longer log."
        )
    made = np.asarray(features[:MOST], dtype=np.float64)
    centre, scale = made.mean(0), made.std(0)
    # A unit that never changes tells nothing.
    scale = np.where(scale > 1e-6 * max(float(scale.max()), 1e-30), scale, np.inf)
    made = (made - centre) / scale
    distances = np.sqrt(_squared(made, made)[np.triu_indices(len(made), 1)])
    width = float(np.median(distances[distances > 0])) if (distances > 0).any() else 0.0
    if not width > 0:
        raise PrunekitError("All prompts of the reference are the same, so nothing can be compared with them.")
    small, middle, spread = (each.astype(np.float32) for each in (made, centre, scale))
    return Reference(small, middle, spread, width, ids[:MOST])


def _squared(a: Array, b: Array) -> Array:
    """Squared distances [n, m], float64."""
    import numpy as np

    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)


def _mean_off_diagonal(kernel: Array) -> float:
    n = len(kernel)
    return float((kernel.sum() - kernel.trace()) / (n * (n - 1)))
