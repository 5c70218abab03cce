"""Which kernels do blocks start on a GPU? Found by running them on tensors without memory, so that no list can be out
of date."""

from __future__ import annotations

import traceback
from collections.abc import Sequence

import torch

from benchmarks.gpu_check.blocks import BLOCKS
from benchmarks.gpu_check.sizes import Sizes
from benchmarks.gpu_check.work import Context, measurements
from prunekit.kernels.ops.utils.backend import Gpu
from prunekit.kernels.testing.recording import Recorded, recording


def launches_of(blocks: Sequence[str], sizes: Sizes, gpu: Gpu, why_no_models: str | None) -> tuple[Recorded, list[str]]:
    """The different launches of these blocks at these sizes on that GPU, and why measurements couldn't be noted."""
    failed = []
    with recording(gpu) as found:
        for name in blocks:
            if not BLOCKS[name].kernels:
                continue
            for each in measurements(BLOCKS[name], Context(torch.device("meta"), sizes), why_no_models):
                try:
                    each.run()
                except Exception:
                    failed.append(f"{each.id} can't be noted: {traceback.format_exc(limit=-2)}")
    return found, failed
