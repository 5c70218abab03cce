"""What became of a measurement that failed, whether the GPU still works in this process, and whether results agree."""

from __future__ import annotations

import math
import traceback
from typing import TYPE_CHECKING, Any

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


# Relative RMS difference of two results that are both rounded to 16 bits, whole models' many times.
MOST_DIFFERENCE = 0.1


def agreement(out: torch.Tensor, expected: torch.Tensor) -> dict[str, Any]:
    """The relative RMS difference between ours and PyTorch in the same dtype (None where it is no number), and whether
    it is small: the time of an op that computes something else means nothing."""
    difference = ((out.double() - expected.double()).norm() / expected.double().norm()).item()
    return {
        "relative_difference": difference if math.isfinite(difference) else None,
        "agrees": difference <= MOST_DIFFERENCE,
    }
