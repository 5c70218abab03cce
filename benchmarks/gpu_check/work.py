"""Does blocks in this process, one measurement after the other, and records them."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.record import Record, Recorder, read_json, write_json
from benchmarks.common.run_info import describe_run
from benchmarks.gpu_check.blocks import BLOCKS, Block
from benchmarks.gpu_check.ceilings import ceilings
from benchmarks.gpu_check.sizes import Sizes, dtypes_of, real_sizes, tiny_sizes
from benchmarks.models.shapes import Model, pruned_shape, rounded_shape
from prunekit.kernels.testing.recording import listening
from prunekit.kernels.tuning.arena import Arena
from prunekit.kernels.tuning.chain import Layer
from prunekit.kernels.tuning.tune import measure, table_of
from prunekit.plan.shape import ModelShape


@dataclass(frozen=True)
class Measurement:
    """``run`` gives what is recorded under ``id`` beside ``fields``. It begins only where ``needs_s`` seconds are left,
    and is ended after ``limit_s``."""

    id: str
    fields: Record
    run: Callable[[], Record]
    needs_s: float = 2.0
    limit_s: float = 60.0


@dataclass
class Context:
    """What measurements of a block share. ``device`` is the CPU in a rehearsal, and meta where launches are only
    noted; ``best`` are this run's ceilings."""

    device: torch.device
    sizes: Sizes
    # What this block, and in other files other blocks of the run, have measured.
    records: Callable[[str], list[Record]] = lambda block: []
    left_s: Callable[[], float] = lambda: float("inf")
    best: Record = field(default_factory=lambda: {"copy_gbps": 1.0})

    @property
    def is_rehearsal(self) -> bool:
        return self.device.type != "cuda"

    @property
    def is_noting(self) -> bool:
        """True where launches are noted and nothing is computed."""
        return self.device.type == "meta"

    @cached_property
    def arena(self) -> Arena:
        """Random weights for whole models and chains."""
        return Arena(self.device, self.sizes.measured_in, self.sizes.arena)

    def chosen(
        self, op: str, sizes: Mapping[str, int], layers: Sequence[Layer] | None = None, **forced: str
    ) -> Record | None:
        """The fastest choice for ``op`` at those sizes, as an entry of a table, in a chain of ``layers`` (default:
        those of the run) with ``forced`` choices for other ops; None where there is nothing to choose."""
        return measure(
            op,
            dict(sizes),
            self.device,
            self.sizes.measured_in,
            forced=forced,
            rounds=self.sizes.rounds,
            layers=self.sizes.layers if layers is None else layers,
            arena=self.arena,
        )

    def variants(self, model: Model) -> dict[str, ModelShape]:
        """The shapes of a model that are measured: dense, pruned to irregular widths, these rounded to 64."""
        irregular = pruned_shape(model.shape, self.sizes.percent)
        return {"dense": model.shape, "irregular": irregular, "rounded": rounded_shape(irregular)}


def work(arguments: argparse.Namespace, device: torch.device) -> None:
    """All blocks that were asked for."""
    header = describe_run(device, arguments)
    if device.type == "cuda":
        both, dtype = dtypes_of(device)
        sizes = real_sizes(arguments.models, dtype, both, arguments.tokens, arguments.compile)
    else:
        sizes = tiny_sizes(arguments.compile)
    if not arguments.why_no_models and any(BLOCKS[name].models for name in arguments.blocks):
        # Seconds that are no block's.
        import_module("benchmarks.models.build")
        import_module("transformers").AutoModelForCausalLM  # noqa: B018 (transformers loads its parts when asked)
    for name in arguments.blocks:
        print(f"{name}:", flush=True)
        do(BLOCKS[name], arguments, device, sizes, header)


def _told(module: Any, record: Record) -> str:
    """One line a record, for whoever watches."""
    if "error" in record:
        return f"FAILED {record['error']}"
    return str(record["not_there"] if "not_there" in record else module.brief(record))


def do(block: Block, arguments: argparse.Namespace, device: torch.device, sizes: Sizes, header: Record) -> None:
    """One block, from where it stopped."""
    folder, stem = Path(arguments.out), arguments.stem
    recorder = Recorder(
        folder / f"{stem}_{block.name}.json",
        block.name,
        header,
        seconds=arguments.block_seconds,
        deadline=arguments.deadline,
    )

    def records(name: str) -> list[Record]:
        if name == block.name:
            return list(recorder.data["records"])
        file = folder / f"{stem}_{name}.json"
        return list(read_json(file)["records"]) if file.is_file() else []

    if block.models and arguments.why_no_models:
        print(f"  {arguments.why_no_models}", flush=True)
        recorder.data["note"] = arguments.why_no_models
        if not block.kernels:  # then it has nothing but whole models, and imports what they need
            recorder.finish()
            return
    context = Context(device, sizes, records, lambda: recorder.left_s)
    module = block.load()
    if getattr(module, "NEEDS_CEILINGS", False):
        context.best = _ceilings(recorder, context)
    # On a GPU the noting itself would count in the time of what Python launches.
    with listening() if context.is_rehearsal else nullcontext() as heard:
        for each in measurements(block, context, arguments.why_no_models):
            record = recorder.measure(each.id, each.fields, each.run, limit_s=each.limit_s, needs_s=each.needs_s)
            if record and (line := _told(module, record)):
                print(f"  {each.id}: {line}", flush=True)
    if heard:
        recorder.data["launches"] = heard.digests
    recorder.finish()
    # The next block may want all of the GPU's memory, in another process.
    context.__dict__.pop("arena", None)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if recorder.data["not_reached"]:
        print(f"  not reached in {recorder.data['spent_s']:.0f} s: {len(recorder.data['not_reached'])}", flush=True)
    _write_table(folder, stem, device, sizes)


def measurements(block: Block, context: Context, why_no_models: str | None) -> Iterator[Measurement]:
    """A block's, without those of whole models where they can't be had."""
    for each in block.load().measurements(context):
        if not (why_no_models and each.fields.get("whole_model")):
            yield each


def _ceilings(recorder: Recorder, context: Context) -> dict[str, Any]:
    if "ceilings" not in recorder.data:
        recorder.data["ceilings"] = ceilings(context.device, context.sizes.measured_in, tiny=context.is_rehearsal)
    found: dict[str, Any] = recorder.data["ceilings"]
    print(
        f"  copy {found['copy_gbps']:,.1f} GB/s, read {found['read_gbps']:,.1f} GB/s, "
        f"matmul {found['matmul_tflops']:,.3f} TFLOP/s",
        flush=True,
    )
    return found


def _write_table(folder: Path, stem: str, device: torch.device, sizes: Sizes) -> None:
    """What the blocks have chosen so far, as a table that the kernels can be shipped with."""
    files = [folder / f"{stem}_{name}.json" for name in BLOCKS]
    entries = [
        record["entry"]
        for file in files
        if file.is_file()
        for record in read_json(file)["records"]
        if record.get("entry")
    ]
    if entries:
        table = table_of(entries, device, sizes.measured_in)
        table["provenance"]["command"] = "make gpu-check"
        write_json(folder / f"{stem}_table.json", table)
