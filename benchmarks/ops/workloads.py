"""One call of every op on tensors of its own, beside the same call in PyTorch, and how much work it is.

A workload has an irregular width of one ``kind``: ``ffn`` channels, KV ``heads``, or none (what is never pruned).
Every workload has weights of its own, so that a pass over several leaves no cache warm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from benchmarks.common.tensors import Data
from benchmarks.ops import baselines
from benchmarks.ops.registry import op
from prunekit.kernels.ops.utils import layout
from prunekit.plan.shape import LayerShape

Kind = Literal["ffn", "heads"]
Baseline = tuple[Callable[..., Any], tuple[Any, ...]]
ACTIVATION = "silu"


@dataclass(frozen=True)
class Size:
    """What a call works on: one layer of a model, ``rows`` tokens, ``context`` tokens in the cache of each sequence."""

    hidden: int
    head_dim: int
    vocab: int
    layer: LayerShape
    rows: int
    context: int
    bias: bool = False
    eps: float = 1e-5

    @property
    def padded_ffn(self) -> int:
        return layout.padded(self.layer.intermediate_size)


class Workload:
    """Base. ``work`` counts bytes that must be moved, or multiply-adds times 2, without pads."""

    kind: ClassVar[Kind | None] = None
    unit: ClassVar[Literal["bytes", "flops"]] = "bytes"
    work: int

    def __init__(self, size: Size, data: Data):
        self.size = size
        self.bytes_per_element = data.dtype.itemsize
        self.build(size, data)

    def build(self, size: Size, data: Data) -> None:
        """Make the tensors of ``ours`` and set ``work``."""
        raise NotImplementedError

    def ours(self) -> Any:
        raise NotImplementedError

    def irregular(self) -> Baseline:
        """As transformers does it, with contiguous tensors of the irregular width."""
        raise NotImplementedError

    def padded(self) -> Baseline:
        """As cuBLAS likes it best: packed, padded to 16."""
        raise NotImplementedError


class _FFN(Workload):
    kind = "ffn"
    int8: ClassVar[bool] = False

    def build(self, size: Size, data: Data) -> None:
        hidden, width = size.hidden, size.layer.intermediate_size
        self.x = data.normal(size.rows, hidden)
        self.norm = data.norm(hidden)
        self.scales: tuple[Any, Any] = (None, None)
        if self.int8:
            self.gate_up = data.int8(2, size.padded_ffn, hidden)
            self.down = data.int8(hidden, size.padded_ffn)
            self.scales = (data.scale(2, size.padded_ffn), data.scale(hidden))
        else:
            self.gate_up = data.weight(2, size.padded_ffn, hidden)
            self.down = data.normal(hidden, size.padded_ffn, scale=width**-0.5)
        self.gate_up[:, width:] = 0
        self.down[:, width:] = 0
        self.set_work(width)

    def set_work(self, width: int) -> None:
        self.work = 3 * width * self.size.hidden * self.gate_up.element_size()

    def dense(self) -> tuple[torch.Tensor, torch.Tensor]:
        """gate_up and down as PyTorch multiplies them."""
        gate_up, down, dtype = self.gate_up, self.down, self.x.dtype
        if self.int8:
            gate_up = (gate_up.float() * self.scales[0][..., None]).to(dtype)
            down = (down.float() * self.scales[1][:, None]).to(dtype)
        return gate_up, down

    def irregular(self) -> Baseline:
        width = self.size.layer.intermediate_size
        gate_up, down = self.dense()
        gate, up = (half[:width].clone() for half in gate_up)
        arguments = (self.x, self.norm.to(self.x.dtype), gate, up, down[:, :width].contiguous(), self.size.eps)
        return baselines.mlp_separate, arguments

    def padded(self) -> Baseline:
        gate_up, down = self.dense()
        return baselines.mlp_packed, (
            self.x,
            self.norm.to(self.x.dtype),
            gate_up.flatten(0, 1),
            down,
            self.size.eps,
        )


class MLPDecode(_FFN):
    def ours(self) -> Any:
        gate_up_scale, down_scale = self.scales
        return op("mlp_decode")(
            self.x,
            self.gate_up,
            self.down,
            ACTIVATION,
            self.norm,
            self.size.eps,
            gate_up_scale=gate_up_scale,
            down_scale=down_scale,
            residual=self.x,
        )


class MLPDecodeInt8(MLPDecode):
    int8 = True


class MLP(_FFN):
    unit = "flops"

    def set_work(self, width: int) -> None:
        self.work = 6 * width * self.size.hidden * self.size.rows

    def ours(self) -> Any:
        return op("mlp")(self.x, self.gate_up, self.down, ACTIVATION, self.norm, self.size.eps, residual=self.x)


class GatedAct(Workload):
    kind = "ffn"

    def build(self, size: Size, data: Data) -> None:
        width, rows = size.layer.intermediate_size, size.rows
        self.gate_up = data.normal(rows, 2, size.padded_ffn)
        self.gate_up[:, :, width:] = 0
        self.work = 3 * rows * width * self.bytes_per_element

    def ours(self) -> Any:
        return op("gated_act")(self.gate_up.flatten(1), ACTIVATION)

    def irregular(self) -> Baseline:
        return baselines.gated, (self.gate_up[:, :, : self.size.layer.intermediate_size].flatten(1),)

    def padded(self) -> Baseline:
        return baselines.gated, (self.gate_up.flatten(1),)


class LinearDecode(Workload):
    """The output projection of attention."""

    kind = "heads"
    int8: ClassVar[bool] = False

    def build(self, size: Size, data: Data) -> None:
        channels = size.layer.num_attention_heads * size.head_dim
        self.x = data.normal(size.rows, channels)
        self.residual = data.normal(size.rows, size.hidden)
        self.weight = data.int8(size.hidden, channels) if self.int8 else data.weight(size.hidden, channels)
        self.scale = data.scale(size.hidden) if self.int8 else None
        self.work = size.hidden * channels * self.weight.element_size()

    def ours(self) -> Any:
        return op("linear_decode")(self.x, self.weight, scale=self.scale, residual=self.residual)

    def dense(self) -> torch.Tensor:
        if self.scale is None:
            return self.weight
        return (self.weight.float() * self.scale[:, None]).to(self.x.dtype)

    def irregular(self) -> Baseline:
        return baselines.linear_add, (self.x, self.dense(), self.residual)

    def padded(self) -> Baseline:
        return baselines.linear_addmm, (self.x, self.dense(), self.residual)


class LinearDecodeInt8(LinearDecode):
    int8 = True


class OutputHead(Workload):
    """Final norm and vocabulary: the largest matrix of a small model."""

    def build(self, size: Size, data: Data) -> None:
        self.x = data.normal(size.rows, size.hidden)
        self.norm = data.norm(size.hidden)
        self.weight = data.weight(size.vocab, size.hidden)
        self.work = size.vocab * size.hidden * self.bytes_per_element

    def ours(self) -> Any:
        return op("linear_decode")(self.x, self.weight, norm_weight=self.norm, eps=self.size.eps)

    def irregular(self) -> Baseline:
        return baselines.norm_linear, (self.x, self.norm.to(self.x.dtype), self.weight, self.size.eps)

    padded = irregular


class RMSNorm(Workload):
    passes: ClassVar[int] = 2

    def build(self, size: Size, data: Data) -> None:
        self.x, self.residual = data.normal(size.rows, size.hidden), data.normal(size.rows, size.hidden)
        self.norm = data.norm(size.hidden)
        self.work = self.passes * self.x.numel() * self.bytes_per_element

    def ours(self) -> Any:
        return op("rms_norm")(self.x, self.norm, self.size.eps)

    def irregular(self) -> Baseline:
        return baselines.norm, (self.x, self.norm.to(self.x.dtype), self.size.eps)

    def padded(self) -> Baseline:
        return self.irregular()


class AddRMSNorm(RMSNorm):
    passes = 4

    def ours(self) -> Any:
        return op("add_rms_norm")(self.x, self.residual, self.norm, self.size.eps)

    def irregular(self) -> Baseline:
        return baselines.add_norm, (self.x, self.residual, self.norm.to(self.x.dtype), self.size.eps)


class RMSNormAdd(RMSNorm):
    passes = 3

    def ours(self) -> Any:
        return op("rms_norm_add")(self.x, self.norm, self.size.eps, self.residual)

    def irregular(self) -> Baseline:
        return baselines.norm_add, (self.x, self.norm.to(self.x.dtype), self.size.eps, self.residual)
