"""What does pruning bring in vLLM? Its offline engine, then its server under load, with weights that it makes up."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.work import Context, Measurement
from benchmarks.models.shapes import Model
from benchmarks.server.arms import arm_shapes, write_arm
from benchmarks.server.run import Settings, measure
from prunekit.plan.shape import ModelShape

NEEDS_CEILINGS = False
# In the order in which they are measured: each takes most of a minute to start.
ARMS = ("dense", "rounded", "irregular", "homogeneous")
START_S = 45.0


def measurements(context: Context) -> Iterator[Measurement]:
    """Dense, what it was pruned to, and one of the same size whose layers are alike."""
    model = context.sizes.served
    shapes = arm_shapes(model.shape, context.sizes.percent)
    for kind in ("offline", "sweep"):
        for arm in ARMS:
            yield Measurement(
                f"{model.name}, {arm}, {kind}",
                {"whole_model": True, "model": model.name, "variant": arm, "kind": kind},
                lambda kind=kind, arm=arm: _run(context, kind, model, arm, shapes[arm]),
                needs_s=START_S,
                limit_s=300.0,
            )


def brief(record: dict[str, Any]) -> str:
    """What was measured, in one line."""
    rows = "; ".join(
        f"{_case(row)} {row['tpot_s'] * 1e3:.3f} ms a token" for row in record["rows"] if row.get("tpot_s") is not None
    )
    return rows + (f"; {record['speedup']:.2f} times dense" if record.get("speedup") else "")


def _case(row: dict[str, Any]) -> str:
    return f"batch {row['batch']}" if "batch" in row else f"{row['rate']} a second"


def _run(context: Context, kind: str, model: Model, arm: str, shape: ModelShape) -> dict[str, Any]:
    if importlib.util.find_spec("vllm") is None:
        return {"not_there": "vLLM is not there"}
    small = context.sizes.is_tiny
    settings = Settings(
        batches=(1,) if small else (1, 8, 64, 256),
        prompts=(8,) if small else (128,),
        new=8 if small else 64,
        rates=(float("inf"),) if small else (4.0, 16.0, float("inf")),
        requests=2 if small else 64,
        dtype="bfloat16" if small else str(context.sizes.measured_in).removeprefix("torch."),
        kv_bytes=1 << 26 if small else None,
        mode="eager" if small else "graphs",
        # What the rest of the GPU check holds stays there.
        memory_share=0.85,
        limit_s=max(60.0, min(280.0, context.left_s() + 15)),
    )
    with tempfile.TemporaryDirectory(prefix="prunekit-server-") as folder:
        written = write_arm(model, arm, shape, Path(folder, arm))
        (run,) = measure(kind, [written], settings, Path(folder, "out.json"), twice=False)["runs"]
    # Requests that got no answer have no times.
    if not any(row.get("tpot_s") for row in run.get("rows", [])):
        raise RuntimeError(f"vLLM measured nothing: {run.get('problem')}: {run.get('log', '')[-300:]}")
    found = {name: value for name, value in run.items() if name not in ("arm", "turn")}
    return (
        found | {"decode_bytes": written.decode_bytes} | _over_dense(context, kind, model, found, written.decode_bytes)
    )


def _over_dense(context: Context, kind: str, model: Model, found: dict[str, Any], read: int) -> dict[str, Any]:
    """One sequence, beside the dense model of the same run."""
    dense = next(
        (
            record
            for record in context.records("server")
            if record.get("rows")
            and (record["model"], record["variant"], record["kind"]) == (model.name, "dense", kind)
        ),
        None,
    )
    if dense is None or kind != "offline":
        return {}
    mine, theirs = (rows["rows"][0]["tpot_s"] for rows in (found, dense))
    return {"speedup": theirs / mine, "ideal_speedup": dense["decode_bytes"] / read}
