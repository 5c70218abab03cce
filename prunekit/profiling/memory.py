"""Peak resident memory of serving one model on the CPU, measured in a process that does nothing else."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.errors import PrunekitError
from prunekit.models.runner import Runner, TorchRunner
from prunekit.profiling.compare import BenchConfig
from prunekit.utils.machine import peak_bytes, reset_peak, resident_bytes
from prunekit.utils.process.child import run_python
from prunekit.utils.timing import prompt_ids

if TYPE_CHECKING:
    from prunekit.export.export import OpenedExport
    from prunekit.utils.files.listed_folder import Seen

HOW = (
    "peak resident memory while one prompt at the largest batch is answered, less what the process held before the "
    "model was loaded; each model in a process of its own"
)


@dataclass(frozen=True)
class _Run:
    """What the other process does. ``model`` is a checkpoint for torch and prunekit, an export's folder for others."""

    model: str
    dtype: str
    runtime: str
    batch: int
    prompt: int
    tokens: int
    threads: int | None
    own: bool
    seen: Seen | None
    trust_remote_code: bool


def measure_peak(
    model: str,
    config: BenchConfig,
    dtype: str = "auto",
    *,
    runtime: str = "torch",
    opened: OpenedExport | None = None,
    trust_remote_code: bool = False,
) -> int | None:
    """Peak bytes of one run of ``model`` on the CPU: a checkpoint's name or folder for the runtimes torch and prunekit,
    an export's folder for others. ``opened`` is that export where it was checked already, or made by this process;
    else it is checked there, with ``trust_remote_code`` (:meth:`prunekit.export.export.OpenedExport.checked`). None
    where the system doesn't tell. Raises PrunekitError where that process fails.
    """
    known = (opened is not None and opened.own, opened.seen if opened else None, trust_remote_code)
    run = _Run(model, dtype, runtime, max(config.batch), config.prompt, config.tokens, config.threads, *known)
    done = run_python(module="prunekit.profiling.memory", arguments=[json.dumps(asdict(run))])
    if not done.ok:
        # A signal: the system kills a process for which there is no memory.
        raise PrunekitError(
            f"Measuring the peak memory of {model} failed ({done.reason}); free some memory, or say --no-memory "
            "to go without."
        )
    answer = done.out.split()[-1]
    return None if answer == "None" else int(answer)


def _measure(run: _Run) -> int | None:
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
    print(_measure(_Run(**json.loads(sys.argv[1]))))
