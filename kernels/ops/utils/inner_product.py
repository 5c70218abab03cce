"""The inner loop of the decode kernels: some rows of a weight times the normalised input."""

from prunekit.kernels.ops.utils._triton import jit, tl


@jit
def products(
    x_ptr,
    weight_ptr,
    feature,
    weight_stride,
    norm_ptr,
    rows,
    k,
    eps,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Σ_k norm(x)[r, k] · weight[feature, k] in float32, [BLOCK_N, ROWS].

    ``feature`` [BLOCK_N] int64 names the weight's rows; ``x`` [rows, k] is contiguous. ``k`` bounds every load along
    the contiguous axis, so it must be a multiple of 16 for 16-byte loads. With ROWS == 1 the products are summed in
    registers; else the weights are the left operand of a tensor-core product whose other side is padded to ROWS rows.
    """
    inner = tl.arange(0, BLOCK_K)
    if ROWS == 1:
        total = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
        squares = tl.zeros((BLOCK_K,), dtype=tl.float32)
        # Told so, Triton keeps the next blocks on their way meanwhile; small layers have too few programs to do it.
        for start in tl.range(0, k, BLOCK_K, num_stages=STAGES):
            inside = start + inner < k
            x = tl.load(x_ptr + start + inner, mask=inside, other=0.0).to(tl.float32)
            squares += x * x
            if norm_ptr is not None:
                x *= tl.load(norm_ptr + start + inner, mask=inside, other=0.0)
            weight = tl.load(
                weight_ptr + feature[:, None] * weight_stride + (start + inner)[None, :],
                mask=inside[None, :],
                other=0.0,
            ).to(tl.float32)
            total += weight * x[None, :]
        out = tl.sum(total, axis=1)
        if norm_ptr is not None:
            out *= tl.rsqrt(tl.sum(squares, axis=0) / k + eps)
        out = out[:, None]
    else:
        row = tl.arange(0, ROWS)
        real = row < rows
        rstd = tl.full((ROWS,), 1.0, dtype=tl.float32)
        if norm_ptr is not None:
            # The statistic first: x · weight before it is scaled could leave float16's range.
            squares = tl.zeros((ROWS, BLOCK_K), dtype=tl.float32)
            for start in range(0, k, BLOCK_K):
                inside = real[:, None] & (start + inner < k)[None, :]
                x = tl.load(x_ptr + row[:, None] * k + (start + inner)[None, :], mask=inside, other=0.0).to(tl.float32)
                squares += x * x
            rstd = tl.rsqrt(tl.sum(squares, axis=1) / k + eps)
        out = tl.zeros((BLOCK_N, ROWS), dtype=tl.float32)
        for start in range(0, k, BLOCK_K):
            inside = start + inner < k
            x = tl.load(
                x_ptr + row[:, None] * k + (start + inner)[None, :], mask=real[:, None] & inside[None, :], other=0.0
            )
            if norm_ptr is not None:
                norm = tl.load(norm_ptr + start + inner, mask=inside, other=0.0)
                x = (x.to(tl.float32) * rstd[:, None] * norm[None, :]).to(x.dtype)
            weight = tl.load(
                weight_ptr + feature[:, None] * weight_stride + (start + inner)[None, :],
                mask=inside[None, :],
                other=0.0,
            ).to(x.dtype)
            if UPCAST:
                x = x.to(tl.float32)
                weight = weight.to(tl.float32)
            out = tl.dot(weight, tl.trans(x), acc=out, input_precision="ieee")
    return out
