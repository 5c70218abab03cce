"""Triton where it is installed; where it isn't, kernels stay plain functions that nobody calls."""

import os
from typing import Any

try:
    import triton
    import triton.language as tl

    jit = triton.jit
    HAS_TRITON = True
except ImportError:  # macOS, Windows, a plain CPU install
    HAS_TRITON = False

    class _NoLanguage:
        constexpr = Any

    tl = _NoLanguage()

    def jit(function: Any) -> Any:
        """Leaves the function as it is."""
        return function


# Triton reads the variable when a kernel is decorated, so it can't change later in the process.
INTERPRETING = HAS_TRITON and os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


@jit
def let_next_start(PDL: tl.constexpr):
    """First line of a kernel that may be launched while the one before it still runs (with ``PDL``): lets the next one
    do the same. Until :func:`wait_for_previous`, only what was there before the step may be read: weights, norms,
    rotary tables, and the positions, which the step before has written. So overlapping kernels need steps that follow
    each other without overlap, as CUDA graphs do."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@jit
def wait_for_previous(PDL: tl.constexpr):
    """Waits until all that went before is done and visible."""
    if PDL:
        tl.extra.cuda.gdc_wait()


@jit
def start_after_previous(PDL: tl.constexpr):
    """Both at once, where there is nothing to be read before."""
    let_next_start(PDL)
    wait_for_previous(PDL)


def next_power_of_2(value: int) -> int:
    """The smallest power of two that is at least ``value``."""
    return 1 << max(0, value - 1).bit_length()


def cdiv(value: int, by: int) -> int:
    """``value / by``, rounded up."""
    return -(-value // by)
