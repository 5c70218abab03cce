"""Loss curves brought to scale: every sub-layer is cut once by itself, and what that does to predictions measured."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from prunekit.allocation.base import Advance
from prunekit.curves import Heads, LayerCurves, layer_shape
from prunekit.shape import LayerShape, ModelShape

if TYPE_CHECKING:
    from prunekit.fitness import Fitness
    from prunekit.levels import Candidate, Levels

# The share of units that is left where a curve is measured, and of the text that serves.
_LEFT = 0.6
_SHARE = 0.5
# A curve is not trusted to be wrong by more than this.
_MOST = 20.0


def measured(source: ModelShape, levels: Levels, fitness: Fitness, advance: Advance) -> Levels:
    """``levels`` with the curves of FFN and of heads of each layer times measured / expected divergence at one level.

    A Kronecker-factored Fisher says well which unit of a sub-layer is worth least, but takes tokens for independent:
    heads, whose errors are alike all along a sequence, then look too cheap. One measurement a sub-layer, from the dense
    model's activations in front of it, 2 · layers in all; ``advance`` is called after each.
    """
    whole: Candidate = tuple(
        ((layer.num_key_value_heads, layer.group_size), layer.intermediate_size) for layer in source.layers
    )
    curves = []
    for index, (curve, dense) in enumerate(zip(levels.curves, source.layers, strict=True)):
        heads, width = whole[index]
        narrow = min(levels.ffn[index], key=lambda each: abs(each - _LEFT * width), default=width)
        fewer = _fewer(curve, dense)
        factors = []
        for what in ((heads, narrow), (fewer, width)):
            factor = 1.0
            shape = layer_shape(*what)
            expected = curve.loss(shape)
            if shape != dense and expected > 0:
                changed = (*whole[:index], what, *whole[index + 1 :])
                factor = min(max(fitness.measure(changed, _SHARE) / expected, 1 / _MOST), _MOST)
            factors.append(factor)
            advance()
        curves.append(curve.scaled(*factors))
    return replace(levels, curves=tuple(curves))


def _fewer(curve: LayerCurves, dense: LayerShape) -> Heads:
    """The choice of heads nearest to the share that is measured, other than all of them."""
    whole = (dense.num_key_value_heads, dense.group_size)
    return min(
        (heads for heads in curve.heads if heads != whole),
        key=lambda heads: abs(heads[0] * heads[1] - _LEFT * dense.num_attention_heads),
        default=whole,
    )
