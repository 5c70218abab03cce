"""What a measurement ran on, and how much memory it took."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prunekit.utils.measuring.resident import resident_bytes

WRITTEN_A_SECOND = 2e8
"""Bytes that a disk takes, where that is not worth a measurement."""


def cpu_name() -> str:
    """The processor's model as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def speed_key(device: Any) -> list[Any]:
    """What decides how fast this process computes: processor, threads, device."""
    import torch

    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return [cpu_name(), torch.get_num_threads(), name]


def describe_machine(device: Any) -> dict[str, Any]:
    """Processor, device, threads and versions: what another run must share to be compared with this one."""
    import torch
    import transformers

    device = torch.device(device)
    return {
        "cpu": cpu_name(),
        "logical_cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """torch computes on ``count`` threads (None: as many as before) while the block runs."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronize(device: Any) -> None:
    """Wait until the device has done what it was asked, so that a clock read next means something."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def memory_now() -> int | None:
    """Resident memory of this process now, on any system that tells."""
    found = resident_bytes()
    if found is None:
        import psutil

        with suppress(psutil.Error):
            found = psutil.Process().memory_info().rss
    return found
