"""Weights in blocks of few bits, as ONNX Runtime's MatMulNBits and GatherBlockQuantized take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from prunekit.plan.shape import ModelShape

BLOCK = 32
# Shares of a block's full range that are tried as its quantised range: a narrower one clips the outermost weights and
# rounds all others more finely.
_RANGES = tuple(1 - step / 50 for step in range(16))
# Rows are quantised in pieces of so many weights, which bounds the memory the search takes.
_PIECE = 2**22


@dataclass(frozen=True)
class Blocks:
    """A weight [out_features, in_features] in blocks of ``group_size`` along its inputs, each value w stored as
    q = round(w / scale) + zero with 0 <= q < 2**bits.

    ``qweight`` is uint8 [out, blocks, group_size * bits / 8], the lower bits first; ``scales`` float32 [out, blocks];
    ``qzeros`` uint8 [out, ceil(blocks * bits / 8)], packed the same way. The last block is padded with zeros.
    Names are those that onnxruntime-genai's model builder asks a quantised module for.
    """

    qweight: torch.Tensor
    scales: torch.Tensor
    qzeros: torch.Tensor
    bits: int
    in_features: int
    group_size: int = BLOCK
    # The builder adds biases by itself.
    bias: None = None

    @property
    def out_features(self) -> int:
        return self.qweight.shape[0]

    @property
    def nbytes(self) -> int:
        return sum(each.numel() * each.element_size() for each in (self.qweight, self.scales, self.qzeros))


def quantise(weight: torch.Tensor, bits: int, moments: torch.Tensor | None = None) -> Blocks:
    """Round ``weight`` [out, in] to ``bits`` (4 or 8), each block of 32 with the scale and zero point of the least
    squared error among a few clippings of its range. ``moments`` [in], the mean squares of the inputs that meet the
    weight, make that the error of the *output* as far as inputs are uncorrelated. Memory beside the result stays
    below 200 MB."""
    import torch

    rows, columns = weight.shape
    step = max(1, _PIECE // columns)
    padding = (0, -columns % BLOCK)
    counts = torch.ones(columns) if moments is None else moments.float() / moments.float().mean().clamp_min(1e-30)
    share = torch.nn.functional.pad(counts, padding).reshape(-1, BLOCK)
    parts = []
    for begin in range(0, rows, step):
        piece = torch.nn.functional.pad(weight[begin : begin + step].detach().float(), padding)
        parts.append(_piece(piece.reshape(len(piece), -1, BLOCK), share, bits))
    quantised, scales, zeros = (torch.cat(each) for each in zip(*parts, strict=True))
    return Blocks(_pack(quantised, bits), scales, _pack(zeros, bits), bits, columns)


def _piece(blocks: torch.Tensor, share: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of weights [rows, blocks, BLOCK], whose errors count by ``share`` [blocks, BLOCK]: integers uint8 of the same
    shape, scales float32 and zero points uint8 [rows, blocks]."""
    import torch

    top = 2**bits - 1
    low = blocks.amin(-1).clamp_max(0)
    high = blocks.amax(-1).clamp_min(0)
    best = torch.full_like(low, float("inf"))
    best_scale, best_zero = torch.ones_like(low), torch.zeros_like(low)
    # The error of 8 bits is far below everything else, so its full range will do.
    for part in _RANGES if bits < 8 else (1.0,):
        scale = ((high - low) * part / top).clamp_min(torch.finfo(torch.float32).tiny)
        zero = (-low * part / scale).round().clamp(0, top)
        rounded = ((blocks / scale[..., None]).round() + zero[..., None]).clamp(0, top) - zero[..., None]
        # For these integers the scale of least squares is known in closed form.
        square = (rounded.square() * share).sum(-1)
        fitted = torch.where(square > 0, (rounded * blocks * share).sum(-1) / square.clamp_min(1e-30), scale)
        fitted = torch.where(fitted > 0, fitted, scale)
        error = ((rounded * fitted[..., None] - blocks).square() * share).sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        best_scale, best_zero = torch.where(better, fitted, best_scale), torch.where(better, zero, best_zero)
    integers = ((blocks / best_scale[..., None]).round() + best_zero[..., None]).clamp(0, top)
    return integers.to(torch.uint8), best_scale, best_zero.to(torch.uint8)


