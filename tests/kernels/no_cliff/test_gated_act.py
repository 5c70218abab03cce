from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prunekit.kernels.ops.gated_act import launches
from prunekit.kernels.ops.utils.activation import ACTIVATIONS
from prunekit.kernels.ops.utils.launch import Launch
from prunekit.kernels.ops.utils.layout import padded
from prunekit.kernels.testing.aot import compile_launch
from tests.support.gate import WIDTHS, check, every_gpu, meta, needs_compiler

pytestmark = needs_compiler


def launch(width: int, activation: str, dtype: torch.dtype, bias: bool) -> Launch:
    (made,) = launches(
        meta(300, 2 * width, dtype=dtype),
        activation,
        meta(300, width, dtype=dtype),
        meta(2 * width, dtype=torch.float32) if bias else None,
    )
    return made


@every_gpu
@pytest.mark.parametrize("dtype, bias", ((torch.bfloat16, False), (torch.float16, True)))
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_any_width(activation: str, dtype: torch.dtype, bias: bool, arch: int) -> None:
    for width in WIDTHS:
        code = check(launch(padded(width), activation, dtype, bias), arch)
        assert code.narrow_loads_anywhere == 0
        assert not any(name.startswith("STG") and "U16" in name for name in code.instructions)


@every_gpu
def test_the_gate_sees_a_logical_width(arch: int) -> None:
    right = launch(1024, "silu", torch.bfloat16, False)
    wrong = replace(right, args={**right.args, "width": 1013})
    assert compile_launch(wrong, arch).narrow_loads_anywhere > 0
    with pytest.raises(AssertionError):
        check(wrong, arch)
