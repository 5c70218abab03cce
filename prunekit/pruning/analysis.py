"""Analysis: how much each layer matters, told in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from prunekit.data.calibration import CalibrationConfig, check_length, check_tokens
from prunekit.data.mixture import CalibrationText, calibration_text, text_phases
from prunekit.models.dense import DenseModel
from prunekit.models.source import load_tokenizer
from prunekit.plan.shape import PRUNE_THE_ORIGINAL
from prunekit.pruning.importance import score
from prunekit.pruning.importance.scores import Scores
from prunekit.pruning.importance.scoring import tell_of_idle_ranks
from prunekit.pruning.stability import FEWEST, stability
from prunekit.utils.phases.telling import phases
from prunekit.utils.phases.titles import SCORING
from prunekit.utils.progress import progress
from prunekit.utils.provenance import model_label, versions

if TYPE_CHECKING:
    from prunekit.models.source import Source

_MEANING = {
    "cosine": "1 minus the cosine between what enters and what leaves the layer: 0 would mean the layer turns nothing",
    "euclidean": "the length of what the layer adds to its input",
    "manhattan": "the sum of absolute values of what the layer adds to its input",
    "loss": "nats a token by which the loss rises when the layer is skipped",
}


@dataclass(frozen=True)
class LayerReport:
    """One layer: its importance, its rank (0 matters most) among ``layers``, the ranks between which nine of ten
    resamples of the text put it (None: too little text to tell), and how unequal its units are."""

    index: int
    importance: float
    rank: int
    idle_ffn_share: float
    """Share of the FFN channels that together hold 10 % of the layer's unit importance."""
    layers: int = 1
    rank_low: int | None = None
    rank_high: int | None = None

    @property
    def words(self) -> str:
        return f"{self._place}; {self.idle_ffn_share:.0%} of its FFN channels carry a tenth of its weight"

    @property
    def _place(self) -> str:
        if self.rank_low is None or self.rank_high is None or self.rank_low == self.rank_high:
            return f"{_place(self.rank, self.layers)}"
        chance = f"place {self.rank_low + 1} to {self.rank_high + 1} by chance of the text"
        return f"{_place(self.rank, self.layers)} ({chance})"


@dataclass(frozen=True)
class Analysis:
    """Every layer of a model, and how they were judged."""

    model: str
    family: str
    importance: str
    layer_method: str
    meaning: str
    loss: float | None
    tokens: int
    layers: tuple[LayerReport, ...]
    calibration: dict[str, Any]
    kendall_tau: float | None = None
    """How well the order of layers agrees with that of resampled text: 1 is the same order, 0 none; None where there is
    too little text to tell."""

    @property
    def summary(self) -> str:
        """One sentence for people."""
        order = sorted(self.layers, key=lambda layer: layer.rank)
        if len(order) < 2:
            return "With one layer there is nothing to compare."
        if self.kendall_tau is None:
            sure = f"There is too little text to tell how sure that order is: it takes {FEWEST} pieces. "
        else:
            sure = f"On text drawn again by chance the order agrees with Kendall's tau {self.kendall_tau:.2f}. "
        some = min(3, len(order) // 2)
        return (
            f"Layers {_names(order[:some])} matter most and {_names(order[: -some - 1 : -1])} least. {sure}"
            "adapt-pruner would keep the first widest and cut the others deepest."
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "family": self.family,
            "importance": self.importance,
            "layer_importance": self.layer_method,
            "meaning": self.meaning,
            "loss": self.loss,
            "tokens": self.tokens,
            "kendall_tau": self.kendall_tau,
            "summary": self.summary,
            "layers": [
                {
                    "index": layer.index,
                    "importance": layer.importance,
                    "rank": layer.rank,
                    "rank_low": layer.rank_low,
                    "rank_high": layer.rank_high,
                    "idle_ffn_share": layer.idle_ffn_share,
                    "words": layer.words,
                }
                for layer in self.layers
            ],
            "calibration": self.calibration,
            "versions": versions(),
        }


def analyze(
    source: Source,
    calibration: CalibrationConfig,
    *,
    importance: str = "taylor",
    layer_importance: str = "cosine",
    dtype: str = "auto",
    device: str = "auto",
) -> Analysis:
    """Score ``source`` once and rank its layers. Raises PrunekitError as :func:`prunekit.pruning.importance.score`
    does."""
    from prunekit.pruning.importance.base import importance as find
    from prunekit.pruning.importance.base import layer_importance as find_layer

    source.shape.check_whole_layers(PRUNE_THE_ORIGINAL)
    find(importance)
    find_layer(layer_importance)
    check_length(calibration, source.config)
    with phases(*text_phases(calibration.source), SCORING):
        scores, text = _scored(source, calibration, importance, layer_importance, dtype, device)
    assert scores.layer_importance is not None
    values = scores.layer_importance.tolist()
    order = sorted(range(len(values)), key=lambda index: -values[index])
    rank = {index: place for place, index in enumerate(order)}
    assert scores.layer_samples is not None
    order_by_chance = stability(scores.layer_samples.tolist())
    layers = tuple(
        LayerReport(
            index,
            value,
            rank[index],
            _idle(scores.layers[index].ffn),
            len(values),
            *((order_by_chance.low[index], order_by_chance.high[index]) if order_by_chance else ()),
        )
        for index, value in enumerate(values)
    )
    return Analysis(
        model_label(source.name),
        source.family.name,
        importance,
        layer_importance,
        _MEANING[layer_importance],
        scores.loss,
        scores.tokens,
        layers,
        text.describe(),
        order_by_chance.tau if order_by_chance else None,
    )


def _scored(
    source: Source, calibration: CalibrationConfig, importance: str, layer_importance: str, dtype: str, device: str
) -> tuple[Scores, CalibrationText]:
    dense = DenseModel(source, dtype=dtype, device=device)
    text = calibration_text(calibration, load_tokenizer(source), dense)
    check_tokens(text.blocks, source.config)
    model = dense.share()
    tell_of_idle_ranks(calibration.sequences, calibration.batch_size, importance)
    batches = -(-calibration.sequences // calibration.batch_size)
    with progress(SCORING, calibration.sequences if importance == "taylor2" else batches) as advance:
        made = score(
            model,
            source.family,
            source.shape,
            text.input_ids,
            importance_name=importance,
            layer_importance_name=layer_importance,
            batch_size=calibration.batch_size,
            seed=calibration.seed,
            on_batch=advance,
        )
    return made, text


def _idle(ffn: torch.Tensor) -> float:
    ordered = torch.sort(ffn).values.clamp(min=0).cumsum(0)
    if ordered[-1] <= 0:
        return 0.0
    return int((ordered <= 0.1 * ordered[-1]).sum()) / len(ordered)


def _place(rank: int, layers: int) -> str:
    if rank == 0:
        return "matters most"
    if rank == layers - 1:
        return "matters least"
    third = 3 * rank // layers
    return ("matters more than most", "about average", "matters less than most")[third]


def _names(layers: list[LayerReport]) -> str:
    return ", ".join(str(layer.index) for layer in layers)
