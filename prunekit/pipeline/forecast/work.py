"""How long each phase of planning and pruning takes, from the rates of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunekit.data.self_generated import cost_of_place
from prunekit.pipeline.forecast.trial import Rates
from prunekit.plan.shape import LayerShape, ModelShape
from prunekit.utils.machine import WRITTEN_A_SECOND
from prunekit.utils.phases import titles

if TYPE_CHECKING:
    from prunekit.pruning.importance.base import Needs

# Seconds that are not worth a measurement: to choose widths, to read a text, to open a model.
_WIDTHS, _READING, _OPENING = 2.0, 1.0, 1.0
# Products in float64 beside those of moments, and axes beside an elimination of as many rows, both in time.
_FLOAT64, _AXES = 1.2, 0.5
# Scores that are kept of one layer by a pass for each layer, and what a look at a result reads and writes.
_CHECKED_TOKENS, _SHOWN_TOKENS, _SHOWN = 4096, 32, 2


@dataclass(frozen=True)
class Text:
    """How much text each phase takes, in tokens: what the model has yet to write itself in chunks of so many sequences
    (``unwritten``), curves, their metric, their scale, what is measured of ``whole`` sub-layers, and what is
    ``refitted`` before they are drawn again; the refit, and rescaling. ``passes`` are those that score, by what
    ``needs`` says; ``turned`` is what principal axes are taken of, in float64."""

    length: int
    batch_size: int
    unwritten: tuple[int, ...] = ()
    curves: int = 0
    fisher: int = 0
    scale: int = 0
    whole: int = 0
    refitted: int = 0
    refit: int = 0
    rescaling: int = 0
    scored: int = 0
    passes: float = 0.0
    needs: Needs = "weight_gradients"
    turned: int = 0


@dataclass(frozen=True)
class Work:
    """What is to be done with a model of shape ``dense``, of whose blocks a ``share`` stays, stored in ``stored``
    bytes. ``rounds`` are the shares of its layers that have gone each time that loss curves are drawn again."""

    dense: ModelShape
    share: float
    text: Text
    stored: int
    rounds: tuple[float, ...] = ()

    def seconds(self, rates: Rates, ranks: int = 1) -> dict[str, float]:
        """By phases. Ranks share out the text."""
        found = {
            titles.READING: _READING,
            titles.OWN_TEXT: self._own_text(rates),
            titles.SCORING: self._scoring(rates),
            **self._drawn(rates, 1, 1.0),
            titles.REFIT: self._refit(rates, self.share, self.text.refit),
            titles.RESCALING: self.text.rescaling * self._through(rates, self.share, back=True),
            titles.TURNING: self._turning(rates),
            titles.BIASES: self.text.scored * self._through(rates, 1.0, back=False),
        }
        for number, gone in enumerate(self.rounds, start=2):
            left = self._refit(rates, 1 - gone, self.text.refitted)
            found |= {titles.of_round(titles.REFIT, number): left, **self._drawn(rates, number, 1 - gone)}
        found = {title: seconds / ranks for title, seconds in found.items()}
        return {
            **found,
            titles.WIDTHS: _WIDTHS,
            titles.WRITING: _OPENING + self.stored / WRITTEN_A_SECOND + self._turning_weights(rates),
            titles.CHECK: self._check(rates),
        }

    def reading(self, rates: Rates, tokens: int, share: float, heads: int) -> float:
        """Seconds to evaluate a model of whose blocks that ``share`` is there on so many ``tokens``, where
        probabilities of so many models are made: with its own, those of a model that has read before."""
        layers = share * self._layers() * rates.forward
        return tokens * (layers + heads * self.dense.vocab_size * rates.head)

    def operations(self) -> float:
        """About how many products there are in all, twice: whether a trial is worth its time."""
        text = self.text
        tokens: float = sum(text.unwritten) * text.length + text.curves + 3 * text.fisher + 3 * text.refit
        tokens += 3 * text.rescaling + 3 * text.scored * text.passes + text.scale * self.dense.num_hidden_layers
        tokens += len(self.rounds) * (
            text.curves + 3.0 * (text.refitted + text.fisher) + text.scale * self.dense.num_hidden_layers
        )
        solved = (1 + len(self.rounds)) * sum(map(self._solved, self.dense.layers)) if text.curves else 0.0
        turned = text.turned + self.share * self.dense.hidden_size * (text.turned > 0)
        return 2.0 * self.dense.parameters * (tokens + turned) + solved

    def _layers(self) -> float:
        """In the largest ones' worth of products, by which rates are."""
        return self.dense.block_parameters / max(map(self.dense.layer_parameters, self.dense.layers))

    def _through(self, rates: Rates, share: float, *, back: bool) -> float:
        """Seconds of a token through all layers and the head, and back."""
        layer = rates.forward + (rates.backward if back else 0.0)
        return share * self._layers() * layer + self.dense.vocab_size * (rates.head_back if back else rates.head)

    def _own_text(self, rates: Rates) -> float:
        length, whole = self.text.length, sum(self.text.unwritten)
        if not whole:
            return 0.0
        together = max(self.text.unwritten)
        step = self._layers() * rates.decode * cost_of_place(self.dense, length / 2) / cost_of_place(self.dense, 0)
        step += self.dense.vocab_size * rates.decode_head
        return (length - 1) * step * whole / together

    def _scoring(self, rates: Rates) -> float:
        token = self._layers() * rates.scoring + self.dense.vocab_size * rates.scoring_head
        return self.text.passes * self.text.scored * token

    def _drawn(self, rates: Rates, number: int, share: float) -> dict[str, float]:
        """Loss curves in the round of that ``number``, of which a ``share`` of each layer is left."""
        return {
            titles.of_round(titles.FISHER, number): self._fisher(rates, share),
            titles.of_round(titles.CURVES, number): self._curves(rates, share),
            titles.of_round(titles.WHOLE, number): self._scale(rates, self.text.whole, share),
        }

    def _fisher(self, rates: Rates, share: float) -> float:
        products = 2 * self.dense.num_hidden_layers * self.dense.hidden_size**2
        return self.text.fisher * (self._through(rates, share, back=True) + products * rates.moments)

    def _curves(self, rates: Rates, share: float) -> float:
        if not self.text.curves:
            return 0.0
        moments = sum(float(share * width) ** 2 for layer in self.dense.layers for width in self._widths(layer))
        summed = self.text.curves * (share * self._layers() * rates.forward + moments * rates.moments)
        eliminated = rates.elimination * sum(self._solved(layer, share) for layer in self.dense.layers)
        scaled = self._scale(rates, self.text.scale, share) + self.text.scale * self._through(rates, share, back=False)
        return summed + eliminated + scaled

    def _scale(self, rates: Rates, tokens: int, share: float) -> float:
        """Two passes from each layer on."""
        count = self.dense.num_hidden_layers
        behind = 2 * share * sum(count - index for index in range(count)) / count * self._layers()
        heads = 2 * count * self.dense.vocab_size
        return tokens * (behind * rates.forward + heads * rates.head)

    def _refit(self, rates: Rates, share: float, tokens: int) -> float:
        cut = sum((share * width) ** 2 for layer in self.dense.layers for width in self._widths(layer))
        # The dense layers on both streams, and their output projections once more.
        passes = self._layers() * (2 + share / 4) * rates.forward
        solved = rates.elimination * share**3 * sum(map(self._solved, self.dense.layers)) / 3
        return tokens * (passes + 1.3 * cut * rates.moments) + (solved if tokens else 0.0)

    def _turning(self, rates: Rates) -> float:
        """The states in front of each norm once, their products in float64, and the axes."""
        if not self.text.turned:
            return 0.0
        width, norms = self.dense.hidden_size, 2 * self.dense.num_hidden_layers + 1
        seen = self.text.turned * (self._layers() * rates.forward + norms * width**2 * _FLOAT64 * rates.moments)
        return seen + _AXES * width**3 * rates.elimination

    def _turning_weights(self, rates: Rates) -> float:
        """Products of all weights with the axes that stay, in float64."""
        if not self.text.turned:
            return 0.0
        return self.dense.parameters * self.share * self.dense.hidden_size * _FLOAT64 * rates.moments

    def _check(self, rates: Rates) -> float:
        reading = _CHECKED_TOKENS * (1 + self.share) * self._through(rates, 1.0, back=False) / 2
        return 2 * reading + 4 * _OPENING + 2 * _SHOWN * _SHOWN_TOKENS * self._through(rates, 1.0, back=False)

    def _widths(self, layer: LayerShape) -> tuple[int, int]:
        return layer.num_attention_heads * self.dense.head_dim, layer.intermediate_size

    def _solved(self, layer: LayerShape, share: float = 1.0) -> float:
        widths = (share * width for width in self._widths(layer))
        return float(sum(width**2 * (width + self.dense.hidden_size) for width in widths))
