"""A gated FFN of any width for the few rows of a decode step: residual + down(act(gate(norm(x))) · up(norm(x))).

Two plans compute it; :mod:`prunekit.kernels.ops.mlp.launch_plan` chooses. H is the hidden size, Fp the padded width, R
the rows:

- ``fused``, 2 launches: a program computes the activations of its own slab of neurons and multiplies them at once by
  their rows of down_t, which gives a partial sum of the whole output. 8 · programs · R · H bytes of partial sums are
  written and read again, by one or two programs a multiprocessor.
- ``split``, 3 launches: all activations first (R · Fp elements), then down over blocks of H × splits of the neurons,
  with 8 · splits · R · H bytes of partial sums.

For H = 2048, Fp = 1024 (12.6 MB of 16-bit weights), one row and 132 multiprocessors that is 2.1 MB in ``fused`` and
0.3 MB in ``split``, most of it in the L2 cache. The last launch of both adds partial sums in a fixed order, without
atomics: the same bits every time.
"""

import torch
import torch.nn.functional as F

from prunekit.kernels.ops.gated_act import gated_act_torch
from prunekit.kernels.ops.mlp.launch_plan import SPLIT_COLUMNS, Variant, fused_slab, split_slab
from prunekit.kernels.ops.mlp.launch_plan import variant as choose_variant
from prunekit.kernels.ops.rms_norm import rms_norm_torch
from prunekit.kernels.ops.utils._triton import INTERPRETING, cdiv, jit, start_after_previous, tl
from prunekit.kernels.ops.utils.activation import activate, check_activation
from prunekit.kernels.ops.utils.backend import MAX_DECODE_ROWS, multiprocessors, why_not_triton
from prunekit.kernels.ops.utils.dispatch import choose, overlapped
from prunekit.kernels.ops.utils.int8 import dequantize
from prunekit.kernels.ops.utils.launch import Launch, run
from prunekit.kernels.ops.utils.layout import ALIGNMENT


