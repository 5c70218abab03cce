"""What a plan removes set to zero, in the dense shapes: the specification of a rebuilt model."""

from __future__ import annotations

import torch

from prunekit.models.families import Family, Part, unit_count
from prunekit.models.slicing import PAD, coupling_index
from prunekit.plan import LayerKeep
from prunekit.plan.shape import ModelShape


class LayerZeroer:
    """Zeroes what a plan removes of one layer, keeping the dense shapes: the model that a rebuilt one must equal.

    ``zeroer("self_attn.q_proj.weight", tensor)`` → a tensor of the same shape.
    """

    def __init__(self, family: Family, shape: ModelShape, keep: LayerKeep):
        dense = shape.layers[keep.index]
        removed = keep.shape.removed
        # Else it would go on adding something.
        self._silent = {f"{each.module}.bias" for each in family.output_projections() if each.kind in removed}
        kept: dict[Part, set[int]] = {"query": set(keep.query_heads), "kv": set(keep.kv_heads), "ffn": set(keep.ffn)}
        slots = {
            part: [unit if unit in kept[part] else PAD for unit in range(unit_count(dense, part))] for part in kept
        }
        self._masks: dict[str, tuple[int, torch.Tensor]] = {}
        for coupling in family.couplings:
            mask = coupling_index(coupling, slots, dense, shape.head_dim) != PAD
            self._masks[f"{coupling.module}.weight"] = (coupling.axis, mask)
            if coupling.axis == 0:
                self._masks[f"{coupling.module}.bias"] = (0, mask)

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name in self._silent:
            return torch.zeros_like(tensor)
        if name not in self._masks:
            return tensor
        axis, mask = self._masks[name]
        shape = [1] * tensor.dim()
        shape[axis] = -1
        return tensor * mask.to(tensor.device, tensor.dtype).view(shape)
