"""Mean, norm and variance of every channel of a stream of activations, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunekit.utils.process.ranks import size, sum_over_ranks


class ChannelMoments:
    """Running count, sum of squares and centred sum of squares of every channel, in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.squares, self.mean, self.centred = torch.zeros(3, channels, dtype=torch.float64)

    def add(self, x_Tn: torch.Tensor) -> None:
        """``x_Tn`` [tokens, channels]; merged by Chan's pairwise formula."""
        # One shift a batch keeps the centred sum exact enough in float32 before float64 takes over.
        x = x_Tn.detach().float()
        tokens = x.shape[0]
        batch_mean = x.mean(0)
        batch_centred = (x - batch_mean).square().sum(0).to("cpu", torch.float64)
        self.squares = self.squares + x.square().sum(0).to("cpu", torch.float64)
        difference = batch_mean.to("cpu", torch.float64) - self.mean
        total = self.count + tokens
        self.centred = self.centred + batch_centred + difference.square() * (self.count * tokens / total)
        self.mean = self.mean + difference * (tokens / total)
        self.count = total

    @property
    def norm(self) -> torch.Tensor:
        """‖X_j‖₂ over all tokens seen."""
        return self.squares.sqrt()

    @property
    def variance(self) -> torch.Tensor:
        """Sample variance of every channel over all tokens seen."""
        return self.centred / max(self.count - 1, 1)


def merge_over_ranks(moments: Sequence[ChannelMoments]) -> None:
    """Make each of ``moments`` that of what all ranks have seen together."""
    if size() == 1:
        return
    counts = torch.tensor([each.count for each in moments])
    own = counts.clone()
    sums = [each.mean * each.count for each in moments]
    sum_over_ranks(counts, *sums)
    for each, count, mine, total in zip(moments, counts.tolist(), own.tolist(), sums, strict=True):
        mean = total / max(count, 1)
        each.centred = each.centred + (each.mean - mean).square() * mine
        each.count, each.mean = count, mean
    sum_over_ranks(*(tensor for each in moments for tensor in (each.centred, each.squares)))