@jit
def _mlp_kernel(
    x_ptr,
    gate_up_ptr,
    down_ptr,
    act_ptr,
    partial_ptr,
    gate_up_bias_ptr,
    gate_up_scale_ptr,
    norm_ptr,
    rows,
    hidden,
    width,
    slab,
    eps,
    UP: tl.constexpr,
    DOWN: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    STAGES: tl.constexpr,
    UPCAST: tl.constexpr,
    PDL: tl.constexpr,
):
    """Over the neurons of slab p = program_id(0), from p · slab to (p + 1) · slab:

    with UP, act[r, n] = act(norm(x)[r] · gate[n]) · (norm(x)[r] · up[n]);
    with DOWN, partial[p, r, h] = Σ act[r, n] · down_t[n, h], over every num_programs(1)-th block of h.

    ``slab`` and ``width`` are multiples of BLOCK_F and BLOCK_N, so no mask along the neurons is needed.
    ``hidden`` bounds every load along the contiguous axis, so it must be a multiple of 16 for 16-byte loads.

    With UP and DOWN a program reads from ``act`` only what it has written there itself, before a barrier of its
    threads, and writes each element of partial[p] once, from registers: nothing can race. (Adding to partial[p] after
    each block of neurons instead would move it once a block.)
    """
    start_after_previous(PDL)
    first = tl.program_id(0).to(tl.int64) * slab
    last = tl.minimum(first + slab, width)
    row = tl.arange(0, ROWS)
    real = row < rows
    if UP:
        inner = tl.arange(0, BLOCK_H)
        rstd = tl.full((ROWS,), 1.0, dtype=tl.float32)
        if ROWS > 1 and norm_ptr is not None:
            # The statistic first: x · weight before it is scaled could leave float16's range.
            squares = tl.zeros((ROWS, BLOCK_H), dtype=tl.float32)
            for start in range(0, hidden, BLOCK_H):
                inside = real[:, None] & (start + inner < hidden)[None, :]
                x = tl.load(x_ptr + row[:, None] * hidden + (start + inner)[None, :], mask=inside, other=0.0)
                squares += x.to(tl.float32) * x.to(tl.float32)
            rstd = tl.rsqrt(tl.sum(squares, axis=1) / hidden + eps)
        for neuron in range(first, last, BLOCK_F):
            # Gate rows and up rows of the same neurons are one tile: one load, and one product with enough rows for
            # tensor cores. A place is a row of [2 · width, hidden], and of the bias and the scale, from ``neuron`` on.
            pair = tl.arange(0, 2 * BLOCK_F)
            place = pair // BLOCK_F * width + pair % BLOCK_F
            weight_row = gate_up_ptr + neuron * hidden + place[:, None] * hidden
            if ROWS == 1:
                products = tl.zeros((2 * BLOCK_F, BLOCK_H), dtype=tl.float32)
                squares = tl.zeros((BLOCK_H,), dtype=tl.float32)
                for start in tl.range(0, hidden, BLOCK_H, num_stages=STAGES):
                    column = start + inner
                    inside = column < hidden
                    x = tl.load(x_ptr + column, mask=inside, other=0.0).to(tl.float32)
                    if norm_ptr is not None:
                        squares += x * x
                        x *= tl.load(norm_ptr + column, mask=inside, other=0.0)
                    weight = tl.load(weight_row + column[None, :], mask=inside[None, :], other=0.0)
                    products += weight.to(tl.float32) * x[None, :]
                total = tl.sum(products, axis=1)
                if norm_ptr is not None:
                    total *= tl.rsqrt(tl.sum(squares, axis=0) / hidden + eps)
                total = total[:, None]
            else:
                total = tl.zeros((2 * BLOCK_F, ROWS), dtype=tl.float32)
                for start in range(0, hidden, BLOCK_H):
                    column = start + inner
                    inside = column < hidden
                    x = tl.load(
                        x_ptr + row[:, None] * hidden + column[None, :], mask=real[:, None] & inside[None, :], other=0.0
                    )
                    if norm_ptr is not None:
                        norm = tl.load(norm_ptr + column, mask=inside, other=0.0)
                        x = (x.to(tl.float32) * rstd[:, None] * norm[None, :]).to(x.dtype)
                    weight = tl.load(weight_row + column[None, :], mask=inside[None, :], other=0.0).to(x.dtype)
                    if UPCAST:
                        x = x.to(tl.float32)
                        weight = weight.to(tl.float32)
                    total = tl.dot(weight, tl.trans(x), acc=total, input_precision="ieee")
            if gate_up_scale_ptr is not None:
                total *= tl.load(gate_up_scale_ptr + neuron + place)[:, None]
            if gate_up_bias_ptr is not None:
                total += tl.load(gate_up_bias_ptr + neuron + place)[:, None]
            gate, up = tl.split(tl.permute(tl.reshape(total, (2, BLOCK_F, ROWS)), (1, 2, 0)))
            act = activate(gate, ACTIVATION) * up
            where = row[None, :] * width + (neuron + tl.arange(0, BLOCK_F))[:, None]
            tl.store(act_ptr + where, act.to(act_ptr.dtype.element_ty), mask=real[None, :])
    if UP and DOWN:
        tl.debug_barrier()
    if DOWN:
        inner = tl.arange(0, BLOCK_N)
        for start in range(tl.program_id(1) * BLOCK_OUT, hidden, tl.num_programs(1) * BLOCK_OUT):
            column = start + tl.arange(0, BLOCK_OUT)
            inside = column < hidden
            places = inner[:, None] * hidden + column[None, :]
            out = partial_ptr + (tl.program_id(0).to(tl.int64) * rows + row)[:, None] * hidden + column[None, :]
            if ROWS == 1:
                products = tl.zeros((BLOCK_N, BLOCK_OUT), dtype=tl.float32)
                for neuron in tl.range(first, last, BLOCK_N, num_stages=STAGES):
                    act = tl.load(act_ptr + neuron + inner)
                    down_row = down_ptr + neuron * hidden
                    weight = tl.load(down_row + places, mask=inside[None, :], other=0.0)
                    products += weight.to(tl.float32) * act[:, None]
                tl.store(out, tl.sum(products, axis=0)[None, :], mask=inside[None, :])
            else:
                total = tl.zeros((ROWS, BLOCK_OUT), dtype=tl.float32)
                for neuron in range(first, last, BLOCK_N):
                    where = row[:, None] * width + (neuron + inner)[None, :]
                    act = tl.load(act_ptr + where, mask=real[:, None], other=0.0)
                    down_row = down_ptr + neuron * hidden
                    weight = tl.load(down_row + places, mask=inside[None, :], other=0.0)
                    if down_ptr.dtype.element_ty == tl.int8:
                        # Transposed and back, which moves nothing: else Triton would convert bytes to the layout of
                        # tensor cores before it makes numbers of them, and load 8 bytes a thread.
                        weight = tl.trans(tl.trans(weight).to(tl.float32).to(act.dtype))
                    if UPCAST:
                        act = act.to(tl.float32)
                        weight = weight.to(tl.float32)
                    total = tl.dot(act, weight, acc=total, input_precision="ieee")
                tl.store(out, total, mask=real[:, None] & inside[None, :])


