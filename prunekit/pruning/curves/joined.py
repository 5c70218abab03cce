"""Loss curves of a cut layer, put behind those by which it was cut."""

from __future__ import annotations

from dataclasses import replace

from prunekit.plan import LayerKeep
from prunekit.pruning.curves.loss_curves import NONE, FfnCurve, HeadChoice, LayerCurves


def joined(before: LayerCurves, keep: LayerKeep, after: LayerCurves) -> LayerCurves:
    """The curves of a dense layer: ``before`` down to the units ``keep``, which these curves chose, and from there on
    ``after``, which was drawn on the layer that has only those. What was measured of the dense layer stays."""
    dense, left = len(before.ffn.order), len(keep.ffn)
    gone = dense - left
    order = before.ffn.order[:gone] + tuple(keep.ffn[place] for place in after.ffn.order)
    base = before.ffn.loss[gone]
    loss = (*before.ffn.loss[:gone], *(base + more for more in after.ffn.loss))
    heads = {**before.heads}
    shape = keep.shape
    lost = before.heads[shape.num_key_value_heads, shape.group_size].loss
    for what, choice in after.heads.items():
        if what == NONE:
            heads[NONE] = replace(choice, loss=lost + choice.loss)
            continue
        kept = keep.compose(LayerKeep(keep.index, choice.kv_heads, choice.query_heads, ()))
        heads[what] = HeadChoice(kept.kv_heads, kept.query_heads, lost + choice.loss)
    return replace(before, ffn=FfnCurve(order, loss), heads=heads)
