"""The FFN op for any number of rows, and its prefill path with every provider that runs without a GPU."""

from __future__ import annotations

import pytest
import torch

from prunekit.kernels.ops import reference
from prunekit.kernels.ops.mlp.op import mlp
from prunekit.kernels.ops.utils.backend import using
from prunekit.kernels.ops.utils.int8 import quantize_ffn
from prunekit.kernels.ops.utils.layout import PackedFFN, padded
from tests.support.close import WIDTHS, assert_close

HIDDEN = 64
ALL = "norm bias scale residual"


def case(rows: int, width: int, dtype: torch.dtype, parts: str, activation: str = "silu") -> dict[str, object]:
    """Arguments of the op for an FFN of ``width`` neurons; ``parts`` names the optional ones."""
    g = torch.Generator().manual_seed(rows + width)
    rows_of_neurons = padded(width)
    real = (torch.arange(rows_of_neurons) < width).float()

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    gate_up = normal(2, rows_of_neurons, HIDDEN) * real[:, None] / HIDDEN**0.5
    down = normal(HIDDEN, rows_of_neurons) * real / width**0.5
    scales = (None, None)
    if "scale" in parts:
        gate_up, gate_up_scale, down, down_scale = quantize_ffn(PackedFFN(width, gate_up, down))
        scales = (gate_up_scale, down_scale)
    else:
        gate_up, down = gate_up.to(dtype), down.to(dtype)
    return {
        "x": (2 * normal(rows, HIDDEN)).to(dtype),
        "gate_up": gate_up,
        "down": down,
        "activation": activation,
        "norm_weight": 1 + 0.3 * normal(HIDDEN) if "norm" in parts else None,
        "eps": 1e-5,
        "gate_up_bias": normal(2, rows_of_neurons) * real if "bias" in parts else None,
        "down_bias": normal(HIDDEN) if "bias" in parts else None,
        "gate_up_scale": scales[0],
        "down_scale": scales[1],
        "residual": normal(rows, HIDDEN).to(dtype) if "residual" in parts else None,
    }


def check(arguments: dict[str, object]) -> None:
    out = mlp(**arguments)
    assert out.dtype == arguments["x"].dtype
    assert_close(out, reference.mlp(**arguments))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize("width", WIDTHS)
def test_prompt(width: int, dtype: torch.dtype) -> None:
    check(case(70, width, dtype, ALL if width % 2 else "norm residual", "silu" if width > 100 else "gelu_tanh"))


@pytest.mark.parametrize("parts", ("", "norm", "bias", "residual", "bias residual", "scale", ALL))
def test_parts(parts: str) -> None:
    check(case(18, 37, torch.float32, parts))


@pytest.mark.parametrize("rows", (1, 2, 16, 17))
def test_rows_on_both_sides_of_the_border(rows: int) -> None:
    check(case(rows, 37, torch.float32, ALL))


def test_no_rows() -> None:
    assert mlp(**case(0, 37, torch.float32, ALL)).shape == (0, HIDDEN)


@pytest.mark.parametrize("rows", (3, 20))
def test_fallback(rows: int) -> None:
    with using("torch"):
        check(case(rows, 37, torch.float32, ALL))


def test_int8_products_stay_in_float16() -> None:
    """Σ x · int8 would be beyond 65504 here; with the scale in the weights it is not."""
    arguments = case(70, 32, torch.float16, "scale")
    arguments["x"] = torch.full((70, HIDDEN), 30.0, dtype=torch.float16)
    arguments["gate_up"] = torch.full((2, 32, HIDDEN), 100, dtype=torch.int8)
    arguments["gate_up_scale"] = torch.full((2, 32), 1e-4)
    assert_close(mlp(**arguments), reference.mlp(**arguments))


@pytest.mark.parametrize("rows", (2, 20))
def test_opcheck(rows: int) -> None:
    torch.library.opcheck(mlp, (), case(rows, 37, torch.float32, ALL))


def test_exports_without_a_guard_on_rows() -> None:
    """One exported graph serves decode and prefill."""

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            arguments = case(4, 37, torch.float32, "")
            self.gate_up, self.down = (torch.nn.Buffer(arguments[name]) for name in ("gate_up", "down"))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return mlp(x, self.gate_up, self.down, "silu")

    layer = Layer()
    rows = torch.export.Dim("rows", min=1, max=4096)
    program = torch.export.export(layer, (torch.randn(8, HIDDEN),), dynamic_shapes={"x": {0: rows}})
    for count in (1, 40):
        x = torch.randn(count, HIDDEN)
        assert torch.equal(program.module()(x), layer(x))
