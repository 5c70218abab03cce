"""A model while it is being planned: scored, and shrunk in memory as a progressive method goes along."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
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
from prunekit.pruning.allocation.units import agreed, best_units, relative
from prunekit.pruning.curves.costs import RULER, SCALE, CurveCosts, both, in_layers
from prunekit.pruning.curves.loss_curves import LayerCurves, layer_curves
from prunekit.pruning.curves.output_fisher import output_fisher
from prunekit.pruning.curves.text import CurveText
from prunekit.pruning.importance import score
from prunekit.pruning.importance.scores import Scores
from prunekit.utils.advance import Advance
from prunekit.utils.phases.telling import keeping, unneeded
from prunekit.utils.phases.titles import CURVES, FISHER, REFIT, WHOLE, of_round
from prunekit.utils.process import ranks
from prunekit.utils.progress import progress

if TYPE_CHECKING:
    from prunekit.pruning.curves.curve_store import CurveStore
    from prunekit.pruning.curves.divergence import Divergence


BY_LAYERS = "loss curves of layers"


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

        text = self.text()
        ids, some_ids = text.drawn_on, text.fisher
        size = max(1, self._batch_size // 2)
        there = {index for index, each in enumerate(known) if each is not None}
        sums = FisherStore(self.store, len(known))
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
        costs = CurveCosts(self.source, ids.numel(), text.scale_sequences * ids.shape[1])
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

        text = self.text()
        some = text.ids[text.scale_rows()]
        return Divergence(self.model, self.family, some, self._batch_size, self._fast)

    def copy(self) -> Session:
        """The same session with a model of its own, which may be shrunk."""
        made = copy.copy(self)
        made._model = copy.deepcopy(self.model)
        return made

    def text(self) -> CurveText:
        """The calibration text of loss curves. Raises PrunekitError where there is none."""
        ids = self._draw(0)
        if ids is None:
            raise PrunekitError("Loss curves need calibration text; name some with --calib.")
        return CurveText(ids, self._drawing, self._sources)

    def curve_steps(self) -> int:
        """How many steps :meth:`curves` tells of, beside one for each whole sub-layer that may go."""
        batches = -(-len(self.text().fisher) // max(1, self._batch_size // 2))
        return batches + 3 * self.source.num_hidden_layers

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
