"""Memory, time and disk of pruning and exporting a model of real size with random weights, on a CPU.

    python -m benchmarks.scale --model llama-3.2-1b --output benchmarks/results/scale_cpu.json
    python -m benchmarks.scale --model llama-3.1-8b --steps magnitude,gguf

Each step is one `prunekit` command in a process of its own. What is done is kept in --output: a run that was cut short
goes on where it was. --folder needs room for the model in bfloat16, its pruned copy, and the export of one step.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common.run_info import commit
from benchmarks.models.shapes import MODELS
from benchmarks.scale.checkpoint import write_checkpoint
from benchmarks.scale.watch import watch
from prunekit.utils.machine import cpu_name
from prunekit.utils.provenance import installed

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
    report = _begun(output)
    places = {"dense": folder / model, "pruned": folder / f"{model}-magnitude", "made": folder / "made"}
    if not places["dense"].exists():
        write_checkpoint(MODELS[model], places["dense"])
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
                "written_bytes": _size(written),
                **({"error": told.error.strip().splitlines()[-1:]} if told.code else {}),
            }
        )
        if output is not None:
            output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
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


def _begun(output: Path | None) -> dict[str, Any]:
    if output is not None and output.is_file():
        kept: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        return kept
    machine = {"cpu": cpu_name(), "os": platform.platform(), "python": platform.python_version()}
    versions = {name: installed(name) for name in ("prunekit", "torch", "transformers", "onnxruntime")}
    return {"format": "prunekit-scale", "machine": machine, "versions": versions, "runs": []}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
