"""FLAP's compensation (arXiv 2312.11983): what removed inputs added on average becomes a bias of the output.

b = W[:, removed] · E[X_removed] for o_proj and down_proj, with X the inputs that the dense model gives them. Only
families whose config can switch such biases on can carry it; that also puts (zero) biases on the other projections of
the switch, which count as parameters.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prunekit.models.families import Family, unit_rows
from prunekit.models.slicing import expand
from prunekit.plan import Plan
from prunekit.utils.advance import Advance, untold
from prunekit.utils.numerics.channel_moments import ChannelMoments, merge_over_ranks
from prunekit.utils.numerics.finite import check_made, watched_layers
from prunekit.utils.phases.titles import BIASES
from prunekit.utils.process.ranks import rounds, share_of
from prunekit.utils.progress import progress

if TYPE_CHECKING:
    from prunekit.data.mixture import CalibrationText
    from prunekit.models.dense import DenseModel
    from prunekit.plan.recipe import Recipe


def is_compensated(plan: Plan, recipe: Recipe) -> bool:
    """True where ``recipe`` compensates what it cuts and the pruned model has biases to hold that, so that
    :func:`compensate` must follow ``plan``."""
    return recipe.method.compensates and (plan.shape.o_bias or plan.shape.mlp_bias)


def output_biases(
    model: Any,
    family: Family,
    plan: Plan,
    input_ids: torch.Tensor,
    *,
    batch_size: int = 32,
    advance: Advance = untold,
) -> dict[str, torch.Tensor]:
    """Biases [hidden_size], float64, of every o_proj and down_proj that has one in the pruned model, by their names in
    the source, for ``rebuild(weights=...)``. A bias that the source has is part of them.

    ``model`` is the dense one; its means are taken over all tokens of ``input_ids`` [sequences, length] in one forward
    pass, whose batches ranks share out. Raises PrunekitError where they are not finite.
    """
    carriers = [coupling for coupling in family.output_projections() if getattr(plan.shape, coupling.bias)]
    seen: dict[tuple[int, str], ChannelMoments] = {}
    handles = []
    layers = model.get_submodule("model.layers")
    for keep in plan.layers:
        for coupling in carriers:
            projection = layers[keep.index].get_submodule(coupling.module)
            moments = seen[keep.index, coupling.module] = ChannelMoments(projection.in_features)
            handles.append(projection.register_forward_pre_hook(partial(_see, moments)))
    try:
        with torch.no_grad(), watched_layers(layers):
            for some in rounds(input_ids.split(batch_size)):
                for batch in share_of(some):
                    model.base_model(input_ids=batch.to(next(model.parameters()).device), use_cache=False)
                advance(len(some))
    finally:
        for handle in handles:
            handle.remove()
    merge_over_ranks([*seen.values()])
    biases = {}
    for keep in plan.layers:
        for coupling in carriers:
            name = f"model.layers.{keep.index}.{coupling.module}.bias"
            projection = layers[keep.index].get_submodule(coupling.module)
            units = keep.ffn if "ffn" in coupling.parts else keep.query_heads
            mean = seen[keep.index, coupling.module].mean.clone()
            mean[expand(units, unit_rows(coupling.parts[0], plan.source.head_dim))] = 0
            bias = projection.weight.detach().to("cpu", torch.float64) @ mean
            if projection.bias is not None:
                bias += projection.bias.detach().to("cpu", torch.float64)
            check_made(name, bias)
            biases[name] = bias
    return biases


def _see(moments: ChannelMoments, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
    moments.add(args[0].flatten(0, -2))


def compensate(
    dense: DenseModel, plan: Plan, recipe: Recipe, calibration: CalibrationText, batch_size: int | None = None
) -> dict[str, torch.Tensor]:
    """:func:`output_biases` of the ``dense`` model on the ``calibration`` text that ``plan`` was made with by
    ``recipe`` (:func:`prunekit.data.from_plan.text_of`)."""
    size = batch_size or recipe.calibration.batch_size
    with progress(BIASES, -(-len(calibration.input_ids) // size)) as advance:
        return output_biases(
            dense.share(), dense.source.family, plan, calibration.input_ids, batch_size=size, advance=advance
        )
