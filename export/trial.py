"""A first run of an export of unknown origin, in a child process with limits: a graph may ask for any amount of memory
or time, when it is loaded or for a prompt, whatever its files' sizes."""

from __future__ import annotations

import json
from pathlib import Path

from prunekit.errors import PrunekitError
from prunekit.utils.files.leftovers import temporary_folder
from prunekit.utils.files.listed_folder import Seen
from prunekit.utils.process.child import Limits, run_python

# Measured on tiny models: 0.5 to 0.6 GiB with any of the runtimes, most of it torch.
_BASE = 2 << 30
# CUDA's libraries keep books of their own in the host's memory. A guess: not measured on a GPU.
_CUDA = 6 << 30
# Weights may be read, widened from 8 bits to 32, and laid out anew. A token's logits, activations and KV cache take
# less than this up to 70B.
_COPIES = 8
_TOKEN = 4 << 20
_SECONDS = 120
# Bytes of weights loaded, and weights multiplied, in a second of a slow core; a byte holds two weights of 4 bits.
_LOADED = 20e6
_MULTIPLIED = 2e9
_OUTPUT = 1 << 20
# Runtimes keep small files while they load: locks, tables of tokens.
_TEMPORARY = 64 << 20


def try_export(folder: Path, seen: Seen, file_bytes: int, batch: int, tokens: int, *, gpu: bool = False) -> None:
    """Open the export in ``folder``, whose files are as in ``seen``, and run ``batch`` texts of ``tokens`` tokens: on
    the CPU, where it runs there, else on a GPU (``gpu``), whose own memory has no limit here.

    Raises PrunekitError where that fails, or takes far more time or memory than ``file_bytes`` of weights need.
    """
    fed = batch * tokens
    seconds = _SECONDS + file_bytes / _LOADED + 2 * file_bytes * fed / _MULTIPLIED
    with temporary_folder("trial") as temporary:
        ended = run_python(
            module="prunekit.export.trial_child",
            arguments=[json.dumps([str(folder), seen, batch, tokens])],
            timeout=2 * seconds,
            limits=Limits(
                data_bytes=int(_BASE + _CUDA * gpu + _COPIES * file_bytes + _TOKEN * fed),
                cpu_seconds=int(seconds),
                output_bytes=_OUTPUT,
                file_bytes=_TEMPORARY,
            ),
            variables={"TMPDIR": str(temporary)},
        )
    told = _error(ended.out) if ended.ok else None
    if told is not None:
        raise PrunekitError(told)
    if not ended.ok:
        reason = ended.reason if ended.stopped or ended.code >= 0 else "it took more memory than its size explains"
        raise PrunekitError(
            f"{folder} can't be run: a first run, within limits of time and memory, failed ({reason}). Export the "
            "model again, or run a folder that you trust with its runtime's own tools."
        )


def _error(out: str) -> str | None:
    said = json.loads(out.splitlines()[-1])["error"]
    return None if said is None else str(said)
