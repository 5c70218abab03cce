from __future__ import annotations

from typing import Any

import pytest
import torch

from prunekit.kernels.ops import reference
from prunekit.kernels.ops.mlp.decode import mlp_decode
from prunekit.kernels.ops.utils.backend import using
from prunekit.kernels.ops.utils.int8 import quantize_ffn
from prunekit.kernels.ops.utils.layout import pack_ffn, padded
from tests.support.close import WIDTHS, assert_close
from tests.support.guard import guarded

ALL = "norm bias scale residual"


def case(
    rows: int, width: int, hidden: int, dtype: torch.dtype, parts: str, activation: str = "silu"
) -> tuple[dict[str, Any], torch.Tensor]:
    """Arguments of the op, and what it must return: of the unpadded weights, so that the pads must count for nothing.

    ``parts`` names the optional arguments that are there: norm, bias, scale (int8), residual.
    """
    g = torch.Generator().manual_seed(rows + width)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    bias = (normal(width), normal(width), normal(hidden)) if "bias" in parts else (None, None, None)
    weights = (normal(width, hidden) / hidden**0.5, normal(width, hidden) / hidden**0.5, normal(hidden, width))
    packed = pack_ffn(
        *((weight / width**0.5 if i == 2 else weight).to(dtype) for i, weight in enumerate(weights)), *bias
    )
    gate_up, down, scales = packed.gate_up, packed.down, (None, None)
    if "scale" in parts:
        gate_up, gate_up_scale, down, down_scale = quantize_ffn(packed)
        scales = (gate_up_scale, down_scale)
    arguments = {
        "x": (2 * normal(rows, hidden)).to(dtype),
        "gate_up": gate_up,
        "down": down,
        "activation": activation,
        "norm_weight": 1 + 0.3 * normal(hidden) if "norm" in parts else None,
        "eps": 1e-5,
        "gate_up_bias": packed.gate_up_bias,
        "down_bias": packed.down_bias,
        "gate_up_scale": scales[0],
        "down_scale": scales[1],
        "residual": normal(rows, hidden).to(dtype) if "residual" in parts else None,
    }
    real = dict(arguments)
    for name in ("gate_up", "down", "gate_up_bias", "gate_up_scale"):
        if real[name] is not None:
            assert real[name].shape[1] == padded(width)
            real[name] = real[name][:, :width]
    guard = {name: guarded(value) if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    return guard, reference.mlp_decode(**real)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize("rows", (1, 5))
@pytest.mark.parametrize("width", WIDTHS)
def test_width(width: int, rows: int, dtype: torch.dtype) -> None:
    """Each width; the widths take the activations and the options in turn."""
    index = WIDTHS.index(width)
    parts = (ALL, "norm residual", "", "norm bias", "scale", "bias residual")[index]
    arguments, expected = case(rows, width, 64, dtype, parts, ("silu", "gelu_tanh")[index % 2])
    assert_close(mlp_decode(**arguments), expected)


@pytest.mark.parametrize("rows", (1, 2, 5, 16))
@pytest.mark.parametrize(
    ("parts", "dtype"),
    [(parts, torch.float32) for parts in ("", "norm", "bias", "scale residual", ALL)]
    + [(parts, torch.float16) for parts in ("norm residual", ALL)],
)
def test_options(parts: str, rows: int, dtype: torch.dtype) -> None:
    arguments, expected = case(rows, 37, 96, dtype, parts, "silu" if rows % 2 else "gelu_tanh")
    assert_close(mlp_decode(**arguments), expected)


@pytest.mark.parametrize(("rows", "hidden"), ((1, 17), (3, 17), (1, 576), (1, 2064), (1, 4112), (3, 1040), (2, 2064)))
def test_hidden(hidden: int, rows: int) -> None:
    """Several turns of every loop over the hidden size; a size that is no multiple of 16 is right too, though slow."""
    arguments, expected = case(rows, 17, hidden, torch.float32, ALL)
    assert_close(mlp_decode(**arguments), expected)


@pytest.mark.parametrize("rows", (1, 4))
def test_same_bits(rows: int) -> None:
    arguments, _ = case(rows, 100, 64, torch.float16, ALL)
    first = mlp_decode(**arguments)
    assert torch.equal(first, mlp_decode(**arguments))


@pytest.mark.parametrize("rows", (1, 4))
def test_float16_range(rows: int) -> None:
    """x · norm weight alone is past float16's range, and activation · scale of int8 is below its normal numbers."""
    arguments, _ = case(rows, 37, 96, torch.float16, "norm scale")
    for name, factor in (("x", 2000), ("norm_weight", 40), ("gate_up_scale", 1 / 40), ("down_scale", 1e-3)):
        arguments[name] = arguments[name] * factor
    assert_close(mlp_decode(**arguments), reference.mlp_decode(**arguments))


@pytest.mark.parametrize("parts", ("", ALL))
@pytest.mark.parametrize("rows", (1, 3, 17))
def test_fallback(rows: int, parts: str) -> None:
    arguments, expected = case(rows, 37, 96, torch.float32, parts, "gelu_tanh")
    with using("torch"):
        assert_close(mlp_decode(**arguments), expected)


@pytest.mark.parametrize(("rows", "parts"), ((1, ""), (4, ALL)))
def test_opcheck(rows: int, parts: str) -> None:
    torch.library.opcheck(mlp_decode, (), case(rows, 37, 32, torch.float32, parts)[0])


def test_errors_name_the_value() -> None:
    arguments, _ = case(1, 16, 32, torch.float32, "")
    with pytest.raises(ValueError, match="relu"):
        mlp_decode(**{**arguments, "activation": "relu"})
    unpadded = {"gate_up": arguments["gate_up"][:, :13].contiguous(), "down": arguments["down"][:, :13].contiguous()}
    with pytest.raises(ValueError, match="13 columns"):
        mlp_decode(**arguments | unpadded)
