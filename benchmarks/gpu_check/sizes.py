"""How large everything is: the shapes of real models on a GPU, tiny ones for a rehearsal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.models.shapes import MODELS, TINY, Model
from benchmarks.ops import checks
from prunekit.kernels.ops.utils.backend import why_not_triton
from prunekit.kernels.tuning.chain import Layer


@dataclass(frozen=True)
class Sizes:
    """``serving``: (batch, prompt) of whole models, what matters most first. ``layers`` are chains of a decode step.
    ``arena`` is numbers of random weights."""

    models: tuple[Model, ...]
    dtypes: tuple[torch.dtype, ...]
    measured_in: torch.dtype
    arena: int
    serving: tuple[tuple[int, int], ...]
    layers: tuple[Layer, ...]
    contexts: tuple[int, ...]
    checks: tuple[checks.Sizes, ...]
    # The whole model that is checked, its prompt and its decode steps.
    checked_model: Model
    checked_tokens: tuple[int, int]
    # Models whose exports are measured, for which targets.
    exported: tuple[Model, ...]
    targets: tuple[str, ...]
    # The model that is put into servers.
    served: Model
    # Layers and tokens of text of what pruning is timed on: two numbers of layers, and the text twice.
    pruned: tuple[tuple[int, int], ...]
    launches: int
    tokens: int
    model_rounds: int
    rounds: int
    compile: dict[str, Any] | None
    percent: int = 40
    is_tiny: bool = False


def real_sizes(
    models: Sequence[str], dtype: torch.dtype, dtypes: tuple[torch.dtype, ...], tokens: int | None, compile: bool
) -> Sizes:
    """On a GPU."""
    return Sizes(
        models=tuple(MODELS[name] for name in models),
        dtypes=dtypes,
        measured_in=dtype,
        # The largest weight, 128,256 x 4,096, eight times; 8.6 GB. An 8B model goes round it twice.
        arena=1 << 32,
        serving=((1, 128), (1, 2048), (8, 128), (64, 128), (8, 2048), (64, 2048)),
        layers=(Layer(2048, 64, 32, 8, 8192), Layer(4096, 128, 32, 8, 14336)),
        contexts=(256, 512, 2048, 8192),
        checks=(checks.REAL, checks.NARROW),
        checked_model=MODELS["smollm2-135m"],
        checked_tokens=(33, 8),
        exported=(MODELS["smollm2-135m"], MODELS["llama-3.2-1b"]),
        targets=("onnx", "torch-export", "torchscript", "onnx-genai", "gguf"),
        served=MODELS[models[-1]],
        pruned=((2, 16384), (4, 16384), (2, 32768)),
        launches=200,
        tokens=tokens or 32,
        model_rounds=7,
        rounds=20,
        compile={"mode": "reduce-overhead", "fullgraph": True} if compile else None,
    )


def tiny_sizes(compile: bool) -> Sizes:
    """A rehearsal: the interpreter is slow, and computes bfloat16 wrongly."""
    return Sizes(
        models=(TINY,),
        dtypes=(torch.float16,),
        measured_in=torch.float16,
        arena=1 << 16,
        serving=((1, 17), (2, 3)),
        layers=(Layer(64, 16, 6, 3, 37, 70, count=1),),
        contexts=(130,),
        checks=(checks.TINY,),
        checked_model=TINY,
        checked_tokens=(6, 2),
        exported=(TINY,),
        targets=("torchscript",),
        # vLLM's kernels take no smaller heads than those of a real model.
        served=MODELS["smollm2-135m"],
        pruned=((1, 64), (2, 64), (1, 128)),
        launches=3,
        tokens=1,
        model_rounds=1,
        rounds=1,
        compile={"backend": "aot_eager", "fullgraph": True} if compile else None,
        is_tiny=True,
    )


def dtypes_of(device: torch.device) -> tuple[tuple[torch.dtype, ...], torch.dtype]:
    """Those that a device computes in, and the one that is measured."""
    both = tuple(one for one in (torch.bfloat16, torch.float16) if why_not_triton(device, one) is None)
    return both, torch.bfloat16 if why_not_triton(device, torch.bfloat16, dot=True) is None else torch.float16
