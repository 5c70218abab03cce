"""Seconds and memory of each step of the default recipe, and of training on the same tokens, and how they grow with
layers, width and tokens.

    python -m benchmarks.quality.scaling --output benchmarks/results/growth_cpu.json

Random Llamas are made on the spot: a base model, and for layers, for width and for calibration tokens two more, each
twice the one before. Every model runs in a process of its own. A line through the logarithms gives each step's
exponent: 1 where it grows as fast as what was doubled, 2 with its square. The kernel's and the allocator's fixed costs
count too, so that exponents of small models are lower than those of large ones. What is done is kept in --output: a run
that was cut short goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.quality.report_file import begun, save

if TYPE_CHECKING:
    import torch

BASE = {"layers": 4, "width": 256, "tokens": 4096}
DOUBLINGS = (1, 2, 4)
LENGTH = 256
STEPS = ("curves", "solver", "refit", "rescale", "training")
# Sequences that are trained on at a time, whatever the number of all.
MICRO_BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=1, help="runs of each model; medians are reported")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--scale", type=int, default=1, help="multiplies the width of every model")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(json.loads(options.one), options.device)))
        return
    base = BASE | {"width": BASE["width"] * options.scale}
    asked = {name: getattr(options, name) for name in ("repeats", "device", "scale")}
    report = begun(options.output, "growth", asked, options.device)
    given = " ".join(f"--{name} {value}" for name, value in asked.items())
    report["command"] = f"python -m benchmarks.quality.scaling {given}"
    rows = report["runs"]
    for size in sizes(base):
        if any(row["size"] == size for row in rows):
            continue
        print(f"{size} …", file=sys.stderr, flush=True)
        runs = [_apart(size, options.device) for _ in range(options.repeats)]
        rows.append({"size": size, **_medians(runs)})
        report["exponents"] = exponents(rows, base)
        save(options.output, report)
    print(table(report))


def sizes(base: dict[str, int]) -> list[dict[str, int]]:
    """``base`` itself, and with one number after the other doubled and doubled again."""
    made: list[dict[str, int]] = []
    for what in base:
        for factor in DOUBLINGS:
            size = base | {what: base[what] * factor}
            if size not in made:
                made.append(size)
    return made


def _apart(size: dict[str, int], device: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.quality.scaling", "--one", json.dumps(size), "--device", device]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed")
    made: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return made


def _medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "parameters": runs[0]["parameters"],
        "seconds": {step: round(statistics.median(run["seconds"][step] for run in runs), 3) for step in STEPS},
        "peak_bytes": {step: max(run["peak_bytes"][step] for run in runs) for step in STEPS},
    }


def model_of(size: dict[str, int]) -> Any:
    """A random Llama of that size in float32: heads of 64, two query heads to a KV head, FFN 8/3 as wide."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    width = size["width"]
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=width,
        num_hidden_layers=size["layers"],
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 128),
        intermediate_size=-(-width * 8 // 3 // 64) * 64,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def measure(size: dict[str, int], device: str) -> dict[str, Any]:
    """Each step of the default recipe at 79 % of the blocks, and a step of training on the same tokens, in this
    process."""
    import torch

    model, dense = (model_of(size).to(device) for _ in range(2))
    ids = torch.randint(0, model.config.vocab_size, (size["tokens"] // LENGTH, LENGTH))
    meter = Meter(model.device)
    shape, _ = recipe_steps(model, "llama", ids, meter)
    train(model, dense, ids, meter)
    return {"parameters": shape.parameters, "seconds": meter.seconds, "peak_bytes": meter.peaks}


def recipe_steps(model: Any, model_type: str, ids: torch.Tensor, meter: Meter, share: str = "0.79") -> tuple[Any, Any]:
    """Each step of the default recipe at that share of the blocks, with ``ids`` as its text; ``model`` is used up.
    Returns the model's shape and what of every layer is kept. ``meter`` also takes the bytes of kept curves."""
    from prunekit.models.families import FAMILIES
    from prunekit.plan.goals import parse_target
    from prunekit.plan.methods import METHODS
    from prunekit.plan.rounding import Rounding
    from prunekit.pruning.allocation import Problem, allocation
    from prunekit.pruning.allocation.session import Session
    from prunekit.recovery.refit import refit
    from prunekit.recovery.rescale import RescaleConfig, final_hidden, rescale, split_text
    from prunekit.utils.files.sizes import folder_bytes

    family = FAMILIES[model_type]
    shape = family.shape(model.config)
    method = METHODS["prunekit"]
    with tempfile.TemporaryDirectory(prefix="prunekit-growth-") as folder:
        session = Session(
            model,
            family,
            lambda step: ids,
            importance=method.importance,
            layer_importance=None,
            batch_size=8,
            store=Path(folder),
            fast=True,
        )
        with meter.step("curves"):
            session.curves(lambda *args, **kwargs: None)
        meter.bytes["curves"] = folder_bytes(Path(folder))
        budgets = parse_target(None, share, None).budgets(shape, 4, shape)
        assert budgets.parameters is not None
        problem = Problem(budgets.parameters, Rounding(), method.units, budgets=budgets)
        with meter.step("solver"):
            allocated = allocation("optimal")(session, problem, lambda *args, **kwargs: None)
    scales = RescaleConfig()
    solved, tuned = split_text(scales, ids)
    wanted = final_hidden(model, tuned, fast=True)
    with meter.step("refit"):
        refit(model, family, shape, allocated.keeps, solved, fast=True)
    with meter.step("rescale"):
        rescale(model, tuned, wanted, scales, fast=True)
    return shape, allocated.keeps


def train(pruned: Any, dense: Any, ids: torch.Tensor, meter: Meter) -> None:
    """One step of the optimizer on all of ``ids``, after one that is not counted."""
    import torch

    from prunekit.data.packed.windows import Windows
    from prunekit.plan.training import TrainingConfig
    from prunekit.recovery.precision import precision
    from prunekit.recovery.teachers.online import OnlineTeacher
    from prunekit.recovery.training.gradient import Gradient
    from prunekit.recovery.training.optimizer import Optimizer
    from prunekit.recovery.training.progress import Standing
    from prunekit.recovery.training.student import Student

    config = TrainingConfig(batch_tokens=ids.numel())
    kind, computing = precision(pruned.device, "auto")
    fast = kind == "bfloat16"
    student = Student(pruned, config, computing, fast=fast)
    teacher = OnlineTeacher(dense, computing, separate=False, fast=fast)
    optimizer = Optimizer(student.parameters, config)
    gradient = Gradient(student, teacher, config.ce_share, Standing(micro_batch=MICRO_BATCH))

    def step(ids: torch.Tensor) -> None:
        gradient.put(Windows(ids, torch.zeros_like(ids)), len(ids))
        optimizer.step(config.learning_rate)
        student.clear()

    step(ids[:MICRO_BATCH])
    with meter.step("training"):
        step(ids)


class Meter:
    """Seconds of steps, and the most memory that the process (or the GPU) held during each."""

    def __init__(self, device: torch.device):
        self._device = device
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        # Of the process where the device is a GPU, and of files.
        self.host_peaks: dict[str, int | None] = {}
        self.bytes: dict[str, int] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        import torch

        from prunekit.utils.machine import synchronize
        from prunekit.utils.measuring.resident import peak_bytes, reset_peak

        synchronize(self._device)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        reset_peak()
        started = time.perf_counter()
        yield
        synchronize(self._device)
        self.seconds[name] = time.perf_counter() - started
        self.host_peaks[name] = peak_bytes()
        peak = torch.cuda.max_memory_allocated() if self._device.type == "cuda" else self.host_peaks[name]
        if peak is None:
            sys.exit("This system doesn't tell how much memory a process took; run it on Linux or macOS.")
        self.peaks[name] = peak


def exponents(rows: list[dict[str, Any]], base: dict[str, int]) -> dict[str, dict[str, dict[str, float]]]:
    """By what was doubled, by step: least-squares slopes of log seconds and log peak memory, where two sizes tell."""
    made: dict[str, dict[str, dict[str, float]]] = {}
    for what in base:
        chosen = [row for row in rows if all(row["size"][name] == base[name] for name in base if name != what)]
        if len(chosen) < 2:
            continue
        sizes = [math.log(row["size"][what]) for row in chosen]
        made[what] = {
            step: {
                name: round(statistics.linear_regression(sizes, [math.log(row[name][step]) for row in chosen]).slope, 2)
                for name in ("seconds", "peak_bytes")
            }
            for step in STEPS
        }
    return made


def table(report: dict[str, Any]) -> str:
    """Markdown: every run's seconds and peak memory, then the exponents."""
    lines = ["| layers | width | tokens | " + " | ".join(f"{step}: s, MiB" for step in STEPS) + " |"]
    lines.append("|---" * (3 + len(STEPS)) + "|")
    for row in report["runs"]:
        cells = [f"{row['size'][name]:,}" for name in BASE]
        cells += [f"{row['seconds'][step]:.2f}, {row['peak_bytes'][step] / 2**20:,.0f}" for step in STEPS]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| exponent of | " + " | ".join(f"{step}: seconds, memory" for step in STEPS) + " |"]
    lines.append("|---" * (1 + len(STEPS)) + "|")
    for what, found in report["exponents"].items():
        cells = [f"{found[step]['seconds']:.2f}, {found[step]['peak_bytes']:.2f}" for step in STEPS]
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
