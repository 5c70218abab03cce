"""Importance from how large activations are: Minitron's, which looks at no weight (arXiv 2407.14679)."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from prunekit.models.families import Coupling, unit_count
from prunekit.pruning.importance.base import IMPORTANCE, Importance, Watched
from prunekit.pruning.importance.scores import LayerScores
from prunekit.utils.process.ranks import sum_over_ranks


class Activation(Importance):
    """The mean over a sequence of |a| for an FFN channel a at the input of down_proj, and of ‖a‖₂ for a query head's
    head_dim channels a at the input of o_proj; then the L2 norm over all sequences.

    A KV group's score is the sum over the heads it serves.
    """

    needs = "forward"

    def attach(self, watched: Watched) -> None:
        super().attach(watched)
        self._squares: list[dict[str, torch.Tensor]] = []
        for shape, layer in zip(watched.shape.layers, watched.layers, strict=True):
            squares: dict[str, torch.Tensor] = {}
            for coupling in watched.family.output_projections():
                units = unit_count(shape, coupling.parts[0])
                squares[coupling.module] = torch.zeros(units, dtype=torch.float64)
                see = partial(self._see, squares, coupling)
                watched.handles.append(layer.get_submodule(coupling.module).register_forward_pre_hook(see))
            self._squares.append(squares)

    def _see(
        self, squares: dict[str, torch.Tensor], coupling: Coupling, module: nn.Module, args: tuple[torch.Tensor, ...]
    ) -> None:
        if not self.watched.recording:
            return
        a_BLn = args[0].detach().float()
        if "ffn" in coupling.parts:
            size_BLu = a_BLn.abs()
        else:
            size_BLu = a_BLn.unflatten(-1, (-1, self.watched.shape.head_dim)).norm(dim=-1)
        mean_Bu = size_BLu.mean(1).to("cpu", torch.float64)
        squares[coupling.module] = squares[coupling.module] + mean_Bu.square().sum(0)

    def add_up(self) -> None:
        sum_over_ranks(*(each for squares in self._squares for each in squares.values()))

    def result(self) -> tuple[LayerScores, ...]:
        scores = []
        for shape, squares in zip(self.watched.shape.layers, self._squares, strict=True):
            sizes = {
                coupling.parts[0]: squares[coupling.module].sqrt()
                for coupling in self.watched.family.output_projections()
            }
            query = sizes["query"].view(shape.num_key_value_heads, shape.group_size)
            scores.append(LayerScores(query.sum(1), query, sizes["ffn"]))
        return tuple(scores)


IMPORTANCE["activation"] = Activation
