"""The questions that the check answers, each a block: a file here with ``measurements``, what matters most first."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Block:
    """``kernels``: it starts kernels of ours, which can be compiled beforehand. ``models``: it needs transformers."""

    name: str
    summary: str
    kernels: bool = False
    models: bool = False

    def load(self) -> Any:
        """The module with its measurements."""
        return import_module(f"{__name__}.{self.name}")


# In the order in which they are done.
BLOCKS = {
    block.name: block
    for block in (
        Block("headline", "whole models, dense against pruned, beside transformers", kernels=True, models=True),
        Block("launch", "what it brings that kernels start before the last one ends", kernels=True, models=True),
        Block("tiles", "tiles of the decode kernels in layers of a decode step", kernels=True),
        Block("attention", "splits of the attention at several contexts", kernels=True),
        Block("exports", "exports in their runtimes, dense against pruned", models=True),
        Block("server", "vLLM with dense and pruned models", models=True),
        Block("scale", "steps of pruning at 1B and 8B", models=True),
        Block("correctness", "every op against float64", kernels=True, models=True),
    )
}
