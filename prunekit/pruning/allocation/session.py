"""A model while it is being planned: scored, and shrunk in memory as a progressive method goes along."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prunekit.errors import PrunekitError
from prunekit.models.families import Family
from prunekit.models.slicing import cut_layer
from prunekit.models.sublayers import KINDS
from prunekit.plan import LayerKeep
from prunekit.plan.allocations import OptimalConfig
from prunekit.plan.shape import LayerShape, ModelShape
from prunekit.pruning.curves.costs import RULER, SCALE, CurveCosts, both, in_layers
from prunekit.pruning.curves.loss_curves import LayerCurves, layer_curves
from prunekit.pruning.curves.output_fisher import output_fisher
from prunekit.pruning.importance import score
from prunekit.pruning.importance.scores import LayerScores, Scores
from prunekit.utils.advance import Advance
from prunekit.utils.phases.telling import keeping, unneeded
from prunekit.utils.phases.titles import CURVES, FISHER, REFIT, WHOLE, of_round
from prunekit.utils.process import ranks
from prunekit.utils.progress import progress

if TYPE_CHECKING:
    from prunekit.pruning.curves.curve_store import CurveStore
    from prunekit.pruning.curves.divergence import Divergence


BY_LAYERS = "loss curves of layers"
# Of fewer sequences, their spread says too little to tell one text of a mix from another.
OF_EACH_TEXT = 4


def scale_sequences(drawing: OptimalConfig, length: int, texts: int = 1) -> int:
    """How many sequences of ``length`` tokens the scale of loss curves is measured on, of a mix of so many ``texts``.
    One sequence alone would say too little, however long."""
    return max(2, -(-drawing.scale_tokens // length), OF_EACH_TEXT * texts if texts > 1 else 0)


def evenly(rows: Sequence[int], sources: Sequence[str], count: int) -> list[int]:
    """The first of ``rows``, ``count`` in all or as many as there are, the texts that ``sources`` names by row taking
    turns. In rising order."""
    queues: dict[str, list[int]] = {}
    for row in rows:
        queues.setdefault(sources[row] if sources else "", []).append(row)
    taken: list[int] = []
    for turn in zip_longest(*queues.values()):
        taken += [row for row in turn if row is not None]
    return sorted(taken[:count])


@dataclass(frozen=True)
class Further:
    """How curves are drawn again once a model is cut. ``model`` gives what is left of the dense one with these units,
    refitted in a phase of that title, which may use the dense one up; ``store`` the folder for its curves, None where
    nothing is kept."""

    model: Callable[[tuple[LayerKeep, ...], str], nn.Module]
    store: Callable[[tuple[LayerKeep, ...]], Path | None]


class Session:
    """Holds a model, what of each source layer it still has, and how to score it.

    ``shrink`` replaces layers of the model in place: the model that was handed in is used up. ``counted`` is the
    model's shape with the biases that the pruned one will have, for allocations to count. ``drawing`` says how much
    text loss curves take, and ``store`` is a folder for those of that model on that text. ``fast`` allows
    :func:`~prunekit.utils.numerics.bf16.fast_products` for curves and their scale. ``sources`` names the text of each
    sequence (none: they are all of one). ``further`` tells how curves are drawn again (None: they are not).
    """

    further: Further | None = None

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        draw: Callable[[int], torch.Tensor | None],
        *,
        importance: str,
        layer_importance: str | None,
        batch_size: int = 32,
        seed: int = 0,
        gradient_checkpointing: bool | None = None,
        counted: ModelShape | None = None,
        drawing: OptimalConfig | None = None,
        store: Path | None = None,
        fast: bool = False,
        sources: Sequence[str] = (),
        further: Further | None = None,
    ):
        self._model: nn.Module | None = model
        self._open: Callable[[], nn.Module] | None = None
        self._round = 1
        self.further = further
        self.family = family
        self.source: ModelShape = counted or family.shape(model.config)
        self.keeps: tuple[LayerKeep, ...] = tuple(
            LayerKeep.everything(index, layer) for index, layer in enumerate(self.source.layers)
        )
        self._draw = draw
        self._importance = importance
        self._layer_importance = layer_importance
        self._batch_size = batch_size
        self.seed = seed
        self._drawing = drawing or OptimalConfig()
        self.store = store
        self._gradient_checkpointing = gradient_checkpointing
        self._fast = fast
        self._sources = sources

    @property
    def model(self) -> Any:
        """The model. Raises RuntimeError where another session has used it up."""
        if self._model is None:
            if self._open is None:
                raise RuntimeError("the model was let go for one that is cut")
            self._model = self._open()
        return self._model

    def after(self, keeps: tuple[LayerKeep, ...], number: int) -> Session:
        """The session of the model that ``keeps``, indices into this one's source, leaves, for the round of that
        ``number``. That model is made where something of it is to be measured; this one's is let go before."""
        assert self.further is not None, "nobody said how a cut model is made"
        made = copy.copy(self)
        # Room for what is cut.
        self._model = None
        made._model, made._open = None, partial(self.further.model, keeps, of_round(REFIT, number))
        made._round = number
        made.source = self.source.with_layers(keep.shape for keep in keeps)
        made.keeps = tuple(LayerKeep.everything(index, layer) for index, layer in enumerate(made.source.layers))
        made.store = self.further.store(keeps)
        return made

    def let_go(self) -> None:
        """Of the model: nothing more is measured."""
        self._model = None

    @property
    def shape(self) -> ModelShape:
        """Shape of the model as it is now."""
        return self.source.with_layers(keep.shape for keep in self.keeps)

    def score(self, step: int = 0) -> Scores:
        """Score the model as it is now on the calibration text of ``step``."""
        return score(
            self.model,
            self.family,
            self.shape,
            self._draw(step),
            importance_name=self._importance,
            layer_importance_name=self._layer_importance,
            batch_size=self._batch_size,
            seed=self.seed + step,
            gradient_checkpointing=self._gradient_checkpointing,
        )

    def curves(self, advance: Advance, units: Sequence[str] = ()) -> tuple[LayerCurves, ...]:
        """The loss curves of every layer of the dense model, brought to scale
        (:func:`~prunekit.pruning.curves.scale.scaled`), and what it loses with a whole attention or FFN where ``units``
        lets that go: so large an error is beyond what a Fisher matrix tells, so it is measured and nothing else. What
        ``store`` has is taken from there, and what is missing drawn: a layer is kept as soon as it has its curves.

        ``advance`` is told of :meth:`curve_steps` steps, and of one more for each whole sub-layer that may go. Raises
        PrunekitError where something is not finite.
        """
        # Here, for the GPU check allocates widths on machines that have torch and little else.
        from prunekit.pruning.curves.curve_store import CurveStore, from_first_rank
        from prunekit.pruning.curves.whole import measure_whole

        store = CurveStore(self.store)
        known = from_first_rank([store.curves(index) for index in range(self.source.num_hidden_layers)])
        # Made where something has to be measured, and once.
        measured = cache(self.divergence)
        if any(each is None for each in known):
            self._draw_missing(known, store, measured, advance)
        else:
            advance(self.curve_steps())
            for title in [REFIT] * (self._round > 1) + [FISHER]:
                unneeded(of_round(title, self._round), "not needed, for all loss curves are kept")
            with progress(of_round(CURVES, self._round), len(known), kept_in=self.store) as step:
                step(len(known), kept=True)
            keeping(BY_LAYERS, len(known), len(known))
        kinds = [kind for kind in KINDS if f"{kind}-layer" in units]
        removed = ranks.shared([store.removed(index) for index in range(len(known))])
        if kinds:
            measure_whole(kinds, removed, store, measured, advance, of_round(WHOLE, self._round))
        made = []
        for index, curves in enumerate(known):
            assert curves is not None
            for kind in kinds:
                curves = curves.without(kind, removed[index][kind])
            made.append(curves)
        return tuple(made)

    def _draw_missing(
        self,
        known: list[LayerCurves | None],
        store: CurveStore,
        divergence: Callable[[], Divergence],
        advance: Advance,
    ) -> None:
        """Put the curves of the layers that have none into ``known``."""
        from prunekit.pruning.curves.curve_store import of_all_ranks
        from prunekit.pruning.curves.fisher_store import FisherStore
        from prunekit.pruning.curves.scale import scaled

        ids = self._curve_text()
        size = max(1, self._batch_size // 2)
        there = {index for index, each in enumerate(known) if each is not None}
        sums = FisherStore(self.store, len(known))
        some_ids = ids[: self._fisher_sequences(ids)]
        # A cut model is made in a phase of its own.
        model, title = self.model, of_round(FISHER, self._round)
        with progress(title, -(-len(some_ids) // size), tokens=some_ids.numel(), kept_in=self.store) as step:
            fisher = output_fisher(
                model,
                self.family,
                some_ids,
                batch_size=size,
                seed=self.seed,
                fast=self._fast,
                store=sums,
                known=there,
                advance=both(step, advance),
            )
        costs = CurveCosts(self.source, ids.numel(), self._scale_sequences(ids) * ids.shape[1])
        with progress(of_round(CURVES, self._round), len(known), work=costs.work(), kept_in=self.store) as step:
            for index in sorted(there):
                costs.leave_out(step, index)
            advance(len(there))
            drawn = layer_curves(
                model,
                self.family,
                self.source,
                ids,
                fisher,
                batch_size=self._batch_size,
                fast=self._fast,
                known=there,
                advance=in_layers(step, advance),
            )
            todo = [index for index in range(len(known)) if index not in there]
            first = ranks.share_of(todo)[0] if ranks.share_of(todo) else None
            for some in ranks.rounds(todo):
                # A rank without a layer in the last round asks too: what is drawn is summed up over all.
                own = next(drawn, None)
                mine = []
                if own is not None:
                    index, curves, cuts = own
                    ruler = divergence()
                    if index == first:
                        step(0, kind=RULER, cost=costs.ruler)
                    mine.append(scaled(index, curves, self.source.layers[index], cuts, ruler))
                for index, made in zip(some, of_all_ranks(mine, len(some)), strict=True):
                    known[index] = made
                    store.keep(index, made)
                    if self.store is not None:
                        keeping(BY_LAYERS, sum(each is not None for each in known), len(known))
                    step(kind=SCALE, cost=costs.scale(index))
                    advance()
        sums.forget()
        keeping("the Fisher information of sequences", 0, 0)

    def divergence(self) -> Divergence:
        """Measures what a changed sub-layer does to predictions, on some of the calibration text: where there is enough
        of it, such as curves were not drawn on."""
        from prunekit.pruning.curves.divergence import Divergence

        some = self._text()[self.scale_rows()]
        return Divergence(self.model, self.family, some, self._batch_size, self._fast)

    def scale_rows(self) -> list[int]:
        """Which sequences of the calibration text :meth:`divergence` reads: of a mix as many of each text, where there
        are so many."""
        ids = self._text()
        count = self._scale_sequences(ids)
        # What was solved errs less on the text it was solved on than elsewhere, and not everywhere by as much.
        seen = len(self._curve_text())
        rows = range(seen, len(ids)) if len(ids) - seen >= count else range(len(ids))
        return evenly(rows, self._sources, count)

    def copy(self) -> Session:
        """The same session with a model of its own, which may be shrunk."""
        made = copy.copy(self)
        made._model = copy.deepcopy(self.model)
        return made

    def _text(self) -> torch.Tensor:
        ids = self._draw(0)
        if ids is None:
            raise PrunekitError("Loss curves need calibration text; name some with --calib.")
        return ids

    def _curve_text(self) -> torch.Tensor:
        """What curves are drawn on."""
        ids = self._text()
        return ids[: -(-self._drawing.curve_tokens // ids.shape[1])]

    def curve_steps(self) -> int:
        """How many steps :meth:`curves` tells of, beside one for each whole sub-layer that may go."""
        ids = self._curve_text()
        batches = -(-self._fisher_sequences(ids) // max(1, self._batch_size // 2))
        return batches + 3 * self.source.num_hidden_layers

    def _scale_sequences(self, ids: torch.Tensor) -> int:
        return scale_sequences(self._drawing, ids.shape[1], len(set(self._sources)))

    def _fisher_sequences(self, ids: torch.Tensor) -> int:
        return min(len(ids), -(-self._drawing.fisher_tokens // ids.shape[1]))

    def select(self, scores: Scores, shapes: tuple[LayerShape, ...]) -> tuple[LayerKeep, ...]:
        """The best units of the model as it is now, as many as ``shapes`` says, as indices into the source."""
        return agreed(
            tuple(
                keep.compose(best_units(index, current, layer_scores, target))
                for index, (keep, current, layer_scores, target) in enumerate(
                    zip(self.keeps, self.shape.layers, scores.layers, shapes, strict=True)
                )
            )
        )

    def shrink(self, keeps: tuple[LayerKeep, ...]) -> None:
        """Cut the model down to ``keeps`` (indices into the source; they must be among what it still has)."""
        layers = self.model.get_submodule("model.layers")
        for index, (old, new) in enumerate(zip(self.keeps, keeps, strict=True)):
            if old != new:
                cut = cut_layer(self.model, self.family, self.shape, layers[index], relative(old, new))  # type: ignore[operator, index]
                layers[index] = cut  # type: ignore[operator, index]
        self.keeps = keeps


def agreed(keeps: tuple[LayerKeep, ...]) -> tuple[LayerKeep, ...]:
    """Those of rank 0, on all ranks: what they computed alike may differ in the last bit where machines differ."""
    if ranks.size() == 1:
        return keeps
    told: Any = ranks.shared([[keep.index, keep.kv_heads, keep.query_heads, keep.ffn] for keep in keeps])
    return tuple(LayerKeep(index, *map(tuple, units)) for index, *units in told)


def best_units(index: int, current: LayerShape, scores: LayerScores, target: LayerShape) -> LayerKeep:
    """The best-scoring units of a layer of shape ``current``, as many as ``target`` has; ties go to lower indices."""
    kv_heads = top(scores.kv_heads, target.num_key_value_heads)
    query_heads = []
    for kv in kv_heads:
        own = top(scores.query_heads[kv], target.group_size)
        query_heads += [kv * current.group_size + head for head in own]
    return LayerKeep(index, kv_heads, tuple(query_heads), top(scores.ffn, target.intermediate_size))


def top(values: torch.Tensor, count: int) -> tuple[int, ...]:
    """Indices of the ``count`` largest values, rising; ties go to the lower index, so that a plan never depends on a
    sort's whims."""
    order = torch.sort(values, descending=True, stable=True).indices[:count]
    return tuple(sorted(order.tolist()))


def relative(outer: LayerKeep, inner: LayerKeep) -> LayerKeep:
    """Reverse of :meth:`LayerKeep.compose`: units of ``inner`` as indices into what ``outer`` kept."""
    kept = (outer.kv_heads, outer.query_heads, outer.ffn)
    places = [{unit: place for place, unit in enumerate(units)} for units in kept]
    return LayerKeep(
        outer.index,
        tuple(places[0][unit] for unit in inner.kv_heads),
        tuple(places[1][unit] for unit in inner.query_heads),
        tuple(places[2][unit] for unit in inner.ffn),
    )
