"""Is a broken model called broken, and a good one not? Models pruned by many methods, and files with damaged tensors.

    python -m benchmarks.quality.verdicts smollm2-135m --good smaller/ --good recovered/ \\
        --output benchmarks/results/verdicts_cpu.json

Each model is judged by the check that ends `prunekit prune` (docs/quality.md). What was meant by each stands in the
source; damaged files are copies of the first folder of --good. What is done is kept in --output, and a run that was
cut short goes on.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.quality.report_file import begun, save

if TYPE_CHECKING:
    import torch

GOOD, BAD = "good", "destroyed"
_WEIGHTS = "model.safetensors"
# Mild prunings, and such as leave no model worth the name: method, share of the blocks left.
MILD = (("fisher-global", 0.95), ("fisher-global", 0.9), ("adapt-pruner", 0.95), ("prunekit", 0.95), ("prunekit", 0.9))
HARSH = (("magnitude", 0.8), ("magnitude", 0.5), ("random", 0.7), ("shortgpt", 0.6), ("wanda-sp", 0.5), ("flap", 0.4))


def _zeroed(weight: torch.Tensor) -> torch.Tensor:
    return weight * 0


def _doubled(weight: torch.Tensor) -> torch.Tensor:
    return weight * 8


def _reversed(weight: torch.Tensor) -> torch.Tensor:
    return weight.flip(0)


def _noisy(weight: torch.Tensor) -> torch.Tensor:
    import torch

    spread = weight.float().std()
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    return (weight.float() + noise * spread).to(weight.dtype)


def _not_a_number(weight: torch.Tensor) -> torch.Tensor:
    damaged = weight.clone()
    damaged.view(-1)[0] = float("nan")
    return damaged


def _bit_flipped(weight: torch.Tensor) -> torch.Tensor:
    """The highest bit of the exponent of one weight, as a faulty disk or memory leaves it."""
    import torch

    damaged = weight.contiguous().clone()
    whole = torch.int16 if damaged.element_size() == 2 else torch.int32
    bit = 1 << (8 * damaged.element_size() - 2)
    damaged.view(whole).view(-1)[0] ^= bit
    return damaged


# What is done to the tensors whose name ends so.
DAMAGE: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "final norm zero": ("model.norm.weight", _zeroed),
    "first FFN zero": ("layers.0.mlp.down_proj.weight", _zeroed),
    "first output projection times 8": ("layers.0.self_attn.o_proj.weight", _doubled),
    "noise on every query projection": ("self_attn.q_proj.weight", _noisy),
    "rows of every output projection reversed": ("self_attn.o_proj.weight", _reversed),
    "one weight not a number": ("layers.10.mlp.up_proj.weight", _not_a_number),
    "one bit of one weight": ("layers.0.mlp.up_proj.weight", _bit_flipped),
}


@dataclass(frozen=True)
class Case:
    """A model: ``meant`` is good or destroyed; ``make(folder)`` writes it there, or says where it is."""

    name: str
    meant: str
    make: Callable[[Path], Path]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument(
        "--good", action="append", type=Path, required=True, help="repeatable: checkpoints that hold up"
    )
    parser.add_argument("--effort", default="quick", help="of the default method")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    report = begun(options.output, "verdicts", {"model": options.model, "effort": options.effort})
    for case in cases(options.model, options.good, options.effort):
        if any(run["name"] == case.name for run in report["runs"]):
            continue
        print(f"{case.name} …", file=sys.stderr, flush=True)
        report["runs"].append({"name": case.name, "meant": case.meant, **judged(case, options.model)})
        save(options.output, report)
    print(table(report))


def cases(model: str, good: list[Path], effort: str) -> Iterator[Case]:
    """What is judged: the good ones first."""
    for folder in good:
        yield Case(folder.name, GOOD, lambda _, folder=folder: folder)
    for method, share in MILD:
        yield Case(f"{method} {share:g}", GOOD, _pruned(model, method, share, effort))
    for method, share in HARSH:
        yield Case(f"{method} {share:g}", BAD, _pruned(model, method, share, effort))
    for name, (ends, change) in DAMAGE.items():
        yield Case(name, BAD, _damaged(good[0], ends, change))


def judged(case: Case, model: str) -> dict[str, Any]:
    """The verdict on ``case``, made in a temporary folder."""
    import prunekit

    with tempfile.TemporaryDirectory() as scratch:
        found = prunekit.check(str(case.make(Path(scratch) / "model")), model).to_dict()
    return {name: value for name, value in found.items() if name != "examples"}


def _pruned(model: str, method: str, share: float, effort: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        words = ["prune", model, "--method", method, "--blocks", str(share), "--check", "none", "-o", str(folder)]
        if method == "prunekit":
            words += ["--effort", effort]
        subprocess.run([sys.executable, "-m", "prunekit", *words, "-q"], check=True, stdout=subprocess.DEVNULL)
        return folder

    return make


def _damaged(good: Path, ends: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from safetensors import safe_open
        from safetensors.torch import save_file

        shutil.copytree(good, folder)
        with safe_open(good / _WEIGHTS, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in [*file.keys()]}
            about = file.metadata()
        hit = [name for name in tensors if name.endswith(ends)]
        if not hit:
            raise SystemExit(f"{good} has no tensor that ends in {ends}; give another checkpoint first.")
        tensors.update({name: change(tensors[name]) for name in hit})
        save_file(tensors, folder / _WEIGHTS, about)
        return folder

    return make


def table(report: dict[str, Any]) -> str:
    """A row for each model, as Markdown."""
    rows = ["| model | meant | verdict | loss added | same first choices |", "|---|---|---|---|---|"]
    for run in report["runs"]:
        loss, same = run.get("loss_added"), run.get("agreement")
        told = [f"{loss:.3f}" if loss is not None else "–", f"{same:.0%}" if same is not None else "–"]
        rows.append(f"| {run['name']} | {run['meant']} | {run['verdict']} | {' | '.join(told)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
