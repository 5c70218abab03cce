"""8-bit and 4-bit weights: how far off they are, what is refused, and which library is taken."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.errors import PrunekitError
from prunekit.kernels.modules import int4
from prunekit.kernels.modules.int4 import choose_library, quantize_int4, round_groups
from prunekit.kernels.ops.utils.int8 import dequantize, quantize_ffn, quantize_rows
from prunekit.kernels.ops.utils.layout import pack_ffn

WIDTHS = (1013, 1344, 37, 1024, 16, 17)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
def test_int8_is_off_by_half_a_step(dtype: torch.dtype) -> None:
    weight = random(37, 1013, dtype=dtype) * torch.logspace(-3, 3, 37)[:, None].to(dtype)
    rounded, scale = quantize_rows(weight)
    assert rounded.dtype == torch.int8 and scale.dtype == torch.float32
    assert rounded.abs().amax(-1).eq(127).all(), "every row uses the whole range"
    error = (dequantize(rounded, scale, torch.float32).double() - weight.double()).abs()
    assert (error <= scale[:, None].double() * 0.50001).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_int8_of_any_row(values: list[float]) -> None:
    """Rows near float32's ends too: nothing becomes NaN, and the error stays half a step."""
    weight = torch.tensor([values], dtype=torch.float32)
    rounded, scale = quantize_rows(weight)
    assert scale.isfinite().all() and (scale > 0).all()
    error = (rounded.double() * scale[:, None].double() - weight.double()).abs()
    assert (error <= scale.double() * 0.50001).all()


def test_int8_of_zeros_is_zero() -> None:
    rounded, scale = quantize_rows(torch.zeros(3, 16))
    assert (rounded == 0).all() and (scale == 1).all()


def test_int8_by_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random(2, 37, 64)
    whole = quantize_rows(weight)
    monkeypatch.setattr("prunekit.kernels.ops.utils.int8._CHUNK", 640)
    for one, other in zip(whole, quantize_rows(weight), strict=True):
        assert torch.equal(one, other)


def test_int8_of_a_packed_ffn() -> None:
    packed = pack_ffn(random(37, 64), random(37, 64), random(64, 37))
    made = quantize_ffn(packed)
    assert made.gate_up.shape == (2, 48, 64) and made.gate_up_scale.shape == (2, 48)
    assert made.down.shape == (64, 48) and made.down_scale.shape == (64,)
    assert (made.gate_up[:, 37:] == 0).all() and (made.down[:, 37:] == 0).all()
    error = (dequantize(made.down, made.down_scale, torch.float32) - packed.down).norm() / packed.down.norm()
    assert error < 0.01


@pytest.mark.parametrize("value", (float("nan"), float("inf"), float("-inf")))
def test_what_is_not_finite_is_refused(value: float) -> None:
    weight = torch.ones(4, 128)
    weight[2, 7] = value
    for quantize in (quantize_rows, quantize_int4):
        with pytest.raises(PrunekitError, match=r"\(4, 128\) holds NaN or infinity"):
            quantize(weight)


def test_int4_groups_are_off_by_half_a_step() -> None:
    weight = random(16, 512)
    weight[3, :128] = 0
    weight[4, :128] = -0.25
    rounded, scale, zero = round_groups(weight, 128)
    assert rounded.max() == 15 and rounded.min() == 0
    made = (rounded.unflatten(-1, (-1, 128)).double() - zero[..., None].double()) * scale[..., None].double()
    error = (made.flatten(-2) - weight.double()).abs().unflatten(-1, (-1, 128))
    assert (error <= scale[..., None] * 0.5001).all()
    assert torch.equal(made.flatten(-2)[3:5, :128].float(), weight[3:5, :128]), "equal weights are kept as they are"


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
@pytest.mark.parametrize("width", WIDTHS)
def test_int4_product_on_the_cpu(width: int, dtype: torch.dtype) -> None:
    """Any width on either axis: the product is of the weights that the library holds, which are off by half a step."""
    pytest.importorskip("torchao")
    tolerance = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}[dtype]
    for n, k in ((width, 128), (24, width)):
        weight = random(n, k, dtype=dtype) / k**0.5
        product = quantize_int4(weight)
        held = product(torch.eye(k, dtype=dtype)).double().T
        x = random(3, k, dtype=dtype)
        out, expected = product(x), x.double() @ held.T
        assert out.shape == (3, n) and out.dtype == dtype
        assert (out.double() - expected).norm() <= tolerance * expected.norm()
        _, scale, _ = round_groups(torch.nn.functional.pad(weight, (0, -k % 128)), 128)
        slack = 0.51 if dtype == torch.float32 else 0.6  # the library rounds its steps to the dtype
        assert ((held - weight.double()).abs() <= slack * scale.amax()).all()


