from __future__ import annotations

import pytest
import torch

from prunekit.kernels.ops.attention.rope_cache import launches
from prunekit.kernels.ops.utils.launch import Launch
from tests.support.gate import check, every_gpu, meta, needs_compiler

pytestmark = needs_compiler


def launch(heads: tuple[int, int], head_dim: int, rotary: int, norm: str, dtype: torch.dtype) -> Launch:
    num_heads, num_kv = heads
    small = torch.float32
    cache = meta(2, num_kv, 1013, head_dim, dtype=dtype)
    table = meta(1013, rotary // 2, dtype=small) if rotary else None
    sizes = heads if norm == "all" else (1, 1)
    q_norm, k_norm = (meta(size * head_dim, dtype=small) if norm else None for size in sizes)
    (made,) = launches(
        qkv=meta(37, (num_heads + 2 * num_kv) * head_dim, dtype=dtype),
        num_heads=num_heads,
        k_cache=cache,
        v_cache=cache,
        positions=meta(37, dtype=torch.int32),
        rows=meta(37, dtype=torch.int32),
        out=meta(37, num_heads, head_dim, dtype=dtype),
        cos=table,
        sin=table,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=1e-5,
    )
    return made


@every_gpu
@pytest.mark.parametrize(
    "head_dim, rotary, norm",
    (
        (64, 64, ""),
        (64, 0, ""),
        (80, 32, ""),
        (96, 96, "head"),
        (128, 128, "all"),
        (128, 64, "head"),
        (256, 256, "head"),
    ),
)
def test_any_heads(head_dim: int, rotary: int, norm: str, arch: int) -> None:
    dtype = torch.bfloat16 if norm else torch.float16
    for heads in ((9, 3), (5, 2)):
        code = check(launch(heads, head_dim, rotary, norm, dtype), arch)
        assert code.narrow_loads_anywhere == 0
