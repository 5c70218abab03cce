"""What a plan does to tensors: one table (``Family.couplings``) drives cutting and padding.

Legend: H query heads, K KV heads, D head_dim, F FFN channels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from prunekit.models.families import Coupling, Family, Part, unit_count, unit_rows
from prunekit.plan import LayerKeep
from prunekit.plan.shape import LayerShape, ModelShape

PAD = -1


def unit_slots(keep: LayerKeep, dense: LayerShape, target: LayerShape) -> dict[Part, list[int]]:
    """For each slot of a layer of shape ``target``, the unit of the dense layer that fills it, or PAD (zeros).

    With ``target == keep.shape`` that is just what is kept; a wider ``target`` is the zero-padded twin. Query heads
    stay in the group of their KV head, so padding comes inside each group, and whole padded groups at the end.
    """
    query: list[int] = []
    for kv in keep.kv_heads:
        own = [head for head in keep.query_heads if head // dense.group_size == kv]
        query += own + [PAD] * (target.group_size - len(own))
    query += [PAD] * (target.num_attention_heads - len(query))
    kv_heads, ffn = list(keep.kv_heads), list(keep.ffn)
    return {
        "query": query,
        "kv": kv_heads + [PAD] * (target.num_key_value_heads - len(kv_heads)),
        "ffn": ffn + [PAD] * (target.intermediate_size - len(ffn)),
    }


def expand(units: Iterable[int], rows: int) -> torch.Tensor:
    """Unit indices as row indices; PAD stays PAD."""
    index = torch.tensor(list(units), dtype=torch.long)
    if rows == 1:
        return index
    spread = index[:, None] * rows + torch.arange(rows)
    return torch.where(index[:, None] == PAD, PAD, spread).reshape(-1)


def coupling_index(coupling: Coupling, slots: dict[Part, list[int]], dense: LayerShape, head_dim: int) -> torch.Tensor:
    """Row (or column) index into a dense tensor of ``coupling`` for every slot along its axis; PAD where padded."""
    runs, offset = [], 0
    for part in coupling.parts:
        rows = unit_rows(part, head_dim)
        index = expand(slots[part], rows)
        runs.append(torch.where(index == PAD, PAD, index + offset))
        offset += unit_count(dense, part) * rows
    return torch.cat(runs)


def gather(tensor: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
    """``index_select`` that fills PAD slots with zeros."""
    padded = index == PAD
    taken = tensor.index_select(axis, index.clamp(min=0).to(tensor.device))
    if padded.any():
        shape = [1] * taken.dim()
        shape[axis] = -1
        taken = taken.masked_fill(padded.to(tensor.device).view(shape), 0)
    return taken.contiguous()


class LayerSlicer:
    """Cuts (or pads) the tensors of one layer, given by their names inside the layer.

    ``slicer("self_attn.q_proj.weight", tensor)`` → the new tensor; tensors that no width touches come back unchanged.
    ``keeps`` says which there are at all: those of a sub-layer that is removed are not. ``power`` -1 cuts what goes
    with the weight's gradient, -2 what goes with its square: where a cut multiplies the weight by a factor, it divides
    the gradient by it.
    """

    def __init__(self, family: Family, shape: ModelShape, keep: LayerKeep, target: LayerShape | None = None):
        dense = shape.layers[keep.index]
        target = target or keep.shape
        slots = unit_slots(keep, dense, target)
        self._removed = tuple(f"{module}." for kind in target.removed for module in family.sublayer_modules(kind))
        self._silent = _output_biases(family, keep)
        self._slices: dict[str, tuple[int, torch.Tensor]] = {}
        self._scales: dict[str, float] = {}
        for coupling in family.couplings:
            index = coupling_index(coupling, slots, dense, shape.head_dim)
            self._slices[f"{coupling.module}.weight"] = (coupling.axis, index)
            if coupling.axis == 0:
                self._slices[f"{coupling.module}.bias"] = (0, index)
        for norm in family.wide_norms:
            self._slices[f"{norm.module}.weight"] = (0, expand(slots[norm.part], shape.head_dim))
            factor = math.sqrt(unit_count(target, norm.part) / max(unit_count(dense, norm.part), 1))
            if factor and factor != 1:
                self._scales[f"{norm.projection}.weight"] = factor
                self._scales[f"{norm.projection}.bias"] = factor
                self._scales[f"{norm.module}.weight"] = 1 / factor

    def keeps(self, name: str) -> bool:
        """False for the tensors of a sub-layer that the new layer lacks."""
        return not name.startswith(self._removed)

    def __call__(self, name: str, tensor: torch.Tensor, power: int = 1) -> torch.Tensor:
        if name in self._silent:
            return torch.zeros_like(tensor)
        if name in self._slices:
            tensor = gather(tensor, *self._slices[name])
        if name in self._scales:
            tensor = tensor * self._scales[name] ** power
        return tensor


def _output_biases(family: Family, keep: LayerKeep) -> set[str]:
    """Output biases of the sub-layers that are removed, which would go on adding something."""
    return {f"{each.module}.bias" for each in family.output_projections() if each.kind in keep.shape.removed}


def cut_layer(model: Any, family: Family, shape: ModelShape, layer: nn.Module, keep: LayerKeep) -> nn.Module:
    """A new decoder layer with the units of ``layer``, one of ``model`` (of that ``shape``), that ``keep`` names."""
    from prunekit.models.modeling import skipped_parts
    from prunekit.models.modeling.per_layer import remove_parts

    slicer = LayerSlicer(family, shape, keep)
    config = model.config
    heterogeneous = getattr(config, "is_heterogeneous", False)
    own = copy.copy(config.per_layer_config[keep.index] if heterogeneous else config)
    # What is removed is built with a width of 1 and taken out.
    own.num_attention_heads = keep.shape.num_attention_heads or 1
    own.num_key_value_heads = keep.shape.num_key_value_heads or 1
    own.intermediate_size = keep.shape.intermediate_size or 1
    own.head_dim = shape.head_dim
    with torch.device("meta"):
        new = type(layer)(own, keep.index)  # type: ignore[call-arg]
    remove_parts(new, skipped_parts(keep.shape), keep.index)
    tensors = {name: slicer(name, tensor) for name, tensor in layer.state_dict().items() if slicer.keeps(name)}
    new.load_state_dict(tensors, assign=True)
    return new.train(layer.training)
