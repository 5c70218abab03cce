"""A TorchScript program in PyTorch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from prunekit.export.edge.runtimes.graph import GraphModel

PACKAGES = ("torch",)


class Model(GraphModel):
    """model.pt of ``folder``."""

    def load(self, folder: Path, device: str) -> Any:
        """The program of ``folder`` on ``device``."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.load(str(folder / "model.pt"), map_location=device).eval()
