from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prunekit.kernels.ops.linear_decode import launches
from prunekit.kernels.ops.utils.launch import Launch
from prunekit.kernels.ops.utils.layout import padded
from prunekit.kernels.testing.aot import compile_launch
from tests.support.gate import WIDTHS, check, every_gpu, meta, needs_compiler

pytestmark = needs_compiler


def launch(rows: int, n: int, k: int, dtype: torch.dtype, weight: torch.dtype | None = None) -> Launch:
    small = torch.float32
    *_, made = launches(
        x=meta(rows, k, dtype=dtype),
        weight=meta(n, k, dtype=weight or dtype),
        out=meta(rows, n, dtype=dtype),
        bias=meta(n, dtype=small),
        scale=meta(n, dtype=small) if weight else None,
        norm_weight=meta(k, dtype=small),
        eps=1e-5,
        residual=meta(rows, n, dtype=dtype),
    )
    return made


@every_gpu
@pytest.mark.parametrize("rows", (1, 4))
@pytest.mark.parametrize("weight", (None, torch.int8))
def test_any_width(rows: int, weight: torch.dtype | None, arch: int) -> None:
    for width in WIDTHS:
        check(launch(rows, width, 2048, torch.bfloat16, weight), arch, gemm=rows > 1)
        check(launch(rows, 2048, padded(width), torch.float16, weight), arch, gemm=rows > 1)


@every_gpu
@pytest.mark.parametrize("rows", (1, 4))
def test_the_gate_sees_a_logical_width(rows: int, arch: int) -> None:
    """Aligned rows are not enough: bounded by the logical width, the same kernel falls off the cliff."""
    right = launch(rows, 2048, 1024, torch.bfloat16)
    wrong = replace(right, args={**right.args, "k": 1013})
    check(right, arch)
    assert compile_launch(wrong, arch).narrow_loads_anywhere > 0
    with pytest.raises(AssertionError):
        check(wrong, arch)
