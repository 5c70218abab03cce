"""Serves one model and prints the peak bytes that it took, or None: what :mod:`prunekit.profiling.memory` starts. Here,
for it opens any runtime.

    python -m prunekit.cli.memory_probe '{"model": ..., "runtime": ..., ...}'
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from prunekit.models.runner import Runner, TorchRunner
from prunekit.profiling.memory import MemoryRun
from prunekit.utils.machine import peak_bytes, reset_peak, resident_bytes
from prunekit.utils.timing import prompt_ids


def probe(run: MemoryRun) -> int | None:
    """Peak bytes while one batch of prompts is answered, less what the process held before the model was loaded; None
    where the system doesn't tell."""
    import torch
    from transformers import DynamicCache  # noqa: F401  (imported before the baseline, as it takes memory itself)

    if run.threads:
        torch.set_num_threads(run.threads)
    if run.runtime not in ("torch", "prunekit"):
        from prunekit.export.export import read_export

        opened = replace(read_export(Path(run.model), own=run.own), seen=run.seen)
        before = resident_bytes()
        runner: Runner = opened.open(run.threads, trust_remote_code=run.trust_remote_code)
    else:
        from prunekit.models.source import load_model, resolve

        source = resolve(run.model)
        kind = TorchRunner
        if run.runtime == "prunekit":
            from prunekit.kernels.runtime.bench_runner import KernelRunner

            kind = KernelRunner
        before = resident_bytes()
        runner = kind(load_model(source, dtype=run.dtype, device="cpu"))
    # Loading may read and convert more than serving holds.
    reset_peak()
    ids = prompt_ids(run.batch, run.prompt, runner.vocab_size, seed=0).numpy()
    runner.greedy(ids, run.tokens + 1)
    peak = peak_bytes()
    return None if peak is None or before is None else peak - before


if __name__ == "__main__":
    sys.stdout.write(f"{probe(MemoryRun(**json.loads(sys.argv[1])))}\n")
