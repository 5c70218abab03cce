"""What became of a measurement that failed, and whether the GPU still works in this process."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class DeviceLost(Exception):
    """After an illegal access a CUDA context is dead: only a new process can go on."""


def describe(error: BaseException) -> str:
    """Its message, and the place in this repository where it came up; at most 600 characters."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "benchmarks" in frame.filename or "kernels" in frame.filename]
    place = f" ({own[-1].filename.rsplit('/', 1)[-1]}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {str(error).strip()[:500]}{place}"


def check_device(device: torch.device, error: Exception) -> None:
    """Raises DeviceLost where nothing runs on the device any more."""
    if device.type != "cuda":
        return
    import torch

    try:
        torch.cuda.synchronize(device)
        torch.ones(1, device=device).sum().item()
    except Exception:
        raise DeviceLost(describe(error)) from error
