"""The first launch of a decode step's attention: norm, query, key and value projections, RoPE, write to the cache.

The norm of several rows is a launch before it."""

import torch

from prunekit.kernels.ops.attention.cache import cache_strides
from prunekit.kernels.ops.attention.rope_cache import rope_cache_torch
from prunekit.kernels.ops.linear_decode import linear_decode_torch
from prunekit.kernels.ops.rms_norm import normed
from prunekit.kernels.ops.utils._triton import cdiv, jit, let_next_start, tl
from prunekit.kernels.ops.utils.backend import MAX_DECODE_ROWS, why_not_triton
from prunekit.kernels.ops.utils.inner_product import Tile, products
from prunekit.kernels.ops.utils.launch import Launch, run


@jit
def _qkv_rope_kernel(
    x_ptr,
    weight_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    positions_ptr,
    cos_ptr,
    sin_ptr,
    bias_ptr,
    scale_ptr,
    norm_ptr,
    rows,
    num_heads,
    num_kv,
    head_dim,
    half,
    k,
    weight_stride,
    k_batch_stride,
    k_head_stride,
    k_token_stride,
    v_batch_stride,
    v_head_stride,
    v_token_stride,
    eps,
    ROWS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    ONCE: tl.constexpr,
    UPCAST: tl.constexpr,
    PDL: tl.constexpr,
):
    """rope(norm(x) Wᵀ · scale + bias), to the queries or to the cache, for BLOCK_P channel pairs of one head.

    Rotation needs both channels of a pair, which lie ``half`` apart, so a program takes the weight rows of both: tile
    row 2p is the first channel of pair p, 2p + 1 the second. Channels that don't turn (those from 2 · half on, and all
    of a value head) are paired too, at an angle of zero. The products are those of linear_decode.
    """
    let_next_start(PDL)
    head = tl.program_id(0)
    first_pair = tl.program_id(1) * BLOCK_P
    tile = tl.arange(0, 2 * BLOCK_P)
    second = tile % 2
    # Pairs past the end are clamped, as rows are in linear_decode.
    pair = tl.minimum(first_pair + tile // 2, head_dim // 2 - 1)
    turning = tl.where(head < num_heads + num_kv, half, 0)
    channel = pair + tl.where(pair < turning, second * turning, tl.where(second == 1, head_dim // 2, turning))
    feature = (head * head_dim + channel).to(tl.int64)
    row = tl.arange(0, ROWS)
    real = row < rows
    # What an angle is looked up by, first: its loads follow from each other, and end while weights are on their way.
    position = tl.load(positions_ptr + row, mask=real, other=0).to(tl.int64)[None, :]
    if cos_ptr is not None:
        angle = first_pair + tl.arange(0, BLOCK_P)[:, None]
        turns = real[None, :] & (angle < turning)
        cos = tl.load(cos_ptr + position * half + angle, mask=turns, other=1.0)
        sin = tl.load(sin_ptr + position * half + angle, mask=turns, other=0.0)
    out = products(
        x_ptr,
        weight_ptr,
        feature,
        weight_stride,
        norm_ptr,
        rows,
        k,
        eps,
        ROWS,
        2 * BLOCK_P,
        BLOCK_K,
        STAGES,
        ONCE,
        UPCAST,
        PDL,
    )
    if scale_ptr is not None:
        out *= tl.load(scale_ptr + feature)[:, None]
    if bias_ptr is not None:
        out += tl.load(bias_ptr + feature)[:, None]
    if cos_ptr is not None:
        left, right = tl.split(tl.permute(tl.reshape(out, (BLOCK_P, 2, ROWS)), (0, 2, 1)))
        turned = tl.join(left * cos - right * sin, right * cos + left * sin)
        out = tl.reshape(tl.permute(turned, (0, 2, 1)), (2 * BLOCK_P, ROWS))
    there = real[None, :] & (first_pair + tile // 2 < head_dim // 2)[:, None]
    channel = channel[:, None]
    batch = row.to(tl.int64)[None, :]
    if head < num_heads:
        target = q_ptr + (batch * num_heads + head) * head_dim + channel
        tl.store(target, out.to(q_ptr.dtype.element_ty), mask=there)
    elif head < num_heads + num_kv:
        target = k_ptr + batch * k_batch_stride + position * k_token_stride + channel
        target += (head - num_heads).to(tl.int64) * k_head_stride
        tl.store(target, out.to(k_ptr.dtype.element_ty), mask=there)
    else:
        target = v_ptr + batch * v_batch_stride + position * v_token_stride + channel
        target += (head - num_heads - num_kv).to(tl.int64) * v_head_stride
        tl.store(target, out.to(v_ptr.dtype.element_ty), mask=there)


def launches(
    x: torch.Tensor,
    weight: torch.Tensor,
    num_heads: int,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    positions: torch.Tensor,
    out: torch.Tensor,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
) -> list[Launch]:
    """What :func:`qkv_rope` starts. Tensors as there; ``out`` [rows, heads, head_dim] takes the queries."""
    rows, k = x.shape
    num_kv, head_dim = k_cache.shape[1], k_cache.shape[3]
    n = weight.shape[0]
    before: list[Launch] = []
    if rows > 1:
        x, before = normed(x, norm_weight, eps)
        norm_weight = None
    # Weight rows a program as in linear_decode, two a pair.
    tile = Tile.of(rows, n, weight, normed=norm_weight is not None, op="qkv_rope_tile")
    return [
        *before,
        Launch(
            _qkv_rope_kernel,
            (num_heads + 2 * num_kv, cdiv(head_dim // 2, tile.n // 2)),
            {
                "x_ptr": x,
                "weight_ptr": weight,
                "q_ptr": out,
                "k_ptr": k_cache,
                "v_ptr": v_cache,
                "positions_ptr": positions,
                "cos_ptr": cos,
                "sin_ptr": sin,
                "bias_ptr": bias,
                "scale_ptr": scale,
                "norm_ptr": norm_weight,
                "rows": rows,
                "num_heads": num_heads,
                "num_kv": num_kv,
                "head_dim": head_dim,
                "half": 0 if cos is None else cos.shape[1],
                "k": k,
                "weight_stride": weight.stride(0),
                **cache_strides(k_cache, v_cache),
                "eps": eps,
                "BLOCK_P": tile.n // 2,
                **tile.constants(rows, k),
            },
            **tile.options(x),
        ),
    ]


def qkv_rope_torch(
    x: torch.Tensor,
    weight: torch.Tensor,
    num_heads: int,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    positions: torch.Tensor,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
) -> torch.Tensor:
    """The same in PyTorch; any number of rows."""
    qkv = linear_decode_torch(x, weight, bias, scale, norm_weight, eps)
    rows = torch.arange(x.shape[0], device=x.device)
    return rope_cache_torch(qkv, num_heads, k_cache, v_cache, positions, rows, cos, sin)


@torch.library.custom_op("prunekit::qkv_rope", mutates_args=("k_cache", "v_cache"))
def qkv_rope(
    x: torch.Tensor,
    weight: torch.Tensor,
    num_heads: int,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    positions: torch.Tensor,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
) -> torch.Tensor:
    """Queries of one new token of each of 1 to 16 sequences; its keys and values go to the cache.

    ``x`` [rows, k] is contiguous. ``weight`` [(num_heads + 2 · kv_heads) · head_dim, k] holds query heads, key heads,
    value heads; it, ``bias``, ``scale`` and ``norm_weight`` are as in linear_decode. Row b goes to place
    ``positions[b]`` (int32) of row b of the caches [at least rows, kv_heads, capacity, head_dim], which may be strided
    but in the last axis. ``cos`` and ``sin`` [positions, R / 2] float32 turn the first R channels of each query and key
    head (i with i + R / 2); without them nothing turns. ``head_dim`` is even. Returns the queries, contiguous [rows,
    num_heads, head_dim] in the dtype of ``x``. More than 16 rows go to PyTorch.
    """
    if x.shape[0] > MAX_DECODE_ROWS or why_not_triton(x.device, x.dtype, dot=x.shape[0] > 1):
        return qkv_rope_torch(
            x, weight, num_heads, k_cache, v_cache, positions, cos, sin, bias, scale, norm_weight, eps
        )
    out = x.new_empty(x.shape[0], num_heads, k_cache.shape[3])
    run(launches(x, weight, num_heads, k_cache, v_cache, positions, out, cos, sin, bias, scale, norm_weight, eps))
    return out


@qkv_rope.register_fake
def _(x, weight, num_heads, k_cache, *rest, **options):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], num_heads, k_cache.shape[3])
