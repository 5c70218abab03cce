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
def start_after_previous(PDL: tl.constexpr):
    """First line of a kernel that may be launched while the one before it still runs (with ``PDL``): lets the next one
    do the same, and waits until all that went before is done and visible. Nothing may be read or written earlier."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


def next_power_of_2(value: int) -> int:
    """The smallest power of two that is at least ``value``."""
    return 1 << max(0, value - 1).bit_length()


def cdiv(value: int, by: int) -> int:
    """``value / by``, rounded up."""
    return -(-value // by)
