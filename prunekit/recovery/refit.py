"""Refit: after units are cut, what is left of every layer is solved anew, layer by layer, in closed form.

Two residual streams run through the model side by side, the dense model's and the pruned one's. Output projections
(o_proj, down_proj) are fitted by regularised least squares to the dense model's outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from prunekit.errors import PrunekitError
from prunekit.models.families import Family
from prunekit.models.slicing import coupling_index, cut_layer, unit_slots
from prunekit.models.sublayers import KINDS, Kind, Sublayers
from prunekit.plan import LayerKeep
from prunekit.plan.settings import RefitConfig
from prunekit.plan.shape import ModelShape
from prunekit.recovery.rescale import Rescaled
from prunekit.utils.advance import Advance, untold
from prunekit.utils.numerics.finite import in_layer, is_finite
from prunekit.utils.numerics.least_squares import Moments, solve
from prunekit.utils.process.ranks import share_of


@dataclass
class Refitted:
    """``weights``: every tensor of the layers that stay, by its name in the *source* model
    ("model.layers.3.mlp.down_proj.weight"), cut and solved; ``rescaled``: what rescaling saw, where there was any."""

    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    rescaled: Rescaled | None = None


def refit(
    model: Any,
    family: Family,
    shape: ModelShape,
    keeps: tuple[LayerKeep, ...],
    ids: torch.Tensor,
    config: RefitConfig | None = None,
    *,
    batch_size: int = 8,
    fast: bool = False,
    advance: Advance = untold,
) -> Refitted:
    """Cut the dense ``model`` down to ``keeps`` and solve what is left on ``ids`` [N, L].

    The model is used up: layer by layer its decoder layers are replaced by the cut ones, and dropped layers by ones
    without attention and FFN. Both residual streams of the whole text stay in memory, 2 · N · L · hidden_size
    numbers of the model's dtype, and of the moments one projection's at a time, in float64. Tokens are weighted by the
    inverse mean square of the dense residual stream, which is what the next norm divides by; else a few tokens of
    enormous norm decide the fit. ``fast`` allows :func:`~prunekit.utils.numerics.bf16.fast_products`. Ranks share out
    the text, and all come to the same weights. Raises PrunekitError where moments are not finite.
    """
    config = config or RefitConfig()
    walk = _Walk(model, family, shape, ids, batch_size, fast)
    by_index = {keep.index: keep for keep in keeps}
    made = Refitted()
    layers: Any = walk.parts.layers
    with torch.no_grad():
        for index in range(shape.num_hidden_layers):
            dense = layers[index]
            keep = by_index.get(index, LayerKeep(index, (), (), ()))
            cut = cut_layer(model, family, shape, dense, keep)
            for kind in KINDS:
                with in_layer(index):
                    walk.step(dense, cut, keep, index, kind, config)
                advance(kind=kind, cost=refit_cost(shape, keep, index, kind, ids.numel()))
            layers[index] = cut
    made.weights = layer_weights(model, keeps)
    return made


def refit_cost(shape: ModelShape, keep: LayerKeep, index: int, kind: Kind, tokens: int) -> float:
    """Operations that one sub-layer of a refit takes, about."""
    dense, left = shape.layers[index], keep.shape
    if kind == "ffn":
        whole, kept = shape.ffn_parameters(dense), left.intermediate_size
    else:
        whole, kept = shape.attention_parameters(dense), left.num_attention_heads * shape.head_dim
    if not kept:
        return 2.0 * tokens * whole
    # The dense sub-layer on both streams, the cut projection, the moments, and what solves them.
    passes = 2.0 * tokens * (2 * whole + kept * shape.hidden_size)
    return passes + 1.3 * tokens * kept * (kept + shape.hidden_size) + kept**2 * (kept / 3 + 2 * shape.hidden_size)


def refit_work(shape: ModelShape, keeps: tuple[LayerKeep, ...], tokens: int) -> dict[str, float]:
    """What all sub-layers of each kind take, on so many ``tokens``."""
    by_index = {keep.index: keep for keep in keeps}
    indices = range(shape.num_hidden_layers)
    return {
        kind: sum(
            refit_cost(shape, by_index.get(index, LayerKeep(index, (), (), ())), index, kind, tokens)
            for index in indices
        )
        for kind in KINDS
    }


def layer_weights(model: Any, keeps: tuple[LayerKeep, ...]) -> dict[str, torch.Tensor]:
    """Every tensor of the layers that ``keeps`` names, by its name in ``model``."""
    layers: Any = model.get_submodule("model.layers")
    return {
        f"model.layers.{keep.index}.{name}": tensor
        for keep in keeps
        for name, tensor in layers[keep.index].state_dict().items()
    }


class _Walk:
    """Both residual streams on their way through the layers, as lists of this rank's batches [B, L, d]."""

    def __init__(
        self, model: Any, family: Family, shape: ModelShape, ids: torch.Tensor, batch_size: int, fast: bool = False
    ):
        self.parts = Sublayers(model, family, ids.shape[1], fast)
        self._shape = shape
        with torch.no_grad():
            batches = ids.split(self.parts.at_a_time(batch_size))
            self.dense = [self.parts.embed(batch) for batch in share_of(batches)]
        self.pruned = [hidden.clone() for hidden in self.dense]
        self.same = True

    def step(
        self,
        dense: nn.Module,
        cut: nn.Module,
        keep: LayerKeep,
        index: int,
        kind: Kind,
        config: RefitConfig,
    ) -> None:
        """One sub-layer: solve it in ``cut``, which has the units ``keep`` (perhaps none of this sub-layer), and take
        both streams across it."""
        parts = self.parts
        outputs = self._dense_step(dense, index, kind)
        if kind in keep.shape.removed:
            self.same = False
            return
        projection = parts.projection(cut, kind)
        if projection.weight.shape == parts.projection(dense, kind).weight.shape and self.same:
            self.pruned = [hidden.clone() for hidden in self.dense]
            return
        inputs = self._fit(dense, cut, keep, index, kind, config, outputs)
        for place, z in enumerate(inputs):
            self.pruned[place] = self.pruned[place] + parts.added(cut, kind, parts.project(cut, kind, z))
        self.same = False

    def _dense_step(self, dense: nn.Module, index: int, kind: Kind) -> list[torch.Tensor]:
        """The dense stream across the sub-layer. Returns what left the projection where a norm stands behind it."""
        outputs = []
        for place, hidden in enumerate(self.dense):
            _, output = self.parts.run(dense, index, kind, self.parts.normed(dense, kind, hidden))
            self.dense[place] = hidden + self.parts.added(dense, kind, output)
            if self.parts.has_post_norm(kind):
                outputs.append(output)
        return outputs

    def _inputs_and_same(
        self,
        dense: nn.Module,
        cut: nn.Module,
        index: int,
        kind: Kind,
        hidden: torch.Tensor,
        same: bool,
        kept: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What enters the output projection of ``cut`` for a batch of the pruned stream, and, where ``same`` asks for
        it, what the dense sub-layer makes of that batch: that tells both where :meth:`_kept` says which inputs stay."""
        parts = self.parts
        if same and kept is not None:
            z, output = parts.run(dense, index, kind, parts.normed(dense, kind, hidden))
            return (z if len(kept) == z.shape[-1] else z.index_select(-1, kept)), output
        z, _ = parts.run(cut, index, kind, parts.normed(cut, kind, hidden))
        if not same:
            return z, None
        return z, parts.run(dense, index, kind, parts.normed(dense, kind, hidden))[1]

    def _kept(self, keep: LayerKeep, index: int, kind: Kind) -> torch.Tensor | None:
        """Which of the dense output projection's inputs are left, in the order of the cut one's; None where kept units
        give something else there than in the dense layer: heads that are normalised together."""
        if kind == "attention" and self.parts.family.wide_norms:
            return None
        dense = self._shape.layers[index]
        slots = unit_slots(keep, dense, keep.shape)
        return coupling_index(self.parts.output(kind), slots, dense, self._shape.head_dim)

    def _fit(
        self,
        dense: nn.Module,
        cut: nn.Module,
        keep: LayerKeep,
        index: int,
        kind: Kind,
        config: RefitConfig,
        outputs: list[torch.Tensor],
    ) -> list[torch.Tensor]:
        """Solve the output projection of ``cut`` in place. Returns its inputs, batch by batch."""
        projection = self.parts.projection(cut, kind)
        bias = projection.bias is not None
        start = projection.weight.double()
        if bias:
            # A bias is one more input that is always 1.
            start = torch.cat([start, projection.bias.double()[:, None]], 1)
        moments = Moments(start.shape[1], start.shape[0], start.device, self.parts.fast)
        kept = self._kept(keep, index, kind)
        kept = None if kept is None else kept.to(start.device)
        inputs = []
        for place, hidden in enumerate(self.pruned):
            z, same = self._inputs_and_same(dense, cut, index, kind, hidden, config.towards < 1, kept)
            inputs.append(z)
            # Behind a norm, what is to be added to the stream says nothing linear about the projection's output.
            wanted = outputs[place].float() if outputs else self.dense[place].float() - hidden.float()
            if same is not None:
                wanted = torch.lerp(same.float(), wanted, config.towards)
            if bias:
                z = torch.cat([z, z.new_ones(*z.shape[:2], 1)], -1)
            weight = 1 / self.dense[place].float().square().mean(-1).clamp(min=1e-12)
            moments.add(*(each.flatten(0, 1) for each in (z, wanted, weight)))
        moments.add_up()
        solved = solve(moments, start, config.ridge)
        if not is_finite(solved):
            raise PrunekitError(
                f"Layer {index}: its {self.parts.output_name(kind)} could not be refitted, since its solution is not "
                "finite. Give more text, or refit in float32 (--dtype float32)."
            )
        new = solved.to(projection.weight.dtype)
        if not is_finite(new):
            raise PrunekitError(
                f"Layer {index}: its {self.parts.output_name(kind)} is too large for {new.dtype} once it is refitted. "
                "Refit in float32 (--dtype float32)."
            )
        projection.weight.data = new[:, :-1].contiguous() if bias else new
        if bias:
            projection.bias.data = new[:, -1].contiguous()
        return inputs
