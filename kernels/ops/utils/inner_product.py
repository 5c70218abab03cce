"""The inner loop of the decode kernels: some rows of a weight times the input, which of one row is normalised here."""

from typing import Any, NamedTuple

import torch

from prunekit.kernels.ops.utils._triton import INTERPRETING, cdiv, jit, next_power_of_2, tl, wait_for_previous
from prunekit.kernels.ops.utils.dispatch import choose, overlapped

# Above it, a row of a weight no longer fits into the registers of one program.
_ONCE = 4096
# Output features from which on there are so many programs that each may be a plain pipeline: an output head.
_MANY = 65536
# Programs that give every multiprocessor of a large GPU one.
_FEW = 132
# Rows that tensor cores take at least: half as many as they take of a weight.
_LEAST_ROWS = 8


class Tile(NamedTuple):
    """What a program takes at a time: ``n`` rows of a weight by ``k`` columns. ``stages`` 0: a row's columns at once,
    or one block while the next is on its way to registers; else a pipeline of so many blocks in shared memory."""

    n: int
    k: int
    stages: int
    warps: int = 4

    @classmethod
    def of(cls, rows: int, n: int, weight: torch.Tensor, *, normed: bool, op: str) -> "Tile":
        """For ``rows`` of input, one or several, and a ``weight`` [n, k]. ``op`` is what a table of measurements may
        choose it by."""
        if rows > 1:
            return cls.of_rows(rows, n, weight)
        k = weight.shape[-1]
        if n < _MANY and weight.element_size() == 2:
            choice = choose(op, weight.device, dtype=weight.dtype, n=n, k=k)
            if choice != "auto":
                features, columns, warps = map(int, choice.split("x"))
                return cls(features, columns, 0, warps)
        return cls.of_one_row(n, k, normed=normed)

    @classmethod
    def of_one_row(cls, n: int, k: int, *, normed: bool = False) -> "Tile":
        """For one row of input and a weight [n, k]: 16 or 32 KB of 16-bit weights a program, whole rows where that
        goes. ``normed`` input costs instructions, which more weight rows share."""
        if n >= _MANY:
            return cls(8, 256 if k <= 1024 else 512, 3)
        if k > _ONCE:
            return cls(8 if normed else 4, 1024, 0)
        return cls(8 if normed and k <= 2048 and n >= 8 * _FEW else 4, max(1024, next_power_of_2(k)), 0)

    @classmethod
    def of_rows(cls, rows: int, n: int, weight: torch.Tensor) -> "Tile":
        """For several rows of input: the operands of tensor cores, of which 16 weight rows are the least.

        The smallest tile of which all programs run at once, two a multiprocessor: a second, partly empty round would
        take as long as the first. So many stages that a multiprocessor with one program has 48 KB of weights on their
        way, in the 100 KB of shared memory that every chip has. Products of float32 weights are summed without tensor
        cores, and a larger block would spill.
        """
        if weight.element_size() > 2:
            return cls(16 if n < 8192 else 32, 64, 4)
        tile = next((tile for tile in (16, 32, 64) if cdiv(n, tile) <= 2 * _FEW), 32)
        if weight.element_size() == 1:  # larger blocks would spill while they are converted
            return cls(16, 128, 12) if tile == 16 else cls(32, 128, 6)
        if tile == 64:
            return cls(tile, 64, 8)
        if tile == 32 or weight.shape[-1] <= 1024:
            return cls(tile, 128, 6)
        return cls(tile, 256, 8 if rows <= _LEAST_ROWS else 7)

    def constants(self, rows: int, k: int) -> dict[str, Any]:
        """What :func:`products` is told of it, by the names of its parameters; of BLOCK_N each kernel has its own."""
        return {
            "ROWS": 1 if rows == 1 else max(_LEAST_ROWS, next_power_of_2(rows)),
            "BLOCK_K": self.k,
            "STAGES": self.stages,
            "ONCE": self.k >= k,
            "UPCAST": INTERPRETING,
        }

    def options(self, x: torch.Tensor) -> dict[str, Any]:
        """How a launch with it, whose input is ``x``, is started."""
        return {"num_warps": self.warps, "num_stages": max(1, self.stages), "overlap": overlapped(x.device, x.dtype)}


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
    ONCE: tl.constexpr,
    UPCAST: tl.constexpr,
    PDL: tl.constexpr,
):
    """Σ_k norm(x)[r, k] · weight[feature, k] in float32, [BLOCK_N, ROWS]; of several rows without a norm.

    ``feature`` [BLOCK_N] int64 names the weight's rows; ``x`` [rows, k] is contiguous. ``k`` bounds every load along
    the contiguous axis, so it must be a multiple of 16 for 16-byte loads. With ROWS == 1 the products are summed in
    registers: with STAGES 0 the first block of weights (ONCE: all of them) is on its way before the kernel waits for
    the one before it (PDL), each further one while the last is multiplied. With several rows the weights are the left
    operand of a tensor-core product whose other side is padded to ROWS rows. Were that side normalised here, each
    program would spend more instructions on it than there is time for while its weights arrive.

    Nothing that the kernel before has written is read before the wait; after it, everything may be.
    """
    inner = tl.arange(0, BLOCK_K)
    if ROWS == 1 and STAGES == 0:
        weight_row = weight_ptr + feature[:, None] * weight_stride
        inside = inner < k
        weight = tl.load(weight_row + inner[None, :], mask=inside[None, :], other=0.0)
        if ONCE:
            if norm_ptr is not None:
                norm = tl.load(norm_ptr + inner, mask=inside, other=0.0)
            wait_for_previous(PDL)
            x = tl.load(x_ptr + inner, mask=inside, other=0.0).to(tl.float32)
            square = tl.sum(x * x, axis=0)
            if norm_ptr is not None:
                x *= norm
            out = tl.sum(weight.to(tl.float32) * x[None, :], axis=1)
        else:
            wait_for_previous(PDL)
            total = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
            squares = tl.zeros((BLOCK_K,), dtype=tl.float32)
            # No pipeline of Triton's: it would go through shared memory.
            for start in tl.range(0, k, BLOCK_K, num_stages=1):
                column = start + inner
                later = column + BLOCK_K
                following = tl.load(weight_row + later[None, :], mask=(later < k)[None, :], other=0.0)
                x = tl.load(x_ptr + column, mask=column < k, other=0.0).to(tl.float32)
                squares += x * x
                if norm_ptr is not None:
                    x *= tl.load(norm_ptr + column, mask=column < k, other=0.0)
                total += weight.to(tl.float32) * x[None, :]
                weight = following
            out = tl.sum(total, axis=1)
            square = tl.sum(squares, axis=0)
        if norm_ptr is not None:
            out *= tl.rsqrt(square / k + eps)
        out = out[:, None]
    elif ROWS == 1:
        wait_for_previous(PDL)
        total = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
        squares = tl.zeros((BLOCK_K,), dtype=tl.float32)
        # Told so, Triton keeps the next blocks on their way meanwhile.
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
        tl.static_assert(norm_ptr is None, "several rows are normalised before")
        wait_for_previous(PDL)
        row = tl.arange(0, ROWS)
        real = row < rows
        out = tl.zeros((BLOCK_N, ROWS), dtype=tl.float32)
        for start in range(0, k, BLOCK_K):
            inside = start + inner < k
            x = tl.load(
                x_ptr + row[:, None] * k + (start + inner)[None, :], mask=real[:, None] & inside[None, :], other=0.0
            )
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
