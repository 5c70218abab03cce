"""Attention of one new token per sequence over its KV cache (flash-decoding), for query groups of any size.

The cache of a sequence is cut into splits that work side by side; the program that ends last combines them, always in
the same order, so that the same bits come out. How many splits there are at most is fixed when the launch is planned,
from the cache's capacity: lengths live on the device, so a recorded CUDA graph stays right while sequences grow. Each
program finds its own range when it runs; splits beyond the length end at once and are not waited for.
"""

import math

import torch
import torch.nn.functional as F

from prunekit.kernels.ops.attention.cache import cache_strides
from prunekit.kernels.ops.attention.last_arriver import combine, is_last, splits_at_once
from prunekit.kernels.ops.utils._triton import INTERPRETING, cdiv, jit, next_power_of_2, start_after_previous, tl
from prunekit.kernels.ops.utils.activation import capped
from prunekit.kernels.ops.utils.backend import multiprocessors, why_not_triton
from prunekit.kernels.ops.utils.dispatch import choose, overlapped
from prunekit.kernels.ops.utils.launch import Launch, run

# Query heads of a tile: what a tensor core takes at least, so a group of 1 costs the same as one of 16.
HEADS = 16
MAX_SPLITS = 128
# Tokens of a split, where a sequence has so many.
LEAST_SPLIT = 256
_UNLIMITED = 2**31 - 1


@jit
def _attention_decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    parts_ptr,
    lse_ptr,
    arrivals_ptr,
    lengths_ptr,
    num_heads,
    group,
    head_blocks,
    splits,
    k_batch_stride,
    k_head_stride,
    k_token_stride,
    v_batch_stride,
    v_head_stride,
    v_token_stride,
    window,
    scale,
    softcap,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    LEAST: tl.constexpr,
    MEMBERS: tl.constexpr,
    COMBINED: tl.constexpr,
    CAPPED: tl.constexpr,
    UPCAST: tl.constexpr,
    PDL: tl.constexpr,
):
    """out[b, h] = Σ_p softmax_p(q[b, h] · k[b, kv(h), p]) · v[b, kv(h), p] over the visible p.

    A program takes one sequence, up to HEADS query heads of one KV head, and one split. KV head j serves ``group``
    query heads. Logits are in powers of two: ``scale`` (and with CAPPED ``softcap``) hold the factor log2(e).
    Programs of one tile of heads that share a sequence leave their sums in ``parts`` [tiles, splits, HEADS, D] and
    ``lse`` [tiles, splits, HEADS], log2 Σ 2^logit; the last of them to arrive combines them.
    """
    start_after_previous(PDL)
    batch = tl.program_id(0)
    kv = tl.program_id(1) // head_blocks
    split = tl.program_id(2)
    first_member = tl.program_id(1) % head_blocks * HEADS
    member = first_member + tl.arange(0, HEADS)
    real = member < group
    query = batch * num_heads + kv * group + member

    length = tl.load(lengths_ptr + batch)
    first = tl.maximum(length - window, 0)
    # Tokens of a split, a multiple of the tile; the same for all programs of a sequence, as is how many have any.
    part = tl.maximum(tl.cdiv(tl.cdiv(length - first, BLOCK_S), splits) * BLOCK_S, LEAST)
    working = tl.maximum(tl.cdiv(length - first, part), 1)
    if split < working:
        begin = first + split * part
        end = tl.minimum(begin + part, length)

        channel = tl.arange(0, D_PAD)
        token = tl.arange(0, BLOCK_S)
        # D is known to the compiler, so this mask leaves 16-byte loads whole.
        in_head = (channel < D)[None, :]
        q = tl.load(q_ptr + query[:, None].to(tl.int64) * D + channel[None, :], mask=real[:, None] & in_head, other=0.0)
        q = q.to(k_ptr.dtype.element_ty)
        if UPCAST:
            q = q.to(tl.float32)
        row = batch.to(tl.int64)
        place = begin.to(tl.int64)
        k_tile = k_ptr + row * k_batch_stride + kv.to(tl.int64) * k_head_stride + place * k_token_stride
        k_tile += token[:, None] * k_token_stride + channel[None, :]
        v_tile = v_ptr + row * v_batch_stride + kv.to(tl.int64) * v_head_stride + place * v_token_stride
        v_tile += token[:, None] * v_token_stride + channel[None, :]

        top = tl.full((HEADS,), float("-inf"), dtype=tl.float32)
        total = tl.zeros((HEADS,), dtype=tl.float32)
        out = tl.zeros((HEADS, D_PAD), dtype=tl.float32)
        for start in range(begin, end, BLOCK_S):
            # The cache beyond the length holds anything, NaN too: it must not be multiplied, not even by zero.
            inside = start + token < end
            k = tl.load(k_tile, mask=inside[:, None] & in_head, other=0.0)
            if UPCAST:
                k = k.to(tl.float32)
            logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            if CAPPED:
                logits = capped(logits, softcap)
            logits = tl.where(inside[None, :], logits, float("-inf"))
            # Finite: a block has at least one token.
            new_top = tl.maximum(top, tl.max(logits, axis=1))
            weights = tl.exp2(logits - new_top[:, None])
            shrink = tl.exp2(top - new_top)
            total = total * shrink + tl.sum(weights, axis=1)
            v = tl.load(v_tile, mask=inside[:, None] & in_head, other=0.0)
            weights = weights.to(v.dtype)
            if UPCAST:
                v = v.to(tl.float32)
                weights = weights.to(tl.float32)
            out = tl.dot(weights, v, acc=out * shrink[:, None], input_precision="ieee")
            top = new_top
            k_tile += BLOCK_S * k_token_stride
            v_tile += BLOCK_S * v_token_stride

        # A sequence of length 0 has a total of 0 and a top of -inf: its output is 0, not 0/0.
        total = tl.where(total > 0, total, 1.0)
        out /= total[:, None]
        # Known when the kernel is compiled: without parts there is one split.
        if parts_ptr is None or working == 1:
            tl.store(
                out_ptr + query[:, None].to(tl.int64) * D + channel[None, :],
                out.to(out_ptr.dtype.element_ty),
                mask=real[:, None] & in_head,
            )
        else:
            tile = row * tl.num_programs(1) + tl.program_id(1)
            where = (tile * splits + split) * HEADS + tl.arange(0, HEADS)
            tl.store(parts_ptr + where[:, None] * D + channel[None, :], out, mask=real[:, None] & in_head)
            tl.store(lse_ptr + where, top + tl.log2(total), mask=real)
            if is_last(arrivals_ptr + tile, working):
                members = tl.minimum(group - first_member, HEADS)
                first_query = row * num_heads + kv * group + first_member
                combine(
                    parts_ptr + tile * splits * HEADS * D,
                    lse_ptr + tile * splits * HEADS,
                    out_ptr + first_query * D,
                    working,
                    members,
                    D,
                    D_PAD,
                    HEADS,
                    MEMBERS,
                    COMBINED,
                )


