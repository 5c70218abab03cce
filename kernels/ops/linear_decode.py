"""A linear layer for the few rows of a decode step and what surrounds it.

y = cap(norm(x) Wᵀ · scale + bias) + residual
"""

import torch
import torch.nn.functional as F

from prunekit.kernels.ops.rms_norm import normed, rms_norm_torch
from prunekit.kernels.ops.utils._triton import cdiv, jit, let_next_start, tl
from prunekit.kernels.ops.utils.activation import capped
from prunekit.kernels.ops.utils.backend import MAX_DECODE_ROWS, why_not_triton
from prunekit.kernels.ops.utils.inner_product import Tile, products
from prunekit.kernels.ops.utils.int8 import dequantize
from prunekit.kernels.ops.utils.launch import Launch, run


@jit
def _linear_decode_kernel(
    x_ptr,
    weight_ptr,
    out_ptr,
    bias_ptr,
    scale_ptr,
    norm_ptr,
    residual_ptr,
    rows,
    n,
    k,
    weight_stride,
    eps,
    softcap,
    CAPPED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    ONCE: tl.constexpr,
    UPCAST: tl.constexpr,
    PDL: tl.constexpr,
):
    """out[r, n] = cap(Σ_k norm(x)[r, k] · weight[n, k] · scale[n] + bias[n]) + residual[r, n].

    One program computes BLOCK_N output features for every row, as :mod:`prunekit.kernels.ops.utils.inner_product` says.
    """
    let_next_start(PDL)
    features = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows past the end are clamped, not masked: a mask along n would cost registers and change nothing.
    feature = tl.minimum(features, n - 1).to(tl.int64)
    row = tl.arange(0, ROWS)
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
        BLOCK_N,
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
    if CAPPED:
        out = capped(out / softcap, softcap)
    out = tl.trans(out)
    inside = (row < rows)[:, None] & (features < n)[None, :]
    where = row.to(tl.int64)[:, None] * n + features[None, :]
    if residual_ptr is not None:
        out += tl.load(residual_ptr + where, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + where, out.to(out_ptr.dtype.element_ty), mask=inside)


def launches(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    softcap: float = 0.0,
) -> list[Launch]:
    """What :func:`linear_decode` starts. Tensors as there; ``out`` [rows, n] takes the result."""
    rows, k = x.shape
    n = weight.shape[0]
    before: list[Launch] = []
    if rows > 1:
        x, before = normed(x, norm_weight, eps)
        norm_weight = None
    tile = Tile.of(rows, n, weight, normed=norm_weight is not None, op="linear_decode_tile")
    return [
        *before,
        Launch(
            _linear_decode_kernel,
            (cdiv(n, tile.n),),
            {
                "x_ptr": x,
                "weight_ptr": weight,
                "out_ptr": out,
                "bias_ptr": bias,
                "scale_ptr": scale,
                "norm_ptr": norm_weight,
                "residual_ptr": residual,
                "rows": rows,
                "n": n,
                "k": k,
                "weight_stride": weight.stride(0),
                "eps": eps,
                "softcap": softcap,
                "CAPPED": softcap > 0,
                "BLOCK_N": tile.n,
                **tile.constants(rows, k),
            },
            **tile.options(x),
        ),
    ]


def linear_decode_torch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    softcap: float = 0.0,
) -> torch.Tensor:
    """The same in PyTorch, in the dtype of ``x``; any number of rows."""
    if norm_weight is not None:
        x = rms_norm_torch(x, norm_weight, eps)
    out = F.linear(x, dequantize(weight, scale, x.dtype))
    if bias is not None:
        out = out + bias.to(x.dtype)
    if softcap:
        out = softcap * torch.tanh(out / softcap)
    return out if residual is None else residual + out


@torch.library.custom_op("prunekit::linear_decode", mutates_args=())
def linear_decode(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    softcap: float = 0.0,
) -> torch.Tensor:
    """cap(norm(x) Wᵀ · scale + bias) + residual for 1 to 16 rows; shape [rows, n], dtype of ``x``.

    ``x`` [rows, k] is contiguous; ``weight`` [n, k] has contiguous rows and is in the dtype of ``x``, or int8 with
    ``scale`` [n]. ``bias`` [n], ``scale`` and ``norm_weight`` [k] are float32; without ``norm_weight`` there is no
    norm. ``residual`` [rows, n]. ``softcap`` c > 0 turns y into c · tanh(y / c). Sums are in float32. More than
    16 rows go to PyTorch.
    """
    if x.shape[0] > MAX_DECODE_ROWS or why_not_triton(x.device, x.dtype, dot=x.shape[0] > 1):
        return linear_decode_torch(x, weight, bias, scale, norm_weight, eps, residual, softcap)
    out = x.new_empty(x.shape[0], weight.shape[0])
    run(launches(x, weight, out, bias, scale, norm_weight, eps, residual, softcap))
    return out


@linear_decode.register_fake
def _(x, weight, *rest, **options):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], weight.shape[0])
