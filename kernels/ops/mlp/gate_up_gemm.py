"""Gate, up and activation of a prompt's FFN in one Triton GEMM: h = act(x gateᵀ) · (x upᵀ).

Saves writing and reading gate and up, 8 bytes a row and neuron in 16-bit dtypes. Used only where the measured table
says that it beats cuBLAS followed by the activation.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from prunekit.kernels.ops.gated_act import gated_act_torch
from prunekit.kernels.ops.utils._triton import INTERPRETING, cdiv, jit, tl
from prunekit.kernels.ops.utils.activation import activate, check_activation
from prunekit.kernels.ops.utils.backend import multiprocessors, why_not_triton
from prunekit.kernels.ops.utils.dispatch import choose
from prunekit.kernels.ops.utils.launch import Launch, run


@dataclass(frozen=True)
class Tile:
    """The part of the result that a program computes, ``rows`` of ``x`` times ``width`` neurons, ``inner`` at a time.

    A stage of the pipeline holds (rows + 2 · width) · inner elements in shared memory; below compute capability 9.0
    Triton keeps one stage less.
    """

    rows: int
    width: int
    inner: int
    num_warps: int
    num_stages: int


TILES = {
    "small": Tile(32, 32, 128, 4, 4),
    "medium": Tile(64, 64, 64, 4, 4),
    "large": Tile(128, 64, 64, 8, 4),
    "huge": Tile(128, 128, 64, 8, 3),
}
# For compute capability 9.0, and taken only where it was measured: below, its sums would spill out of registers.
NEWEST_ONLY = "huge"


@jit
def _gate_up_gemm_kernel(
    x_ptr,
    weight_ptr,
    out_ptr,
    bias_ptr,
    rows,
    width,
    h,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    GROUP: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """out[t, n] = act(Σ_k x[t, k] · weight[0, n, k] + bias[0, n]) · (Σ_k x[t, k] · weight[1, n, k] + bias[1, n]).

    ``width`` is the padded one and ``h`` is bounded as it is: both must be multiples of 16. Rows past the end of x and
    of the weights are clamped; only the store is masked.
    """
    # GROUP tiles of rows share a strip of neurons while it is in the L2 cache.
    program = tl.program_id(0)
    row_tiles = tl.cdiv(rows, ROWS)
    in_group = GROUP * tl.cdiv(width, WIDTH)
    first = program // in_group * GROUP
    count = tl.minimum(row_tiles - first, GROUP)
    row_tile = first + program % in_group % count
    column_tile = program % in_group // count

    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = column_tile * WIDTH + tl.arange(0, WIDTH)
    inner = tl.arange(0, INNER)
    x_row = x_ptr + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * h
    neuron = tl.minimum(column, width - 1).to(tl.int64)
    gate_row = weight_ptr + neuron[:, None] * h
    up_row = weight_ptr + (neuron + width)[:, None] * h
    gate = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    up = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
    for start in range(0, h, INNER):
        k = (start + inner)[None, :]
        x = tl.load(x_row + k, mask=k < h, other=0.0)
        gate_weight = tl.load(gate_row + k, mask=k < h, other=0.0)
        up_weight = tl.load(up_row + k, mask=k < h, other=0.0)
        if UPCAST:
            x = x.to(tl.float32)
            gate_weight = gate_weight.to(tl.float32)
            up_weight = up_weight.to(tl.float32)
        gate = tl.dot(x, tl.trans(gate_weight), acc=gate, input_precision="ieee")
        up = tl.dot(x, tl.trans(up_weight), acc=up, input_precision="ieee")
    if bias_ptr is not None:
        gate += tl.load(bias_ptr + neuron)[None, :]
        up += tl.load(bias_ptr + width + neuron)[None, :]
    out = activate(gate, ACTIVATION) * up
    inside = (row < rows)[:, None] & (column < width)[None, :]
    out_row = out_ptr + row.to(tl.int64)[:, None] * width
    tl.store(out_row + column[None, :], out.to(out_ptr.dtype.element_ty), mask=inside)


def default_tile(rows: int, width: int, processors: int) -> str:
    """The largest tile of which there are enough for every multiprocessor, and that few rows fill; not measured."""
    if rows <= 32:
        return "small"
    for name in ("large", "medium"):
        tile = TILES[name]
        if rows > tile.rows // 2 and cdiv(rows, tile.rows) * cdiv(width, tile.width) >= processors:
            return name
    return "medium" if rows > 64 else "small"


def launches(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    activation: str,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    tile: str = "auto",
) -> list[Launch]:
    """What :func:`gate_up_gemm` starts. Tensors as there; ``out`` [rows, width] takes the result; ``tile`` names one of
    :data:`TILES`."""
    rows, h = x.shape
    width = gate_up.shape[1]
    if tile == "auto":
        tile = default_tile(rows, width, multiprocessors(x.device))
    shape = TILES[tile]
    return [
        Launch(
            _gate_up_gemm_kernel,
            (cdiv(rows, shape.rows) * cdiv(width, shape.width),),
            {
                "x_ptr": x,
                "weight_ptr": gate_up,
                "out_ptr": out,
                "bias_ptr": bias,
                "rows": rows,
                "width": width,
                "h": h,
                "ACTIVATION": activation,
                "ROWS": shape.rows,
                "WIDTH": shape.width,
                "INNER": shape.inner,
                "GROUP": 8,
                "UPCAST": INTERPRETING,
            },
            num_warps=shape.num_warps,
            num_stages=shape.num_stages,
        )
    ]


def gate_up_gemm_torch(
    x: torch.Tensor, gate_up: torch.Tensor, activation: str, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The same in PyTorch, in the dtype of ``x``."""
    return gated_act_torch(F.linear(x, gate_up.flatten(0, 1)), activation, bias)


@torch.library.custom_op("prunekit::gate_up_gemm", mutates_args=())
def gate_up_gemm(
    x: torch.Tensor, gate_up: torch.Tensor, activation: str, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """act(x gateᵀ + bias) · (x upᵀ + bias) for any number of rows; [rows, width] in the dtype of ``x``.

    ``x`` [rows, hidden] and ``gate_up`` [2, width, hidden] are contiguous and of one dtype; ``width``, the padded one,
    and ``hidden`` should be multiples of 16. ``bias`` [2, width] is float32. Sums are in float32. ``activation`` is
    ``silu`` or ``gelu_tanh``; ValueError for another. On a GPU float32 goes to PyTorch: it has no tensor cores here.
    """
    check_activation(activation)
    no_tensor_cores = x.dtype == torch.float32 and not INTERPRETING
    if no_tensor_cores or why_not_triton(x.device, x.dtype, dot=True):
        return gate_up_gemm_torch(x, gate_up, activation, bias)
    x = x.contiguous()
    rows, width = x.shape[0], gate_up.shape[1]
    out = x.new_empty(rows, width)
    tile = choose("gate_up_tile", x.device, dtype=x.dtype, rows=rows, width=width, hidden=x.shape[1])
    run(launches(x, gate_up, activation, out, bias, tile))
    return out


@gate_up_gemm.register_fake
def _(x, gate_up, activation, bias=None):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], gate_up.shape[1])