@jit
def _sum_kernel(
    partial_ptr,
    out_ptr,
    scale_ptr,
    bias_ptr,
    residual_ptr,
    parts,
    hidden,
    BLOCK_P: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PDL: tl.constexpr,
):
    """out[r, h] = scale[h] · Σ_p partial[p, r, h] + bias[h] + residual[r, h]; r = program_id(1)."""
    start_after_previous(PDL)
    row = tl.program_id(1)
    column = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = column < hidden
    total = tl.zeros((BLOCK_P, BLOCK_H), dtype=tl.float32)
    for start in range(0, parts, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        where = (part.to(tl.int64) * tl.num_programs(1) + row)[:, None] * hidden + column[None, :]
        total += tl.load(partial_ptr + where, mask=(part < parts)[:, None] & inside[None, :], other=0.0)
    out = tl.sum(total, axis=0)
    where = row.to(tl.int64) * hidden + column
    if scale_ptr is not None:
        out *= tl.load(scale_ptr + column, mask=inside, other=0.0)
    if bias_ptr is not None:
        out += tl.load(bias_ptr + column, mask=inside, other=0.0)
    if residual_ptr is not None:
        out += tl.load(residual_ptr + where, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + where, out.to(out_ptr.dtype.element_ty), mask=inside)


def launches(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down_t: torch.Tensor,
    activation: str,
    out: torch.Tensor,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    gate_up_scale: torch.Tensor | None = None,
    down_scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    variant: Variant | None = None,
) -> list[Launch]:
    """What :func:`mlp_decode` starts. Tensors as there; ``out`` [rows, hidden] takes the result.

    ``variant`` forces a plan. The activations and the partial sums between launches are new tensors beside ``x``.
    """
    rows, hidden = x.shape
    width = down_t.shape[0]
    units = multiprocessors(x.device)
    wide = hidden > 1024
    # Tiles are bytes in flight; float32 halves them, to stay within shared memory.
    narrow = 2 if x.element_size() > 2 else 1

    def launch(
        up: bool, down: bool, slab: int, columns: int, block_f: int, block_h: int, block_n: int, block_out: int
    ) -> Launch:
        stages = 3 if up else 4
        return Launch(
            _mlp_kernel,
            (cdiv(width, slab), columns),
            {
                "x_ptr": x,
                "gate_up_ptr": gate_up,
                "down_ptr": down_t,
                "act_ptr": act,
                "partial_ptr": partial,
                "gate_up_bias_ptr": gate_up_bias,
                "gate_up_scale_ptr": gate_up_scale,
                "norm_ptr": norm_weight,
                "rows": rows,
                "hidden": hidden,
                "width": width,
                "slab": slab,
                "eps": eps,
                "UP": up,
                "DOWN": down,
                "ACTIVATION": activation,
                "ROWS": 1 if rows == 1 else 16,
                "BLOCK_F": block_f,
                "BLOCK_H": block_h,
                "BLOCK_N": block_n,
                "BLOCK_OUT": block_out,
                "STAGES": stages,
                "UPCAST": INTERPRETING,
            },
            num_warps=8 if rows == 1 and up and down and wide else 4,
            num_stages=stages,
            overlap=overlapped(x.device, x.dtype),
        )

    act = x.new_empty(rows, width, dtype=torch.float32 if rows == 1 else x.dtype)
    if (variant or choose_variant(rows, hidden, width, units)) == "fused":
        slab = fused_slab(rows, width, units)
        partial = x.new_empty(cdiv(width, slab), rows, hidden, dtype=torch.float32)
        if rows == 1:
            blocks = (8, 512, 4, 2048) if wide else (8, 256, 4, 1024)
        else:
            blocks = (16, 128 // narrow, 16, 256 // narrow)
        made = [launch(True, True, slab, 1, *blocks)]
    else:
        slab = split_slab(hidden, width, units)
        partial = x.new_empty(cdiv(width, slab), rows, hidden, dtype=torch.float32)
        if rows == 1:
            block, block_h = (4 if width < 32 * units else 8), (512 if wide else 256)
        else:
            # Every program reads all of x, as many bytes as rows / (2 · block) of its weights.
            block, block_h = (8 if rows <= 4 else 16), (256 if wide else 128) // narrow
        made = [
            launch(True, False, block, 1, block, block_h, block, 16),
            launch(False, True, slab, cdiv(hidden, SPLIT_COLUMNS), 16, 16, 16, SPLIT_COLUMNS),
        ]
    block_h = 32
    made.append(
        Launch(
            _sum_kernel,
            (cdiv(hidden, block_h), rows),
            {
                "partial_ptr": partial,
                "out_ptr": out,
                "scale_ptr": down_scale,
                "bias_ptr": down_bias,
                "residual_ptr": residual,
                "parts": partial.shape[0],
                "hidden": hidden,
                "BLOCK_P": 64,
                "BLOCK_H": block_h,
            },
            num_warps=4,
            overlap=overlapped(x.device, x.dtype),
        )
    )
    return made


def mlp_decode_torch(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down_t: torch.Tensor,
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
    out = gated_act_torch(both, activation, gate_up_bias) @ dequantize(down_t.T, down_scale, x.dtype).T
    if down_bias is not None:
        out = out + down_bias.to(x.dtype)
    return out if residual is None else residual + out


@torch.library.custom_op("prunekit::mlp_decode", mutates_args=())
def mlp_decode(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down_t: torch.Tensor,
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

    ``x`` [rows, hidden] is contiguous. ``gate_up`` [2, width, hidden] and ``down_t`` [width, hidden], contiguous, are
    in the dtype of ``x``, or int8 with ``gate_up_scale`` [2, width] and ``down_scale`` [hidden]; ``width`` is padded
    to a multiple of 16 with rows of zeros, as :func:`prunekit.kernels.ops.utils.layout.pack_ffn` does. ``gate_up_bias``
    [2, width], ``down_bias`` [hidden], both scales and ``norm_weight`` [hidden] are float32; without ``norm_weight``
    there is no norm. ``residual`` [rows, hidden]. Sums are in float32; activations between the products are rounded
    to the dtype of ``x`` if there are several rows. More than 16 rows go to PyTorch.

    ``activation`` is ``silu`` or ``gelu_tanh``. Raises ValueError for another, and where ``width`` is not padded.
    """
    check_activation(activation)
    rows, hidden = x.shape
    width = down_t.shape[0]
    rest = (norm_weight, eps, gate_up_bias, down_bias, gate_up_scale, down_scale, residual)
    too_far = (width + ALIGNMENT) * hidden >= 2**31  # for the kernel's 32-bit offsets from gate to up
    if rows > MAX_DECODE_ROWS or too_far or why_not_triton(x.device, x.dtype, dot=rows > 1):
        return mlp_decode_torch(x, gate_up, down_t, activation, *rest)
    if width % ALIGNMENT:
        raise ValueError(f"down_t has {width} rows; layout.pack_ffn pads them to a multiple of {ALIGNMENT}.")
    choice = choose("mlp_decode", x.device, dtype=x.dtype, rows=rows, width=width, hidden=hidden)
    out = x.new_empty(rows, hidden)
    run(launches(x, gate_up, down_t, activation, out, *rest, None if choice == "auto" else choice))  # type: ignore[arg-type]
    return out


@mlp_decode.register_fake
def _(x, *rest, **options):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)
