"""One kernel launch as data: what runs on a GPU is exactly what the ahead-of-time checks compile."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Launch:
    """``kernel[grid](**args)``. ``args`` holds every parameter of the kernel by name, constexprs included.

    Building a Launch touches no device, so tensors may lie on ``meta``: :mod:`prunekit.kernels.aot` compiles from it.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    options: dict[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Start the kernel on the device where its tensors lie, on the current stream."""
        device = next(value.device for value in self.args.values() if isinstance(value, torch.Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self.kernel[self.grid](**self.args, num_warps=self.num_warps, num_stages=self.num_stages, **self.options)


def run(launches: Sequence[Launch]) -> None:
    """Start the launches one after the other."""
    for launch in launches:
        launch.run()
