"""From a transformers decoder layer to a Block: weights packed in place, everything else read off its family."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from prunekit.errors import PrunekitError
from prunekit.kernels.modules.int4 import GROUP, quantize_int4
from prunekit.kernels.modules.packed import Int4Linear, Int4MLP, PackedLinear, PackedMLP, hooked, small
from prunekit.kernels.ops.utils.layout import ALIGNMENT, PackedFFN, pack_ffn
from prunekit.kernels.runtime.block import ALL, Block
from prunekit.models.families import Family

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


def read_block(layer: Any, family: Family, config: Any, weights: str, rope_by_type: bool) -> Block:
    """Pack one decoder layer of a transformers model in place and describe it.

    ``layer``'s own projections become views of the packed memory, and its ``mlp`` is replaced by the packed one.
    ``rope_by_type`` says that the model rotates layers of different types by different tables.
    :func:`check_layer` must have passed it.
    """
    attention = layer.self_attn
    head_dim = attention.head_dim
    projections = _projections(attention)
    query, key = (len(projections[name].weight) // head_dim for name in ("q_proj", "k_proj"))
    norms: dict[str, Any] = {
        place: None if name is None else _norm(getattr(layer, name), family)
        for place, name in vars(family.block_norms).items()
    }
    block = Block(
        qkv=_pack_qkv(attention, projections, weights),
        o=_pack_output(attention, weights),
        ffn=None,
        num_attention_heads=query,
        num_key_value_heads=key,
        head_dim=head_dim,
        **settings_of(layer, config, rope_by_type)._asdict(),
        q_norm=_norm(attention.q_norm, family) if hasattr(attention, "q_norm") else None,
        k_norm=_norm(attention.k_norm, family) if hasattr(attention, "k_norm") else None,
        **norms,
    )
    layer.mlp = block.ffn = _pack_mlp(layer.mlp, config, weights)
    return block


class Settings(NamedTuple):
    """The numbers of a layer that are neither widths nor weights, named as in
    :class:`~prunekit.kernels.runtime.block.Block`."""

    scaling: float
    window: int
    softcap: float
    rope: str | None
    eps: float


def settings_of(layer: Any, config: Any, rope_by_type: bool) -> Settings:
    """What ``layer`` and ``config`` say now."""
    attention = layer.self_attn
    norm: Any = next(module for module in layer._modules.values() if type(module).__name__.endswith("RMSNorm"))
    # transformers names the window on the attention where layers may differ, else on the config.
    window = getattr(attention, "sliding_window", getattr(config, "sliding_window", None))
    return Settings(
        scaling=float(attention.scaling),
        window=int(window or 0),
        softcap=float(getattr(attention, "attn_logit_softcapping", None) or 0.0),
        rope=(attention.layer_type if rope_by_type else ALL) if getattr(attention, "use_rope", True) else None,
        eps=float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0))),
    )


def _norm(module: Any, family: Family) -> torch.Tensor:
    return (module.weight.detach().float() + family.norm_offset).contiguous()


def check_layer(layer: Any, config: Any) -> None:
    """Raises PrunekitError where a layer holds something that can't be packed; changes nothing."""
    for part in (layer.self_attn, layer.mlp):
        for name, module in part.named_children():
            if name.endswith("_proj") and type(module) is not nn.Linear:
                raise PrunekitError(
                    f"{name} is a {type(module).__name__}, not a plain linear layer: merge adapters and load the model "
                    "unquantised before optimize()."
                )
    for name, module in layer.mlp.named_modules():
        if hooked(module):
            raise PrunekitError(
                f"mlp{name and '.'}{name} has a forward hook, which a packed FFN would not call; remove it before "
                "optimize()."
            )
    if _activation(config) not in _ACTIVATIONS:
        raise PrunekitError(
            f"There is no kernel for the activation {_activation(config)!r}; these work: {', '.join(_ACTIVATIONS)}."
        )


def _activation(config: Any) -> str:
    return getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None) or "none"


