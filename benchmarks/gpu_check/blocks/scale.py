"""How long would pruning take at 1B and 8B, and how much memory? A few layers are measured, and the sum is told."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common.record import Record
from benchmarks.gpu_check.work import Context, Measurement
from benchmarks.models.shapes import Model
from prunekit.plan.allocations import AdaptConfig, OptimalConfig
from prunekit.plan.settings import MUCH_TEXT

NEEDS_CEILINGS = False
MAIN = Path(__file__).resolve().parents[1]
# Tokens that the steps take of the default text: curves and the solver take no more than these.
CURVE_TOKENS = OptimalConfig().curve_tokens
TEXT_TOKENS = {"curves": CURVE_TOKENS, "solver": CURVE_TOKENS}
HOW = (
    "Seconds of a step on all layers: what it takes on {few} layers, and for every further layer what {many} layers "
    "take more, divided by {more}; the part that grows with text, from a run on twice the text, times the text of the "
    "default recipe. adapt-pruner: its score times its steps. Memory is that of the runs, not a sum."
)


def measurements(context: Context) -> Iterator[Measurement]:
    """The largest model last: it takes longest."""
    for model in context.sizes.models:
        for layers, tokens in context.sizes.pruned:
            yield Measurement(
                f"{model.name}, {layers} layers, {tokens:,} tokens",
                {"whole_model": True, "model": model.name, "layers": layers, "tokens": tokens},
                lambda model=model, layers=layers, tokens=tokens: _apart(context, model, layers, tokens),
                needs_s=12.0 if "8b" not in model.name else 25.0,
                limit_s=240.0,
            )
        if len(_runs(context, model)) == len(context.sizes.pruned):
            yield Measurement(
                f"{model.name}, the sum", {"model": model.name}, lambda model=model: total(model, _runs(context, model))
            )


def brief(record: dict[str, Any]) -> str:
    """What was measured, in one line."""
    return ", ".join(f"{name} {seconds:,.1f} s" for name, seconds in record["seconds"].items())


def _runs(context: Context, model: Model) -> list[Record]:
    return [
        record
        for record in context.records("scale")
        if record.get("model") == model.name and "layers" in record and "seconds" in record
    ]


def _apart(context: Context, model: Model, layers: int, tokens: int) -> dict[str, Any]:
    """In a process of its own, whose peak memory is then that of the step."""
    device = "cpu" if context.is_rehearsal else "cuda"
    command = [sys.executable, str(MAIN), "--steps", model.name, str(layers), str(tokens), "--device", device]
    command += ["--exports", "gguf", *([] if context.sizes.is_tiny else ["onnx"])]
    # It ends before the supervisor ends this process.
    left = max(30.0, min(230.0, context.left_s() + 15))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=left)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-500:])
    made: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return made


def total(model: Model, runs: list[Record]) -> dict[str, Any]:
    """The seconds of every step on the whole model, and how that was made of ``runs``: few layers, more layers, and the
    few on twice the text."""
    few, many, long = runs
    more = many["layers"] - few["layers"]
    layers, seconds = model.shape.num_hidden_layers, {}
    for step, base in few["seconds"].items():
        each_layer = max(0.0, many["seconds"][step] - base) / more
        each_text = max(0.0, long["seconds"][step] - base)
        text = TEXT_TOKENS.get(step, MUCH_TEXT.sequences * MUCH_TEXT.length)
        further = 0.0 if step.startswith(("adapt", "export", "rebuild")) else text / few["tokens"] - 1
        grown = each_text * max(0.0, further) * layers / few["layers"]
        seconds[step] = base + (layers - few["layers"]) * each_layer + grown
    steps = AdaptConfig().steps
    seconds["adapt-pruner score"] *= steps
    return {
        "seconds": seconds,
        "default_method_s": sum(seconds[step] for step in ("curves", "solver", "refit", "rescale", "rebuild")),
        "adapt_pruner_s": seconds["adapt-pruner score"] + seconds["rebuild"],
        "peak_bytes": max(max(run["peak_bytes"].values()) for run in runs),
        "how": HOW.format(few=few["layers"], many=many["layers"], more=more),
    }
