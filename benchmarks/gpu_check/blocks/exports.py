"""What does pruning bring in the runtimes that models are exported for, on this GPU?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.common.record import read_json
from benchmarks.gpu_check.work import Context, Measurement
from benchmarks.models.checkpoints import write_dense, write_pruned
from benchmarks.models.shapes import Model

NEEDS_CEILINGS = False
VARIANTS = ("rounded", "irregular")


def measurements(context: Context) -> Iterator[Measurement]:
    """A model through all targets, then the next; each variant beside the dense model, in turns."""
    with tempfile.TemporaryDirectory(prefix="prunekit-exports-") as folder:
        for model in context.sizes.exported:
            exports = Exports(context, model, Path(folder) / model.name)
            for target in context.sizes.targets:
                for variant in VARIANTS:
                    yield Measurement(
                        f"{model.name}, {target}, {variant}",
                        {"whole_model": True, "model": model.name, "target": target, "variant": variant},
                        lambda exports=exports, target=target, variant=variant: exports.compare(target, variant),
                        needs_s=15.0,
                        limit_s=240.0,
                    )


def brief(record: dict[str, Any]) -> str:
    """What was measured, in one line."""
    return (
        f"{record['tpot_ms']:.3f} ms a token, {record['speedup']:.2f} times dense, ideal {record['ideal_speedup']:.2f}"
    )


class Exports:
    """One model's checkpoints and exports, made when they are first asked for."""

    def __init__(self, context: Context, model: Model, folder: Path):
        self.context, self.model, self.folder = context, model, folder

    @cached_property
    def dense(self) -> Path:
        return write_dense(self.model, self.folder / "dense", self.context.arena)

    def checkpoint(self, variant: str) -> Path:
        """The model whole, or cut."""
        folder = self.folder / variant
        if variant == "dense":
            return self.dense
        if not folder.exists():
            write_pruned(self.dense, self.context.variants(self.model)[variant], folder)
        return folder

    def compare(self, target: str, variant: str) -> dict[str, Any]:
        """The variant beside the dense model: parity, file sizes, times of a short prompt and a few tokens."""
        from prunekit.export.bench import bench_exports
        from prunekit.export.registry import target as named
        from prunekit.profiling.compare import BenchConfig

        kind = named(target)
        missing = kind.missing((*kind.writes_with, *kind.runs_with))
        if missing:
            return {"not_there": f"not there: {', '.join(each.name for each in missing)}"}
        # In 16 bits on a GPU: bfloat16 where the target has it. A rehearsal is on the CPU, where all is as by default.
        on: dict[str, Any] = {} if self.context.is_rehearsal else {"device": "cuda"}
        dtype = next((name for name in ("bf16", "fp16", "f16") if on and name in kind.dtypes), "auto")
        folders = []
        parity = {}
        for each in ("dense", variant):
            folders.append(self.export(each, target, dtype, on))
            parity[each] = folders[-1][1]
        small = self.context.sizes.is_tiny
        config = BenchConfig(
            prompt=8 if small else 128,
            tokens=2 if small else 32,
            repeats=2 if small else 5,
            warmup=0 if small else 2,
            max_minutes=0,
        )
        # Processes of their own measure memory, which takes long: once a target.
        memory = not small and variant == VARIANTS[0]
        names = (str(folders[0][0]), str(folders[1][0]))
        report = bench_exports(names, target, config, dtype=dtype, memory=memory, trust_remote_code=True, **on)
        (result,) = report.results
        return {
            "device": on.get("device", "cpu"),
            "dtype": report.dtype,
            "parity": parity,
            "file_bytes": report.pruned.file_bytes,
            "dense_file_bytes": report.dense.file_bytes,
            "peak_bytes": report.pruned.peak_bytes,
            "dense_peak_bytes": report.dense.peak_bytes,
            "ttft_ms": result.ttft.pruned.median * 1e3,
            "dense_ttft_ms": result.ttft.dense.median * 1e3,
            "tpot_ms": result.tpot.pruned.median * 1e3,
            "dense_tpot_ms": result.tpot.dense.median * 1e3,
            "tokens_per_s": result.batch / result.tpot.pruned.median,
            "speedup": 1 / result.tpot.ratio.median,
            "ideal_speedup": 1 / result.tpot.ideal_ratio,
        }

    def export(self, variant: str, target: str, dtype: str, on: dict[str, Any]) -> tuple[Path, dict[str, Any] | None]:
        """The folder of an export that has passed its check, and what that said."""
        from prunekit.export.export import PARITY, export_model

        folder = self.folder / f"{variant}-{target}"
        if not folder.exists():
            export_model(str(self.checkpoint(variant)), target, folder, dtype=dtype, **on)
        file = folder / PARITY
        return folder, read_json(file) if file.is_file() else None
