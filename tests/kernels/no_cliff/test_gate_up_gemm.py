from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prunekit.kernels.ops.mlp.gate_up_gemm import NEWEST_ONLY, TILES, launches
from prunekit.kernels.ops.utils.launch import Launch
from prunekit.kernels.ops.utils.layout import padded
from prunekit.kernels.testing.aot import compile_launch
from tests.support.gate import WIDTHS, check, every_gpu, meta, needs_compiler

pytestmark = needs_compiler


def launch(tile: str, width: int, dtype: torch.dtype, activation: str = "silu", bias: bool = False) -> Launch:
    (made,) = launches(
        meta(1013, 2048, dtype=dtype),
        meta(2, width, 2048, dtype=dtype),
        activation,
        meta(1013, width, dtype=dtype),
        meta(2, width, dtype=torch.float32) if bias else None,
        tile,
    )
    return made


@every_gpu
@pytest.mark.parametrize(
    "dtype, activation, bias", ((torch.bfloat16, "silu", False), (torch.float16, "gelu_tanh", True))
)
@pytest.mark.parametrize("tile", TILES)
def test_any_width(tile: str, dtype: torch.dtype, activation: str, bias: bool, arch: int) -> None:
    if tile == NEWEST_ONLY and arch < 90:
        pytest.skip("this tile is for compute capability 9.0")
    for width in WIDTHS:
        code = check(launch(tile, padded(width), dtype, activation, bias), arch, gemm=True)
        assert any("MMA" in name for name in code.in_loops), "no tensor cores in the main loop"
        assert not any(name.startswith("STG") and "U16" in name for name in code.instructions)


@every_gpu
def test_the_gate_sees_a_logical_inner_width(arch: int) -> None:
    """Bounded by an inner width that 16 doesn't divide, the same kernel loses its copies and loads 2 bytes."""
    right = launch("medium", 1024, torch.bfloat16)
    wrong = replace(right, args={**right.args, "h": 1013})
    assert compile_launch(wrong, arch).narrow_loads > 0
    with pytest.raises(AssertionError):
        check(wrong, arch, gemm=True)
