"""One kernel launch as data: what runs on a GPU is exactly what the ahead-of-time checks compile."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Launch:
    """``kernel[grid](**args)``. ``args`` holds every parameter of the kernel by name, constexprs included, but PDL.

    ``overlap`` starts the blocks of this kernel while the last ones of the kernel before it still run, which hides
    some of a launch's microsecond (programmatic dependent launch; compute capability 9.0 and newer, and only for
    kernels with a PDL parameter). Building a Launch touches no device, so tensors may lie on ``meta``:
    :mod:`prunekit.kernels.testing.aot` compiles from it.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    overlap: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """All the kernel's parameters by name."""
        return {**self.args, "PDL": self.overlap} if "PDL" in self.kernel.arg_names else self.args

    @property
    def options(self) -> dict[str, Any]:
        """What Triton compiles and launches by."""
        options: dict[str, Any] = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return options | {"launch_pdl": True} if self.overlap else options

    def run(self) -> None:
        """Start the kernel on the device where its tensors lie, on the current stream."""
        device = next(value.device for value in self.args.values() if isinstance(value, torch.Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            self.kernel[self.grid](**self.arguments, **self.options)


def run(launches: Sequence[Launch]) -> None:
    """Start the launches one after the other."""
    for launch in launches:
        launch.run()
