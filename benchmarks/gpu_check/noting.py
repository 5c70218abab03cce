"""Which kernels do blocks start on a GPU? Found by running them on tensors without memory, so that no list can be out
of date."""

from __future__ import annotations

import traceback
from collections.abc import Sequence

import torch

from benchmarks.common.timer import OutOfTime
from benchmarks.gpu_check.blocks import BLOCKS
from benchmarks.gpu_check.sizes import Sizes
from benchmarks.gpu_check.work import Context, measurements
from prunekit.kernels.ops.utils.backend import Gpu
from prunekit.kernels.testing.recording import Recorded, recording


def launches_of(blocks: Sequence[str], sizes: Sizes, gpu: Gpu, why_no_models: str | None) -> Recorded:
    """The different launches of these blocks at these sizes on that GPU, in the order in which they first come.

    A measurement that needs numbers ends where it asks for them: what it launches has been noted by then.
    """
    device = torch.device("meta")
    with recording(gpu) as found:
        for name in blocks:
            if not BLOCKS[name].kernels:
                continue
            context = Context(device, sizes)
            for each in measurements(BLOCKS[name], context, why_no_models):
                try:
                    each.run()
                except OutOfTime:
                    raise
                except Exception:
                    print(f"{each.id} can't be noted:\n{traceback.format_exc(limit=-3)}", flush=True)
    return found
