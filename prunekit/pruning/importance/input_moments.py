"""Importance from what flows into o_proj and down_proj: weight times activation (Wanda), and fluctuation (FLAP)."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from prunekit.pruning.importance.base import IMPORTANCE, Importance, Watched
from prunekit.pruning.importance.scores import LayerScores
from prunekit.utils.numerics.channel_moments import ChannelMoments, merge_over_ranks


class _InputMoments(Importance):
    """Shared by the two: moments of the inputs of every layer's output projections."""

    needs = "forward"

    def attach(self, watched: Watched) -> None:
        super().attach(watched)
        self._moments: list[dict[str, ChannelMoments]] = []
        for layer in watched.layers:
            seen = {}
            for coupling in watched.family.output_projections():
                projection = layer.get_submodule(coupling.module)
                seen[coupling.module] = ChannelMoments(projection.in_features)  # type: ignore[arg-type]
                watched.handles.append(projection.register_forward_pre_hook(partial(self._see, seen[coupling.module])))
            self._moments.append(seen)

    def _see(self, moments: ChannelMoments, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if self.watched.recording:
            moments.add(args[0].flatten(0, -2))

    def add_up(self) -> None:
        merge_over_ranks([moments for seen in self._moments for moments in seen.values()])

    def channels(self, weight: torch.Tensor, moments: ChannelMoments) -> torch.Tensor:
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

    def channels(self, weight: torch.Tensor, moments: ChannelMoments) -> torch.Tensor:
        return weight.abs().mean(0).double() * moments.norm


class Flap(_InputMoments):
    """WIFV: Var_t(X_j) · ‖W_:j‖² (FLAP, arXiv 2312.11983, eq. 5). A head's score is the mean over its channels."""

    def channels(self, weight: torch.Tensor, moments: ChannelMoments) -> torch.Tensor:
        return moments.variance * weight.double().square().sum(0)

    def heads(self, channels_HD: torch.Tensor) -> torch.Tensor:
        return channels_HD.mean(-1)

    def spread(self, channels_HD: torch.Tensor) -> float | None:
        return channels_HD.std(correction=0).item()


IMPORTANCE["wanda"] = Wanda
IMPORTANCE["flap"] = Flap
