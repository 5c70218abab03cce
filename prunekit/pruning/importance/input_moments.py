"""Importance from what flows into o_proj and down_proj: weight times activation (Wanda), and fluctuation (FLAP)."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from prunekit.pruning.importance.base import IMPORTANCE, Importance, Watched
from prunekit.pruning.importance.scores import LayerScores


class Moments:
    """Running count, sum of squares and centred sum of squares of every channel, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.squares = torch.zeros((), dtype=torch.float64)
        self.mean = torch.zeros((), dtype=torch.float64)
        self.centred = torch.zeros((), dtype=torch.float64)

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


class _InputMoments(Importance):
    """Shared by the two: moments of the inputs of every layer's output projections."""

    needs = "forward"

    def attach(self, watched: Watched) -> None:
        super().attach(watched)
        self._moments: list[dict[str, Moments]] = []
        for layer in watched.layers:
            seen = {}
            for coupling in watched.family.output_projections():
                seen[coupling.module] = Moments()
                projection = layer.get_submodule(coupling.module)
                watched.handles.append(projection.register_forward_pre_hook(partial(self._see, seen[coupling.module])))
            self._moments.append(seen)

    def _see(self, moments: Moments, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if self.watched.recording:
            moments.add(args[0].flatten(0, -2))

    def channels(self, weight: torch.Tensor, moments: Moments) -> torch.Tensor:
        """Score of every input channel of ``weight`` [out, in]."""
        raise NotImplementedError

    def heads(self, channels_HD: torch.Tensor) -> torch.Tensor:
        """Score of every query head from those of its channels [H, D]."""
        return channels_HD.sum(-1)

    def spread(self, channels_HD: torch.Tensor) -> float | None:
        """``LayerScores.channel_spread``."""
        return None

    def result(self) -> tuple[LayerScores, ...]:
        watched, scores = self.watched, []
        for shape, layer, seen in zip(watched.shape.layers, watched.layers, self._moments, strict=True):
            values = {}
            for coupling in watched.family.output_projections():
                weight = layer.get_submodule(coupling.module).weight.detach().float().cpu()  # type: ignore[operator, union-attr]
                values[coupling.parts[0]] = self.channels(weight, seen[coupling.module]).double()
            channels_HD = values["query"].view(-1, watched.shape.head_dim)
            query = self.heads(channels_HD).view(shape.num_key_value_heads, shape.group_size)
            scores.append(LayerScores(query.sum(1), query, values["ffn"], self.spread(channels_HD)))
        return tuple(scores)


class Wanda(_InputMoments):
    """mean_i |W_ij| · ‖X_j‖₂ for input channel j of o_proj and down_proj (Wanda, arXiv 2306.11695, structured: Wanda-sp
    of FLAP). A head's score is the sum over its channels."""

    def channels(self, weight: torch.Tensor, moments: Moments) -> torch.Tensor:
        return weight.abs().mean(0).double() * moments.norm


class Flap(_InputMoments):
    """WIFV: Var_t(X_j) · ‖W_:j‖² (FLAP, arXiv 2312.11983, eq. 5). A head's score is the mean over its channels."""

    def channels(self, weight: torch.Tensor, moments: Moments) -> torch.Tensor:
        return moments.variance * weight.double().square().sum(0)

    def heads(self, channels_HD: torch.Tensor) -> torch.Tensor:
        return channels_HD.mean(-1)

    def spread(self, channels_HD: torch.Tensor) -> float | None:
        return channels_HD.std(correction=0).item()


IMPORTANCE["wanda"] = Wanda
IMPORTANCE["flap"] = Flap
