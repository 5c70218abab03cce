"""AdamW's moments after a cut: what belongs to the units that stay."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prunekit.checkpoint.overrides import LAYER
from prunekit.models.families import Family, unit_count
from prunekit.models.slicing import LayerSlicer
from prunekit.plan import Plan
from prunekit.recovery.training.optimizer import MOMENTS

FIRST, SECOND = MOMENTS
# What goes with the gradient, and what with its square.
_POWERS = {FIRST: -1, SECOND: -2}


def cut_moments(
    moments: Mapping[str, torch.Tensor], family: Family, plan: Plan, shapes: Mapping[str, torch.Size], *, refitted: bool
) -> dict[str, torch.Tensor]:
    """The ``moments`` of an optimizer (:meth:`prunekit.recovery.training.optimizer.Optimizer.moments`) for the model
    that ``plan`` makes of its own: cut as the weights are, under the names of the new layers.

    An output projection that was ``refitted`` is another one, and its gradient's mean says nothing any more: that
    begins at zero, the mean square stays. Tensors of layers that were not there before, by ``shapes`` of the new model,
    begin at zero. Empty where there are no moments.
    """
    if not moments:
        return {}
    slicers = {keep.index: (place, LayerSlicer(family, plan.source, keep)) for place, keep in enumerate(plan.layers)}
    stale = new_projections(family, plan) if refitted else set()
    made: dict[str, torch.Tensor] = {}
    for name, tensor in moments.items():
        kind, _, full = name.partition(".")
        match = LAYER.fullmatch(full)
        if match is None:
            made[name] = tensor
            continue
        place, slicer = slicers.get(int(match[1]), (None, None))
        if slicer is None or not slicer.keeps(match[2]):
            continue
        cut = slicer(match[2], tensor, _POWERS[kind])
        made[f"{kind}.model.layers.{place}.{match[2]}"] = (
            torch.zeros_like(cut) if full in stale and kind == FIRST else cut
        )
    for full, shape in shapes.items():
        if LAYER.fullmatch(full):
            for kind in MOMENTS:
                made.setdefault(f"{kind}.{full}", torch.zeros(shape))
    return made


def new_projections(family: Family, plan: Plan) -> set[str]:
    """The tensors, by their names in the source, that a refit (:func:`prunekit.recovery.refit.refit`) solves: the
    output projections from the first one on that loses inputs, or that stands behind what is gone."""
    kept = {keep.index: keep for keep in plan.layers}
    outputs = sorted(family.output_projections(), key=lambda coupling: coupling.kind != "attention")
    names: set[str] = set()
    changed = False
    for index, dense in enumerate(plan.source.layers):
        now = kept[index].shape if index in kept else None
        for coupling in outputs:
            left = 0 if now is None else unit_count(now, coupling.parts[0])
            changed = changed or left < unit_count(dense, coupling.parts[0])
            if changed and left:
                names |= {f"model.layers.{index}.{coupling.module}.{what}" for what in ("weight", "bias")}
    return names
