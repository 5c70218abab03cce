"""What Triton can do on a device, and if it can't, why: the reason is what a report shows for a fallback."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Literal, NamedTuple

import torch

from prunekit.kernels.ops.utils._triton import HAS_TRITON, INTERPRETING

Backend = Literal["triton", "torch"]
_forced: ContextVar[Backend | None] = ContextVar("prunekit_kernels_backend", default=None)


class Gpu(NamedTuple):
    """What launches depend on: its name, compute capability, and streaming multiprocessors."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int = 132


_planned: ContextVar[Gpu | None] = ContextVar("prunekit_kernels_gpu", default=None)

# Rows up to which the decode kernels are made: beyond, weights are read for enough rows that a plain GEMM wins.
MAX_DECODE_ROWS = 16
# For int8 weights a GEMM of 16-bit numbers wins later: converted for it, they are moved five bytes an element (read,
# written and read again), by the decode kernels one byte for every 16 rows.
MAX_INT8_ROWS = 64

# The Triton of torch 2.11, and the oldest that the kernels are tested with.
OLDEST_TRITON = (3, 6)


@contextmanager
def using(backend: Backend) -> Iterator[None]:
    """Within the block every op takes that backend, whatever the device: for tests and benchmark arms."""
    token = _forced.set(backend)
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def planning_for(gpu: Gpu) -> Iterator[None]:
    """Within the block launches are planned as on that GPU, wherever tensors lie: for one that isn't there."""
    token = _planned.set(gpu)
    try:
        yield
    finally:
        _planned.reset(token)


def why_not_triton(device: torch.device, dtype: torch.dtype, *, dot: bool = False) -> str | None:
    """Why a Triton kernel can't run there, as a clause for a sentence; None where it can.

    ``dot`` says that the kernel needs tensor cores (``tl.dot``).
    """
    forced = _forced.get()
    if forced is not None:
        return None if forced == "triton" else "PyTorch was asked for"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"there are no kernels for {str(dtype).removeprefix('torch.')}"
    if INTERPRETING:
        return None
    if device.type != "cuda" and _planned.get() is None:
        return f"Triton kernels need an NVIDIA GPU, and the model is on {device.type}"
    if not HAS_TRITON:
        return "Triton is not installed (pip install triton)"
    if _triton_version() < OLDEST_TRITON:
        found, oldest = (".".join(map(str, numbers)) for numbers in (_triton_version(), OLDEST_TRITON))
        return f"Triton {found} is older than {oldest} (pip install --upgrade triton)"
    if torch.version.hip is not None:
        return "AMD GPUs have not been tried"
    capability = capability_of(device)
    if capability < (7, 5):
        return f"compute capability {capability[0]}.{capability[1]} is below 7.5"
    if capability < (8, 0) and (dot or dtype == torch.bfloat16):
        return f"Triton has no tensor cores and no bfloat16 at compute capability {capability[0]}.{capability[1]}"
    return None


@lru_cache
def _triton_version() -> tuple[int, int]:
    import triton

    major, minor = re.findall(r"\d+", triton.__version__)[:2]
    return int(major), int(minor)


@lru_cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def capability_of(device: torch.device) -> tuple[int, int]:
    """The compute capability of a GPU; (0, 0) of other devices."""
    if planned := _planned.get():
        return planned.capability
    if device.type != "cuda":
        return 0, 0
    return _capability(index_of(device))


def index_of(device: torch.device) -> int:
    """Which GPU a CUDA device is."""
    return device.index if device.index is not None else torch.cuda.current_device()


def planned_gpu() -> Gpu | None:
    """The GPU of :func:`planning_for`."""
    return _planned.get()


def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 132 (an H100's) for other devices, so that launches can be planned there."""
    if planned := _planned.get():
        return planned.multiprocessors
    return _multiprocessors(index_of(device)) if device.type == "cuda" else 132


@lru_cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def decode_pieces(x: torch.Tensor, int8: bool) -> tuple[slice, ...]:
    """The rows of ``x`` as the decode kernels are to take them, 16 at a time; none where they shouldn't."""
    rows = x.shape[0]
    if rows > MAX_DECODE_ROWS and (
        not int8 or rows > MAX_INT8_ROWS or why_not_triton(x.device, x.dtype, dot=True) is not None
    ):
        return ()
    return tuple(slice(first, min(first + MAX_DECODE_ROWS, rows)) for first in range(0, rows, MAX_DECODE_ROWS))


def by_pieces(
    pieces: tuple[slice, ...],
    x: torch.Tensor,
    residual: torch.Tensor | None,
    call: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
) -> torch.Tensor:
    """``call(x, residual)`` on those rows at a time."""
    made = [call(x[rows], None if residual is None else residual[rows]) for rows in pieces]
    return made[0] if len(made) == 1 else torch.cat(made)
