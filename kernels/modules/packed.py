"""Weights as the kernels want them, as modules that also serve the model's own forward."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from prunekit.errors import PrunekitError
from prunekit.kernels.modules.untrainable import check_training, without_backward
from prunekit.kernels.ops.gated_act import gated_act
from prunekit.kernels.ops.linear_decode import linear_decode, linear_decode_torch
from prunekit.kernels.ops.mlp.op import mlp
from prunekit.kernels.ops.rms_norm import rms_norm
from prunekit.kernels.ops.utils.backend import by_pieces, decode_pieces
from prunekit.kernels.ops.utils.int8 import quantize_ffn, quantize_rows
from prunekit.kernels.ops.utils.layout import PackedFFN

# transformers' own hooks, which do nothing but collect what a forward was asked to return.
_HARMLESS = "transformers.utils.output_capturing"


def small(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """A bias, scale or norm weight as the kernels read it: float32, contiguous."""
    return None if tensor is None else tensor.detach().float().contiguous()


def hooked(module: nn.Module) -> bool:
    """True where a forward hook of the user's hangs on ``module``."""
    if not module._forward_hooks and not module._forward_pre_hooks:
        return False
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(getattr(hook, "__module__", None) != _HARMLESS for hook in hooks)


class _Packed(nn.Module):
    """A module whose buffers named by ``exact`` stay float32 where the model is cast."""

    exact: tuple[str, ...] = ()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        kept = {name: buffer for name in self.exact if (buffer := self._buffers.get(name)) is not None}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            now = self._buffers[name]
            if now is not None and now.dtype != before.dtype:
                self._buffers[name] = before.to(now.device)
        return self


class PackedLinear(_Packed):
    """y = norm(x) Wᵀ · scale + bias + residual, for any number of rows.

    ``weight`` [n, k] in the model's dtype, or int8 with ``scale`` [n]. Buffers are not persistent: the checkpoint's
    tensors stay those of the model it was packed from.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: torch.Tensor | None
    exact = ("bias", "scale")

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
        softcap: float = 0.0,
    ) -> torch.Tensor:
        """[rows, k] → [rows, n]. ``softcap`` c > 0 turns what is computed, without the residual, into
        c · tanh(y / c)."""
        pieces = decode_pieces(x, self.scale is not None)
        if pieces:
            rest = (self.weight, self.bias, self.scale, norm_weight, eps)
            return by_pieces(pieces, x, residual, lambda x, residual: linear_decode(x, *rest, residual, softcap))
        if norm_weight is not None:
            x = rms_norm(x, norm_weight, eps)
        return linear_decode_torch(x, self.weight, self.bias, self.scale, residual=residual, softcap=softcap)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As nn.Linear: [..., k] → [..., n]."""
        return linear_decode_torch(x, self.weight, self.bias, self.scale)


