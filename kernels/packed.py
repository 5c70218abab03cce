"""Weights as the kernels want them, as modules that also serve the model's own forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunekit.kernels.gated_act import gated_act
from prunekit.kernels.layout import PackedFFN
from prunekit.kernels.linear_decode import linear_decode, linear_decode_torch
from prunekit.kernels.mlp import mlp
from prunekit.kernels.quantize import quantize_ffn, quantize_rows
from prunekit.kernels.rms_norm import rms_norm
from prunekit.kernels.support import by_pieces, decode_pieces


def small(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """A bias, scale or norm weight as the kernels read it: float32, contiguous."""
    return None if tensor is None else tensor.detach().float().contiguous()


class PackedLinear(nn.Module):
    """y = norm(x) Wᵀ · scale + bias + residual, for any number of rows.

    ``weight`` [n, k] in the model's dtype, or int8 with ``scale`` [n]. Buffers are not persistent: the checkpoint's
    tensors stay those of the model it was packed from.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, scale: torch.Tensor | None = None):
        super().__init__()
        self.register_buffer("weight", weight.detach(), persistent=False)
        self.register_buffer("bias", small(bias), persistent=False)
        self.register_buffer("scale", small(scale), persistent=False)

    @classmethod
    def int8(cls, weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedLinear:
        """The same with weights rounded to 8 bits, one scale a row."""
        rounded, scale = quantize_rows(weight)
        return cls(rounded, bias, scale)

    def rows(self, first: int, last: int) -> PackedLinear:
        """The output features from ``first`` to ``last`` (exclusive), sharing memory."""
        part = PackedLinear(self.weight[first:last])
        part.bias = None if self.bias is None else self.bias[first:last]
        part.scale = None if self.scale is None else self.scale[first:last]
        return part

    def apply_to(
        self,
        x: torch.Tensor,
        norm_weight: torch.Tensor | None = None,
        eps: float = 0.0,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[rows, k] → [rows, n]."""
        pieces = decode_pieces(x, self.scale is not None)
        if pieces:
            rest = (self.weight, self.bias, self.scale, norm_weight, eps)
            return by_pieces(pieces, x, residual, lambda x, residual: linear_decode(x, *rest, residual))
        if norm_weight is not None:
            x = rms_norm(x, norm_weight, eps)
        return linear_decode_torch(x, self.weight, self.bias, self.scale, residual=residual)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As nn.Linear: [..., k] → [..., n]."""
        return linear_decode_torch(x, self.weight, self.bias, self.scale)


class PackedMLP(nn.Module):
    """A gated FFN in the packed layout of :mod:`prunekit.kernels.layout`; takes the place of a layer's ``mlp``.

    ``children`` are the projections it was packed from, kept under their names so that the model's state_dict stays
    what it was; their weights are views of the packed ones.
    """

    gate_up: torch.Tensor
    down_t: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down_bias: torch.Tensor | None
    gate_up_scale: torch.Tensor | None
    down_scale: torch.Tensor | None

    def __init__(self, packed: PackedFFN, activation: str, children: dict[str, nn.Module], *, int8: bool = False):
        super().__init__()
        self.width = packed.width
        self.activation = activation
        self.extra_bytes = packed.extra_bytes
        for name, module in children.items():
            self.add_module(name, module)
        gate_up, down_t, gate_up_scale, down_scale = packed.gate_up, packed.down_t, None, None
        if int8:
            gate_up, gate_up_scale, down_t, down_scale = quantize_ffn(packed)
            self.extra_bytes //= packed.gate_up.element_size()
        tensors = {
            "gate_up": gate_up,
            "down_t": down_t,
            "gate_up_bias": packed.gate_up_bias,
            "down_bias": packed.down_bias,
            "gate_up_scale": gate_up_scale,
            "down_scale": down_scale,
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    def apply_to(
        self,
        x: torch.Tensor,
        norm_weight: torch.Tensor | None = None,
        eps: float = 0.0,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[rows, hidden] → [rows, hidden]: down(act(gate(norm(x))) · up(norm(x))) + residual."""
        return mlp(
            x,
            self.gate_up,
            self.down_t,
            self.activation,
            norm_weight,
            eps,
            self.gate_up_bias,
            self.down_bias,
            self.gate_up_scale,
            self.down_scale,
            residual,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the family's own MLP: [..., hidden] → [..., hidden]."""
        return self.apply_to(x.reshape(-1, x.shape[-1])).view(x.shape)


class Int4Linear(nn.Module):
    """A linear layer whose weights a library keeps in 4 bits. ``product`` maps [rows, k] to [rows, n]."""

    bias: torch.Tensor | None

    def __init__(self, product: Any, bias: torch.Tensor | None = None):
        super().__init__()
        self.product = product
        self.register_buffer("bias", small(bias), persistent=False)

    def apply_to(
        self,
        x: torch.Tensor,
        norm_weight: torch.Tensor | None = None,
        eps: float = 0.0,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[rows, k] → [rows, n], as :meth:`PackedLinear.apply_to`."""
        if norm_weight is not None:
            x = rms_norm(x, norm_weight, eps)
        out = self.product(x)
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        return out if residual is None else residual + out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As nn.Linear: [..., k] → [..., n]."""
        out = self.apply_to(x.reshape(-1, x.shape[-1]))
        return out.view(*x.shape[:-1], out.shape[-1])


class Int4MLP(nn.Module):
    """A gated FFN with 4-bit weights: two products of a library, the activation in between ours."""

    def __init__(self, gate_up: Int4Linear, down: Int4Linear, activation: str, extra_bytes: int):
        super().__init__()
        self.gate_up, self.down = gate_up, down
        self.activation = activation
        self.extra_bytes = extra_bytes

    def apply_to(
        self,
        x: torch.Tensor,
        norm_weight: torch.Tensor | None = None,
        eps: float = 0.0,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[rows, hidden] → [rows, hidden], as :meth:`PackedMLP.apply_to`."""
        hidden = gated_act(self.gate_up.apply_to(x, norm_weight, eps), self.activation)
        return self.down.apply_to(hidden, residual=residual)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the family's own MLP: [..., hidden] → [..., hidden]."""
        return self.apply_to(x.reshape(-1, x.shape[-1])).view(x.shape)
