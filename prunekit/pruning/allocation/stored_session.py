"""Planning by weights alone: they are read a layer at a time, and the model is never in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from prunekit.models.source import Source
from prunekit.models.stored.reading import StoredWeights
from prunekit.models.stored.streamed import StreamedModel
from prunekit.plan import LayerKeep
from prunekit.plan.methods import Method
from prunekit.plan.shape import ModelShape
from prunekit.pruning.allocation.session import Session
from prunekit.pruning.importance.base import WeightImportance, importance
from prunekit.pruning.importance.scores import Scores


def takes_weights_alone(method: Method) -> bool:
    """Whether ``method`` is planned without running the model."""
    return (
        method.allocation.scores_units
        and not method.allocation.scores_layers
        and not method.allocation.draws_curves
        and not method.allocation.uses_up_model
        and isinstance(importance(method.importance), WeightImportance)
    )


class StoredSession(Session):
    """A model that is read and not loaded, in ``dtype``; ``on_layer`` is called for each layer that was scored. It can
    score and select; it has no model to shrink or to draw curves of.

    Raises PrunekitError where config and weights make no model that computes something.
    """

    def __init__(self, source: Source, method: Method, *, seed: int, counted: ModelShape, dtype: torch.dtype):
        source.check_language_model()
        self._weights = StoredWeights(source)
        StreamedModel(source, dtype, self._weights).check_runs()
        self.family = source.family
        self.source = counted
        self.keeps = tuple(LayerKeep.everything(index, layer) for index, layer in enumerate(counted.layers))
        self.seed = seed
        self.on_layer: Callable[[], None] = lambda: None
        self._importance = method.importance
        self._dtype = dtype

    def score(self, step: int = 0) -> Scores:
        """The scores of all units, of the model as it is stored."""
        units = importance(self._importance)
        assert isinstance(units, WeightImportance)
        return Scores(self._importance, units.of_weights(self.family, self.source, self.seed, self._layers()))

    def _layers(self) -> Iterator[Mapping[str, torch.Tensor]]:
        names = list(self._weights.names())
        for name in names:
            if not name.startswith("model.layers."):
                # Nothing looks at it here, but it is refused now where it is not finite.
                self._weights.read(name)
        for index in range(self.source.num_hidden_layers):
            prefix = f"model.layers.{index}."
            own = [name for name in names if name.startswith(prefix)]
            yield {name.removeprefix(prefix): self._weights.read(name).to(self._dtype) for name in own}
            self.on_layer()
