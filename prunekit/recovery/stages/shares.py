"""How many stages there are, and how much of the training each gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from prunekit.errors import PrunekitError
from prunekit.plan.training import StagesConfig
from prunekit.recovery.training.schedule import Span

MOST = 1000


def check_stages(stages: int | None) -> None:
    """Raises PrunekitError where there can't be so many."""
    if stages is not None and not 1 <= stages <= MOST:
        raise PrunekitError(f"--stages must lie between 1 and {MOST}, got {stages}.")


def stage_count(removed: float, tokens: int, config: StagesConfig) -> int:
    """In how many stages a share of the model is best ``removed``, where so many ``tokens`` are trained on."""
    if removed <= config.at_once:
        return 1
    each = config.removes if tokens >= config.many_tokens else config.removes_of_few
    return max(1, math.ceil(removed / each - 1e-9))


def token_shares(stages: int, config: StagesConfig) -> list[float]:
    """The share of all tokens that each stage gets."""
    numbers = range(1, stages + 1)
    shares = [2 * number / (stages * (stages + 1)) if config.shares == "linear" else 1 / stages for number in numbers]
    last = max(shares[-1], config.last_share) if stages > 1 else 1.0
    return [*(share * (1 - last) / (1 - shares[-1]) for share in shares[:-1]), last]


def spans(steps: int, shares: Sequence[float], config: StagesConfig) -> list[Span]:
    """The steps of every stage in one schedule: ``steps`` in all, or one for every stage where these are fewer."""
    steps = max(steps, len(shares))
    ends = [round(steps * sum(shares[:number])) for number in range(len(shares) + 1)]
    for place in range(1, len(ends)):
        # At least one for this stage, and one for each that follows.
        ends[place] = min(max(ends[place], ends[place - 1] + 1), steps - (len(shares) - place))
    made = []
    for number, (start, end) in enumerate(pairwise(ends)):
        rewarm = math.ceil(config.rewarm * (end - start)) if number else 0
        made.append(Span(end - start, start, steps, rewarm))
    return made


def average_work(removed: float, targets: Sequence[float], shares: Sequence[float]) -> float:
    """How long a step takes on average, where one that trains the dense model itself takes 1. A step is a forward and a
    backward pass (2 forward ones) of a model that has lost its part of ``removed``, and a forward pass of the dense
    one."""
    return sum(share * (3 * (1 - target * removed) + 1) / 4 for target, share in zip(targets, shares, strict=True))
