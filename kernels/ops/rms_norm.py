"""RMSNorm of many rows, alone or with the residual sum that stands before or behind it.

A decode step of one sequence folds its norms into the kernels that follow; these are for several rows, and for families
that normalise what a block puts out.
"""

import torch
import torch.nn.functional as F

from prunekit.kernels.ops.utils._triton import jit, next_power_of_2, start_after_previous, tl
from prunekit.kernels.ops.utils.backend import why_not_triton
from prunekit.kernels.ops.utils.dispatch import choose, overlapped
from prunekit.kernels.ops.utils.launch import Launch, run


@jit
def _rms_norm_kernel(
    x_ptr,
    weight_ptr,
    out_ptr,
    before_ptr,
    sum_ptr,
    after_ptr,
    h,
    eps,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """s = x + before, stored to sum; out = s / √(mean(s²) + eps) · weight + after.

    One program normalises one row, which it holds in registers: BLOCK ≥ h. ``h`` bounds every access, so it must be a
    multiple of 16 for 16-byte ones.
    """
    start_after_previous(PDL)
    row = tl.program_id(0).to(tl.int64) * h
    column = tl.arange(0, BLOCK)
    inside = column < h
    total = tl.load(x_ptr + row + column, mask=inside, other=0.0).to(tl.float32)
    if before_ptr is not None:
        total += tl.load(before_ptr + row + column, mask=inside, other=0.0).to(tl.float32)
        # What the next layer reads is rounded, so the norm is of the rounded sum.
        rounded = total.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row + column, rounded, mask=inside)
        total = rounded.to(tl.float32)
    out = total * tl.rsqrt(tl.sum(total * total, axis=0) / h + eps)
    out *= tl.load(weight_ptr + column, mask=inside, other=0.0)
    if after_ptr is not None:
        out += tl.load(after_ptr + row + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row + column, out.to(out_ptr.dtype.element_ty), mask=inside)


def launches(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    before: torch.Tensor | None = None,
    total: torch.Tensor | None = None,
    after: torch.Tensor | None = None,
) -> list[Launch]:
    """What the three ops start; all tensors but ``weight`` [hidden] are [rows, hidden] and contiguous.

    ``before`` is added to ``x`` and the sum stored to ``total``; ``after`` is added to the result.
    """
    rows, hidden = x.shape
    block = max(256, next_power_of_2(hidden))  # of 8 elements a thread in one warp: 16-byte loads
    return [
        Launch(
            _rms_norm_kernel,
            (rows,),
            {
                "x_ptr": x,
                "weight_ptr": weight,
                "out_ptr": out,
                "before_ptr": before,
                "sum_ptr": total,
                "after_ptr": after,
                "h": hidden,
                "eps": eps,
                "BLOCK": block,
            },
            num_warps=min(16, max(1, block // 512)),
            overlap=overlapped(x.device, x.dtype),
        )
    ]


def normed(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> tuple[torch.Tensor, list[Launch]]:
    """(norm(x), the launch that writes it) for ``x`` [rows, hidden]; ``x`` itself where there is no weight."""
    if weight is None:
        return x, []
    out = torch.empty_like(x)
    return out, launches(x, weight, eps, out)


def rms_norm_torch(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """:func:`rms_norm` in PyTorch, computed in float32."""
    return F.rms_norm(x.float(), (x.shape[-1],), weight, eps).to(x.dtype)


def _provider(op: str, x: torch.Tensor) -> str:
    if why_not_triton(x.device, x.dtype):
        return "torch"
    return choose(op, x.device, dtype=x.dtype, rows=x.shape[0], hidden=x.shape[1])


@torch.library.custom_op("prunekit::rms_norm", mutates_args=())
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / √(mean(x²) + eps) · weight for ``x`` [rows, hidden] and ``weight`` [hidden] float32; dtype of ``x``."""
    if _provider("rms_norm", x) == "torch":
        return rms_norm_torch(x, weight, eps)
    x = x.contiguous()
    out = torch.empty_like(x)
    run(launches(x, weight, eps, out))
    return out


@rms_norm.register_fake
def _(x, weight, eps):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@torch.library.custom_op("prunekit::add_rms_norm", mutates_args=())
def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm(x + residual), x + residual), both [rows, hidden] in the dtype of ``x``; ``weight`` [hidden] is float32."""
    if _provider("add_rms_norm", x) == "torch":
        total = x + residual
        return rms_norm_torch(total, weight, eps), total
    x, residual = x.contiguous(), residual.contiguous()
    out, total = torch.empty_like(x), torch.empty_like(x)
    run(launches(x, weight, eps, out, before=residual, total=total))
    return out, total


@add_rms_norm.register_fake
def _(x, residual, weight, eps):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), x.new_empty(x.shape)


@torch.library.custom_op("prunekit::rms_norm_add", mutates_args=())
def rms_norm_add(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor) -> torch.Tensor:
    """residual + norm(x), [rows, hidden] in the dtype of ``x``; ``weight`` [hidden] is float32."""
    if _provider("rms_norm_add", x) == "torch":
        return residual + rms_norm_torch(x, weight, eps)
    x, residual = x.contiguous(), residual.contiguous()
    out = torch.empty_like(x)
    run(launches(x, weight, eps, out, after=residual))
    return out


@rms_norm_add.register_fake
def _(x, weight, eps, residual):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)
