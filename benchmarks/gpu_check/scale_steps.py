"""Seconds and memory of every step of pruning on a few layers of a model, in a process of its own: prints JSON.

Run by the block scale; random weights, and random tokens as text.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.models.build import build
from benchmarks.models.checkpoints import write_dense
from benchmarks.models.shapes import MODELS, TINY, Model
from benchmarks.quality.scaling import Meter, recipe_steps
from prunekit.kernels.tuning.arena import Arena
from prunekit.utils.files.sizes import folder_bytes

LENGTH = 512


def main(arguments: list[str]) -> None:
    """The steps of one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("layers", type=int)
    parser.add_argument("tokens", type=int)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--exports", nargs="*", default=[], help="targets")
    given = parser.parse_args(arguments)
    whole = {**MODELS, TINY.name: TINY}[given.model]
    shape = whole.shape.with_layers(whole.shape.layers[:1] * given.layers)
    model = Model(whole.name, whole.model_type, shape, whole.config)
    print(json.dumps(measure(model, given.tokens, torch.device(given.device), given.exports)))


def measure(model: Model, tokens: int, device: torch.device, targets: list[str]) -> dict[str, Any]:
    """Scores as adapt-pruner takes them at every step, the default method, rebuilding, and exports."""
    from prunekit.models.families import FAMILIES
    from prunekit.plan.methods import METHODS
    from prunekit.pruning.allocation.session import Session

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    arena = Arena(device, dtype, model.shape.parameters + (1 << 20))
    length = min(LENGTH, tokens // 4)
    ids = torch.randint(0, model.shape.vocab_size, (tokens // length, length))
    meter = Meter(device)
    adapt = METHODS["adapt-pruner"]
    calib = adapt.calibration
    session = Session(
        build(model, model.shape, arena),
        FAMILIES[model.model_type],
        lambda step: ids[: calib.sequences, : calib.length],
        importance=adapt.importance,
        layer_importance=adapt.layer_importance,
        batch_size=8,
    )
    with meter.step("adapt-pruner score"):
        session.score()
    del session
    shape, keeps = recipe_steps(build(model, model.shape, arena), model.model_type, ids, meter, share="0.6")
    _write(model, arena, keeps, meter, targets)
    return {
        "parameters": shape.parameters,
        "seconds": meter.seconds,
        "peak_bytes": meter.peaks,
        "host_peak_bytes": meter.host_peaks,
        "file_bytes": meter.bytes,
    }


def _write(model: Model, arena: Arena, keeps: Any, meter: Meter, targets: list[str]) -> None:
    """The checkpoint, and what it is exported to."""
    from prunekit.checkpoint.rebuild import rebuild
    from prunekit.export.export import export_model
    from prunekit.export.registry import target
    from prunekit.models.source import resolve
    from prunekit.plan import Plan

    with tempfile.TemporaryDirectory(prefix="prunekit-scale-") as temporary:
        folder = Path(temporary)
        source = resolve(str(write_dense(model, folder / "dense", arena)))
        with meter.step("rebuild"):
            rebuild(source, Plan(source.shape, keeps), folder / "pruned")
        meter.bytes["checkpoint"] = folder_bytes(folder / "pruned")
        for name in targets:
            kind = target(name)
            if kind.missing(kind.writes_with):
                continue
            dtype = next(each for each in ("fp16", "f16") if each in kind.dtypes)
            with meter.step(f"export {name}"):
                export_model(str(folder / "pruned"), name, folder / name, dtype=dtype, verify=False)
            meter.bytes[name] = folder_bytes(folder / name)
