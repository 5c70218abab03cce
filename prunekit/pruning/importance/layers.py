"""Layer importance: how far a layer turns or moves its input, or what the loss does without it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from prunekit.pruning.importance.base import LAYER_IMPORTANCE, LayerImportance, Watched
from prunekit.utils.process.ranks import shared, size, sum_over_ranks

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Samples:
    """Values of layers on pieces of the text, by the number of a piece's first sequence."""

    def __init__(self, layers: int):
        self._layers = layers
        self._rows: dict[int, list[float]] = {}

    def put(self, place: int, layer: int, value: float) -> None:
        self._rows.setdefault(place, [0.0] * self._layers)[layer] = value

    def add_up(self) -> None:
        """Bring together what each rank has seen of the text."""
        mine = [[place, row] for place, row in self._rows.items()]
        self._rows = {place: row for by in range(size()) for place, row in shared(mine, by)}  # type: ignore[misc]

    def values(self) -> torch.Tensor:
        """Float64 [pieces, layers], in the order of the text."""
        rows = [row for _, row in sorted(self._rows.items())]
        return torch.tensor(rows, dtype=torch.float64).view(-1, self._layers)


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
        self._samples = Samples(len(watched.layers))
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
        for place, value in enumerate(distance.mean(-1).tolist()):
            self._samples.put(self.watched.place + place, index, value)
        if index == 0:
            self._tokens += distance.numel()

    def add_up(self) -> None:
        seen = torch.tensor([*self._sums, self._tokens], dtype=torch.float64)
        sum_over_ranks(seen)
        *self._sums, tokens = seen.tolist()
        self._tokens = int(tokens)
        self._samples.add_up()

    def result(self) -> torch.Tensor:
        return torch.tensor(self._sums, dtype=torch.float64) / max(self._tokens, 1)

    def samples(self) -> torch.Tensor:
        return self._samples.values()


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
        self._samples = Samples(len(watched.layers))
        self._sequences = 0

    @torch.no_grad()
    def after_batch(self, input_ids: torch.Tensor, whole: float, loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Called with every batch once its own pass is over; ``whole`` is the loss that it gave."""
        sequences = input_ids.shape[0]
        for index, layer in enumerate(self.watched.layers):
            layer.forward = _skip  # type: ignore[method-assign]
            try:
                rise = loss(input_ids).item() - whole
                self._rise[index] += rise * sequences
                self._samples.put(self.watched.place, index, rise)
            finally:
                del layer.forward
        self._sequences += sequences

    def add_up(self) -> None:
        sequences = torch.tensor(self._sequences)
        sum_over_ranks(self._rise, sequences)
        self._sequences = int(sequences)
        self._samples.add_up()

    def result(self) -> torch.Tensor:
        return self._rise / max(self._sequences, 1)

    def samples(self) -> torch.Tensor:
        return self._samples.values()


def _skip(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return hidden_states


LAYER_IMPORTANCE["cosine"] = partial(InputOutputDistance, _cosine)
LAYER_IMPORTANCE["euclidean"] = partial(InputOutputDistance, _euclidean)
LAYER_IMPORTANCE["manhattan"] = partial(InputOutputDistance, _manhattan)
LAYER_IMPORTANCE["loss"] = LossWithout
