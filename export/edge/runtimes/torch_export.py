"""A program of torch.export, or AOTInductor's machine code, in PyTorch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from prunekit.export.edge.runtimes.graph import GraphModel

PACKAGES = ("torch",)


class Model(GraphModel):
    """model.pt2 or compiled.pt2 of ``folder``."""

    def load(self, folder: Path, device: str) -> Any:
        """The program of ``folder`` on ``device``."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = folder / "compiled.pt2"
            if compiled.is_file():
                from torch._inductor import aoti_load_package

                return aoti_load_package(str(compiled), device_index=-1 if device == "cpu" else 0)
            program = torch.export.load(str(folder / "model.pt2"))
            if device != "cpu":
                from torch.export.passes import move_to_device_pass

                program = move_to_device_pass(program, device)
            return program.module()
