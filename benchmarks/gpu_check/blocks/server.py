"""What does pruning bring in vLLM? Its offline engine, weights that it makes up, one process a model."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.work import Context, Measurement
from benchmarks.models.checkpoints import write_config
from benchmarks.models.shapes import Model
from prunekit.plan.shape import ModelShape

NEEDS_CEILINGS = False
ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "benchmarks" / "server" / "vllm_engine.py"
PROMPT, TOKENS = 128, 64
START_S = 45.0


def measurements(context: Context) -> Iterator[Measurement]:
    """The largest model: dense, then what it was pruned to, then one of the same size whose layers are alike."""
    model = context.sizes.models[-1]
    shapes = context.variants(model)
    shapes = {name: shapes[name] for name in ("dense", "rounded", "irregular")} | {
        "homogeneous": homogeneous(model.shape, shapes["irregular"])
    }
    for name, shape in shapes.items():
        yield Measurement(
            f"{model.name}, {name}",
            {"whole_model": True, "model": model.name, "variant": name},
            lambda name=name, shape=shape: _engine(context, model, name, shape),
            needs_s=START_S,
            limit_s=300.0,
        )


def brief(record: dict[str, Any]) -> str:
    """One line a record."""
    if "error" in record:
        return f"FAILED {record['error']}"
    if "not_there" in record:
        return str(record["not_there"])
    rows = "; ".join(f"batch {row['batch']} {row['tpot_ms']:.3f} ms a token" for row in record["rows"])
    return rows + (f"; {record['speedup']:.2f} times dense" if record.get("speedup") else "")


def homogeneous(dense: ModelShape, pruned: ModelShape) -> ModelShape:
    """All heads, and one FFN width, a multiple of 64, at which a model has about as many parameters as ``pruned``."""
    whole, layers = dense.layers[0], dense.num_hidden_layers
    without = dense.with_layers([replace(whole, intermediate_size=64)] * layers).block_parameters
    left = (pruned.block_parameters - without) / layers / dense.ffn_channel_parameters + 64
    return dense.with_layers([replace(whole, intermediate_size=max(64, round(left / 64) * 64))] * layers)


def _engine(context: Context, model: Model, name: str, shape: ModelShape) -> dict[str, Any]:
    if importlib.util.find_spec("vllm") is None:
        return {"not_there": "vLLM is not there"}
    dtype = str(context.sizes.measured_in).removeprefix("torch.")
    with tempfile.TemporaryDirectory(prefix="prunekit-server-") as temporary:
        folder = write_config(model, shape, Path(temporary, "model"), dtype)
        site, out = _site(Path(temporary, "site")), Path(temporary, "out.json")
        batches = ["1"] if context.sizes.is_tiny else ["1", "8", "64", "256"]
        command = [sys.executable, str(SCRIPT), str(folder), str(out), "--batch", *batches, "--dtype", dtype]
        command += ["--prompt", str(PROMPT), "--tokens", str(TOKENS)]
        path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
        limit = max(60.0, min(280.0, context.left_s() + 15))
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=limit
            )
            problem = done.stderr.strip()[-400:] if done.returncode else None
        except subprocess.TimeoutExpired:
            problem = f"no end after {limit:.0f} s"
        if not out.is_file():
            raise RuntimeError(f"vLLM measured nothing: {problem}")
        report = json.loads(out.read_text(encoding="utf-8"))
    report |= {"decode_bytes": shape.decode_bytes(context.sizes.measured_in.itemsize, PROMPT + TOKENS // 2)}
    return report | ({"problem": problem} if problem else {}) | _over_dense(context, model, report)


def _over_dense(context: Context, model: Model, report: dict[str, Any]) -> dict[str, Any]:
    """One sequence, beside the dense model of the same run."""
    dense = next(
        (
            record
            for record in context.records("server")
            if record.get("rows") and (record["model"], record["variant"]) == (model.name, "dense")
        ),
        None,
    )
    if dense is None:
        return {}
    mine, theirs = (rows["rows"][0]["tpot_ms"] for rows in (report, dense))
    return {"speedup": theirs / mine, "ideal_speedup": dense["decode_bytes"] / report["decode_bytes"]}


def _site(folder: Path) -> Path:
    """A folder in which this tree's prunekit can be imported, and says that it is a plugin of vLLM, as if installed."""
    package = folder / "prunekit"
    package.mkdir(parents=True)
    for file in [*(ROOT / "prunekit").iterdir(), ROOT / "kernels", ROOT / "export"]:
        (package / file.name).symlink_to(file)
    facts = folder / "prunekit-0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: prunekit\nVersion: 0\n")
    points = "[vllm.general_plugins]\nprunekit = prunekit.export.formats.vllm.plugin:register\n"
    (facts / "entry_points.txt").write_text(points)
    return folder
