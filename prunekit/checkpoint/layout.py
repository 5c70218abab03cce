"""How a plan's layers are laid out in a checkpoint: each at its own width, or all padded to the widest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from prunekit.checkpoint.overrides import with_biases
from prunekit.errors import PrunekitError
from prunekit.models.modeling import pruned_config, stock_config
from prunekit.plan import Plan
from prunekit.plan.shape import LayerShape

if TYPE_CHECKING:
    from prunekit.models.source import Source

Layout = Literal["per-layer", "uniform"]


def widest(plan: Plan) -> LayerShape:
    """The shape of every layer of the uniform twin: the largest group size, KV heads and FFN width of any layer, and at
    least one of each, for stock layers have both sub-layers."""
    shapes = plan.shape.layers
    group = max(1, *(shape.group_size for shape in shapes))
    kv = max(1, *(shape.num_key_value_heads for shape in shapes))
    return LayerShape(group * kv, kv, max(1, *(shape.intermediate_size for shape in shapes)))


def padded(shape: LayerShape, ffn_multiple: int) -> LayerShape:
    """``shape`` with its FFN width rounded up."""
    return replace(shape, intermediate_size=-(-shape.intermediate_size // ffn_multiple) * ffn_multiple)


def configuration(
    source: Source, plan: Plan, layout: Layout, ffn_multiple: int
) -> tuple[Any, Callable[[int], LayerShape]]:
    """The config to write, and the shape that each kept layer (by its place) gets in it."""
    kept = [layer.index for layer in plan.layers]
    base = with_biases(source.family, source.config, plan)
    shapes = [padded(shape, ffn_multiple) for shape in plan.shape.layers]
    if layout == "uniform":
        source.shape.check_whole_layers(
            "what a stock layer would need there is not in this checkpoint any more; take the per-layer layout, or "
            "prune the original model again with `prunekit prune --plan plan.json --layout uniform`"
        )
        shape = padded(widest(plan), ffn_multiple)
        try:
            return stock_config(source.family, base, shape, kept), lambda place: shape
        except PrunekitError:
            # Some stock configs refuse head counts that don't divide hidden_size; the dense model's own they must take.
            fields = base.to_dict()
            dense = LayerShape(fields["num_attention_heads"], fields["num_key_value_heads"], shape.intermediate_size)
        return stock_config(source.family, base, dense, kept), lambda place: dense
    if layout != "per-layer":
        raise PrunekitError(f"The layout must be per-layer or uniform, got {layout!r}.")
    if len(set(shapes)) == 1 and not shapes[0].removed:
        try:
            return stock_config(source.family, base, shapes[0], kept), lambda place: shapes[place]
        except PrunekitError:
            # Some stock configs refuse head counts that don't divide hidden_size; the per-layer class takes them.
            pass
    return pruned_config(source.family, base, shapes, kept), lambda place: shapes[place]
