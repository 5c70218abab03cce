"""The beginnings in a text after which a model is farthest from the one that it was pruned from, and both answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from prunekit.evaluation.continuations import Continuations

if TYPE_CHECKING:
    import torch

    from prunekit.evaluation.continuations import ContinuationConfig


@dataclass(frozen=True)
class Hard:
    """A beginning at token ``start`` of a text, and ``kl``, the mean KL(baseline || model) in nats a token over the
    tokens that follow it there."""

    start: int
    kl: float


@dataclass(frozen=True)
class WorstExample:
    """A :class:`Hard` beginning in words, with what both models wrote after it. ``kl`` is None where no number holds
    it."""

    text: str
    start: int
    kl: float | None
    prompt: str
    model: str
    baseline: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self)


def hardest(kl: torch.Tensor, config: ContinuationConfig) -> tuple[Hard, ...]:
    """The ``config.worst`` blocks of ``config.prompt_length`` tokens with the largest mean of ``kl``, float64 [n], over
    the ``config.new_tokens`` tokens behind them, the worst first. NaN stands for tokens that nobody predicted; at least
    half of them must have been."""
    import torch

    starts = _starts(len(kl), config)
    behind = starts[:, None] + config.prompt_length + torch.arange(config.new_tokens)
    spans = kl[behind.clamp(max=len(kl) - 1)].where(behind < len(kl), math.nan)
    counts = (~spans.isnan()).sum(1)
    means = (spans.nansum(1) / counts).tolist()
    found = [
        Hard(start, mean)
        for start, mean, count in zip(starts.tolist(), means, counts.tolist(), strict=True)
        if 2 * count >= config.new_tokens
    ]
    return tuple(sorted(found, key=lambda each: (-each.kl, each.start))[: config.worst])


def most_hard(count: int, config: ContinuationConfig, models: int = 1) -> int:
    """At most so many beginnings are found in ``count`` tokens, for so many models together."""
    return min(config.worst * models, len(_starts(count, config)))


def prompts_at(
    tokens: torch.Tensor, starts: Sequence[int], config: ContinuationConfig, first: int | None
) -> torch.Tensor:
    """The beginnings, int64 [n, prompt_length], with the token ``first`` in place of their own first where there is
    one."""
    import torch

    at = torch.tensor(list(starts), dtype=torch.long)[:, None] + torch.arange(config.prompt_length)
    prompts = tokens[at]
    if first is not None:
        prompts[:, 0] = first
    return prompts


def worst_examples(
    tokenizer: Any,
    prompts: torch.Tensor,
    hard: Sequence[Hard],
    made: Continuations,
    wanted: Mapping[int, Sequence[int]],
    text: str,
) -> tuple[WorstExample, ...]:
    """In words: ``prompts`` of ``hard``, what the model ``made`` of them, and what is ``wanted``, by their starts."""

    def words(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    return tuple(
        WorstExample(
            text,
            each.start,
            each.kl if math.isfinite(each.kl) else None,
            words(prompt),
            words(own),
            words(wanted[each.start]),
        )
        for each, prompt, own in zip(hard, prompts.tolist(), made, strict=True)
    )


def _starts(count: int, config: ContinuationConfig) -> torch.Tensor:
    """Of blocks that half a continuation fits behind."""
    import torch

    room = count - config.prompt_length - (config.new_tokens + 1) // 2
    return torch.arange(0, max(room + 1, 0), config.prompt_length)
