"""Tokens drawn from the whole distribution of a model."""

from __future__ import annotations

import torch
from torch import nn

# Tokens in a run, of which only one is looked into.
_RUN = 256


def sampled(logits: torch.Tensor, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """One token [N] of each row's distribution of float32 logits [N, V]: much faster than torch.multinomial where
    vocabularies are large. Chances are summed in ``dtype``; ``generator`` may be another device's."""
    chances = logits.softmax(-1)
    if over := logits.shape[1] % _RUN:
        chances = nn.functional.pad(chances, (0, _RUN - over))
    runs = chances.view(len(logits), -1, _RUN)
    chance = _chances(len(logits), generator, dtype).to(logits.device)
    # First the run, then the token in it, by how far into the run the place is.
    run, into = _place(runs.sum(-1).to(dtype), chance)
    token, _ = _place(runs[torch.arange(len(runs), device=runs.device), run].to(dtype), into)
    return (run * _RUN + token).clamp(max=logits.shape[1] - 1)


def pass_over(rows: int, generator: torch.Generator) -> None:
    """Draw what :func:`sampled` would for so many rows, for another rank that samples them."""
    _chances(rows, generator, torch.float32)


def _chances(rows: int, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    return torch.rand(rows, 1, generator=generator, dtype=dtype, device=generator.device)


def _place(sizes: torch.Tensor, chance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of ``sizes`` [N, n] lies at the share ``chance`` [N, 1] of their sum, [N], and how far into it, [N, 1]."""
    until = sizes.cumsum(-1)
    place = chance * until[:, -1:]
    # The first that reaches past the place has some size, so that none of zero is taken.
    found = torch.searchsorted(until, place, right=True).clamp(max=sizes.shape[1] - 1)
    own = sizes.gather(1, found)
    into = (place - until.gather(1, found) + own) / own
    return found[:, 0], into.clamp(0, 1 - torch.finfo(into.dtype).eps)
