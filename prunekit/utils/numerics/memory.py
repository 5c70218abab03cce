"""Which errors say that memory is too small."""

from __future__ import annotations


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says so, on a GPU or a CPU: PyTorch's allocator for CPUs raises a plain RuntimeError."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
