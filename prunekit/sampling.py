"""Tokens drawn from the whole distribution of a model."""

from __future__ import annotations

import torch


def sampled(logits: torch.Tensor, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """One token [N] of each row's distribution of float32 logits [N, V]: much faster than torch.multinomial where
    vocabularies are large. Chances are summed in ``dtype``; ``generator`` may be another device's."""
    until = logits.softmax(-1).cumsum(-1, dtype=dtype)
    chance = torch.rand(len(logits), 1, generator=generator, dtype=dtype, device=generator.device).to(logits.device)
    # The first token that reaches past the place has some chance, so that none of zero is taken.
    drawn = torch.searchsorted(until, chance * until[:, -1:], right=True)[:, 0]
    return drawn.clamp(max=logits.shape[1] - 1)
