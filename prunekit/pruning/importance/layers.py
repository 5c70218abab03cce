"""Layer importance: how far a layer turns or moves its input, or what the loss does without it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from prunekit.pruning.importance.base import LAYER_IMPORTANCE, LayerImportance, Watched
from prunekit.utils.process.ranks import sum_over_ranks

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class InputOutputDistance(LayerImportance):
    """Mean over tokens of a distance between what enters a layer and what leaves it.

    ``cosine``: 1 − cos, Adapt-Pruner's measure (arXiv 2502.03460, §3.1) and ShortGPT's block influence up to a
    constant. ``euclidean`` and ``manhattan``: the length of what the layer adds. Adapt-Pruner's code gives these two
    the opposite sign, so that the layer that changes most counts least; here a larger change always counts for more.
    """

    def __init__(self, distance: Distance):
        self._distance = distance

    def attach(self, watched: Watched) -> None:
        super().attach(watched)
        self._sums = [0.0] * len(watched.layers)
        self._tokens = 0
        for index, layer in enumerate(watched.layers):
            watched.handles.append(layer.register_forward_hook(partial(self._see, index), with_kwargs=True))

    @torch.no_grad()
    def _see(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self.watched.recording:
            return
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        distance = self._distance(before.detach().float(), after.detach().float())
        self._sums[index] += distance.double().sum().item() if distance.device.type != "mps" else float(distance.sum())
        if index == 0:
            self._tokens += distance.numel()

    def add_up(self) -> None:
        seen = torch.tensor([*self._sums, self._tokens], dtype=torch.float64)
        sum_over_ranks(seen)
        *self._sums, tokens = seen.tolist()
        self._tokens = int(tokens)

    def result(self) -> torch.Tensor:
        return torch.tensor(self._sums, dtype=torch.float64) / max(self._tokens, 1)


def _cosine(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return 1 - torch.nn.functional.cosine_similarity(before, after, dim=-1)


def _euclidean(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return (after - before).norm(dim=-1)


def _manhattan(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return (after - before).abs().sum(-1)


class LossWithout(LayerImportance):
    """By how much the mean loss (nats a token) rises when the layer is skipped. Costs one forward pass a layer."""

    def attach(self, watched: Watched) -> None:
        super().attach(watched)
        self._rise = torch.zeros(len(watched.layers), dtype=torch.float64)
        self._sequences = 0

    @torch.no_grad()
    def after_batch(self, input_ids: torch.Tensor, whole: float, loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Called with every batch once its own pass is over; ``whole`` is the loss that it gave."""
        sequences = input_ids.shape[0]
        for index, layer in enumerate(self.watched.layers):
            layer.forward = _skip  # type: ignore[method-assign]
            try:
                self._rise[index] += (loss(input_ids).item() - whole) * sequences
            finally:
                del layer.forward
        self._sequences += sequences

    def add_up(self) -> None:
        sequences = torch.tensor(self._sequences)
        sum_over_ranks(self._rise, sequences)
        self._sequences = int(sequences)

    def result(self) -> torch.Tensor:
        return self._rise / max(self._sequences, 1)


def _skip(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return hidden_states


LAYER_IMPORTANCE["cosine"] = partial(InputOutputDistance, _cosine)
LAYER_IMPORTANCE["euclidean"] = partial(InputOutputDistance, _euclidean)
LAYER_IMPORTANCE["manhattan"] = partial(InputOutputDistance, _manhattan)
LAYER_IMPORTANCE["loss"] = LossWithout
