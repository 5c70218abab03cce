"""Gate Fisher: squared gradients of a gate on every unit. Needs activations and their gradients, none of weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from prunekit.pruning.importance.base import IMPORTANCE, Importance, Watched
from prunekit.pruning.importance.scores import LayerScores
from prunekit.utils.process.ranks import sum_over_ranks


class _Gate(torch.autograd.Function):
    """Identity whose backward hands ``take`` the gradient of one gate a channel and sequence.

    A gate m_j = 1 on channel j has the gradient Σ_t a_tj · δ_tj. The activation goes through ``save_for_backward``, so
    that gradient checkpointing recomputes it instead of keeping it alive.
    """

    @staticmethod
    def forward(ctx: Any, activation: torch.Tensor, take: Any) -> torch.Tensor:
        ctx.save_for_backward(activation)
        ctx.take = take
        return activation.view_as(activation)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (activation,) = ctx.saved_tensors
        (delta,) = gradients
        # [B, T, n] → [B, n]
        ctx.take(torch.einsum("btn,btn->bn", activation.float(), delta.float()))
        return delta, None


class Fisher(Importance):
    """Σ_n (∂L_n/∂m)² for a gate m on every unit: FFN channel, query head, KV group (notes: "gate Fisher").

    L_n is the mean loss of sequence n. A head's gate gradient is the sum over its head_dim channels at o_proj's input,
    a KV group's the sum over the heads it serves. Comparable across layers, so that all units can be sorted together.
    """

    needs = "activation_gradients"

    def attach(self, watched: Watched) -> None:
        super().attach(watched)
        layers = watched.shape.layers
        self._ffn = [torch.zeros(layer.intermediate_size, dtype=torch.float64) for layer in layers]
        self._query = [
            torch.zeros(layer.num_key_value_heads, layer.group_size, dtype=torch.float64) for layer in layers
        ]
        self._kv = [torch.zeros(layer.num_key_value_heads, dtype=torch.float64) for layer in layers]
        for index, layer in enumerate(watched.layers):
            for coupling in watched.family.output_projections():
                take = partial(self._take_ffn if coupling.parts == ("ffn",) else self._take_heads, index)
                projection = layer.get_submodule(coupling.module)
                watched.handles.append(projection.register_forward_pre_hook(partial(self._gate, take)))

    @staticmethod
    def _gate(take: Any, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (_Gate.apply(args[0], take), *args[1:])

    def _scaled(self, gradient_Bn: torch.Tensor) -> torch.Tensor:
        # The loss that is differentiated is the batch's mean; times B it is each sequence's own.
        return gradient_Bn.to("cpu", torch.float64) * self.watched.sequences

    def _take_ffn(self, index: int, gradient_BF: torch.Tensor) -> None:
        self._ffn[index] += self._scaled(gradient_BF).square().sum(0)

    def _take_heads(self, index: int, gradient_Bn: torch.Tensor) -> None:
        layer = self.watched.shape.layers[index]
        gates = self._scaled(gradient_Bn).view(
            -1, layer.num_key_value_heads, layer.group_size, self.watched.shape.head_dim
        )
        heads = gates.sum(-1)
        self._query[index] += heads.square().sum(0)
        self._kv[index] += heads.sum(-1).square().sum(0)

    def add_up(self) -> None:
        sum_over_ranks(*self._ffn, *self._query, *self._kv)

    def result(self) -> tuple[LayerScores, ...]:
        return tuple(LayerScores(*scores) for scores in zip(self._kv, self._query, self._ffn, strict=True))


IMPORTANCE["fisher"] = Fisher
