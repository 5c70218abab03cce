"""Tensors of a checkpoint as the fused, padded parameters that vLLM's layers hold. Needs torch alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.export.formats.vllm.blueprint import Blueprint
from prunekit.models.families import Part, unit_count, unit_rows
from prunekit.plan.shape import LayerShape

# Channels of an FFN on one device are a multiple of this: 128 bytes of bf16, one tile of a GPU's matrix products.
# Where a dimension doesn't divide by 8, cuBLAS has no kernel for the newest tensor cores (measured by others: 3.5 times
# slower at K = 588 than at 592 on an H100), and it is best at 64. Channels of zeros change no result, and on one device
# weigh less than half a percent of a model of 8 B parameters.
FFN_MULTIPLE = 64

QKV, GATE_UP = "qkv_proj", "gate_up_proj"
# Where a projection's rows go: the fused parameter, and vLLM's name of the part.
STACKED: dict[str, tuple[str, str | int]] = {
    "q_proj": (QKV, "q"),
    "k_proj": (QKV, "k"),
    "v_proj": (QKV, "v"),
    "gate_proj": (GATE_UP, 0),
    "up_proj": (GATE_UP, 1),
}
# In the order in which a checkpoint that has them fused lays them one after the other.
_PARTS = {
    QKV: tuple(part for fused, part in STACKED.values() if fused == QKV),
    GATE_UP: tuple(part for fused, part in STACKED.values() if fused == GATE_UP),
}


@dataclass(frozen=True)
class Piece:
    """A tensor for the parameter ``name``; ``part`` is what of a fused parameter it fills, None for all of it."""

    name: str
    part: str | int | None
    tensor: Tensor


def padded_width(width: int, ways: int) -> int:
    """FFN channels of a layer once each of ``ways`` devices holds a multiple of FFN_MULTIPLE."""
    unit = FFN_MULTIPLE * ways
    return -(-width // unit) * unit


def pieces(weights: Iterable[tuple[str, Tensor]], blueprint: Blueprint, ffn: tuple[int, ...]) -> Iterator[Piece]:
    """``weights`` of a checkpoint, by the names that vLLM's fused layers go by.

    ``ffn`` is the FFN width that every layer has in memory, its own or more; what it has more is filled with zeros. A
    tied output head and buffers of rotary embeddings are left out.
    """
    fused = {coupling.module.rpartition(".")[2]: coupling for coupling in blueprint.family.couplings}
    for name, tensor in weights:
        if "rotary_emb." in name or (blueprint.tied and name.startswith("lm_head.")):
            continue
        module, _, kind = name.rpartition(".")
        owner, _, last = module.rpartition(".")
        if last in STACKED:
            into, part = STACKED[last]
            yield Piece(f"{owner}.{into}.{kind}", part, _grown(tensor, last, kind, _ffn(owner, ffn)))
        elif last in _PARTS:
            index = _layer_index(owner)
            shape = blueprint.layers[index].shape
            rows = [_rows(part, shape, blueprint.head_dim) for part in fused[last].parts]
            for part, block in zip(_PARTS[last], tensor.split(rows), strict=True):
                yield Piece(name, part, _grown(block, last, kind, _ffn(owner, ffn)))
        else:
            yield Piece(name, None, _grown(tensor, last, kind, _ffn(owner, ffn)))


def _rows(part: Part, shape: LayerShape, head_dim: int) -> int:
    return unit_count(shape, part) * unit_rows(part, head_dim)


def _layer_index(owner: str) -> int:
    """The layer in a name such as model.layers.3.mlp."""
    return int(owner.split(".")[-2])


def _ffn(owner: str, ffn: tuple[int, ...]) -> int | None:
    """The FFN width of the layer whose FFN ``owner`` is, None where it is something else."""
    return ffn[_layer_index(owner)] if owner.endswith(".mlp") else None


def _grown(tensor: Tensor, last: str, kind: str, width: int | None) -> Tensor:
    """``tensor`` of an FFN with zeros up to ``width`` channels; any other as it is."""
    if width is None or (last == "down_proj" and kind == "bias"):
        return tensor
    axis = 1 if last == "down_proj" else 0
    missing = width - tensor.shape[axis]
    if missing == 0:
        return tensor
    return torch.nn.functional.pad(tensor, (0, missing) if axis == 1 else (0, 0) * (tensor.dim() - 1) + (0, missing))
