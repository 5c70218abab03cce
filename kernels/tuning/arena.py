"""Random weights of any size in no time: one piece of memory, filled once, of which every weight is a view."""

from __future__ import annotations

import math

import torch

# Elements: 512 bytes of a 16-bit dtype, as PyTorch's own allocator aligns.
_ALIGNMENT = 256


class Arena:
    """``elements`` normally distributed numbers of standard deviation ``scale``.

    :meth:`take` gives the next ones, from the start again at the end: weights that follow each other share no memory
    as long as together they fit, so that with an arena of several times the L2 cache nothing that is read once a pass
    is still in a cache.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, elements: int, *, scale: float = 0.02, seed: int = 0):
        self.memory = torch.empty(elements, device=device, dtype=dtype)
        if device.type != "meta":
            generator = torch.Generator(device).manual_seed(seed)
            # A piece at a time: whole, some GPUs would take as much again for it.
            for piece in self.memory.split(1 << 28):
                piece.normal_(0.0, scale, generator=generator)
        self.position = 0

    def take(self, *shape: int) -> torch.Tensor:
        """A contiguous view of the next numbers. Raises ValueError where the arena is smaller."""
        size = math.prod(shape)
        if size > self.memory.numel():
            raise ValueError(f"A weight of {size:,} numbers does not fit an arena of {self.memory.numel():,}.")
        if self.position + size > self.memory.numel():
            self.position = 0
        first = self.position
        self.position = first + -(-size // _ALIGNMENT) * _ALIGNMENT
        return self.memory[first : first + size].view(shape)
