"""Is every op right here? Against float64, in every dtype, at irregular widths, and a whole model beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.common.tensors import Data
from benchmarks.gpu_check.work import Context, Measurement
from benchmarks.models.shapes import pruned_shape
from benchmarks.ops import attention_checks, checks
from benchmarks.ops.correctness import run_check

NEEDS_CEILINGS = False


def measurements(context: Context) -> Iterator[Measurement]:
    """Every op once first, so that a run that is cut off has seen them all."""
    sizes = context.sizes
    listed = []
    for dtype in sizes.dtypes:
        data, seen = Data(context.device, dtype), {}  # type: ignore[var-annotated]
        for each in sizes.checks:
            for make in (checks.ffn_checks, attention_checks.attention_checks):
                for check in make(data, each):
                    seen[check.op] = seen.get(check.op, -1) + 1
                    listed.append((seen[check.op], str(dtype).removeprefix("torch."), check))
    for _, dtype_name, check in sorted(listed, key=lambda each: each[0]):
        yield Measurement(
            f"{check.op}, {dtype_name}, {check.label}",
            {"op": check.op, "case": check.label, "dtype": dtype_name},
            lambda check=check: run_check(check, context.device),
            needs_s=1.0,
        )
    yield from _models(context)


def _models(context: Context) -> Iterator[Measurement]:
    from benchmarks.models.check import check_model

    small = context.sizes.checked_model
    shape = pruned_shape(small.shape, context.sizes.percent)
    for dtype in context.sizes.dtypes:
        name = str(dtype).removeprefix("torch.")
        yield Measurement(
            f"runtime, {name}, {small.name}",
            {"whole_model": True, "op": "runtime", "case": small.name, "dtype": name},
            lambda dtype=dtype: check_model(small, shape, context.device, dtype, *context.sizes.checked_tokens),
            needs_s=5.0,
            limit_s=120.0,
        )


def brief(record: dict[str, Any]) -> str:
    """A line for what failed."""
    return "" if record.get("ok") else f"FAILED {record['why']}"