class PackedMLP(_Packed):
    """A gated FFN in the packed layout of :mod:`prunekit.kernels.ops.utils.layout`; takes the place of a layer's
    ``mlp``.

    ``original`` is that ``mlp``; its projections, whose weights become views of the packed ones, stay children under
    their names, so that the model's state_dict is what it was. None where weights were rounded. Raises PrunekitError
    in its forward where a projection was replaced, hooked or given other weights since: it would not count.
    """

    gate_up: torch.Tensor
    down: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down_bias: torch.Tensor | None
    gate_up_scale: torch.Tensor | None
    down_scale: torch.Tensor | None
    exact = ("gate_up_bias", "down_bias", "gate_up_scale", "down_scale")

    def __init__(self, packed: PackedFFN, activation: str, original: nn.Module | None = None, *, int8: bool = False):
        super().__init__()
        self.width = packed.width
        self.activation = activation
        self.extra_bytes = packed.extra_bytes
        names = () if original is None else ("gate_up_proj", "gate_proj", "up_proj", "down_proj")
        children = [(name, child) for name in names if (child := getattr(original, name, None)) is not None]
        for name, child in children:
            self.add_module(name, child)
        # In tuples, so that they are no children.
        self.sealed = tuple(child for _, child in children)
        self._original = (original,)
        if "gate_up_proj" in dict(children):
            self.register_state_dict_post_hook(_close_gap)
            self.register_load_state_dict_pre_hook(_open_gap)
        gate_up, down, gate_up_scale, down_scale = packed.gate_up, packed.down, None, None
        if int8:
            gate_up, gate_up_scale, down, down_scale = quantize_ffn(packed)
            self.extra_bytes //= packed.gate_up.element_size()
        tensors = {
            "gate_up": gate_up,
            "down": down,
            "gate_up_bias": packed.gate_up_bias,
            "down_bias": packed.down_bias,
            "gate_up_scale": gate_up_scale,
            "down_scale": down_scale,
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)
        self._tie()

    @property
    def original(self) -> Any:
        """The ``mlp`` it was packed from, None where weights were rounded."""
        return self._original[0]

    def _views(self) -> list[torch.Tensor]:
        """The weights of the sealed projections, as parts of the packed ones."""
        if not self.sealed:
            return []
        gate_up = self.gate_up[:, : self.width]
        # Of a fused gate_up_proj [2, width, hidden]: gate and up no longer follow each other without a gap.
        first = [gate_up] if len(self.sealed) == 2 else [*gate_up]
        return [*first, self.down[:, : self.width]]

    def _tie(self) -> None:
        for linear, view in zip(self.sealed, self._views(), strict=True):
            linear.weight.data = view

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        # Moved or cast together, they are one memory again.
        if tuple(self._modules.values()) == self.sealed:
            self._tie()
        return self

    def _check(self) -> None:
        """Raises PrunekitError where the projections are not what was packed."""
        same = tuple(self._modules.values()) == self.sealed
        if same and not torch.compiler.is_compiling():
            step = self.gate_up.element_size() * self.gate_up.shape[-1] * self.gate_up.shape[-2]
            gate, down = self.gate_up.data_ptr(), self.down.data_ptr()
            places = (gate, down) if len(self.sealed) == 2 else (gate, gate + step, down)
            for linear, place in zip(self.sealed, places, strict=False):
                same = same and type(linear) is nn.Linear and linear.weight.data_ptr() == place and not hooked(linear)
                same = same and "forward" not in vars(linear)
        if not same:
            raise PrunekitError(
                "A projection of an FFN was replaced, adapted, hooked, copied or given other weights after optimize(), "
                "and its kernels would not see that. Call prunekit.kernels.restore(model), merge adapters, remove "
                "hooks, and optimise it again."
            )

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
            self.down,
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
        self._check()
        asked = check_training(self.training, (x, *(each for linear in self.sealed for each in linear.parameters())))
        with torch.no_grad() if asked else nullcontext():
            self.refresh()
            made = self.apply_to(x.reshape(-1, x.shape[-1])).view(x.shape)
        return without_backward(made, asked)

    def refresh(self) -> None:
        """Copy biases anew: they may have been changed in place."""
        if self.gate_up_bias is not None and len(self.sealed) == 3:
            for row, linear in zip(self.gate_up_bias, self.sealed, strict=False):
                row[: self.width].copy_(linear.bias.detach())  # type: ignore[operator, union-attr]
        if self.down_bias is not None and self.sealed:
            self.down_bias.copy_(self.sealed[-1].bias.detach())  # type: ignore[operator, union-attr]


def _close_gap(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A fused projection leaves with the shape that its family gives it."""
    name = f"{prefix}gate_up_proj.weight"
    if name in state and state[name].dim() == 3:
        state[name] = state[name].flatten(0, 1)


def _open_gap(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    name = f"{prefix}gate_up_proj.weight"
    if name in state and state[name].dim() == 2:
        state[name] = state[name].unflatten(0, (2, -1))


class Int4Linear(_Packed):
    """A linear layer whose weights a library keeps in 4 bits. ``product`` maps [rows, k] to [rows, n]."""

    bias: torch.Tensor | None
    exact = ("bias",)

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

    original = None

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
        asked = check_training(self.training, (x,))
        with torch.no_grad() if asked else nullcontext():
            made = self.apply_to(x.reshape(-1, x.shape[-1])).view(x.shape)
        return without_backward(made, asked)
