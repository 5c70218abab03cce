"""Which plan computes a decode FFN, and how many neurons each program takes: arithmetic on sizes, no kernel."""

from __future__ import annotations

from typing import Literal

from prunekit.kernels.ops.utils._triton import cdiv

Variant = Literal["fused", "split"]

# What a launch costs beside its traffic, in bytes a multiprocessor: its share of the L2 cache's bandwidth for about
# 1 µs. An estimate, not a measurement.
_LAUNCH_BYTES = 40 * 1024
# Columns of down_t a program in the second launch of ``split``.
SPLIT_COLUMNS = 128


def variant(rows: int, hidden: int, padded_width: int, multiprocessors: int) -> Variant:
    """Which plan moves fewer bytes besides the weights, counting as bytes what another launch costs.

    Both read every weight once. With one row ``fused`` is the rule; its partial sums grow with the rows, and only
    wide FFNs have enough blocks of 16 neurons (what a tensor core needs) to occupy the chip in one launch.
    """
    if rows > 1 and padded_width < 16 * multiprocessors:
        return "split"
    fused = 8 * cdiv(padded_width, fused_slab(rows, padded_width, multiprocessors)) * rows * hidden
    splits = cdiv(padded_width, split_slab(hidden, padded_width, multiprocessors))
    split = 8 * splits * rows * hidden + 8 * rows * padded_width
    return "fused" if fused <= split + _LAUNCH_BYTES * multiprocessors else "split"


def _slab(width: int, block: int, programs: int) -> int:
    """Neurons a program, so that at most ``programs`` programs share ``width`` in whole blocks."""
    return cdiv(width // block, programs) * block


def fused_slab(rows: int, width: int, multiprocessors: int) -> int:
    """Neurons a program of ``fused``. Where programs have few blocks, two programs a multiprocessor share more evenly;
    where they have many, one halves the partial sums. Tensor cores need blocks of 16."""
    if rows > 1:
        return _slab(width, 16, multiprocessors)
    return _slab(width, 8, multiprocessors * (1 if width >= 64 * multiprocessors else 2))


def split_slab(hidden: int, width: int, multiprocessors: int) -> int:
    """Neurons a program in the second launch of ``split``: about two programs a multiprocessor."""
    return _slab(width, 16, cdiv(2 * multiprocessors, cdiv(hidden, SPLIT_COLUMNS)))
