"""From the projections of any number of tokens to what attention reads: q and k norms, RoPE, write to the cache."""

import torch
import torch.nn.functional as F

from prunekit.kernels.ops.attention.cache import cache_strides
from prunekit.kernels.ops.utils._triton import cdiv, jit, next_power_of_2, start_after_previous, tl
from prunekit.kernels.ops.utils.backend import why_not_triton
from prunekit.kernels.ops.utils.dispatch import overlapped
from prunekit.kernels.ops.utils.launch import Launch, run


@jit
def _move_heads(
    source,
    target,
    target_stride,
    norm_ptr,
    cos_ptr,
    sin_ptr,
    position,
    first_head,
    count,
    eps,
    D: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
    REST_PAD: tl.constexpr,
    HEADS: tl.constexpr,
    NORM_ALL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """target[h] = rope(norm(source[h])) for HEADS heads of one token, of ``count`` that lie one after the other.

    Channels i and i + HALF turn by one angle; those from 2 · HALF on stay as they are. NORM_ALL: the mean square is
    over all heads, and ``norm`` has a weight for each channel of each head.
    """
    head = first_head + tl.arange(0, HEADS)[:, None]
    real = head < count
    pair = tl.arange(0, HALF_PAD)[None, :]
    rest = 2 * HALF + tl.arange(0, REST_PAD)[None, :]
    heads = source + head * D
    if HALF > 0:
        turning = real & (pair < HALF)
        first = tl.load(heads + pair, mask=turning, other=0.0).to(tl.float32)
        second = tl.load(heads + HALF + pair, mask=turning, other=0.0).to(tl.float32)
    if 2 * HALF < D:
        staying = real & (rest < D)
        still = tl.load(heads + rest, mask=staying, other=0.0).to(tl.float32)
    if norm_ptr is not None:
        if NORM_ALL:
            # Every program of a token reads all its heads; they lie in the chip's cache.
            inner = tl.arange(0, BLOCK)
            squares = tl.zeros((BLOCK,), dtype=tl.float32)
            for start in range(0, count * D, BLOCK):
                x = tl.load(source + start + inner, mask=start + inner < count * D, other=0.0).to(tl.float32)
                squares += x * x
            rstd = tl.rsqrt(tl.sum(squares, axis=0) / (count * D) + eps)
            norm = norm_ptr + head * D
        else:
            total = tl.zeros((HEADS, 1), dtype=tl.float32)
            if HALF > 0:
                total += tl.sum(first * first + second * second, axis=1, keep_dims=True)
            if 2 * HALF < D:
                total += tl.sum(still * still, axis=1, keep_dims=True)
            rstd = tl.rsqrt(total / D + eps)
            norm = norm_ptr + head * 0
        if HALF > 0:
            first *= rstd * tl.load(norm + pair, mask=turning, other=0.0)
            second *= rstd * tl.load(norm + HALF + pair, mask=turning, other=0.0)
        if 2 * HALF < D:
            still *= rstd * tl.load(norm + rest, mask=staying, other=0.0)
    target += head.to(tl.int64) * target_stride
    if HALF > 0:
        cos = tl.load(cos_ptr + position * HALF + pair, mask=pair < HALF, other=0.0)
        sin = tl.load(sin_ptr + position * HALF + pair, mask=pair < HALF, other=0.0)
        tl.store(target + pair, (first * cos - second * sin).to(target.dtype.element_ty), mask=turning)
        tl.store(target + HALF + pair, (second * cos + first * sin).to(target.dtype.element_ty), mask=turning)
    if 2 * HALF < D:
        tl.store(target + rest, still.to(target.dtype.element_ty), mask=staying)


@jit
def _rope_cache_kernel(
    qkv_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    positions_ptr,
    rows_ptr,
    cos_ptr,
    sin_ptr,
    q_norm_ptr,
    k_norm_ptr,
    num_heads,
    num_kv,
    qkv_stride,
    k_batch_stride,
    k_head_stride,
    k_token_stride,
    v_batch_stride,
    v_head_stride,
    v_token_stride,
    eps,
    D: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
    REST_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
    HEADS: tl.constexpr,
    Q_NORM_ALL: tl.constexpr,
    K_NORM_ALL: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program a token and HEADS of its query, key or value heads."""
    start_after_previous(PDL)
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    q_blocks = tl.cdiv(num_heads, HEADS)
    kv_blocks = tl.cdiv(num_kv, HEADS)
    position = tl.load(positions_ptr + token).to(tl.int64)
    row = tl.load(rows_ptr + token).to(tl.int64)
    q = qkv_ptr + token * qkv_stride
    k = q + num_heads * D
    v = k + num_kv * D
    if block < q_blocks:
        _move_heads(
            q,
            q_ptr + token * num_heads * D,
            D,
            q_norm_ptr,
            cos_ptr,
            sin_ptr,
            position,
            block * HEADS,
            num_heads,
            eps,
            D,
            HALF,
            HALF_PAD,
            REST_PAD,
            HEADS,
            Q_NORM_ALL,
            BLOCK,
        )
    elif block < q_blocks + kv_blocks:
        _move_heads(
            k,
            k_ptr + row * k_batch_stride + position * k_token_stride,
            k_head_stride,
            k_norm_ptr,
            cos_ptr,
            sin_ptr,
            position,
            (block - q_blocks) * HEADS,
            num_kv,
            eps,
            D,
            HALF,
            HALF_PAD,
            REST_PAD,
            HEADS,
            K_NORM_ALL,
            BLOCK,
        )
    else:
        _move_heads(
            v,
            v_ptr + row * v_batch_stride + position * v_token_stride,
            v_head_stride,
            None,
            None,
            None,
            position,
            (block - q_blocks - kv_blocks) * HEADS,
            num_kv,
            eps,
            D,
            0,
            1,
            D_PAD,
            HEADS,
            False,
            BLOCK,
        )


def launches(
    qkv: torch.Tensor,
    num_heads: int,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    positions: torch.Tensor,
    rows: torch.Tensor,
    out: torch.Tensor,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 0.0,
) -> list[Launch]:
    """What :func:`rope_cache` starts. Tensors as there; ``out`` [tokens, heads, head_dim] takes the queries."""
    num_kv, head_dim = k_cache.shape[1], k_cache.shape[3]
    half = 0 if cos is None else cos.shape[1]
    # One warp a program; as many heads as give each thread 16 bytes of every half.
    heads = max(1, 256 // max(16, next_power_of_2(half or head_dim // 2)))
    return [
        Launch(
            _rope_cache_kernel,
            (qkv.shape[0], cdiv(num_heads, heads) + 2 * cdiv(num_kv, heads)),
            {
                "qkv_ptr": qkv,
                "q_ptr": out,
                "k_ptr": k_cache,
                "v_ptr": v_cache,
                "positions_ptr": positions,
                "rows_ptr": rows,
                "cos_ptr": cos,
                "sin_ptr": sin,
                "q_norm_ptr": q_norm,
                "k_norm_ptr": k_norm,
                "num_heads": num_heads,
                "num_kv": num_kv,
                "qkv_stride": qkv.stride(0),
                **cache_strides(k_cache, v_cache),
                "eps": eps,
                "D": head_dim,
                "HALF": half,
                "HALF_PAD": next_power_of_2(half),
                "REST_PAD": next_power_of_2(head_dim - 2 * half),
                "D_PAD": next_power_of_2(head_dim),
                "HEADS": heads,
                "Q_NORM_ALL": q_norm is not None and q_norm.numel() != head_dim,
                "K_NORM_ALL": k_norm is not None and k_norm.numel() != head_dim,
                "BLOCK": 1024,
            },
            num_warps=1,
            num_stages=2,
            overlap=overlapped(qkv.device, qkv.dtype),
        )
    ]


def rope_cache_torch(
    qkv: torch.Tensor,
    num_heads: int,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    positions: torch.Tensor,
    rows: torch.Tensor,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 0.0,
) -> torch.Tensor:
    """The same in PyTorch; norms and rotation in float32."""
    num_kv, head_dim = k_cache.shape[1], k_cache.shape[3]
    position, row = positions.long(), rows.long()
    q, k, v = qkv.unflatten(1, (-1, head_dim)).split([num_heads, num_kv, num_kv], dim=1)
    if q_norm is not None:
        q = _norm(q, q_norm, eps)
    if k_norm is not None:
        k = _norm(k, k_norm, eps)
    if cos is not None and sin is not None:
        angle = cos[position][:, None], sin[position][:, None]
        q, k = _rotate(q, *angle), _rotate(k, *angle)
    k_cache[row, :, position] = k.to(k_cache.dtype)
    v_cache[row, :, position] = v.to(v_cache.dtype)
    return q.to(qkv.dtype, memory_format=torch.contiguous_format, copy=True)


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Of each head, or over all heads if ``weight`` has as many elements."""
    shape = x.shape[2:] if weight.numel() == x.shape[-1] else x.shape[1:]
    return F.rms_norm(x.float(), shape, weight.view(shape), eps)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = cos.shape[-1]
    first, second, rest = x.float().split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


@torch.library.custom_op("prunekit::rope_cache", mutates_args=("k_cache", "v_cache"))
def rope_cache(
    qkv: torch.Tensor,
    num_heads: int,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    positions: torch.Tensor,
    rows: torch.Tensor,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 0.0,
) -> torch.Tensor:
    """Norm and rotate the queries and keys of any number of tokens, and write keys and values to the cache.

    ``qkv`` [tokens, (num_heads + 2 · kv_heads) · head_dim] has contiguous rows: query heads, key heads, value heads.
    Token t goes to place ``positions[t]`` of row ``rows[t]`` (both int32) of the caches [any, kv_heads, capacity,
    head_dim], which may be strided but in the last axis; no two tokens go to the same place. ``cos`` and ``sin``
    [positions, R / 2] float32 turn the first R channels of each head (i with i + R / 2); without them nothing turns.
    ``q_norm`` and ``k_norm``, float32, come before that: [head_dim] for a norm of each head, [heads · head_dim] for one
    over all. Returns the queries, contiguous [tokens, num_heads, head_dim] in the dtype of ``qkv``.
    """
    if why_not_triton(qkv.device, qkv.dtype):
        return rope_cache_torch(qkv, num_heads, k_cache, v_cache, positions, rows, cos, sin, q_norm, k_norm, eps)
    out = qkv.new_empty(qkv.shape[0], num_heads, k_cache.shape[3])
    run(launches(qkv, num_heads, k_cache, v_cache, positions, rows, out, cos, sin, q_norm, k_norm, eps))
    return out


@rope_cache.register_fake
def _(qkv, num_heads, k_cache, v_cache, positions, rows, cos=None, sin=None, q_norm=None, k_norm=None, eps=0.0):  # type: ignore[no-untyped-def]
    return qkv.new_empty(qkv.shape[0], num_heads, k_cache.shape[3])
