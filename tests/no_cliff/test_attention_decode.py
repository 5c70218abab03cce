from __future__ import annotations

import pytest
import torch
from gate import check, every_gpu, meta, needs_compiler

from prunekit.kernels.attention_decode import launches
from prunekit.kernels.launch import Launch

pytestmark = needs_compiler


def plan(
    head_dim: int, dtype: torch.dtype, capacity: int, *, uneven: bool = False, softcap: float = 0.0
) -> list[Launch]:
    """Three KV heads and nine query heads; one sequence, so that a long cache takes several splits."""
    cache = meta(2, 3, capacity, head_dim, dtype=dtype)
    return launches(
        q=meta(1, 9, head_dim, dtype=dtype),
        k_cache=cache,
        v_cache=cache,
        lengths=meta(1, dtype=torch.int32),
        out=meta(1, 9, head_dim, dtype=dtype),
        scale=head_dim**-0.5,
        window=100 if uneven else 0,
        softcap=softcap,
        starts=meta(4, dtype=torch.int32) if uneven else None,
        max_group=5,
    )


@every_gpu
@pytest.mark.parametrize("head_dim", (64, 96, 128, 256))
def test_any_head_dim(head_dim: int, arch: int) -> None:
    """Both ops, one split and several, in an irregular capacity too; softcap in one of the two."""
    attend, combine = plan(head_dim, torch.bfloat16, 4096)
    check(attend, arch, gemm=True)
    if head_dim != 128:  # compiles to what 96 does
        check(combine, arch)
    (alone,) = plan(head_dim, torch.float16, 13, uneven=True, softcap=50.0)
    check(alone, arch, gemm=True)


@every_gpu
def test_float32(arch: int) -> None:
    check(plan(128, torch.float32, 1013)[0], arch, gemm=True)
