"""Weights in 4 bits, through a library: torchao, or gemlite on a GPU. The work here is to choose one and to pad.

A row's weights are rounded in groups of 128 inputs, each with a smallest value and a step (asymmetric, 16 levels).
Neither library takes an input width that its group doesn't divide, so the width is padded with zeros and the input
with it; what irregular widths cost is that copy of the input, and at most 127 columns.

| device, dtype | library | note |
|---|---|---|
| CPU, any | torchao >= 0.18 | its prototype for the CPU |
| GPU, bfloat16 | torchao, else gemlite | "tile_packed_to_4d"; torchao pads the width further, to 1024 |
| GPU, float16 | gemlite, else torchao | torchao computes in bfloat16 |

torchao comes first for bfloat16 because gemlite adds up with atomics for 1 to 63 rows, so that the same prompt need not
give the same bits twice. torchao is imported where weights are quantised, never before.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from prunekit.errors import PrunekitError
from prunekit.kernels.ops.utils.int8 import check_finite
from prunekit.kernels.ops.utils.layout import padded
from prunekit.utils.provenance import install_extra

Library = Literal["torchao", "gemlite"]

GROUP = 128
GROUPS = (32, 64, 128)
# Output features that the libraries' tiles take.
_ROWS = {"torchao": 16, "gemlite": 128}
_LEVELS = 15


class Int4Product(nn.Module):
    """x Wᵀ for a weight [n, k] in 4 bits. Lives where it was quantised: packed weights don't move between devices."""

    def __init__(self, product: nn.Module, library: Library, in_features: int, out_features: int, padded_in: int):
        super().__init__()
        self.product = product
        self.library = library
        self.in_features = in_features
        self.out_features = out_features
        self.padded_in = padded_in

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., k] → [..., n] in the dtype of ``x``."""
        if self.padded_in != self.in_features:
            x = F.pad(x, (0, self.padded_in - self.in_features))
        return self.product(x)[..., : self.out_features]

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, library={self.library}"


def quantize_int4(weight: torch.Tensor, group: int = GROUP, library: Library | None = None) -> Int4Product:
    """``weight`` [n, k] in 4 bits, as a module that maps [..., k] to [..., n].

    ``group`` inputs share a step: 32, 64 or 128. ``library`` overrides the choice. Raises PrunekitError where no
    library can do it here, and where a weight is NaN or infinite.
    """
    if group not in GROUPS:
        raise PrunekitError(f"Groups of {group} weights are not possible; {', '.join(map(str, GROUPS))} are.")
    weight = weight.detach()
    check_finite(weight, weight.shape)
    library = library or choose_library(weight.device, weight.dtype)
    n, k = weight.shape
    whole = F.pad(weight, (0, padded(k, group) - k, 0, padded(n, _ROWS[library]) - n))
    product = _torchao(whole, group) if library == "torchao" else _gemlite(whole, group)
    return Int4Product(product, library, k, n, whole.shape[1])


def choose_library(device: torch.device, dtype: torch.dtype) -> Library:
    """The library for a device and dtype. Raises PrunekitError where there is none, or none is installed."""
    candidates: tuple[Library, ...] = ("torchao",)
    if device.type == "cuda":
        if dtype not in (torch.bfloat16, torch.float16):
            raise PrunekitError(
                f"4-bit weights need a model in bfloat16 or float16 on a GPU, and this one is in "
                f"{str(dtype).removeprefix('torch.')}; load it with --dtype bfloat16, or take int8."
            )
        candidates = ("torchao", "gemlite") if dtype == torch.bfloat16 else ("gemlite", "torchao")
    elif device.type != "cpu":
        raise PrunekitError(f"There are no 4-bit weights on {device.type}; they work on cpu and cuda.")
    reasons = []
    for library in candidates:
        reason = why_not(library, device)
        if reason is None:
            return library
        reasons.append(reason)
    raise PrunekitError(
        f"4-bit weights need {' or '.join(candidates)}: {'; '.join(reasons)}. Install it with "
        f"{install_extra('torchao')}, or take int8, which needs no library."
    )


def why_not(library: Library, device: torch.device) -> str | None:
    """Why a library can't be used on a device, as a clause; None where it can."""
    try:
        if library == "gemlite":
            import_module("gemlite.helper").A16Wn  # noqa: B018 (is it there?)
        else:
            _torchao_config(device, GROUP)
    # gemlite asks the driver for the GPU while it is imported, so more than an ImportError can come.
    except Exception as error:
        return f"{library} can't be used ({error})"
    return None


def _torchao_config(device: torch.device, group: int) -> Any:
    # set_inductor_config: Inductor's settings are the whole process's and not ours to change.
    if device.type == "cuda":
        config = import_module("torchao.quantization").Int4WeightOnlyConfig
        return config(group_size=group, int4_packing_format="tile_packed_to_4d", set_inductor_config=False)
    config = import_module("torchao.prototype.quantization.int4").PrototypeInt4WeightOnlyConfig
    return config(group_size=group, set_inductor_config=False)


def _torchao(weight: torch.Tensor, group: int) -> nn.Module:
    config = _torchao_config(weight.device, group)
    dtype = torch.bfloat16 if weight.device.type == "cuda" else weight.dtype
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    import_module("torchao.quantization").quantize_(linear, config)
    if type(linear.weight) is nn.Parameter:
        raise PrunekitError(
            f"torchao left a weight of shape {tuple(weight.shape)} as it was; check that its version is 0.18 or newer."
        )
    return linear


def _gemlite(weight: torch.Tensor, group: int) -> nn.Module:
    rounded, scale, zero = round_groups(weight, group)
    make = import_module("gemlite.helper").A16Wn(device=weight.device, dtype=weight.dtype)
    return make.from_weights(rounded, scale, zero, W_nbits=4, group_size=group)


def round_groups(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rounded uint8 [n, k] of 0..15, scale, zero [n, k / group]) with weight ≈ (rounded − zero) · scale.

    Scales and zeros are float32; k must be a multiple of ``group``. Off by at most scale / 2 an element.
    """
    groups = weight.float().unflatten(-1, (-1, group))
    least, most = groups.aminmax(dim=-1)
    scale = ((most - least) / _LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
    rounded = ((groups - least[..., None]) / scale[..., None]).round_().clamp_(0, _LEVELS).to(torch.uint8)
    # A group of equal weights has no step of its own: the value itself is the step, once below zero.
    equal = most == least
    scale = torch.where(equal, least.abs().clamp_min(torch.finfo(torch.float32).tiny), scale)
    return rounded.flatten(-2), scale, torch.where(equal, -least.sign(), -least / scale)
