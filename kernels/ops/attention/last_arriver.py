"""The end of an attention that is cut into splits, inside the same launch: the program that ends last combines them.

Read in the machine code that Triton 3.6 and 3.9 make of it for compute capability 8.0 and 9.0, and checked by
tests/kernels/no_cliff/test_attention_decode.py:

- the partial sums are stored, then ``BAR.SYNC``, then one thread alone does ``MEMBAR.ALL.GPU`` (release: what the
  threads before the barrier stored is visible to the whole GPU first), ``ATOMG.ADD.STRONG.GPU`` and ``CCTL.IVALL``
  (acquire: nothing stale is left in the L1 cache);
- it passes the count through shared memory and ``BAR.SYNC`` to the other threads, whose loads follow, as
  ``LDG.STRONG.GPU``: they go past the L1 cache anyway.

This is the pattern of the CUDA samples' threadFenceReduction, and causality order in PTX's memory model (PTX ISA,
"Memory Consistency Model") is transitive through both barriers. Counters need to be 0 before the first launch; the last
program leaves 0 behind, visible to the next launch as every other result is.
"""

from prunekit.kernels.ops.utils._triton import jit, tl


@jit
def is_last(counter, programs):
    """Whether this is the last of ``programs`` programs that come here, which then sees all that they have stored; for
    it the counter, 0 before, is 0 again.

    The barrier orders the stores of all threads before the addition, which one thread does; it releases them to, and
    acquires those of, the programs before it; a second barrier (Triton's, to hand the result to all threads) orders
    what comes after. No program waits for another, so they need not be resident at the same time.
    """
    tl.debug_barrier()
    before = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
    last = before == programs - 1
    if last:
        tl.store(counter, 0)
    return last


@jit
def combine(
    parts_ptr,
    lse_ptr,
    out_ptr,
    splits,
    members,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    HEADS: tl.constexpr,
    MEMBERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[h] = Σ_s 2^lse[s, h] · parts[s, h] / Σ_s 2^lse[s, h] for ``members`` heads, always in the order of s.

    BLOCK splits at once: as few rounds as go, for each waits for the L2 cache.
    """
    member = tl.arange(0, MEMBERS)[None, :]
    channel = tl.arange(0, D_PAD)[None, None, :]
    top = tl.full((1, MEMBERS), -1e30, dtype=tl.float32)
    total = tl.zeros((1, MEMBERS), dtype=tl.float32)
    out = tl.zeros((1, MEMBERS, D_PAD), dtype=tl.float32)
    for start in range(0, splits, BLOCK):
        split = start + tl.arange(0, BLOCK)[:, None]
        there = (split < splits) & (member < members)
        place = split * HEADS + member
        # Past the L1 cache, which the stores of other multiprocessors do not reach.
        lse = tl.load(lse_ptr + place, mask=there, other=float("-inf"), cache_modifier=".cg")
        parts = tl.load(
            parts_ptr + place[:, :, None] * D + channel,
            mask=there[:, :, None] & (channel < D),
            other=0.0,
            cache_modifier=".cg",
        )
        new_top = tl.maximum(top, tl.max(lse, axis=0, keep_dims=True))
        weight = tl.exp2(lse - new_top)
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weight, axis=0, keep_dims=True)
        out = out * shrink[:, :, None] + tl.sum(weight[:, :, None] * parts, axis=0, keep_dims=True)
        top = new_top
    # Heads that don't exist have no weight anywhere.
    result = out / tl.maximum(total, 1e-30)[:, :, None]
    head = member[:, :, None]
    tl.store(
        out_ptr + head * D + channel,
        result.to(out_ptr.dtype.element_ty),
        mask=(head < members) & (channel < D),
    )


def splits_at_once(members: int, head_dim: int, d_pad: int) -> int:
    """BLOCK of :func:`combine`: what registers hold, less where channels are masked."""
    return max(1, (4096 if head_dim == d_pad else 2048) // (members * d_pad))