def test_int4_leading_dimensions_and_zero_rows() -> None:
    pytest.importorskip("torchao")
    weight = random(48, 64)
    weight[37:] = 0
    out = quantize_int4(weight)(random(2, 3, 64))
    assert out.shape == (2, 3, 48)
    assert out[..., 37:].abs().max() < 1e-4


def test_int4_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchao", "torchao.quantization", "torchao.prototype.quantization.int4"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PrunekitError, match=r"4-bit weights need torchao: .* pip install '\.\[torchao\]'"):
        quantize_int4(torch.ones(16, 128))


@pytest.mark.parametrize(
    "installed, dtype, chosen",
    (
        ("torchao gemlite", torch.bfloat16, "torchao"),
        ("gemlite", torch.bfloat16, "gemlite"),
        ("torchao gemlite", torch.float16, "gemlite"),
        ("torchao", torch.float16, "torchao"),
    ),
)
def test_int4_library_on_a_gpu(
    installed: str, dtype: torch.dtype, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int4, "why_not", lambda library, device: None if library in installed else "it is missing")
    assert choose_library(CUDA, dtype) == chosen


def test_int4_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PrunekitError, match="bfloat16 or float16 on a GPU, and this one is in float32"):
        choose_library(CUDA, torch.float32)
    with pytest.raises(PrunekitError, match="no 4-bit weights on mps"):
        choose_library(torch.device("mps"), torch.float16)
    with pytest.raises(PrunekitError, match="Groups of 100"):
        quantize_int4(torch.ones(16, 128), group=100)
    monkeypatch.setattr(int4, "why_not", lambda library, device: f"{library} is missing")
    with pytest.raises(PrunekitError, match="need torchao or gemlite: torchao is missing; gemlite is missing"):
        choose_library(CUDA, torch.bfloat16)


def test_gemlite_gets_padded_weights_and_zeros_in_its_convention(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in that computes what gemlite documents: W ≈ (W_q − zeros) · scales."""

    class A16Wn:
        def __init__(self, device: torch.device, dtype: torch.dtype):
            self.dtype = dtype

        def from_weights(self, W_q, scales, zeros, W_nbits, group_size):  # type: ignore[no-untyped-def]
            assert W_q.dtype == torch.uint8 and W_nbits == 4 and group_size == 128
            assert W_q.shape[0] % 128 == 0 and W_q.shape[1] % 128 == 0
            weight = (W_q.unflatten(-1, (-1, 128)) - zeros[..., None]) * scales[..., None]
            linear = torch.nn.Linear(1, 1, bias=False)
            linear.weight = torch.nn.Parameter(weight.flatten(-2), requires_grad=False)
            return linear

    helper = ModuleType("gemlite.helper")
    helper.A16Wn = A16Wn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gemlite", SimpleNamespace(helper=helper))
    monkeypatch.setitem(sys.modules, "gemlite.helper", helper)
    weight = random(37, 1013)
    x = random(2, 1013)
    out = quantize_int4(weight, library="gemlite")(x)
    assert out.shape == (2, 37)
    expected = x @ weight.T
    assert (out - expected).norm() < 0.15 * expected.norm()
