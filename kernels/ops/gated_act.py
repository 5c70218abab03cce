"""What stands between the two products of a gated FFN: act(gate) · up."""

import torch

from prunekit.kernels.ops.utils._triton import cdiv, jit, tl
from prunekit.kernels.ops.utils.activation import activate, activate_torch, check_activation
from prunekit.kernels.ops.utils.backend import why_not_triton
from prunekit.kernels.ops.utils.dispatch import choose
from prunekit.kernels.ops.utils.launch import Launch, run


@jit
def _gated_act_kernel(gate_up_ptr, out_ptr, bias_ptr, width, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """out[t, n] = act(gate_up[t, n] + bias[n]) · (gate_up[t, width + n] + bias[width + n]).

    One program computes BLOCK elements of one row. ``width`` is the padded one, a multiple of 16: pads are neurons of
    zeros, so that act(0) · 0 = 0 fills the pads of ``out``.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up_ptr + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + (row * 2 + 1) * width + column, mask=inside, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        gate += tl.load(bias_ptr + column, mask=inside, other=0.0)
        up += tl.load(bias_ptr + width + column, mask=inside, other=0.0)
    out = activate(gate, ACTIVATION) * up
    tl.store(out_ptr + row * width + column, out.to(out_ptr.dtype.element_ty), mask=inside)


def launches(
    gate_up: torch.Tensor, activation: str, out: torch.Tensor, bias: torch.Tensor | None = None
) -> list[Launch]:
    """What :func:`gated_act` starts. Tensors as there; ``out`` [rows, width] takes the result."""
    rows, width = out.shape
    block = 1024
    return [
        Launch(
            _gated_act_kernel,
            (rows, cdiv(width, block)),
            {
                "gate_up_ptr": gate_up,
                "out_ptr": out,
                "bias_ptr": bias,
                "width": width,
                "ACTIVATION": activation,
                "BLOCK": block,
            },
            num_warps=4,
        )
    ]


def gated_act_torch(gate_up: torch.Tensor, activation: str, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The same in PyTorch, in the dtype of ``gate_up``."""
    if bias is not None:
        gate_up = gate_up + bias.flatten().to(gate_up.dtype)
    gate, up = gate_up.chunk(2, dim=-1)
    return activate_torch(gate, activation) * up


@torch.library.custom_op("prunekit::gated_act", mutates_args=())
def gated_act(gate_up: torch.Tensor, activation: str, bias: torch.Tensor | None = None) -> torch.Tensor:
    """act(gate + bias) · (up + bias), [rows, width], in the dtype of ``gate_up``.

    ``gate_up`` [rows, 2 · width] is contiguous and holds a row's gates before its ups; ``bias`` [2 · width] is
    float32. ``width`` should be the padded one (a multiple of 16). ``activation`` is ``silu`` or ``gelu_tanh``;
    ValueError for another.
    """
    check_activation(activation)
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    if why_not_triton(gate_up.device, gate_up.dtype):
        return gated_act_torch(gate_up, activation, bias)
    if choose("gated_act", gate_up.device, dtype=gate_up.dtype, rows=rows, width=width) == "torch":
        return gated_act_torch(gate_up, activation, bias)
    gate_up = gate_up.contiguous()
    out = gate_up.new_empty(rows, width)
    run(launches(gate_up, activation, out, bias))
    return out


@gated_act.register_fake
def _(gate_up, activation, bias=None):  # type: ignore[no-untyped-def]
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
