"""From how much each layer should lose to widths that are allowed and meet the budget.

The count of the result is the largest that the rounding allows at or below the budget: no layer could grow by one more
rounding unit.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from prunekit.errors import PrunekitError
from prunekit.rounding import Rounding
from prunekit.shape import LayerShape, ModelShape

SPARSITY_LIMIT = 0.99


def check_protected(source: ModelShape, protected: frozenset[int]) -> None:
    """Raises PrunekitError where a layer is to be protected that the model does not have."""
    beyond = sorted(index for index in protected if index < 0 or index >= source.num_hidden_layers)
    if beyond:
        raise PrunekitError(
            f"Layer {beyond[0]} can't be protected: the model has layers 0 to {source.num_hidden_layers - 1}."
        )


def check_reachable(
    source: ModelShape, budget: int, rounding: Rounding, units: tuple[str, ...], protected: frozenset[int]
) -> None:
    """Raises PrunekitError, saying what is possible, where not even the floors fit the budget."""
    check_protected(source, protected)
    smallest = rounding.floor(source, units, protected)
    if smallest.parameters > budget:
        raise PrunekitError(
            f"The target of {budget:,} parameters is out of reach: embeddings take {source.embedding_parameters:,}, "
            f"and with these floors, multiples and protected layers the smallest possible is {smallest.parameters:,} "
            f"(--params {_up(smallest.parameters / source.parameters)}, "
            f"--blocks {_up(smallest.block_parameters / source.block_parameters)}). Ask for at least that, or lower "
            "--ffn-multiple and --min-ffn, protect fewer layers, or prune more kinds of unit."
        )


def _up(share: float) -> str:
    """A share rounded up at the fourth digit, so that asking for it succeeds."""
    return f"{min(int(share * 10_000) + 1, 9_999) / 10_000:.4f}"


def attention_at(
    source: ModelShape, rounding: Rounding, units: tuple[str, ...], dense: LayerShape, current: LayerShape, loss: float
) -> tuple[int, int]:
    """(KV heads, group size) with the fewest parameters that keep at least a share 1 − ``loss`` of the query heads.

    A KV group goes only when the share has lost all of it, as in Adapt-Pruner's code.
    """
    wanted = (1 - loss) * dense.num_attention_heads
    fitting = [
        (kv, group)
        for kv, group in rounding.attention_choices(dense, units)
        if kv <= current.num_key_value_heads and group <= current.group_size and kv * group >= wanted - 1e-6
    ]
    if not fitting:
        return current.num_key_value_heads, current.group_size
    return min(
        fitting,
        key=lambda choice: (source.attention_parameters(LayerShape(choice[0] * choice[1], choice[0], 1)), -choice[0]),
    )


Losses = Callable[[float], Sequence[tuple[float, float]]]
"""Shares (attention, FFN) that every layer loses, as a function of one number that grows with pruning."""


def fit(
    source: ModelShape,
    current: ModelShape,
    budget: int,
    rounding: Rounding,
    units: tuple[str, ...],
    protected: frozenset[int],
    losses: Losses,
    lowest: float,
    highest: float,
) -> tuple[LayerShape, ...]:
    """Shapes of all layers that meet ``budget`` for the smallest pruning in [lowest, highest] that does.

    First one number decides the attention of every layer, then FFN widths alone take up what is left, in proportions
    that ``losses`` gives; the last quanta go to the layers that rounding took most from.
    """

    def attention(knob: float) -> list[tuple[int, int]]:
        return [
            (layer.num_key_value_heads, layer.group_size)
            if index in protected
            else attention_at(source, rounding, units, dense, layer, loss)
            for index, (dense, layer, (loss, _)) in enumerate(
                zip(source.layers, current.layers, losses(knob), strict=True)
            )
        ]

    def widths(knob: float) -> list[float]:
        return [
            float(layer.intermediate_size)
            if index in protected or "ffn" not in units
            else min(float(layer.intermediate_size), dense.intermediate_size * (1 - loss))
            for index, (dense, layer, (_, loss)) in enumerate(
                zip(source.layers, current.layers, losses(knob), strict=True)
            )
        ]

    def floors(wanted: Sequence[float]) -> list[int]:
        return [
            layer.intermediate_size
            if index in protected or "ffn" not in units
            else min(layer.intermediate_size, rounding.ffn_down(width, dense.intermediate_size))
            for index, (dense, layer, width) in enumerate(zip(source.layers, current.layers, wanted, strict=True))
        ]

    def count(heads: Sequence[tuple[int, int]], ffn: Sequence[float]) -> float:
        fixed = source.with_layers(LayerShape(kv * group, kv, 1) for kv, group in heads)
        return fixed.parameters + sum(width - 1 for width in ffn) * source.ffn_channel_parameters

    knob = _bisect(lambda at: count(attention(at), widths(at)) <= budget, lowest, highest)
    heads = attention(knob)
    # Several layers may have lost a group at once, and FFNs can't take up more than they still have: then a group
    # comes back, and FFNs pay for it, in a small model perhaps more than a step.
    while "ffn" in units and count(heads, widths(lowest)) < budget:
        more = _larger_heads(source, current, rounding, units, protected, [1 - loss for loss, _ in losses(knob)], heads)
        if more is None or count(more, floors(widths(1.0))) > budget:
            break
        heads, highest = more, max(highest, 1.0)
    # Attention moves in steps of whole heads; what they left over goes to the FFNs in the same proportions.
    knob = _bisect(lambda at: count(heads, widths(at)) <= budget, lowest, highest)
    wanted = widths(knob)
    ffn = floors(wanted)
    # Floors may lift narrow layers above their share, and the others then give up the difference.
    while count(heads, ffn) > budget:
        knob_next = knob + (highest - lowest) / 4096
        if knob_next > highest + 1e-9:
            heads = _tighten(source, current, heads, rounding, units, protected)
        knob = min(knob_next, highest)
        wanted = widths(knob)
        ffn = floors(wanted)
    _grow(source, current, budget, rounding, units, protected, heads, wanted, ffn, count)
    # Where FFNs are not pruned, or are whole, nothing else takes up what whole heads leave over.
    kept = [1 - loss for loss, _ in losses(knob)]
    while more := _larger_heads(source, current, rounding, units, protected, kept, heads, budget - count(heads, ffn)):
        heads = more
    return tuple(LayerShape(kv * group, kv, width) for (kv, group), width in zip(heads, ffn, strict=True))


def _bisect(fits: Callable[[float], bool], lowest: float, highest: float) -> float:
    """The smallest knob that fits (``highest`` where none does)."""
    if fits(lowest):
        return lowest
    for _ in range(60):
        middle = (lowest + highest) / 2
        if fits(middle):
            highest = middle
        else:
            lowest = middle
    return highest


def _tighten(
    source: ModelShape,
    current: ModelShape,
    heads: list[tuple[int, int]],
    rounding: Rounding,
    units: tuple[str, ...],
    protected: frozenset[int],
) -> list[tuple[int, int]]:
    """One step less attention in the layer that has most, for budgets below what the FFN floors leave."""
    best: tuple[int, int, tuple[int, int]] | None = None
    for index, (kv, group) in enumerate(heads):
        if index in protected:
            continue
        cost = source.attention_parameters(LayerShape(kv * group, kv, 1))
        layer = current.layers[index]
        # Multiples of heads may leave no choice that is smaller both ways: fewer KV heads of larger groups do too.
        smaller = [
            (less, (k, g))
            for k, g in rounding.attention_choices(source.layers[index], units)
            if k <= layer.num_key_value_heads
            and g <= layer.group_size
            and (less := source.attention_parameters(LayerShape(k * g, k, 1))) < cost
        ]
        if smaller and (best is None or cost > best[0]):
            best = (cost, index, max(smaller)[1])
    if best is None:
        raise PrunekitError("No layer can shrink any further; ask for a larger target or lower the floors.")
    changed = list(heads)
    changed[best[1]] = best[2]
    return changed


def _grow(
    source: ModelShape,
    current: ModelShape,
    budget: int,
    rounding: Rounding,
    units: tuple[str, ...],
    protected: frozenset[int],
    heads: Sequence[tuple[int, int]],
    wanted: Sequence[float],
    ffn: list[int],
    count: Callable[[Sequence[tuple[int, int]], Sequence[float]], float],
) -> None:
    """Hand out the rest of the budget, one rounding unit at a time, to the layer furthest below what it wanted."""
    if "ffn" not in units:
        return
    free = budget - round(count(heads, ffn))
    queue = [(ffn[index] - wanted[index], index) for index in range(len(ffn)) if index not in protected]
    heapq.heapify(queue)
    while queue:
        _, index = heapq.heappop(queue)
        dense = source.layers[index].intermediate_size
        wider = rounding.ffn_up(ffn[index] + 1, dense)
        if not ffn[index] < wider <= current.layers[index].intermediate_size:
            continue
        cost = (wider - ffn[index]) * source.ffn_channel_parameters
        if cost <= free:
            free -= cost
            ffn[index] = wider
            heapq.heappush(queue, (wider - wanted[index], index))


def _larger_heads(
    source: ModelShape,
    current: ModelShape,
    rounding: Rounding,
    units: tuple[str, ...],
    protected: frozenset[int],
    kept: Sequence[float],
    heads: Sequence[tuple[int, int]],
    free: float = float("inf"),
) -> list[tuple[int, int]] | None:
    """One step more attention, of at most ``free`` parameters, in the layer whose share of heads is furthest below
    ``kept``; None where there is no such step."""

    def shortfall(index: int) -> float:
        return heads[index][0] * heads[index][1] / source.layers[index].num_attention_heads - kept[index]

    for index in sorted((i for i in range(len(heads)) if i not in protected), key=shortfall):
        (kv, group), layer = heads[index], current.layers[index]
        cost = source.attention_parameters(LayerShape(kv * group, kv, 1))
        larger = [
            (source.attention_parameters(LayerShape(k * g, k, 1)) - cost, (k, g))
            for k, g in rounding.attention_choices(source.layers[index], units)
            if kv <= k <= layer.num_key_value_heads and group <= g <= layer.group_size and (k, g) != (kv, group)
        ]
        if larger and min(larger)[0] <= free:
            return [*heads[:index], min(larger)[1], *heads[index + 1 :]]
    return None
