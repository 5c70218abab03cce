"""Peak resident memory of serving one model on the CPU, measured in a process that does nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from prunekit.bench import BenchConfig
from prunekit.errors import PrunekitError
from prunekit.machine import peak_bytes, reset_peak, resident_bytes
from prunekit.timing import prompt_ids, run_once

HOW = (
    "peak resident memory while one prompt at the largest batch is answered, less what the process held before the "
    "model was loaded; each model in a process of its own"
)


def measure_peak(model: str, config: BenchConfig, dtype: str = "auto") -> int | None:
    """Peak bytes of loading done and one run of ``model`` (a name or folder) on the CPU; None where the system
    doesn't tell. Raises PrunekitError where that process fails."""
    command = [sys.executable, "-m", "prunekit.bench_memory", model, dtype]
    command += [str(value) for value in (max(config.batch), config.prompt, config.tokens, config.threads or 0)]
    # The other process must find this prunekit, installed or not.
    root = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, check=False)
    if done.returncode:
        # A negative code is the signal that ended it: the system kills a process for which there is no memory.
        said = (done.stderr.strip() or "no message").splitlines()[-1]
        reason = f"killed by signal {-done.returncode}" if done.returncode < 0 else said
        raise PrunekitError(
            f"Measuring the peak memory of {model} failed ({reason}); free some memory, or say --no-memory "
            "to go without."
        )
    answer = done.stdout.split()[-1]
    return None if answer == "None" else int(answer)


def _measure(model: str, dtype: str, batch: int, prompt: int, tokens: int, threads: int) -> int | None:
    import torch
    from transformers import DynamicCache  # noqa: F401  (imported before the baseline, as it takes memory itself)

    from prunekit.source import load_model, resolve

    if threads:
        torch.set_num_threads(threads)
    source = resolve(model)
    before = resident_bytes()
    loaded = load_model(source, dtype=dtype, device="cpu")
    ids = prompt_ids(batch, prompt, loaded.config.vocab_size, seed=0)
    reset_peak()
    with torch.inference_mode():
        run_once(loaded, ids, tokens)
    peak = peak_bytes()
    return None if peak is None or before is None else peak - before


if __name__ == "__main__":
    print(_measure(sys.argv[1], sys.argv[2], *(int(value) for value in sys.argv[3:])))
