"""One variant: pruned where it has to be, trained, and what that took."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.run_info import commit
from benchmarks.recovery.processes import Ended, run
from benchmarks.recovery.variants import ARMS, Variant, configured, mix
from prunekit.data.sources import source_name
from prunekit.models.source import pick_device
from prunekit.plan import Plan


class Failed(Exception):
    """A command that ended badly, and what it said."""


@dataclass(frozen=True)
class Bench:
    """What all variants share. A training sees so many ``tokens``, or takes about so many ``minutes``, or makes so many
    ``steps``, on text of one's ``own``. Where a model has to be pruned first, ``calib`` is what for. Models are made in
    ``folder``."""

    dense: str
    pruned: Path
    own: Sequence[str]
    tokens: int | None
    minutes: float | None
    steps: int | None
    seed: int
    calib: str | None
    device: str
    folder: Path

    def train(self, variant: Variant) -> tuple[Path, dict[str, Any]]:
        """The trained model of ``variant``, and a record of its making. Raises Failed where a command ended badly: a
        training goes on from there the next time."""
        arm = ARMS.get(variant.arm)
        told = mix(variant.text, [source_name(each) for each in self.own])
        record: dict[str, Any] = {
            "variant": variant.name,
            "settings": dict(variant.settings),
            "text": told,
            "commit": commit(),
        }
        begun = self.pruned
        training = ["--text", mix(variant.text, self.own), *self._budget(variant)]
        training += [word for name, value in variant.settings.items() for word in ("--set", f"{name}={value}")]
        made = self.folder / variant.name
        if arm is not None:
            share = Plan.load(self.pruned / "plan.json").share_of_blocks
            command = ["prune", self.dense, "--blocks", f"{share:.6f}", *arm.prune, "--set", f"seed={self.seed}"]
            command += ["--calib", self.calib] if self.calib else []
            if arm.trains:
                return made, record | summary(self._done([*command, *training], made))
            begun = self.folder / f"{variant.arm}-pruned"
            if not begun.is_dir():
                pruning = self._done(command, begun)
                record["prune_seconds"] = pruning.spent.seconds
        command = ["recover", str(begun), "--teacher", self.dense, "--seed", str(self.seed), *training]
        return made, record | summary(self._done(command, made))

    def forget(self, name: str) -> None:
        """Remove what the training of that name left."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        self._log(self.folder / name).unlink(missing_ok=True)

    def _done(self, command: list[str], made: Path) -> Ended:
        """Run ``command``, which makes a model. Its log is kept as long as the training may go on, so that all steps
        are counted, and none that is done anew."""
        shutil.rmtree(made, ignore_errors=True)
        if not made.with_name(f"{made.name}.training").is_dir():
            self._log(made).unlink(missing_ok=True)
        ended = run([*command, "-o", str(made), "--device", self.device, "--json"], self._log(made))
        if ended.code:
            raise Failed(ended.error)
        return ended

    def _log(self, made: Path) -> Path:
        return made.with_name(f"{made.name}.jsonl")

    def _budget(self, variant: Variant) -> list[str]:
        if self.minutes is not None:
            return ["--minutes", f"{self.minutes:g}"]
        if self.tokens is not None:
            return ["--tokens", str(self.tokens)]
        config, text = configured(variant)
        batch_tokens = config.on(pick_device(self.device).type).batch_tokens
        assert batch_tokens is not None
        sequences = max(1, round(batch_tokens / text.length))
        return ["--tokens", str((self.steps or 1) * sequences * text.length)]


def summary(ended: Ended) -> dict[str, Any]:
    """Of what a training told, or several that took turns with pruning: seconds of its steps, each counted once where
    it went on after a stop; speed, memory, and the divergence on the text that it judges itself by."""
    stage = 0
    seconds: dict[tuple[int, int], float] = {}
    for each in ended.told:
        if "phase" in each:
            stage = each["stage"]
        elif "step" in each and "seconds" in each:
            seconds[stage, each["step"]] = each["seconds"]
    estimates = [each["estimate"] for each in ended.told if "estimate" in each]
    said: Any = next((each["recovery"] for each in reversed(ended.told) if "recovery" in each), [])
    trainings: list[dict[str, Any]] = said if isinstance(said, list) else [said]
    spent, tokens = sum(seconds.values()), sum(each["tokens"] for each in trainings)
    return {
        "tokens": tokens,
        "steps": sum(each["steps"] for each in trainings),
        **({name: trainings[-1].get(name) for name in ("used_step", "computed_in")} if trainings else {}),
        "distributions": [each["teacher"].get("distributions") for each in trainings],
        "own_held_out_kl": [each["held_out_kl"] for each in trainings],
        "held_out_curve": [each["held_out"] for each in ended.told if "held_out" in each],
        "training_seconds": round(spent, 1),
        "tokens_per_second": round(tokens / spent, 1) if spent else None,
        "seconds": ended.spent.seconds,
        "cpu_seconds": ended.spent.cpu_seconds,
        "peak_bytes": ended.spent.peak_bytes,
        # On a GPU that of its own memory.
        "trial_peak_bytes": estimates[-1]["memory"] if estimates else None,
        # Seconds, CPU seconds and memory are then those of the last process alone.
        **({"processes": len(estimates)} if len(estimates) > max(1, len(trainings)) else {}),
    }
