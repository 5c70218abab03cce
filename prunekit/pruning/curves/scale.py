"""Loss curves brought to scale: every sub-layer is cut once by itself, and what that does to predictions measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from prunekit.plan.shape import Kind, LayerShape
from prunekit.pruning.curves.loss_curves import Cut, LayerCurves, layer_shape

if TYPE_CHECKING:
    from prunekit.pruning.curves.divergence import Divergence

# A curve is not trusted to be wrong by more than this.
_MOST = 20.0


def scaled(
    index: int, curves: LayerCurves, dense: LayerShape, cuts: Mapping[Kind, Cut], divergence: Divergence
) -> LayerCurves:
    """The ``curves`` of FFN and of heads of layer ``index``, times measured / expected divergence at its ``cuts``,
    with what was measured.

    A Kronecker-factored Fisher says well which unit of a sub-layer is worth least, but takes tokens for independent:
    heads, whose errors are alike all along a sequence, then look too cheap. One measurement a sub-layer, from the dense
    model's activations in front of it.
    """
    factors: dict[Kind, float] = {"attention": 1.0, "ffn": 1.0}
    alone: dict[Kind, tuple[float, ...]] = {}
    for kind, cut in cuts.items():
        heads, width = (dense.num_key_value_heads, dense.group_size), dense.intermediate_size
        shape = layer_shape(heads, cut.left) if isinstance(cut.left, int) else layer_shape(cut.left, width)
        expected = curves.loss(shape)
        if expected > 0:
            found = divergence.of_each(index, kind, cut.projection)
            factors[kind] = min(max(found.mean().item() / expected, 1 / _MOST), _MOST)
            alone[kind] = tuple(found.tolist())
    return replace(curves.scaled(factors["ffn"], factors["attention"]), alone=alone)
