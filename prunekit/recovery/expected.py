"""What a training may be expected to bring, by trainings that were measured."""

from __future__ import annotations

import math

import numpy as np

from prunekit.plan.training import TrainingConfig

# Tokens for each weight that is trained, and the share of the divergence on the training's own held-out text that was
# left: SmolLM2-135M-Instruct after a refit, at 79 % of the blocks (67,584 tokens, "kd" of
# benchmarks/results/recovery_ablation_cpu.json, and 251,904, recovery_79_cpu.json; 83.9 M weights) and at 50 %
# (1,001,472 tokens, recovery_50_cpu.json; 53.1 M).
MEASURED = ((0.000806, 0.937), (0.003, 0.884), (0.01887, 0.755))


def expected_kl(now: float, tokens: int, trained: int, config: TrainingConfig) -> float | None:
    """About what is left of the divergence ``now``, nats a token, when so many ``trained`` weights have seen
    ``tokens``: between measured trainings by the logarithm of the tokens, before the first of them in proportion to
    them, after the last as there. None where another loss or adapters are trained, of which none was measured."""
    if config.ce_share or config.lora:
        return None
    amount = tokens / trained
    amounts, left = zip(*MEASURED, strict=True)
    if amount <= amounts[0]:
        return now * (1 - (1 - left[0]) * amount / amounts[0])
    # Which stays at its last value after the last one.
    return now * float(np.interp(math.log(amount), np.log(amounts), left))
