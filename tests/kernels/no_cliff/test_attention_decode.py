from __future__ import annotations

import pytest
import torch

from prunekit.kernels.ops.attention.decode import launches
from prunekit.kernels.ops.utils.launch import Launch
from tests.support.gate import check, every_gpu, meta, needs_compiler

pytestmark = needs_compiler


def plan(
    head_dim: int, dtype: torch.dtype, batch: int, capacity: int, *, window: int = 0, softcap: float = 0.0
) -> list[Launch]:
    """Three KV heads and nine query heads. Few sequences make small tiles, a short cache a single split."""
    cache = meta(batch + 1, 3, capacity, head_dim, dtype=dtype)
    return launches(
        q=meta(batch, 9, head_dim, dtype=dtype),
        k_cache=cache,
        v_cache=cache,
        lengths=meta(batch, dtype=torch.int32),
        out=meta(batch, 9, head_dim, dtype=dtype),
        scale=head_dim**-0.5,
        window=window,
        softcap=softcap,
    )


@every_gpu
@pytest.mark.parametrize("head_dim", (64, 96, 128, 256))
def test_any_head_dim(head_dim: int, arch: int) -> None:
    """Large and small tiles, several splits and one, in an irregular capacity; a window and softcap with one."""
    attend, combine = plan(head_dim, torch.bfloat16, 37, 4093)
    assert attend.args["BLOCK_S"] == {64: 64, 96: 64, 128: 64, 256: 32}[head_dim]
    check(attend, arch, gemm=True)
    if head_dim != 128:  # compiles to what 96 does
        check(combine, arch)
    (alone,) = plan(head_dim, torch.float16, 1, 13, window=100, softcap=50.0)
    check(alone, arch, gemm=True)


@every_gpu
def test_float32(arch: int) -> None:
    check(plan(128, torch.float32, 1, 1013)[0], arch, gemm=True)
