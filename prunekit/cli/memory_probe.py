"""Serves one model and prints the peak bytes that it took, or None: what :mod:`prunekit.profiling.memory` starts. Here,
for it opens any runtime.

    python -m prunekit.cli.memory_probe '{"model": ..., "runtime": ..., ...}'
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from prunekit.models.runner import Runner, TorchRunner
from prunekit.profiling.memory import MemoryRun
from prunekit.utils.memory_meter import DeviceMemory, Meter, Resident
from prunekit.utils.timing import prompt_ids


def probe(run: MemoryRun) -> int | None:
    """Peak bytes while one batch of prompts is answered, less what was taken before the model was loaded: of this
    process, or of the GPU. None where the system doesn't tell."""
    import torch
    from transformers import DynamicCache  # noqa: F401  (imported before the baseline, as it takes memory itself)

    if run.threads:
        torch.set_num_threads(run.threads)
    meter = Resident() if run.device == "cpu" else DeviceMemory(run.device)
    with opener(run, meter)() as runner:
        meter.reset()
        ids = prompt_ids(run.batch, run.prompt, runner.vocab_size, seed=0).numpy()
        runner.greedy(ids, run.tokens + 1)
        return meter.peak()


def opener(run: MemoryRun, meter: Meter) -> Callable[[], Runner]:
    """What opens the model; everything that can be done before is done, and ``meter`` started."""
    if run.runtime not in ("torch", "prunekit"):
        from prunekit.export.export import read_export

        opened = replace(read_export(Path(run.model), own=run.own), seen=run.seen)
        meter.start()
        return partial(opened.open, run.threads, trust_remote_code=run.trust_remote_code, device=run.device)
    from prunekit.models.source import load_model, resolve

    source = resolve(run.model)
    kind = TorchRunner
    if run.runtime == "prunekit":
        from prunekit.kernels.runtime.bench_runner import KernelRunner

        kind = KernelRunner
    meter.start()
    return lambda: kind(load_model(source, dtype=run.dtype, device=run.device))


if __name__ == "__main__":
    sys.stdout.write(f"{probe(MemoryRun(**json.loads(sys.argv[1])))}\n")
