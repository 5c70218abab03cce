"""What every width of every sub-layer would cost in loss, from one backward and one forward pass over the text.

A projection whose outputs err by e moves the model's distribution by KL ≈ ½ E[eᵀ F e], F the Fisher information of its
outputs (block-diagonal in projections, and one matrix a projection: Kronecker-factored, arXiv 1503.05671). Which units
go and what that costs for each width is found by exact elimination with F as the metric, so that the curves of all
sub-layers are in one unit, nats a token, and can be weighed against each other.

A Kronecker factorisation takes errors and gradients of a token for independent. They are not where tokens differ in
norm: so errors are divided, and gradients multiplied, by the root mean square s_t of the residual stream behind the
sub-layer, which the next norm divides by. The few tokens of enormous norm on which attention rests where it has nothing
to attend to are left out of the gradients' factor, which they would decide; of the errors' they are part, or the units
that make them so large would go.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from prunekit.models.families import Family
from prunekit.models.sublayers import KINDS, Kind, Sublayers
from prunekit.plan import LayerKeep
from prunekit.plan.shape import Heads, LayerShape, ModelShape
from prunekit.pruning.curves.costs import CurveCosts
from prunekit.pruning.curves.output_fisher import Fisher, stream_size
from prunekit.utils.advance import Advance
from prunekit.utils.numerics.finite import check_computed, in_layer
from prunekit.utils.numerics.least_squares import Elimination, Moments
from prunekit.utils.process import ranks

NONE: Heads = (0, 0)
"""No attention at all."""


@dataclass(frozen=True)
class Cut:
    """A sub-layer with some of its units: the heads or the FFN width that are left, and its output projection [d, n],
    solved for them, in the dense shape with zeros where units have gone."""

    left: Heads | int
    projection: torch.Tensor


CUT_TO = 5 / 8
"""The share of its units that a sub-layer keeps in a :class:`Cut`."""

# Channels are eliminated in at most this many rounds: each costs a pass over a matrix of the FFN's width squared.
_ROUNDS = 96
# What has gone is cut out of those matrices once less than this share of them is left.
_DENSE = 0.85
# Holds projections to their old weights. A stronger one (0.3) told the loss on other text nearly right, and still gave
# widths of more perplexity there (SmolLM2-135M at 79 % of its blocks).
_RIDGE = 1e-3


def layer_shape(heads: Heads, width: int) -> LayerShape:
    """The shape of a layer with such heads and an FFN of ``width``."""
    return LayerShape(heads[0] * heads[1], heads[0], width)


@dataclass(frozen=True)
class FfnCurve:
    """``order``: channels in the order they go; ``loss[k]``: nats a token with the first k gone."""

    order: tuple[int, ...]
    loss: tuple[float, ...]

    def kept(self, width: int) -> tuple[int, ...]:
        """The channels that stay at ``width``, rising."""
        return tuple(sorted(self.order[len(self.order) - width :]))

    def loss_at(self, width: int) -> float:
        return self.loss[len(self.order) - width]


@dataclass(frozen=True)
class HeadChoice:
    """The best heads for a number of KV groups and of query heads in each, and what they cost in nats a token."""

    kv_heads: tuple[int, ...]
    query_heads: tuple[int, ...]
    loss: float


@dataclass(frozen=True)
class LayerCurves:
    """What a layer could lose: FFN channels one by one, heads by (KV heads, query heads a group).

    ``alone`` has what was measured with a sub-layer of the dense model cut by itself to about :data:`CUT_TO`: nats a
    token, of each sequence that the scale was measured on.
    """

    ffn: FfnCurve
    heads: dict[Heads, HeadChoice]
    alone: Mapping[Kind, tuple[float, ...]] = field(default_factory=dict)

    def keep(self, index: int, shape: LayerShape) -> LayerKeep:
        """The best units for a layer of ``shape``."""
        choice = self.heads[shape.num_key_value_heads, shape.group_size]
        kept = self.ffn.kept(shape.intermediate_size)
        return LayerKeep(index, choice.kv_heads, choice.query_heads, kept)

    def scaled(self, ffn: float, heads: float) -> LayerCurves:
        """The same curves with losses times these factors."""
        choices = {what: replace(choice, loss=choice.loss * heads) for what, choice in self.heads.items()}
        return replace(self, ffn=FfnCurve(self.ffn.order, tuple(loss * ffn for loss in self.ffn.loss)), heads=choices)

    def without(self, kind: Kind, loss: float) -> LayerCurves:
        """The same curves, in which the whole attention, or the whole FFN, costs ``loss``."""
        if kind == "attention":
            return replace(self, heads={**self.heads, NONE: HeadChoice((), (), loss)})
        return replace(self, ffn=replace(self.ffn, loss=(*self.ffn.loss[:-1], loss)))

    def loss(self, shape: LayerShape) -> float:
        return self.heads[shape.num_key_value_heads, shape.group_size].loss + self.ffn.loss_at(shape.intermediate_size)


def layer_curves(
    model: Any,
    family: Family,
    shape: ModelShape,
    ids: torch.Tensor,
    fisher: Fisher,
    *,
    ridge: float = _RIDGE,
    batch_size: int = 8,
    fast: bool = False,
    known: Container[int] = (),
    advance: Advance,
) -> Iterator[tuple[int, LayerCurves, dict[Kind, Cut]]]:
    """The curves of one layer after the other, on the dense model's own activations for ``ids`` [N, L]; those of the
    ``known`` layers are left out.

    Each layer comes with its index, its attention and its FFN cut to about :data:`CUT_TO` of their units, where a cut
    is smaller than the whole. ``fast`` allows :func:`~prunekit.utils.numerics.bf16.fast_products`. Ranks share out the
    batches, and each gets the curves of its :func:`~prunekit.utils.process.ranks.share_of` the layers that are not
    ``known``, for which ``fisher`` has to know theirs; all have to ask on until there are no more. Raises
    PrunekitError, which names the layer, where a moment or a loss is not finite.
    """
    parts = Sublayers(model, family, ids.shape[1], fast)
    missing = [index for index in range(len(shape.layers)) if index not in known]
    reached, costs = 0, CurveCosts(shape, ids.numel(), 0)
    with torch.no_grad():
        stream = [parts.embed(batch) for batch in ranks.share_of(ids.split(parts.at_a_time(batch_size)))]
        # To eliminate takes longer than to sum up: that is done for as many layers as there are ranks at once.
        for some in ranks.rounds(missing):
            seen: dict[Kind, Moments] = {}
            for owner, index in enumerate(some):
                for earlier in range(reached, index):
                    for kind in KINDS:
                        _pass(parts, earlier, kind, stream)
                        advance(kept=True)
                for kind in KINDS:
                    moments = _input_moments(parts, index, kind, stream)
                    moments.add_up(onto=owner)
                    if owner == ranks.rank():
                        seen[kind] = moments
                    else:
                        advance(kept=True)
                reached = index + 1
            if reached > missing[-1]:
                # Nothing is drawn of what follows.
                advance(len(KINDS) * (len(shape.layers) - reached), kept=True)
            for index in ranks.share_of(some):
                yield index, *_eliminated(parts, index, shape, seen, fisher, ridge, advance, costs)


def _input_moments(parts: Sublayers, index: int, kind: Kind, stream: list[torch.Tensor]) -> Moments:
    """Moments of what enters the output projection of a sub-layer, which the batches of ``stream`` go across."""
    projection = parts.projection(parts.layers[index], kind)
    moments = Moments(projection.in_features, 0, projection.weight.device, parts.fast)
    _pass(parts, index, kind, stream, moments)
    return moments


def _pass(parts: Sublayers, index: int, kind: Kind, stream: list[torch.Tensor], moments: Moments | None = None) -> None:
    """Take the batches of the dense ``stream`` [B, L, d] across a sub-layer; the ``moments`` of its projection's inputs
    are taken on the way."""
    layer = parts.layers[index]
    for place, hidden in enumerate(stream):
        z, output = parts.run(layer, index, kind, parts.normed(layer, kind, hidden))
        stream[place] = hidden + parts.added(layer, kind, output)
        if moments is not None:
            weight = stream_size(stream[place]).square().clamp(min=1e-12).reciprocal()
            flat = z.flatten(0, 1)
            moments.add(flat, flat[:, :0], weight.flatten())


def _eliminated(
    parts: Sublayers,
    index: int,
    shape: ModelShape,
    seen: dict[Kind, Moments],
    fisher: Fisher,
    ridge: float,
    advance: Advance,
    costs: CurveCosts,
) -> tuple[LayerCurves, dict[Kind, Cut]]:
    """The curves and cuts of a layer, whose moments ``seen`` are used up."""
    dense, cuts = shape.layers[index], {}
    for kind in KINDS:
        projection, moments = parts.projection(parts.layers[index], kind), seen.pop(kind)
        # As large as any other moment is one on the diagonal.
        check_computed(moments.zz.diagonal(), index, f"the inputs of its {parts.output_name(kind)}")
        # A bias moves no output's error: wanted are the weights' own products.
        moments.yz = projection.weight.double() @ moments.zz
        rows = 1 if kind == "ffn" else shape.head_dim
        with in_layer(index):
            start = Elimination(moments, projection.weight, ridge, rows=rows, metric=fisher[index, kind])
            if kind == "ffn":
                ffn, cut = ffn_curve(start, cut_width(dense))
            else:
                heads, cut = head_choices(start, dense, cut_heads(dense))
            del start, moments
        losses = [*ffn.loss] if kind == "ffn" else [choice.loss for choice in heads.values()]
        check_computed(torch.tensor(losses), index, f"the losses of its {parts.output_name(kind)}")
        if cut is not None:
            check_computed(cut.projection, index, f"what was solved for its {parts.output_name(kind)}")
            cuts[kind] = cut
        advance(kind=kind, cost=costs.elimination(index, kind))
    return LayerCurves(ffn, heads), cuts


def cut_width(layer: LayerShape) -> int:
    """The FFN width of a layer's :class:`Cut`."""
    return max(1, int(layer.intermediate_size * CUT_TO))


