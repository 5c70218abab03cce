"""What each part of the recipe brings: every way to choose widths × to choose units × without refit, with it, rescaled.

    python -m benchmarks.quality.ablation smollm2-135m --calib calibration.txt.gz --text heldout.txt --text other.txt \\
        --blocks 0.79 --output benchmarks/results/ablation.json

Widths: the same share from every layer, by turns of the residual stream (adapt), by Fisher information a parameter
(global), by loss curves (optimal). Units at these widths: by Taylor scores, by Fisher scores, by elimination with exact
updates (which the curves tell for every width). All see the same mix of text and --written that the model writes. What
is done is kept in --output: a run that was cut short goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.quality.report_file import begun, save

if TYPE_CHECKING:
    import torch

    from prunekit.data.calibration import Calibration
    from prunekit.plan import LayerKeep
    from prunekit.plan.shape import LayerShape
    from prunekit.pruning.allocation import Problem
    from prunekit.pruning.allocation.session import Session
    from prunekit.pruning.curves.loss_curves import LayerCurves

# Name: allocation, unit scores and layer scores it goes by.
WIDTHS = {
    "the same share": ("uniform", "taylor", None),
    "adapt": ("adapt", "taylor", "cosine"),
    "global": ("global", "fisher", None),
    "curves": ("optimal", "fisher", None),
}
UNITS = ("taylor", "fisher", "elimination")
STAGES = ("cut", "refit", "rescaled")
# Settings that may change from one run of a report to the next.
_FREE = ("only", "units", "rescale", "output")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calib", required=True)
    parser.add_argument("--written", type=float, default=0.33, help="share of the calibration text the model writes")
    parser.add_argument("--text", action="append", required=True, help="repeatable: texts to evaluate on")
    parser.add_argument("--blocks", type=float, default=0.79)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--scored", type=int, default=16, help="sequences of the other text that units are scored on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=sorted(WIDTHS), help="repeatable: only these widths")
    parser.add_argument("--units", action="append", choices=UNITS, help="repeatable: only these ways to choose units")
    parser.add_argument(
        "--no-rescale", dest="rescale", action="store_false", help="leave rescaling out; its share of the text too"
    )
    parser.add_argument("--ffn-multiple", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=8192, help="tokens evaluated of each text")
    parser.add_argument("--dtype", default="float32", help="of the evaluation (bfloat16: half the time here)")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    report = begun(options.output, "ablation", _asked(options))
    bench = Bench(options)
    for name in options.only or WIDTHS:
        for units in options.units or UNITS:
            # A combination's stages are saved together.
            if any((run["widths"], run["units"]) == (name, units) for run in report["runs"]):
                continue
            print(f"{name}, {units} …", file=sys.stderr, flush=True)
            report["runs"] += bench.run(name, units)
            save(options.output, report)
    print(table(report))
    options.output.with_suffix(".md").write_text(table(report) + "\n", encoding="utf-8")


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """What rows of one report must have in common."""
    from prunekit.data.sources import source_name

    asked = {name: value for name, value in vars(options).items() if name not in _FREE}
    asked |= {"model": source_name(options.model), "calib": source_name(options.calib)}
    return asked | {"text": [source_name(text) for text in options.text]}


def remember(base: Any) -> None:
    """Let ``base`` run once on each batch: every stage is compared with the same dense model on the same text."""
    forward, known = base.forward, {}

    def remembered(input_ids: torch.Tensor, position_ids: None, use_cache: bool) -> Any:
        key = input_ids.cpu().numpy().tobytes()
        if key not in known:
            known[key] = forward(input_ids=input_ids, use_cache=use_cache)
        return known[key]

    base.forward = remembered


@dataclass(frozen=True)
class _Text:
    """Token ids [N, L] of the whole mix, of what others wrote, and which the model has ``written`` (bool [N])."""

    mixed: torch.Tensor
    others: torch.Tensor
    written: torch.Tensor


class Bench:
    """The dense model, and what all combinations share: text, loss curves, widths."""

    def __init__(self, options: argparse.Namespace):
        from prunekit.data.mixture import calibration_text
        from prunekit.evaluation.perplexity import EvalConfig, read_texts
        from prunekit.models.dense import DenseModel
        from prunekit.models.source import load_model, load_tokenizer, resolve
        from prunekit.plan.allocations import OptimalConfig
        from prunekit.pruning.loaded import curve_folder
        from prunekit.recovery.rescale import RescaleConfig, split_text
        from prunekit.utils.numerics.bf16 import has_fast_products

        self._options = options
        self._source = resolve(options.model)
        tokenizer = load_tokenizer(self._source)
        self._tokenizer = tokenizer
        self._model: Any = load_model(self._source, dtype="auto", device="auto")
        self._judge = load_model(self._source, dtype=options.dtype, device="auto")
        remember(self._judge.base_model)
        calibration = calibration_text(self._mix(), tokenizer, DenseModel(self._source))
        written = calibration.written
        self._text = _Text(calibration.input_ids, calibration.input_ids[~written], written)
        self._fast = has_fast_products(self._model.device)
        self._scales = RescaleConfig()
        self._solved, self._tuned = split_text(self._scales, calibration.input_ids, written)
        computed = {"dtype": str(self._model.dtype).removeprefix("torch."), "device": self._model.device.type}
        if self._fast:
            computed["products"] = "bfloat16"
        # Where `prunekit plan` keeps the same curves: by model, text, precision and versions.
        self._store = curve_folder(self._source, calibration, computed, OptimalConfig())
        self._config = EvalConfig(max_tokens=options.max_tokens)
        self._texts = read_texts(options.text, tokenizer, self._config)
        self._curves: tuple[LayerCurves, ...] | None = None
        self._shapes: dict[str, tuple[LayerShape, ...]] = {}

    def _mix(self) -> Any:
        from prunekit.data.calibration import CalibrationConfig

        share = self._options.written
        source = f"{self._options.calib}:{1 - share:g},self:{share:g}" if share else self._options.calib
        given = self._options
        return CalibrationConfig(source, given.sequences, given.length, batch_size=8, seed=given.seed)

    @cached_property
    def _few(self) -> Calibration:
        """What widths by turns of the residual stream are scored on, at each of many steps: as little as their method
        takes."""
        from prunekit.data.calibration import CalibrationConfig, load_calibration
        from prunekit.plan.methods import METHODS

        own, given = METHODS["adapt-pruner"].calibration, self._options
        few = CalibrationConfig(given.calib, own.sequences, own.length, own.batch_size, seed=given.seed)
        return load_calibration(few, self._tokenizer)

    @cached_property
    def _wanted(self) -> torch.Tensor:
        """What the dense model has to say on the text of rescaling."""
        from prunekit.recovery.rescale import final_hidden

        return final_hidden(self._model, self._tuned, self._scales.batch_size, self._fast)

    def run(self, widths: str, units: str) -> list[dict[str, Any]]:
        """One combination, a record a stage. Seconds are of the stage, the curves' and widths' left out."""
        from prunekit.recovery.refit import refit
        from prunekit.recovery.rescale import rescale

        keeps = self._keeps(self._widths(widths), units)
        made = []

        def record(stage: str, model: Any, seconds: float) -> None:
            found = {"widths": widths, "units": units, "stage": stage, "seconds": round(seconds, 1)}
            made.append(found | {"texts": self._evaluated(model)})

        started = time.perf_counter()
        cut = self._session("taylor", None, copy.deepcopy(self._model))
        cut.shrink(keeps)
        record("cut", cut.model, time.perf_counter() - started)
        del cut
        model = copy.deepcopy(self._model)
        started = time.perf_counter()
        refit(model, self._source.family, self._source.shape, keeps, self._solved, fast=self._fast)
        record("refit", model, time.perf_counter() - started)
        if not self._options.rescale:
            return made
        wanted = self._wanted
        started = time.perf_counter()
        rescale(model, self._tuned, wanted, self._scales, seed=self._options.seed, fast=self._fast)
        record("rescaled", model, time.perf_counter() - started)
        return made

    def _evaluated(self, model: Any) -> list[dict[str, Any]]:
        from prunekit.evaluation.perplexity import evaluate

        judged = copy.deepcopy(model).to(next(self._judge.parameters()).dtype)
        found = evaluate(judged, self._tokenizer, self._texts, self._config, self._judge)
        kept: list[dict[str, Any]] = found.to_dict()["results"]
        return kept

    def _drawn(self, units: str, layers: str | None, step: int) -> torch.Tensor:
        if layers is not None:
            return self._few.step(step).input_ids
        # Loss curves take the mix, scores what the model has not written.
        return self._text.mixed if units == "curves" else self._text.others[: self._options.scored]

    def _session(self, units: str, layers: str | None, model: Any = None) -> Session:
        from prunekit.pruning.allocation.session import Session

        return Session(
            model or self._model,
            self._source.family,
            lambda step: self._drawn(units, layers, step),
            importance="fisher" if units == "curves" else units,
            layer_importance=layers,
            batch_size=8,
            seed=self._options.seed,
            store=self._store,
            fast=self._fast,
        )

    def _widths(self, name: str) -> tuple[LayerShape, ...]:
        from prunekit.pruning.allocation import allocation

        if name not in self._shapes:
            kind, units, layers = WIDTHS[name]
            session = self._session("curves" if kind == "optimal" else units, layers)
            # Adapt shrinks the model as it goes.
            session = session.copy() if kind == "adapt" else session
            allocated = allocation(kind)(session, self._problem(kind), lambda *args, **kwargs: None)
            self._shapes[name] = tuple(keep.shape for keep in allocated.keeps)
        return self._shapes[name]

    def _problem(self, kind: str) -> Problem:
        from prunekit.plan.goals import parse_target
        from prunekit.plan.methods import METHODS
        from prunekit.plan.rounding import Rounding
        from prunekit.pruning.allocation import Problem

        shape = self._source.shape
        budgets = parse_target(None, str(self._options.blocks), None).budgets(shape, 2, shape)
        assert budgets.parameters is not None
        units = METHODS["prunekit" if kind == "optimal" else "adapt-pruner"].units
        return Problem(budgets.parameters, Rounding(self._options.ffn_multiple), units, budgets=budgets)

    def _keeps(self, shapes: Sequence[LayerShape], units: str) -> tuple[LayerKeep, ...]:
        if units != "elimination":
            session = self._session(units, None)
            return session.select(session.score(), tuple(shapes))
        if self._curves is None:
            self._curves = self._session("curves", None).curves(lambda *args, **kwargs: None)
        pairs = zip(self._curves, shapes, strict=True)
        return tuple(curve.keep(place, shape) for place, (curve, shape) in enumerate(pairs))


def table(report: dict[str, Any]) -> str:
    """Markdown: excess loss in nats a token by text, cut; refitted; rescaled, and each stage's seconds."""
    texts = report["asked"]["text"]
    lines = ["| widths | units | " + " | ".join(f"{text}: cut; refit; rescaled" for text in texts) + " | seconds |"]
    lines.append("|---|---|" + "---|" * (len(texts) + 1))
    for widths in WIDTHS:
        for units in UNITS:
            runs = {run["stage"]: run for run in report["runs"] if (run["widths"], run["units"]) == (widths, units)}
            if not runs:
                continue
            cells = [
                "; ".join(
                    f"{runs[stage]['texts'][place]['nll_increase']:.3f}" if stage in runs else "–" for stage in STAGES
                )
                for place in range(len(texts))
            ]
            seconds = "; ".join(f"{runs[stage]['seconds']:.0f}" if stage in runs else "–" for stage in STAGES)
            lines.append(f"| {widths} | {units} | " + " | ".join(cells) + f" | {seconds} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
