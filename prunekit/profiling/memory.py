"""Peak memory of serving one model, on the CPU or a GPU, measured in a process that does nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from prunekit.errors import PrunekitError
from prunekit.profiling.compare import BenchConfig
from prunekit.utils.process.child import run_python

if TYPE_CHECKING:
    from prunekit.utils.files.listed_folder import Seen

HOW = (
    "peak resident memory while one prompt at the largest batch is answered, less what the process held before the "
    "model was loaded; each model in a process of its own"
)
HOW_ON_GPU = (
    "what is taken of the GPU's memory at most while one prompt at the largest batch is answered, by the driver's "
    "count of free memory every few milliseconds, less what was taken before the model was loaded; each model in a "
    "process of its own, with no other user of the GPU. It holds what runtimes reserve, and their compiled kernels; of "
    "vLLM also the CUDA context of its own process and its whole KV cache"
)


@dataclass(frozen=True)
class MemoryRun:
    """What the other process does (:mod:`prunekit.cli.memory_probe`). ``model`` is a checkpoint for torch and prunekit,
    an export's folder for others."""

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
    device: str = "cpu"


def measure_peak(
    model: str,
    config: BenchConfig,
    dtype: str = "auto",
    *,
    name: str | None = None,
    runtime: str = "torch",
    own: bool = False,
    seen: Seen | None = None,
    trust_remote_code: bool = False,
    device: str = "cpu",
) -> int | None:
    """Peak bytes of one run of ``model`` in the memory of ``device``: a checkpoint's folder for the runtimes torch and
    prunekit, an export's folder for others; messages call it ``name``. ``own``: this process wrote that export;
    ``seen``: its files, where it was checked already. Else it is checked there, with ``trust_remote_code``. None where
    the system doesn't tell. Raises PrunekitError where that process fails.
    """
    run = MemoryRun(
        model,
        dtype,
        runtime,
        batch=max(config.batch),
        prompt=config.prompt,
        tokens=config.tokens,
        threads=config.threads,
        own=own,
        seen=seen,
        trust_remote_code=trust_remote_code,
        device=device,
    )
    done = run_python(module="prunekit.cli.memory_probe", arguments=[json.dumps(asdict(run))])
    if not done.ok:
        # A signal: the system kills a process for which there is no memory.
        raise PrunekitError(
            f"Measuring the peak memory of {name or model} failed ({done.reason}); free some memory, or say "
            "--no-memory to go without."
        )
    answer = done.out.split()[-1]
    return None if answer == "None" else int(answer)
