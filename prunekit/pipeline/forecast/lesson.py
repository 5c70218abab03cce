"""How long a training takes that follows a pruning, and in how many stages the two take turns, before either begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunekit.data.token_file import expected
from prunekit.pipeline.forecast.trial import Rates
from prunekit.pruning.stages import equal_steps
from prunekit.recovery.stages.shares import stage_count, token_shares

if TYPE_CHECKING:
    from prunekit.models.dense import DenseModel
    from prunekit.pipeline.stages import Asked
    from prunekit.plan.shape import ModelShape


@dataclass(frozen=True)
class Lesson:
    """The training that is ``asked`` for, of a model of which a ``share`` of the blocks of ``shape`` stays."""

    shape: ModelShape
    share: float
    asked: Asked

    @property
    def removed(self) -> float:
        """The share of all parameters that goes, by which stages are counted."""
        return (1 - self.share) * self.shape.block_parameters / self.shape.parameters

    @property
    def left(self) -> int:
        """Parameters that stay in the end."""
        return round(self.shape.parameters * (1 - self.removed))

    @property
    def moving(self) -> int:
        """Those that move: adapters are as good as none."""
        if self.asked.config.lora:
            return 0
        outside = self.shape.parameters - self.shape.block_parameters
        return self.left - (0 if self.asked.config.train == "all" else outside)

    def tokens(self, rates: Rates) -> int:
        """How many are trained on: of minutes, at the speed of the model that the trial will train."""
        alone = self.asked.stages == 1 or (self.asked.stages is None and self.removed <= self.asked.turns.at_once)
        return max(1, self.asked.budget.in_tokens(lambda: 1 / self._token(rates, self.share if alone else 1.0)))

    def stages(self, rates: Rates) -> int:
        return self.asked.stages or stage_count(self.removed, self.tokens(rates), self.asked.turns)

    def seconds(self, rates: Rates, ranks: int = 1) -> float:
        """All its steps."""
        if self.asked.budget.minutes is not None:
            return 60 * self.asked.budget.minutes
        count = self.stages(rates)
        parts = zip(equal_steps(count), token_shares(count, self.asked.turns), strict=True)
        mean = sum(part * self._token(rates, 1 - target * (1 - self.share)) for target, part in parts)
        return self.tokens(rates) * mean / ranks

    def writing(self, rates: Rates, dense: DenseModel, ranks: int = 1) -> float:
        """What the ``dense`` model has yet to write of its text."""
        made = expected(self.asked.text, self.tokens(rates), dense)
        if not made.tokens:
            return 0.0
        together = made.tokens / self.asked.text.length / made.chunks
        step = self._layers() * rates.decode + self.shape.vocab_size * rates.decode_head
        return made.tokens * step / together / ranks

    def _layers(self) -> float:
        """In the largest ones' worth of products, by which rates are."""
        return self.shape.block_parameters / max(map(self.shape.layer_parameters, self.shape.layers))

    def _token(self, rates: Rates, share: float) -> float:
        """Seconds of a token: forward and back through the pruned layers, where the gradients of weights are as many
        products as the way forward, and forward through the dense ones."""
        layers, vocabulary = self._layers(), self.shape.vocab_size
        weights = 0.0 if self.asked.config.lora else rates.forward
        student = share * layers * (rates.forward + rates.backward + weights) + vocabulary * rates.head_back
        return student + layers * rates.forward + vocabulary * rates.head
