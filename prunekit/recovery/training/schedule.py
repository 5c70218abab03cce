"""The learning rate as a pure function of the step: a run goes on anywhere as if it had not stopped."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prunekit.plan.training import TrainingConfig


@dataclass(frozen=True)
class Span:
    """The steps of one training: ``steps`` of a schedule of ``whole`` (None: all of it), from ``offset`` on. Over the
    first ``rewarm`` of them the rate rises once more to what the schedule says."""

    steps: int
    offset: int = 0
    whole: int | None = None
    rewarm: int = 0

    def rate(self, config: TrainingConfig, step: int) -> float:
        """The learning rate of ``step``, which counts from 0 in this training."""
        again = min(1.0, (step + 1) / (self.rewarm + 1))
        return again * rate(config, self.offset + step, self.whole or self.steps)


def rate(config: TrainingConfig, step: int, steps: int) -> float:
    """The learning rate of ``step``, which counts from 0, among ``steps``. Never 0: a step that changes nothing is
    wasted."""
    warm = math.ceil(config.warmup * steps)
    if step < warm:
        return config.learning_rate * (step + 1) / (warm + 1)
    left = (steps - step) / max(1, steps - warm)
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 - math.cos(math.pi * left))
    if config.schedule == "wsd":
        falling = max(1, math.ceil(config.decay * steps))
        return config.learning_rate * min(1.0, (steps - step) / falling)
    return config.learning_rate * left