def input_moments(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean squares of every linear layer's inputs, float32 [in_features] by the layer's name in ``model``, over token
    ids int64 [sequences, n]."""
    import torch

    sums: dict[str, torch.Tensor] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):

            def note(_: Any, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
                square = inputs[0].float().square().flatten(0, -2).sum(0)
                sums[name] = sums[name] + square if name in sums else square

            hooks.append(module.register_forward_pre_hook(note))
    try:
        with torch.inference_mode():
            for row in ids:
                model(input_ids=row[None], use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / ids.numel() for name, total in sums.items()}


def dequantise(blocks: Blocks) -> torch.Tensor:
    """The weight that the runtime multiplies by, float32 [out, in]."""
    import torch

    rows, count = blocks.out_features, blocks.scales.reshape(blocks.out_features, -1).shape[1]
    integers = _unpack(blocks.qweight.reshape(rows, -1), blocks.bits)[:, : count * blocks.group_size]
    zeros = _unpack(blocks.qzeros.reshape(rows, -1), blocks.bits)[:, :count]
    centred = integers.reshape(rows, count, blocks.group_size).to(torch.float32) - zeros[..., None].to(torch.float32)
    scaled = centred * blocks.scales.reshape(rows, count, 1).to(torch.float32)
    return scaled.reshape(rows, -1)[:, : blocks.in_features]


def _pack(integers: torch.Tensor, bits: int) -> torch.Tensor:
    """Bytes along the last axis; two 4-bit values a byte, the first in its lower half."""
    import torch

    if bits == 8:
        return integers
    even = torch.nn.functional.pad(integers, (0, integers.shape[-1] % 2))
    return even[..., ::2] | (even[..., 1::2] << 4)


def _unpack(data: torch.Tensor, bits: int) -> Any:
    import torch

    return data if bits == 8 else torch.stack((data & 15, data >> 4), -1).flatten(-2)


def stored_weights(model: Any, shape: ModelShape) -> dict[str, torch.Tensor]:
    """The rounded weights of ``model``, an onnx_ir.Model that onnxruntime-genai's model builder named, dequantised to
    float32 by their names in transformers. A fused projection of queries, keys and values comes in three; a head that
    is the embedding table has the table's name."""
    found: dict[str, torch.Tensor] = {}
    heads = {
        node.name.split("/attn/")[0]: [
            node.attributes[name].value * shape.head_dim for name in ("num_heads", "kv_num_heads")
        ]
        for node in model.graph
        if node.op_type == "GroupQueryAttention"
    }
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            weight = dequantise(_read(node, node.inputs[1:4], node.attributes["K"].value))
            place = node.name
            if place.endswith("/qkv_proj/MatMulNBits"):
                layer = place.split("/attn/")[0]
                queries, keys = heads[layer]
                for name, part in zip("qkv", weight.split([queries, keys, keys]), strict=True):
                    found[weight_name(f"{layer}/attn/{name}_proj/MatMulNBits")] = part
            else:
                found[weight_name(place)] = weight
        elif node.op_type == "GatherBlockQuantized":
            table, _, *others = node.inputs
            source = table.producer()
            stored = table if source is None else source.inputs[0]  # behind a Reshape
            found["model.embed_tokens.weight"] = dequantise(_read(node, (stored, *others), shape.hidden_size))
    if shape.tie_word_embeddings and "lm_head.weight" in found:
        found["model.embed_tokens.weight"] = found.pop("lm_head.weight")
    return found


def _read(node: Any, stored: Any, columns: int) -> Blocks:
    import torch

    weight, scales, zeros = (torch.from_numpy(each.const_value.numpy().copy()) for each in stored)
    return Blocks(
        weight,
        scales.reshape(len(weight), -1).float(),
        zeros.reshape(len(weight), -1),
        node.attributes["bits"].value,
        columns,
        node.attributes["block_size"].value,
    )


def weight_name(node: str) -> str:
    """The weight that a node of the builder's multiplies by: /model/layers.3/attn/o_proj/MatMul →
    model.layers.3.self_attn.o_proj.weight."""
    place = node.rpartition("/")[0]
    # Queries, keys and values that are one product meet the same inputs.
    return place[1:].replace("/attn/qkv_", "/attn/q_").replace("/attn/", "/self_attn/").replace("/", ".") + ".weight"
