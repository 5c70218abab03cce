"""What an importance method is: it watches a scoring pass through a model and turns what it saw into scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from prunekit.errors import PrunekitError
from prunekit.models.families import Family
from prunekit.plan.shape import ModelShape
from prunekit.pruning.importance.scores import LayerScores

T = TypeVar("T")
Needs = Literal["weights", "forward", "activation_gradients", "weight_gradients"]
BACKWARD = ("activation_gradients", "weight_gradients")
"""Those that take a pass back."""


@dataclass
class Watched:
    """The model under a scoring pass, and where it stands in it."""

    model: nn.Module
    family: Family
    shape: ModelShape
    seed: int = 0
    sequences: int = 0
    """Sequences in the batch that is running."""
    place: int = 0
    """The number of the running batch's first sequence in the whole text."""
    total: int = 0
    """Sequences of all batches so far, the running one among them; of all ranks' once the pass is over."""
    recording: bool = False
    """True in the forward pass proper, False in the backward pass, where checkpointed layers run once more."""
    handles: list[RemovableHandle] = field(default_factory=list)

    @property
    def layers(self) -> nn.ModuleList:
        return self.model.get_submodule("model.layers")  # type: ignore[return-value]

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()


class Importance:
    """Base of the unit importance methods.

    ``needs`` says what the pass must compute; ``per_sequence`` asks for one sequence a backward pass.
    """

    needs: Needs = "weights"
    per_sequence = False

    def attach(self, watched: Watched) -> None:
        """Place hooks on ``watched.model``, and put their handles into ``watched.handles``."""
        self.watched = watched

    def add_up(self) -> None:
        """Once the pass is over: bring together what each rank has seen of the batches."""

    def result(self) -> tuple[LayerScores, ...]:
        """Scores of every layer, after :meth:`add_up`."""
        raise NotImplementedError


class WeightImportance(Importance):
    """Base of the methods that look at weights alone. They need no model that runs: a layer's weights at a time do."""

    def of_weights(
        self, family: Family, shape: ModelShape, seed: int, layers: Iterable[Mapping[str, torch.Tensor]]
    ) -> tuple[LayerScores, ...]:
        """Scores of every layer. ``layers`` holds each layer's tensors by their names in it."""
        raise NotImplementedError

    def result(self) -> tuple[LayerScores, ...]:
        watched = self.watched
        layers = (dict(layer.named_parameters()) for layer in watched.layers)
        return self.of_weights(watched.family, watched.shape, watched.seed, layers)


class LayerImportance:
    """Base of the layer importance methods that are seen in the same pass."""

    def attach(self, watched: Watched) -> None:
        self.watched = watched

    def add_up(self) -> None:
        """As :meth:`Importance.add_up`."""

    def result(self) -> torch.Tensor:
        """Importance of every layer, float64 [L]; higher matters more."""
        raise NotImplementedError

    def samples(self) -> torch.Tensor:
        """The same of each piece of the text by itself, float64 [pieces, L], after :meth:`add_up`: what says how sure
        the order of layers is."""
        raise NotImplementedError


IMPORTANCE: dict[str, Callable[[], Importance]] = {}
LAYER_IMPORTANCE: dict[str, Callable[[], LayerImportance]] = {}


def importance(name: str) -> Importance:
    """A new collector of the unit importance method ``name``. Raises PrunekitError with the names there are."""
    return _lookup(IMPORTANCE, name, "importance")


def layer_importance(name: str) -> LayerImportance:
    """A new collector of the layer importance method ``name``. Raises PrunekitError with the names there are."""
    return _lookup(LAYER_IMPORTANCE, name, "layer importance")


def _lookup(registry: Mapping[str, Callable[[], T]], name: str, what: str) -> T:
    if name not in registry:
        raise PrunekitError(f"There is no {what} {name!r}; choose one of: {', '.join(registry)}.")
    return registry[name]()
