"""What tune measures: sizes of models whole and pruned, one call of every op on them, and who can compute it here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from prunekit.kernels.ops.gated_act import gated_act
from prunekit.kernels.ops.rms_norm import add_rms_norm, rms_norm, rms_norm_add
from prunekit.kernels.ops.utils import dispatch as select
from prunekit.kernels.ops.utils.backend import why_not_triton
from prunekit.kernels.ops.utils.dispatch import OPS
from prunekit.kernels.ops.utils.layout import padded
from prunekit.kernels.tuning.arena import Arena
from prunekit.kernels.tuning.chain import Chain, Layer
from prunekit.kernels.tuning.measure import Call, Data

EPS = 1e-5


@dataclass(frozen=True)
class Shape:
    """One gated FFN: its hidden size and its number of neurons."""

    hidden: int
    width: int


def pruned(hidden: int, width: int) -> list[Shape]:
    """An FFN whole and with about 80, 60 and 40 % of its neurons, an odd number of them."""
    return [Shape(hidden, width), *(Shape(hidden, int(width * left) | 1) for left in (0.8, 0.6, 0.4))]


# SmolLM2-135M, Llama-3.2-1B, Qwen2.5-7B, Llama-3.1-8B. A bucket serves all sizes within a factor of two.
SHAPES = [*pruned(576, 1536), *pruned(2048, 8192), *pruned(3584, 18944), *pruned(4096, 14336)]
PREFILL_ROWS = (32, 128, 512, 2048, 8192)
# The ops that are judged by layers of a decode step.
IN_CHAINS = ("qkv_rope_tile", "linear_decode_tile", "mlp_decode_tile", "attention_splits", "overlap")
# Llama-3.2-1B and 3.1-8B whole and with about 60 % of their blocks, at contexts of which the attention has something to
# do. A bucket serves all sizes within a factor of two.
CONTEXTS = (256, 512, 2048, 8192)
LAYERS = tuple(
    layer
    for context in CONTEXTS
    for layer in (
        Layer(2048, 64, 32, 8, 8192, context),
        Layer(4096, 128, 32, 8, 14336, context),
        Layer(2048, 64, 20, 5, 4915, context),
        Layer(4096, 128, 20, 5, 8605, context),
    )
)


def workload(op: str, data: Data, rows: int = 1, width: int = 0, hidden: int = 0) -> Call:
    """A call of the op on fresh random tensors."""
    if op == "gated_act":
        both = data.normal(rows, 2 * padded(width))
        return lambda: gated_act(both, "silu")
    x = data.normal(rows, hidden)
    norm = data.normal(hidden, dtype=torch.float32)
    residual = data.normal(rows, hidden)
    if op == "rms_norm":
        return lambda: rms_norm(x, norm, EPS)
    if op == "add_rms_norm":
        return lambda: add_rms_norm(x, residual, norm, EPS)[0]
    return lambda: rms_norm_add(x, norm, EPS, residual)


def chain(op: str, sizes: dict[str, int], data: Data, layers: Sequence[Layer], arena: Arena | None = None) -> Chain:
    """Layers of a decode step in which a choice for ``op`` counts at those sizes: of the first of ``layers`` that
    has them."""
    return Chain(next(layer for layer in layers if not sizes or sizes in layer.sizes(op)), data, arena)


def cases(
    op: str, shapes: Sequence[Shape], prefill: Sequence[int], layers: Sequence[Layer] = LAYERS
) -> Iterator[dict[str, int]]:
    """The sizes at which an op is measured, each bucket once."""
    if op == "overlap":
        yield {}
        return
    seen = set()
    for sizes in _of_layers(op, layers) if op in IN_CHAINS else _of_prompts(op, shapes, prefill):
        key = select.bucket(op, tuple(sizes.values()))
        if key not in seen:
            seen.add(key)
            yield sizes


def _of_layers(op: str, layers: Sequence[Layer]) -> Iterator[dict[str, int]]:
    for layer in layers:
        yield from layer.sizes(op)


def _of_prompts(op: str, shapes: Sequence[Shape], prefill: Sequence[int]) -> Iterator[dict[str, int]]:
    for shape in shapes:
        for rows in prefill:
            sizes = {"rows": rows, "width": shape.width, "hidden": shape.hidden}
            yield {name: sizes[name] for name in OPS[op].sizes}


def candidates(op: str, device: torch.device, dtype: torch.dtype, sizes: dict[str, int]) -> Iterator[str]:
    """The choices that can run here, and have a point at those sizes."""
    no_triton = why_not_triton(device, dtype, dot=op == "attention_splits")
    for choice in OPS[op].choices:
        if choice == "torch":
            yield choice
        elif no_triton is not None:
            continue
        elif op == "overlap":
            if choice == "off" or select.can_overlap(device):
                yield choice
        elif op in IN_CHAINS:
            if choice == "auto" or _has_point(op, choice, sizes):
                yield choice
        elif choice != "auto":
            yield choice


def _has_point(op: str, choice: str, sizes: dict[str, int]) -> bool:
    """No columns beyond the weight's, no splits of less than a tile."""
    if op == "attention_splits":
        return int(choice) == 1 or int(choice) * 64 <= sizes["tokens"]
    rows, columns, _ = map(int, choice.split("x"))
    return rows <= sizes["n"] and columns < 2 * sizes["k"]
