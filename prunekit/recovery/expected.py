"""What a training may be expected to bring, by trainings that were measured."""

from __future__ import annotations

import math

import numpy as np

from prunekit.plan.training import TrainingConfig

# Tokens for each weight that is trained, and the share of the divergence on the training's own held-out text that was
# left: SmolLM2-135M-Instruct after a refit, in steps of 512 tokens. 66,048 tokens at 79 % of the blocks (83.9 M
# weights; benchmarks/results/recovery_ablation_cpu.json) and at 50 % (53.1 M; recovery_rates_50_cpu.json), 819,200 at
# 79, 60 (63.7 M, the mean of two) and 50 % (recovery_hour_*_cpu.json). On texts of other kinds half to three quarters
# as much went.
MEASURED = ((0.000787, 0.919), (0.00124, 0.91), (0.00976, 0.743), (0.01286, 0.74), (0.01543, 0.677))


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
