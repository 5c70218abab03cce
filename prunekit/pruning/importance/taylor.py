"""Taylor importance: what the loss would change, to first or second order, if a unit's weights became zero."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from prunekit.models.families import Part
from prunekit.pruning.importance.base import IMPORTANCE, Importance, Watched
from prunekit.pruning.importance.scores import LayerScores, UnitSums, reduce_to_axis
from prunekit.utils.process.ranks import sum_over_ranks


class Taylor(Importance):
    """First order: the sum of |w · g| over all weights of a unit, g the gradient of the mean loss of a batch.

    LLM-Pruner (arXiv 2305.11627, element-wise, eq. 5 without the second-order term), used by Adapt-Pruner. A weight's
    gradient is turned into unit sums and freed as soon as autograd has it, so that no set of gradients is ever held;
    over several batches the sums of |w · g| add up, each weighted by its share of the sequences.
    """

    needs = "weight_gradients"

    def attach(self, watched: Watched) -> None:
        super().attach(watched)
        shape = watched.shape
        self._sums = [UnitSums(layer, shape.head_dim) for layer in shape.layers]
        for index, layer in enumerate(watched.layers):
            tensors = dict(layer.named_parameters())
            for name, axis, parts in watched.family.unit_tensors():
                if name in tensors:
                    tensors[name].requires_grad_(True)
                    hook = partial(self._take, index, axis, parts)
                    watched.handles.append(tensors[name].register_post_accumulate_grad_hook(hook))

    def _take(self, index: int, axis: int, parts: tuple[Part, ...], weight: nn.Parameter) -> None:
        gradient, weight.grad = weight.grad, None
        assert gradient is not None
        saliency = self._saliency(weight.detach().float(), gradient.float())
        self._sums[index].add(parts, reduce_to_axis(saliency, axis) * self.watched.sequences)

    def _saliency(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return (weight * gradient).abs_()

    def add_up(self) -> None:
        sum_over_ranks(*(each for sums in self._sums for each in sums.sums.values()))

    def result(self) -> tuple[LayerScores, ...]:
        return tuple(sums.scores(1 / max(self.watched.total, 1)) for sums in self._sums)


class Taylor2(Taylor):
    """Second order with a diagonal Fisher for the Hessian: the sum of w² · mean_n g_n² over all weights of a unit.

    g_n is the gradient of sequence n alone (LLM-Pruner's ``param_second``), so each backward pass holds one sequence.
    """

    per_sequence = True

    def _saliency(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return (weight * gradient).square_()


IMPORTANCE["taylor"] = Taylor
IMPORTANCE["taylor2"] = Taylor2
