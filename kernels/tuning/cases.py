"""What tune measures: sizes of models whole and pruned, one call of every op on them, and who can compute it here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from prunekit.kernels.ops.gated_act import gated_act
from prunekit.kernels.ops.linear_decode import linear_decode
from prunekit.kernels.ops.mlp.decode import mlp_decode
from prunekit.kernels.ops.rms_norm import add_rms_norm, rms_norm, rms_norm_add
from prunekit.kernels.ops.utils import dispatch as select
from prunekit.kernels.ops.utils.backend import why_not_triton
from prunekit.kernels.ops.utils.dispatch import OPS
from prunekit.kernels.ops.utils.layout import padded
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


def workload(op: str, data: Data, rows: int = 1, width: int = 0, hidden: int = 0) -> Call:
    """A call of the op on fresh random tensors."""
    if op == "gated_act":
        both = data.normal(rows, 2 * padded(width))
        return lambda: gated_act(both, "silu")
    if op == "overlap":
        return _chain(data)
    x = data.normal(rows, hidden)
    norm = data.normal(hidden, dtype=torch.float32)
    residual = data.normal(rows, hidden)
    if op == "rms_norm":
        return lambda: rms_norm(x, norm, EPS)
    if op == "add_rms_norm":
        return lambda: add_rms_norm(x, residual, norm, EPS)[0]
    return lambda: rms_norm_add(x, norm, EPS, residual)


def _chain(data: Data, hidden: int = 2048, width: int = 4915) -> Call:
    """Small dependent launches, as a decode step makes them: where starting early tells."""
    x = data.normal(1, hidden)
    weights = [data.normal(hidden, hidden, scale=hidden**-0.5) for _ in range(2)]
    gate_up = data.normal(2, padded(width), hidden, scale=hidden**-0.5)
    down = data.normal(hidden, padded(width), scale=width**-0.5)
    norm = data.normal(hidden, dtype=torch.float32)

    def run() -> torch.Tensor:
        y = x
        for weight in weights:
            y = linear_decode(y, weight, None, None, norm, EPS, x)
            y = mlp_decode(y, gate_up, down, "silu", norm, EPS, residual=x)
        return y

    return run


def cases(op: str, shapes: Sequence[Shape], prefill: Sequence[int]) -> Iterator[dict[str, int]]:
    """The sizes at which an op is measured, each bucket once."""
    seen = set()
    for shape in shapes:
        for rows in prefill:
            sizes = {"rows": rows, "width": shape.width, "hidden": shape.hidden}
            sizes = {name: sizes[name] for name in OPS[op].sizes}
            key = select.bucket(op, tuple(sizes.values()))
            if key not in seen:
                seen.add(key)
                yield sizes


def candidates(op: str, device: torch.device, dtype: torch.dtype) -> Iterator[str]:
    """The choices that can run here."""
    no_triton = why_not_triton(device, dtype)
    for choice in OPS[op].choices:
        if choice == "torch":
            yield choice
        elif op == "overlap":
            if no_triton is None and (choice == "off" or select.can_overlap(device)):
                yield choice
        elif no_triton is None:
            yield choice