def _projections(attention: Any) -> dict[str, nn.Linear]:
    """q_proj, k_proj and v_proj; slices of a fused qkv_proj look like linear layers of their own."""
    if not hasattr(attention, "qkv_proj"):
        return {name: getattr(attention, name) for name in ("q_proj", "k_proj", "v_proj")}
    fused = attention.qkv_proj
    values = attention.num_key_value_heads * attention.head_dim
    sizes = (fused.out_features - 2 * values, values, values)
    parts = {}
    for name, weight in zip(("q_proj", "k_proj", "v_proj"), fused.weight.detach().split(sizes), strict=True):
        part = nn.Linear(1, 1, bias=False, device="meta")
        part.weight = nn.Parameter(weight, requires_grad=False)
        parts[name] = part
    return parts


def _pack_qkv(attention: Any, projections: dict[str, nn.Linear], weights: str) -> nn.Module:
    linears = list(projections.values())
    fused = hasattr(attention, "qkv_proj")
    weight = attention.qkv_proj.weight.detach() if fused else torch.cat([linear.weight.detach() for linear in linears])
    bias = None if linears[0].bias is None else torch.cat([linear.bias.detach() for linear in linears])
    packed = _linear(weight, bias, weights)
    names = ["qkv_proj"] if fused else list(projections)
    first = 0
    for name in names:
        module = getattr(attention, name)
        rows = module.out_features
        if weights == "keep":
            module.weight.data = packed.weight[first : first + rows]
        else:
            # The model's own forward goes on working, through the rounded weights.
            setattr(attention, name, packed if fused else _Rows(packed, first, first + rows))
        first += rows
    # A child, so that .to(device) takes it along.
    attention.add_module("packed_qkv", packed)
    return packed


class _Rows(nn.Module):
    """Some output features of a packed linear layer."""

    def __init__(self, packed: Any, first: int, last: int):
        super().__init__()
        self.packed, self.first, self.last = packed, first, last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.packed, PackedLinear):
            return self.packed.rows(self.first, self.last)(x)
        return self.packed(x)[..., self.first : self.last]


def _pack_output(attention: Any, weights: str) -> nn.Module:
    linear = attention.o_proj
    packed = _linear(linear.weight.detach(), linear.bias, weights)
    if weights == "keep":
        attention.add_module("packed_o", packed)
    else:
        attention.o_proj = packed
    return packed


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, weights: str) -> Any:
    if weights == "int8":
        return PackedLinear.int8(weight, bias)
    if weights == "int4":
        return Int4Linear(quantize_int4(weight), bias)
    return PackedLinear(weight, bias)


def _pack_mlp(mlp: Any, config: Any, weights: str) -> nn.Module:
    activation = _ACTIVATIONS[_activation(config)]
    down = mlp.down_proj
    fused = hasattr(mlp, "gate_up_proj")
    gate_bias = up_bias = None
    if fused:
        gate, up = mlp.gate_up_proj.weight.detach().chunk(2)
    else:
        linears = [getattr(mlp, name) for name in ("gate_proj", "up_proj")]
        gate, up = (linear.weight.detach() for linear in linears)
        gate_bias, up_bias = (small(linear.bias) for linear in linears)
    multiple = GROUP if weights == "int4" else ALIGNMENT
    packed = pack_ffn(gate, up, down.weight.detach(), gate_bias, up_bias, small(down.bias), multiple)
    if weights == "int4":
        return _int4_mlp(packed, activation)
    if weights == "int8":
        return PackedMLP(packed, activation, int8=True)
    return PackedMLP(packed, activation, mlp)


def _int4_mlp(packed: PackedFFN, activation: str) -> Int4MLP:
    """Padded to whole groups: the library's input then needn't be padded at every call."""
    bias = packed.gate_up_bias
    gate_up = Int4Linear(quantize_int4(packed.gate_up.flatten(0, 1)), None if bias is None else bias.flatten())
    down = Int4Linear(quantize_int4(packed.down), packed.down_bias)
    return Int4MLP(gate_up, down, activation, packed.extra_bytes // (2 * packed.down.element_size()))