def cut_heads(layer: LayerShape) -> Heads:
    """The heads of a layer's :class:`Cut`: the choice other than all of them that is nearest to the share."""
    choices = [
        (kv, group)
        for kv in range(layer.num_key_value_heads, 0, -1)
        for group in range(layer.group_size, 0, -1)
        if kv * group < layer.num_attention_heads
    ]
    whole = (layer.num_key_value_heads, layer.group_size)
    wanted = CUT_TO * layer.num_attention_heads
    return min(choices, key=lambda heads: abs(heads[0] * heads[1] - wanted), default=whole)


def ffn_curve(state: Elimination, width: int) -> tuple[FfnCurve, Cut | None]:
    """Channels in the order they are worth least, some at a time; and what is left at ``width``, None where that is
    all."""
    size = len(state.alive)
    # The channels that the state's inputs are.
    channels = torch.arange(size, device=state.alive.device)
    order: list[int] = []
    loss = [0.0]
    cut: Cut | None = None
    while True:
        left = size - len(order)
        if left < _DENSE * len(channels):
            # Updates of what has gone would cost as much as those of what is left.
            channels, state = channels[state.alive], state.compacted()
        if left == width < size:
            solved = state.weight.new_zeros(len(state.weight), size, dtype=torch.float32)
            solved[:, channels] = state.weight.float()
            cut = Cut(width, solved)
        if not left:
            return FfnCurve(tuple(order), tuple(loss)), cut
        stop = width if width < left else 0
        costs = state.costs()
        going = costs.topk(min(-(-size // _ROUNDS), left - stop), largest=False).indices
        going = going[torch.argsort(costs[going], stable=True)]
        before = state.loss
        state.remove(going)
        # Those that go together share their cost by what each would have cost alone.
        shares = costs[going].cumsum(0) / costs[going].sum().clamp(min=1e-300)
        loss += [(before + (state.loss - before) * share) / 2 for share in shares.tolist()]
        order += channels[going].tolist()


def head_choices(state: Elimination, layer: LayerShape, wanted: Heads) -> tuple[dict[Heads, HeadChoice], Cut | None]:
    """Whole KV groups go one by one; from what is left then, one query head of every group a round. Also what is left
    with the heads ``wanted``, None where these are all."""
    groups = torch.arange(layer.num_attention_heads, device=state.alive.device).view(-1, layer.group_size)
    made: dict[Heads, HeadChoice] = {}
    cut: Cut | None = None
    left = list(range(layer.num_key_value_heads))
    while True:
        inner = state.copy()
        for size in range(layer.group_size, 0, -1):
            query = tuple(inner.alive.nonzero()[:, 0].tolist())
            made[len(left), size] = HeadChoice(tuple(left), query, inner.loss / 2)
            if (len(left), size) == wanted and len(query) < layer.num_attention_heads:
                cut = Cut(wanted, inner.weight.float())
            if size > 1:
                for kv in left:
                    costs = inner.costs()[groups[kv]]
                    inner.remove(groups[kv][costs.argmin()][None])
        if len(left) == 1:
            return made, cut
        worth = []
        for kv in left:
            trial = state.copy()
            trial.remove(groups[kv])
            worth.append(trial.loss)
        gone = left.pop(min(range(len(left)), key=worth.__getitem__))
        state.remove(groups[gone])
