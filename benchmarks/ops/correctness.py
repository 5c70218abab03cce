"""Every op against float64: as close as its dtype allows, nothing unwritten, and the same bits every time."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import torch

from benchmarks.common.tensors import NAN
from benchmarks.ops.checks import Arguments, Check
from benchmarks.ops.registry import op, reference
from prunekit.kernels.testing.tolerances import TOLERANCE, poisoned_memory

CHANGED = ("k_cache", "v_cache")


def run_check(check: Check, device: torch.device) -> dict[str, Any]:
    """One check as JSON values; ``ok`` says whether it passed, ``why`` what was wrong."""
    function, arguments = op(check.op), check.arguments()
    dtype = next(value.dtype for value in arguments.values() if _is_float(value) and value.dtype in TOLERANCE)
    with ExitStack() as stack:
        stack.enter_context(poisoned_memory())
        outs = _outputs(function, arguments)
        if device.type == "meta":  # launches are noted, and there is nothing to compare
            return {"ok": True}
        # Programs of the interpreter run one after the other: once more is enough there.
        again = 3 if device.type == "cuda" else 1
        repeatable = all(_same_bits(outs, _outputs(function, arguments)) for _ in range(again))
        in_graph = _same_bits(outs, _graph_outputs(function, arguments)) if device.type == "cuda" else None
    expected = _outputs(reference(check.op), arguments)
    errors = [_error(out, wanted) for out, wanted in zip(outs, expected, strict=True)]
    # NaN compares as false: an error that is none can't pass.
    worst = max(errors, key=lambda error: float("inf") if error != error else error)
    close = all(error <= TOLERANCE[dtype] for error in errors)
    reasons = [
        None if close else f"relative error {worst:.2e}, allowed {TOLERANCE[dtype]:.1e}",
        None if repeatable else "not the same bits every time",
        None if in_graph is not False else "other bits in a CUDA graph",
    ]
    why = "; ".join(reason for reason in reasons if reason)
    return {
        "op": check.op,
        "case": check.label,
        "dtype": str(dtype).removeprefix("torch."),
        "relative_error": worst if math.isfinite(worst) else None,
        "tolerance": TOLERANCE[dtype],
        "repeatable": repeatable,
        "same_in_graph": in_graph,
        "ok": not why,
        "why": why or None,
    }


def _is_float(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _fresh(arguments: Arguments) -> Arguments:
    """The same with caches of their own, which the op may write."""
    return {name: value.clone() if name in CHANGED else value for name, value in arguments.items()}


def _collect(out: Any, arguments: Arguments) -> list[torch.Tensor]:
    return [*(out if isinstance(out, tuple) else (out,)), *(arguments[name] for name in CHANGED if name in arguments)]


def _outputs(function: Any, arguments: Arguments) -> list[torch.Tensor]:
    """What the function returns, and what it made of the caches."""
    own = _fresh(arguments)
    return _collect(function(**own), own)


def _graph_outputs(function: Any, arguments: Arguments) -> list[torch.Tensor]:
    """The same from a CUDA graph that was replayed twice."""
    own = _fresh(arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = function(**own)
    graph.replay()
    graph.replay()
    return _collect(out, own)


def _same_bits(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(
        torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
        for a, b in zip(first, second, strict=True)
    )


def _error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """‖out − expected‖ / ‖expected‖. NaN where they differ in what is NaN: places that must stay untouched."""
    out, expected = out.double().cpu(), expected.double().cpu()
    if out.shape != expected.shape or not torch.equal(out.isnan(), expected.isnan()):
        return NAN
    out, expected = out.nan_to_num(0.0), expected.nan_to_num(0.0)
    size = expected.norm().item()
    return (out - expected).norm().item() / size if size else out.norm().item()
