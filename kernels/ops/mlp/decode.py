"""A gated FFN of any width for the few rows of a decode step: residual + down(act(gate(norm(x))) · up(norm(x))).

Two launches, of which the first may still run when the second begins to load its weights, and a norm before them where
there are several rows:

- ``gate_up`` reads the rows of both matrices of a few neurons and writes their activations, R · Fp elements;
- ``down`` is :mod:`prunekit.kernels.ops.linear_decode` on these.

No partial sums, no atomics: the same bits every time. R is the rows, Fp the padded width.
"""

import torch
import torch.nn.functional as F

from prunekit.kernels.ops import linear_decode
from prunekit.kernels.ops.gated_act import gated_act_torch
from prunekit.kernels.ops.rms_norm import normed, rms_norm_torch
from prunekit.kernels.ops.utils._triton import cdiv, jit, let_next_start, tl
from prunekit.kernels.ops.utils.activation import activate, check_activation
from prunekit.kernels.ops.utils.backend import MAX_DECODE_ROWS, why_not_triton
from prunekit.kernels.ops.utils.inner_product import Tile, products
from prunekit.kernels.ops.utils.int8 import dequantize
from prunekit.kernels.ops.utils.launch import Launch, run
from prunekit.kernels.ops.utils.layout import ALIGNMENT


@jit
def _gate_up_kernel(
    x_ptr,
    gate_up_ptr,
    act_ptr,
    bias_ptr,
    scale_ptr,
    norm_ptr,
    rows,
    hidden,
    width,
    eps,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    ONCE: tl.constexpr,
    UPCAST: tl.constexpr,
    PDL: tl.constexpr,
):
    """act[r, n] = act(norm(x)[r] · gate[n]) · (norm(x)[r] · up[n]) for BLOCK_F neurons a program and every row.

    ``hidden`` bounds every load along the contiguous axis, so it must be a multiple of 16 for 16-byte loads.
    """
    let_next_start(PDL)
    # Gate rows and up rows of the same neurons are one tile: one load, and one product with enough rows for tensor
    # cores. A place is a row of [2 · width, hidden], and of the bias and the scale; past the end they are clamped.
    pair = tl.arange(0, 2 * BLOCK_F)
    place = (pair // BLOCK_F).to(tl.int64) * width
    place += tl.minimum(tl.program_id(0) * BLOCK_F + pair % BLOCK_F, width - 1)
    total = products(
        x_ptr,
        gate_up_ptr,
        place,
        hidden,
        norm_ptr,
        rows,
        hidden,
        eps,
        ROWS,
        2 * BLOCK_F,
        BLOCK_K,
        STAGES,
        ONCE,
        UPCAST,
        PDL,
    )
    if scale_ptr is not None:
        total *= tl.load(scale_ptr + place)[:, None]
    if bias_ptr is not None:
        total += tl.load(bias_ptr + place)[:, None]
    gate, up = tl.split(tl.permute(tl.reshape(total, (2, BLOCK_F, ROWS)), (1, 2, 0)))
    act = activate(gate, ACTIVATION) * up
    row = tl.arange(0, ROWS)
    neuron = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    where = row.to(tl.int64)[None, :] * width + neuron[:, None]
    tl.store(act_ptr + where, act.to(act_ptr.dtype.element_ty), mask=(row < rows)[None, :] & (neuron < width)[:, None])


def launches(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    activation: str,
    out: torch.Tensor,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    gate_up_scale: torch.Tensor | None = None,
    down_scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> list[Launch]:
    """What :func:`mlp_decode` starts. Tensors as there; ``out`` [rows, hidden] takes the result. The activations
    between the launches are a new tensor beside ``x``."""
    rows, hidden = x.shape
    width = down.shape[1]
    act = x.new_empty(rows, width)
    before: list[Launch] = []
    if rows > 1:
        x, before = normed(x, norm_weight, eps)
        norm_weight = None
    tile = Tile.of(rows, 2 * width, gate_up, normed=True, op="mlp_decode_tile")
    first = Launch(
        _gate_up_kernel,
        (cdiv(2 * width, tile.n),),
        {
            "x_ptr": x,
            "gate_up_ptr": gate_up,
            "act_ptr": act,
            "bias_ptr": gate_up_bias,
            "scale_ptr": gate_up_scale,
            "norm_ptr": norm_weight,
            "rows": rows,
            "hidden": hidden,
            "width": width,
            "eps": eps,
            "ACTIVATION": activation,
            "BLOCK_F": tile.n // 2,
            **tile.constants(rows, hidden),
        },
        **tile.options(x),
    )
    return [*before, first, *linear_decode.launches(act, down, out, down_bias, down_scale, residual=residual)]


def mlp_decode_torch(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    activation: str,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    gate_up_scale: torch.Tensor | None = None,
    down_scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same in PyTorch, in the dtype of ``x``; any number of rows."""
    if norm_weight is not None:
        x = rms_norm_torch(x, norm_weight, eps)
    both = F.linear(x, dequantize(gate_up, gate_up_scale, x.dtype).flatten(0, 1))
    out = gated_act_torch(both, activation, gate_up_bias) @ dequantize(down, down_scale, x.dtype).T
    if down_bias is not None:
        out = out + down_bias.to(x.dtype)
    return out if residual is None else residual + out


@torch.library.custom_op("prunekit::mlp_decode", mutates_args=())
def mlp_decode(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    activation: str,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    gate_up_scale: torch.Tensor | None = None,
    down_scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """residual + down(act(gate(norm(x))) · up(norm(x))) for 1 to 16 rows; [rows, hidden], dtype of ``x``.

    ``x`` [rows, hidden] is contiguous. ``gate_up`` [2, width, hidden] and ``down`` [hidden, width], contiguous, are in
    the dtype of ``x``, or int8 with ``gate_up_scale`` [2, width] and ``down_scale`` [hidden]; ``width`` is padded to a
    multiple of 16 with zeros, as :func:`prunekit.kernels.ops.utils.layout.pack_ffn` does. ``gate_up_bias`` [2, width],
    ``down_bias`` [hidden], both scales and ``norm_weight`` [hidden] are float32; without ``norm_weight`` there is no
    norm. ``residual`` [rows, hidden]. Sums are in float32; activations between the products are rounded to the dtype
    of ``x``. More than 16 rows go to PyTorch.

    ``activation`` is ``silu`` or ``gelu_tanh``. Raises ValueError for another, and where ``width`` is not padded.
    """
    check_activation(activation)
    rows = x.shape[0]
    rest = (norm_weight, eps, gate_up_bias, down_bias, gate_up_scale, down_scale, residual)
    if rows > MAX_DECODE_ROWS or why_not_triton(x.device, x.dtype, dot=rows > 1):
        return mlp_decode_torch(x, gate_up, down, activation, *rest)
    if down.shape[1] % ALIGNMENT:
        raise ValueError(f"down has {down.shape[1]} columns; layout.pack_ffn pads them to a multiple of {ALIGNMENT}.")
    out = torch.empty_like(x)
    run(launches(x, gate_up, down, activation, out, *rest))
    return out


@mlp_decode.register_fake
def _(x, *rest, **options):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)
