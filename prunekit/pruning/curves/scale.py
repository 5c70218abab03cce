"""Loss curves brought to scale: every sub-layer is cut once by itself, and what that does to predictions measured."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from prunekit.plan.shape import Heads, LayerShape, ModelShape
from prunekit.pruning.curves.loss_curves import NONE, LayerCurves, layer_shape
from prunekit.utils.advance import Advance

if TYPE_CHECKING:
    from prunekit.pruning.curves.divergence import Fitness
    from prunekit.pruning.curves.level_store import Candidate, Levels

# The share of units that is left where a curve is measured.
_LEFT = 0.6
# A curve is not trusted to be wrong by more than this.
_MOST = 20.0


def measured(
    source: ModelShape, levels: Levels, fitness: Fitness, advance: Advance, units: tuple[str, ...] = ()
) -> Levels:
    """``levels`` with the curves of FFN and of heads of each layer times measured / expected divergence at one level.

    A Kronecker-factored Fisher says well which unit of a sub-layer is worth least, but takes tokens for independent:
    heads, whose errors are alike all along a sequence, then look too cheap. One measurement a sub-layer, from the dense
    model's activations in front of it, 2 · layers in all; ``advance`` is called after each. What a layer loses with its
    whole attention or FFN, where ``units`` allows that, is measured and nothing else: so large an error is beyond what
    a Fisher matrix tells.
    """
    whole: Candidate = tuple(
        ((layer.num_key_value_heads, layer.group_size), layer.intermediate_size) for layer in source.layers
    )
    curves = []
    for index, (curve, dense) in enumerate(zip(levels.curves, source.layers, strict=True)):
        heads, width = whole[index]
        narrow = min(levels.ffn[index], key=lambda each: abs(each - _LEFT * width), default=width)
        factors = []
        for what in ((heads, narrow), (_fewer(curve, dense), width)):
            factor = 1.0
            shape = layer_shape(*what)
            expected = curve.loss(shape)
            if shape != dense and expected > 0:
                changed = (*whole[:index], what, *whole[index + 1 :])
                factor = min(max(fitness.measure(changed) / expected, 1 / _MOST), _MOST)
            factors.append(factor)
            advance()
        curve = curve.scaled(*factors)
        for unit, what in (("attention-layer", (NONE, width)), ("ffn-layer", (heads, 0))):
            if unit in units:
                lost = fitness.measure((*whole[:index], what, *whole[index + 1 :]))
                curve = curve.without("attention" if what[0] == NONE else "ffn", lost)
                advance()
        curves.append(curve)
    return replace(levels, curves=tuple(curves))


def _fewer(curve: LayerCurves, dense: LayerShape) -> Heads:
    """The choice of heads nearest to the share that is measured, other than all of them."""
    whole = (dense.num_key_value_heads, dense.group_size)
    return min(
        (heads for heads in curve.heads if heads != whole),
        key=lambda heads: abs(heads[0] * heads[1] - _LEFT * dense.num_attention_heads),
        default=whole,
    )
