"""An op as docs/architecture.md says to add one: x · scale, a factor for every channel. Only tests know it."""

import torch

from prunekit.kernels.ops.utils._triton import cdiv, jit, tl
from prunekit.kernels.ops.utils.backend import why_not_triton
from prunekit.kernels.ops.utils.dispatch import Op, choose
from prunekit.kernels.ops.utils.launch import Launch, run

# What goes into OPS of kernels/ops/utils/dispatch.py.
OP = Op(("rows", "width"), ("triton", "torch"), "triton")


@jit
def _channel_scale_kernel(x_ptr, scale_ptr, out_ptr, width, BLOCK: tl.constexpr):
    """out[t, n] = x[t, n] · scale[n]; one program computes BLOCK channels of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(x_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + column, mask=inside, other=0.0)
    tl.store(out_ptr + row * width + column, (x * scale).to(out_ptr.dtype.element_ty), mask=inside)


def launches(x: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> list[Launch]:
    """What :func:`channel_scale` starts."""
    rows, width = x.shape
    block = 1024
    arguments = {"x_ptr": x, "scale_ptr": scale, "out_ptr": out, "width": width, "BLOCK": block}
    return [Launch(_channel_scale_kernel, (rows, cdiv(width, block)), arguments, num_warps=4)]


def channel_scale_torch(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The same in PyTorch."""
    return (x.float() * scale).to(x.dtype)


def reference(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The specification: float64, as plain as possible."""
    return x.double() * scale.double()


@torch.library.custom_op("prunekit_tests::channel_scale", mutates_args=())
def channel_scale(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x · scale, [rows, width], in the dtype of ``x`` (contiguous); ``scale`` [width] is float32."""
    rows, width = x.shape
    if why_not_triton(x.device, x.dtype):
        return channel_scale_torch(x, scale)
    if choose("channel_scale", x.device, dtype=x.dtype, rows=rows, width=width) == "torch":
        return channel_scale_torch(x, scale)
    out = torch.empty_like(x)
    run(launches(x, scale, out))
    return out


@channel_scale.register_fake
def _(x, scale):  # type: ignore[no-untyped-def]
    return torch.empty_like(x)
