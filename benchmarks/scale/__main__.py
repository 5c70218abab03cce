"""Memory, time and disk of pruning and exporting a model of real size with random weights, on a CPU.

    python -m benchmarks.scale --model llama-3.2-1b --output benchmarks/results/scale_cpu.json
    python -m benchmarks.scale --model llama-3.1-8b --steps magnitude,gguf

Each step is one `prunekit` command in a process of its own. What is done is kept in --output: a run that was cut short
goes on where it was. --folder needs room for the model in bfloat16, its pruned copy, and the export of one step.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.run_info import commit
from benchmarks.models.checkpoints import write_dense
from benchmarks.models.shapes import MODELS
from benchmarks.quality.report_file import begun, save
from benchmarks.scale.watch import watch
from prunekit.kernels.tuning.arena import Arena
from prunekit.models.source import resolve
from prunekit.models.tokenizer.files import copy_tokenizer
from prunekit.utils.files.sizes import folder_bytes

# Everything after the two prunings is an export of what `magnitude` made.
STEPS: dict[str, tuple[str, ...]] = {
    "magnitude": ("prune", "{dense}", "--blocks", "0.6", "--method", "magnitude", "--output", "{pruned}"),
    "prunekit": ("prune", "{dense}", "--blocks", "0.6", "--output", "{made}"),
    "hf": ("export", "{pruned}", "--to", "hf"),
    "vllm": ("export", "{pruned}", "--to", "vllm"),
    "gguf": ("export", "{pruned}", "--to", "gguf"),
    "gguf-q8_0": ("export", "{pruned}", "--to", "gguf", "--dtype", "q8_0"),
    "onnx": ("export", "{pruned}", "--to", "onnx"),
    "onnx-fp16": ("export", "{pruned}", "--to", "onnx", "--dtype", "fp16"),
    "onnx-genai": ("export", "{pruned}", "--to", "onnx-genai"),
    "onnx-genai-int4": ("export", "{pruned}", "--to", "onnx-genai", "--dtype", "int4"),
    "openvino": ("export", "{pruned}", "--to", "openvino"),
    "torchscript": ("export", "{pruned}", "--to", "torchscript"),
    "torch-export": ("export", "{pruned}", "--to", "torch-export"),
    "executorch": ("export", "{pruned}", "--to", "executorch"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(MODELS), default="llama-3.2-1b")
    parser.add_argument(
        "--steps",
        default=",".join(step for step in STEPS if step != "prunekit"),
        help=f"separated by commas, of {', '.join(STEPS)} (default: all but prunekit, which takes hours)",
    )
    parser.add_argument("--folder", type=Path, help="where models are made (default: a temporary folder)")
    parser.add_argument("--output", type=Path, help="write and continue this JSON file")
    options = parser.parse_args()
    steps = options.steps.split(",")
    if unknown := [step for step in steps if step not in STEPS]:
        parser.error(f"there is no step {unknown[0]!r}; there are {', '.join(STEPS)}")
    if options.folder is None:
        with tempfile.TemporaryDirectory(prefix="prunekit-scale-") as folder:
            run(options.model, steps, Path(folder), options.output)
    else:
        run(options.model, steps, options.folder, options.output)


def run(model: str, steps: list[str], folder: Path, output: Path | None) -> None:
    """Run ``steps`` that ``output`` has not yet, and write each result at once."""
    report = begun(output, "scale", {}, "cpu")
    places = {"dense": folder / model, "pruned": folder / f"{model}-magnitude", "made": folder / "made"}
    if not places["dense"].exists():
        shape = MODELS[model].shape
        # The largest tensor is the embedding table.
        arena = Arena(torch.device("cpu"), torch.bfloat16, shape.vocab_size * shape.hidden_size)
        # Its tokens are fewer than the vocabulary.
        copy_tokenizer(resolve("smollm2-135m"), write_dense(MODELS[model], places["dense"], arena))
    if not places["pruned"].exists() and any("{pruned}" in STEPS[step] for step in steps):
        steps = ["magnitude", *(step for step in steps if step != "magnitude")]
    for step in steps:
        done = {(each["model"], each["step"]) for each in report["runs"] if each["code"] == 0}
        if (model, step) in done and not (step == "magnitude" and not places["pruned"].exists()):
            continue
        arguments = [word.format(**places) for word in STEPS[step]]
        if "--output" not in arguments:
            arguments += ["--output", str(places["made"])]
        shutil.rmtree(places["made"], ignore_errors=True)
        told = watch([*arguments, "--json"], folder / f"{step}.log")
        written = places["pruned"] if step == "magnitude" else places["made"]
        report["runs"] = [each for each in report["runs"] if (each["model"], each["step"]) != (model, step)]
        report["runs"].append(
            {
                "model": model,
                "step": step,
                "commit": commit(),
                # Folders are of this machine and say nothing to others.
                "command": "prunekit " + " ".join(STEPS[step]).format(dense="DENSE", pruned="PRUNED", made="MADE"),
                "code": told.code,
                "seconds": round(told.seconds, 1),
                "peak_bytes": told.peak_bytes,
                "own_peak_bytes": told.own_peak_bytes,
                "written_bytes": folder_bytes(written),
                **({"error": told.error.strip().splitlines()[-1:]} if told.code else {}),
            }
        )
        save(output, report)
        print(row(report["runs"][-1]), flush=True)
    shutil.rmtree(places["made"], ignore_errors=True)


def row(found: dict[str, Any]) -> str:
    """One result in a line."""
    peak, own, size = (found[name] / 2**30 for name in ("peak_bytes", "own_peak_bytes", "written_bytes"))
    end = "" if found["code"] == 0 else f"  FAILED ({found['code']}): {' '.join(found['error'])}"
    return (
        f"{found['model']:14} {found['step']:16} {found['seconds']:8.1f} s  peak {peak:6.2f} GiB  "
        f"without mapped files {own:6.2f} GiB  written {size:6.2f} GiB{end}"
    )


if __name__ == "__main__":
    main()
