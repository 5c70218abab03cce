"""The command lines of the servers, and what of the environment they must not see."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prunekit.errors import PrunekitError
from prunekit.profiling.loopback.installed import LLAMA_CPP, LLAMA_SERVER, TRANSFORMERS, VLLM, llama_server
from prunekit.profiling.loopback.models import Opened
from prunekit.utils.process.child import find_program, python_command
from prunekit.utils.provenance import installed

HOST = "127.0.0.1"
# A program that replaces this Python keeps its promise to end with its parent.
_BECOME = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
# Requests that llama-server answers at once, where nobody says how many: with one, a load test shows its queue.
SLOTS = 4
# Names that servers take their address, their key or their number of processes from.
_UNSEEN = ("HOST", "PORT", "CONFIG_FILE", "WEB_CONCURRENCY", "API_KEY", "VLLM_API_KEY", "VLLM_HOST_IP", "VLLM_PORT")


@dataclass(frozen=True)
class Wanted:
    """What every server is asked for. ``threads`` None: the server's own choice; ``slots``: requests at once."""

    port: int
    context: int
    threads: int | None
    slots: int | None
    device: str


@dataclass(frozen=True)
class Command:
    """How a server is started: ``argv`` in ``environment``, and the address that answers 200 once it is ready.
    ``shown`` is the same command as a report may show it; ``slots`` how many requests it answers at once (None: not
    known)."""

    argv: list[str]
    shown: tuple[str, ...]
    server: str
    version: str | None
    ready: str
    slots: int | None
    variables: Mapping[str, str] = field(default_factory=dict)


def command_of(model: Opened, wanted: Wanted, folder: Path) -> Command:
    """The command that serves ``model``; in ``folder`` a checkpoint's label is a link to it. Raises PrunekitError where
    the server can't do what is ``wanted``."""
    return {LLAMA_CPP: _llama_cpp, TRANSFORMERS: _transformers, VLLM: _vllm}[model.kind](model, wanted, folder)


def server_environment(base: Mapping[str, str]) -> dict[str, str]:
    """``base`` without what would move a server to another address, ask for a key, or lead it onto the network."""
    made = {name: each for name, each in base.items() if name.upper() not in _UNSEEN and not _is_llama(name)}
    # What it opens is here. A proxy is for other machines.
    return {**made, "HF_HUB_OFFLINE": "1", "NO_PROXY": "*", "no_proxy": "*"}


def _is_llama(name: str) -> bool:
    """llama-server takes each of its options from a variable too."""
    return name.upper().startswith("LLAMA_")


def _llama_cpp(model: Opened, wanted: Wanted, folder: Path) -> Command:
    gpu = wanted.device != "cpu"
    program = llama_server()
    if program is not None:
        slots = wanted.slots or SLOTS
        options = ["--host", HOST, "--port", str(wanted.port), "--alias", model.label, "-fa", "on", "--metrics"]
        # Its context is that of all slots together.
        options += ["-c", str(wanted.context * slots), "-np", str(slots), "-ngl", "99" if gpu else "0"]
        options += [] if wanted.threads is None else ["-t", str(wanted.threads)]
        argv = _become(program, "-m", str(model.path), *options)
        return Command(
            argv, _shown(LLAMA_SERVER, "-m", model.path.name, *options), LLAMA_SERVER, None, "/health", slots
        )
    if (wanted.slots or 1) > 1:
        raise PrunekitError(
            "llama-cpp-python's server answers one request at a time; put llama-server in PATH for more slots, or ask "
            "for one."
        )
    options = ["--host", HOST, "--port", str(wanted.port), "--model_alias", model.label, "--flash_attn", "true"]
    # By its defaults a request cuts off the one before, and all tokens of a prompt get logits.
    options += ["--interrupt_requests", "false", "--logits_all", "false", "--verbose", "false"]
    options += ["--n_ctx", str(wanted.context), "--n_gpu_layers", "-1" if gpu else "0"]
    if wanted.threads is not None:
        options += ["--n_threads", str(wanted.threads), "--n_threads_batch", str(wanted.threads)]
    argv = python_command(
        module="prunekit.profiling.loopback.llama_child", arguments=["--model", str(model.path), *options]
    )
    shown = _shown("python", "-m", "llama_cpp.server", "--model", model.path.name, *options)
    return Command(argv, shown, "llama_cpp.server", installed("llama-cpp-python"), "/v1/models", 1)


def _transformers(model: Opened, wanted: Wanted, folder: Path) -> Command:
    if (wanted.slots or 1) > 1:
        raise PrunekitError(
            "`transformers serve` batches requests only with --continuous-batching, which needs layers with equal "
            "heads; ask for one slot, or serve a GGUF export with llama-server."
        )
    options = [model.label, "--host", HOST, "--port", str(wanted.port), "--device", wanted.device]
    argv = python_command(
        module="prunekit.profiling.loopback.transformers_child", arguments=[str(folder), "serve", *options]
    )
    shown = _shown("transformers", "serve", *options)
    return Command(
        argv,
        shown,
        "transformers serve",
        installed("transformers"),
        "/health",
        None,
        {} if wanted.threads is None else _threads(wanted.threads),
    )


def _vllm(model: Opened, wanted: Wanted, folder: Path) -> Command:
    if wanted.device not in ("auto", "cuda"):
        raise PrunekitError(f"vLLM chooses its device itself, so {wanted.device!r} can't be asked for; leave it out.")
    program = find_program("vllm")
    assert program is not None
    options = ["--host", HOST, "--port", str(wanted.port), "--served-model-name", model.label]
    options += ["--max-model-len", str(wanted.context)]
    options += [] if wanted.slots is None else ["--max-num-seqs", str(wanted.slots)]
    argv = _become(program, "serve", str(model.path), *options)
    shown = _shown("vllm", "serve", model.label, *options)
    threads = {} if wanted.threads is None else _threads(wanted.threads)
    return Command(argv, shown, "vllm", installed("vllm"), "/health", wanted.slots, threads)


def _become(program: str, *arguments: str) -> list[str]:
    return python_command(code=_BECOME, arguments=[program, *arguments])


def _threads(count: int) -> dict[str, str]:
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(count))


def _shown(*words: str) -> tuple[str, ...]:
    """Two runs that differ in nothing but a free port are the same command."""
    made = list(words)
    made[made.index("--port") + 1] = "PORT"
    return tuple(os.path.basename(word) if os.path.isabs(word) else word for word in made)
