"""A whole irregular model through the runtime against the same model in float32."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

from benchmarks.models.build import build
from benchmarks.models.shapes import Model
from prunekit.kernels.tuning.arena import Arena
from prunekit.plan.shape import ModelShape

# Every layer rounds, so that errors of a deep model have no fixed bound: ours must not round worse than transformers.
ALLOWED = 1.5


@torch.no_grad()
def check_model(
    model: Model, shape: ModelShape, device: torch.device, dtype: torch.dtype, prompt: int, steps: int
) -> dict[str, Any]:
    """Logits of a prompt's last token and of decode steps after it, with given tokens; three sequences."""
    from prunekit.kernels import Runtime, optimize

    exact = build(model, shape, Arena(device, torch.float32, shape.parameters + (1 << 20)))
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, shape.vocab_size, (3, prompt + steps), generator=generator).to(device)
    # On meta launches are noted, and there is nothing to compare.
    noted_only = device.type == "meta"
    expected = None if noted_only else exact(input_ids=ids, use_cache=False).logits[:, prompt - 1 :]
    rounded = copy.deepcopy(exact)
    for weight in rounded.parameters():  # .to() would round the rotary frequencies too, and hide errors behind theirs
        weight.data = weight.data.to(dtype)
    theirs = None if noted_only else rounded(input_ids=ids, use_cache=False).logits[:, prompt - 1 :]
    runtime = Runtime(optimize(rounded), 3, prompt + steps + 1)
    logits = [runtime.prefill(ids[:, :prompt]).clone()]
    logits += [runtime.step(ids[:, prompt + step]).clone() for step in range(steps)]
    if expected is None or theirs is None:
        return {"ok": True}
    ours_error, their_error = (_error(out, expected) for out in (torch.stack(logits, 1), theirs))
    allowed = ALLOWED * their_error + 1e-6
    ok = ours_error <= allowed
    return {
        "op": "runtime",
        "case": f"{model.name} in irregular layers, {prompt} tokens and {steps} steps",
        "dtype": str(dtype).removeprefix("torch."),
        "relative_error": ours_error if math.isfinite(ours_error) else None,
        "tolerance": allowed,
        "transformers_relative_error": their_error,
        "ok": ok,
        "why": None if ok else f"relative error {ours_error:.2e}, transformers in the same dtype {their_error:.2e}",
    }


def _error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return ((out.double() - expected.double()).norm() / expected.double().norm()).item()
