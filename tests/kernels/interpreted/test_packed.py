"""Packed modules with more rows than a decode kernel takes at once."""

from __future__ import annotations

import pytest
import torch

from prunekit.kernels.modules.packed import PackedLinear, PackedMLP
from prunekit.kernels.ops import reference
from prunekit.kernels.ops.utils.layout import pack_ffn
from tests.support.close import assert_close


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("rows", (16, 17, 40))
def test_int8_rows_go_sixteen_at_a_time(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, residual, norm = normal(rows, 64), normal(rows, 40), 1 + 0.1 * normal(64)
    linear = PackedLinear.int8(normal(40, 64), normal(40))
    monkeypatch.setattr("prunekit.kernels.modules.packed.linear_decode_torch", None)
    assert_close(
        linear.apply_to(x, norm, 1e-5, residual),
        reference.linear_decode(x, linear.weight, linear.bias, linear.scale, norm, 1e-5, residual),
    )


@pytest.mark.parametrize("rows", (17, 40))
def test_int8_ffn_rows_go_sixteen_at_a_time(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mlp = PackedMLP(pack_ffn(normal(37, 64), normal(37, 64), normal(64, 37)), "silu", int8=True)
    x, norm = normal(rows, 64), 1 + 0.1 * normal(64)
    monkeypatch.setattr("prunekit.kernels.ops.mlp.op.mlp_prefill", None)
    expected = reference.mlp(
        x, mlp.gate_up, mlp.down, "silu", norm, 1e-5, None, None, mlp.gate_up_scale, mlp.down_scale, x
    )
    assert_close(mlp.apply_to(x, norm, 1e-5, x), expected)