def cut(programs: int, tokens: int, head_dim: int, dtype: torch.dtype, processors: int) -> tuple[int, int]:
    """(tokens of a tile, splits) where ``programs`` would run without splits, each seeing ``tokens`` at the most.

    A split has at least 256 tokens: fewer are read in the time that it takes to combine two. No more splits than make
    two programs a multiprocessor. Tiles are 64 tokens, or 16 KiB of keys, so that three pipeline stages fit any chip.
    """
    block = min(64, 16384 // (max(16, next_power_of_2(head_dim)) * dtype.itemsize))
    return block, max(1, min(cdiv(tokens, LEAST_SPLIT), cdiv(2 * processors, programs), MAX_SPLITS))


def launches(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    out: torch.Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    arrivals: torch.Tensor | None = None,
) -> list[Launch]:
    """What :func:`attention_decode` starts. Tensors as there; ``out`` [batch, heads, head_dim] takes the result."""
    batch, num_heads, head_dim = q.shape
    num_kv, capacity = k_cache.shape[1:3]
    group = num_heads // num_kv
    head_blocks = cdiv(group, HEADS)
    tokens = min(capacity, window) if window else capacity
    tiles = batch * num_kv * head_blocks
    block, splits = cut(tiles, tokens, head_dim, k_cache.dtype, multiprocessors(q.device))
    least = LEAST_SPLIT
    measured = choose("attention_splits", q.device, dtype=q.dtype, programs=tiles, tokens=tokens, head_dim=head_dim)
    if measured != "auto":
        splits, least = int(measured), block
    parts = lse = None
    if splits > 1:
        parts = q.new_empty(tiles, splits, HEADS, head_dim, dtype=torch.float32)
        lse = q.new_empty(tiles, splits, HEADS, dtype=torch.float32)
        if arrivals is None:
            arrivals = q.new_zeros(tiles, dtype=torch.int32)
    log2e = math.log2(math.e)
    d_pad, members = max(16, next_power_of_2(head_dim)), next_power_of_2(min(group, HEADS))
    return [
        Launch(
            _attention_decode_kernel,
            (batch, num_kv * head_blocks, splits),
            {
                "q_ptr": q,
                "k_ptr": k_cache,
                "v_ptr": v_cache,
                "out_ptr": out,
                "parts_ptr": parts,
                "lse_ptr": lse,
                "arrivals_ptr": arrivals if splits > 1 else None,
                "lengths_ptr": lengths,
                "num_heads": num_heads,
                "group": group,
                "head_blocks": head_blocks,
                "splits": splits,
                **cache_strides(k_cache, v_cache),
                "window": window or _UNLIMITED,
                "scale": scale / softcap if softcap else scale * log2e,
                "softcap": softcap * log2e,
                "D": head_dim,
                "D_PAD": d_pad,
                "HEADS": HEADS,
                "BLOCK_S": block,
                "LEAST": least,
                "MEMBERS": members,
                "COMBINED": splits_at_once(members, head_dim, d_pad),
                "CAPPED": softcap > 0,
                "UPCAST": INTERPRETING,
            },
            # Without tensor cores four warps run out of registers; at 256 channels eight do.
            num_warps=8 if k_cache.dtype == torch.float32 and d_pad <= 128 else 4,
            num_stages=3,
            overlap=overlapped(q.device, q.dtype),
        )
    ]


def attention_decode_torch(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """The same in PyTorch. On a CPU only the visible part of the cache is read."""
    batch, num_heads, head_dim = q.shape
    num_kv, last = k_cache.shape[1:3]
    first = 0
    masked = True
    if not lengths.is_cuda:  # on a GPU asking would wait for it, and break the recording of a graph
        shortest, last = (int(end) for end in torch.aminmax(lengths))
        first = max(0, shortest - window) if window else 0
        masked = shortest < last
        if last == 0:
            return torch.zeros_like(q)
    keys, values = k_cache[:batch, :, first:last], v_cache[:batch, :, first:last]
    queries = q.view(batch, num_kv, num_heads // num_kv, head_dim)
    visible = None
    if masked:
        place = torch.arange(first, last, device=q.device)
        visible = place < lengths[:, None]
        if window:
            visible &= place >= lengths[:, None] - window
        visible = visible[:, None, :, None]
        # Beyond the length lies anything, and 0 · NaN is NaN.
        keys, values = keys.where(visible, 0), values.where(visible, 0)
        visible = visible.transpose(2, 3)
    queries = queries.to(keys.dtype)
    if softcap:
        logits = softcap * torch.tanh((queries @ keys.transpose(2, 3)).float() * (scale / softcap))
        if visible is not None:
            logits = logits.masked_fill(~visible, -1e30)
        out = logits.softmax(-1).to(values.dtype) @ values
    else:
        # The heads of a group stand where attention expects the tokens of one head: no key is repeated.
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible, scale=scale)
        if visible is not None:
            out = out.masked_fill(~visible.any(-1, keepdim=True), 0.0)
    return out.reshape(q.shape).to(q.dtype)


@torch.library.custom_op("prunekit::attention_decode", mutates_args=("arrivals",))
def attention_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    arrivals: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(scale · q Kᵀ) V for one token of each sequence; shape and dtype of ``q``.

    ``q`` [batch, heads, head_dim] is contiguous. ``k_cache`` and ``v_cache`` [at least batch, kv_heads, capacity,
    head_dim] may be strided but in the last axis; sequence b lies in row b. KV head j serves the query heads from
    j · heads / kv_heads on. ``lengths`` [batch] int32 counts the tokens of each sequence in the cache, the current one
    included, and is at most the capacity; 0 gives zeros. Place p is visible if p < length and, with a ``window``,
    p >= length - window; the rest may hold anything. ``softcap`` c > 0 turns logits into c · tanh(logits / c).

    ``arrivals``, int32 zeros, at least batch · heads of them, counts programs that are done and is zeros again
    afterwards; one tensor serves all calls that follow each other. Without it each call fills one anew.
    """
    if why_not_triton(q.device, q.dtype, dot=True):
        return attention_decode_torch(q, k_cache, v_cache, lengths, scale, window, softcap)
    out = q.new_empty(q.shape)
    run(launches(q, k_cache, v_cache, lengths, out, scale, window, softcap, arrivals))
    return out


@attention_decode.register_fake
def _(q, *rest, **options):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape)
