from __future__ import annotations

import pytest
import torch

from prunekit.kernels.ops.attention.qkv_rope import launches
from prunekit.kernels.ops.utils.launch import Launch
from tests.support.gate import check, every_gpu, meta, needs_compiler

pytestmark = needs_compiler


def launch(
    heads: tuple[int, int], head_dim: int, hidden: int, rows: int, dtype: torch.dtype, weight: torch.dtype | None = None
) -> Launch:
    num_heads, num_kv = heads
    n = (num_heads + 2 * num_kv) * head_dim
    small = torch.float32
    cache = meta(rows, num_kv, 1013, head_dim, dtype=dtype)
    table = meta(1013, head_dim // 2, dtype=small)
    *_, made = launches(
        x=meta(rows, hidden, dtype=dtype),
        weight=meta(n, hidden, dtype=weight or dtype),
        num_heads=num_heads,
        k_cache=cache,
        v_cache=cache,
        positions=meta(rows, dtype=torch.int32),
        out=meta(rows, num_heads, head_dim, dtype=dtype),
        cos=table,
        sin=table,
        bias=meta(n, dtype=small),
        scale=meta(n, dtype=small) if weight else None,
        norm_weight=meta(hidden, dtype=small),
        eps=1e-5,
    )
    return made


@every_gpu
@pytest.mark.parametrize("rows", (1, 4))
@pytest.mark.parametrize("weight", (None, torch.int8))
@pytest.mark.parametrize("hidden, dtype", ((576, torch.bfloat16), (2048, torch.float16)))
def test_any_heads(hidden: int, dtype: torch.dtype, weight: torch.dtype | None, rows: int, arch: int) -> None:
    """Head sizes and head counts are run-time integers: one compile serves them all."""
    for head_dim in (64, 96, 128, 256):
        for heads in ((9, 3), (5, 2)) if hidden == 576 else ((63, 7), (37, 17)):
            check(launch(heads, head_dim, hidden, rows, dtype, weight), arch, gemm=rows > 1)


@every_gpu
def test_float32(arch: int) -> None:
    check(launch((37, 17), 128, 2048, 4, torch.float32), arch, gemm=True)
