"""Several sizes of one model, before any is made: plans, measured quality, file sizes, memory, users."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.errors import PrunekitError
from prunekit.evaluation.windows import EvalConfig
from prunekit.pipeline import plan_config, solve
from prunekit.pipeline.candidates.asked import Format, Sizes, check_options, read_format, read_sizes
from prunekit.pipeline.candidates.costs import Place, read_tables
from prunekit.pipeline.candidates.folder import write_folder
from prunekit.pipeline.candidates.kept import Kept, Measured
from prunekit.pipeline.candidates.overlap import share_seen
from prunekit.pipeline.candidates.plans import check_sizes, kept_plan, make_plans, phases_again, share_left
from prunekit.pipeline.candidates.result import Candidates, with_front
from prunekit.pipeline.candidates.rows import Candidate, Facts, rows_of
from prunekit.pipeline.candidates.words import advice, how_made, not_measured, shared_text
from prunekit.pipeline.forecast.sizes import Comparison
from prunekit.pipeline.forecast.tell import foretell_sizes, still_to_write
from prunekit.plan.goals import parse_size
from prunekit.plan.latency_table import LatencyTable
from prunekit.plan.recipe import DEFAULT, Recipe
from prunekit.pruning.planner import plan_phases, rounds_on_the_way
from prunekit.utils.files.hashes import token_ids_sha256
from prunekit.utils.files.replacing import CANDIDATES, local
from prunekit.utils.phases.run import current
from prunekit.utils.phases.telling import phases
from prunekit.utils.progress import progress

if TYPE_CHECKING:
    from prunekit.data.mixture import CalibrationText
    from prunekit.models.dense import DenseModel
    from prunekit.models.source import Source
    from prunekit.pipeline.candidates.asked import Size
    from prunekit.pipeline.candidates.quality import Judge
    from prunekit.plan import Plan
    from prunekit.pruning.planner import PlanConfig

CONTEXT, TOKENS = 2048, 16384
"""Of a user's KV cache, and of the text that quality is measured on, unless told otherwise."""
_LONGEST = 10**9
_log = logging.getLogger("prunekit")


def candidates(
    model: Source | str,
    out: str | Path,
    *,
    params: Sizes = None,
    blocks: Sizes = None,
    latency: Sizes = None,
    kv_cache: Sizes = None,
    method: str = DEFAULT,
    effort: str | None = None,
    calib: str | None = None,
    recipe: Recipe | None = None,
    text: str = "builtin",
    config: EvalConfig | None = None,
    ships_as: str | None = None,
    context: int = CONTEXT,
    memory: str | int | None = None,
    latency_tables: Sequence[LatencyTable | str | Path] = (),
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    overwrite: bool = False,
) -> Candidates:
    """Compare several sizes of ``model`` before any is made, as `prunekit candidates` does, and write the folder
    ``out``: `candidates.json`, a plan and its picture for each size, and one of all.

    ``params``, ``blocks``, ``latency`` or ``kv_cache`` lists the sizes ("0.9,0.8" or [0.9, 0.8]), as
    :func:`prunekit.prune` takes one; others of these are one goal of all. What is measured of the model (the loss
    curves of the default method) is measured once. Every size is then pruned in memory as its plan says, with all that
    the recipe computes, and evaluated on ``text`` beside the dense model, the first 16,384 tokens unless ``config``
    says otherwise. ``ships_as`` names a format ("gguf:q4_k_m"): every size is exported to a temporary folder to know
    its size, and where the format has fewer than 16 bits its quality. ``context`` tokens of each user and the device's
    ``memory`` ("8GB") say how many fit, ``latency_tables`` (one of prefill, one of decode) predict times; of a
    ``latency`` that is asked for, give the one of its phase.

    Finished work is kept in the cache: after an interruption the same call goes on. Raises PrunekitError where
    something makes no sense or can't be met, before the work where that can be known.

    >>> made = candidates("smollm2-135m", "sizes", params=[0.9, 0.8], text="held.jsonl")  # doctest: +SKIP
    >>> [(row.name, row.figures["loss_added"].value) for row in made.rows]  # doctest: +SKIP
    [('dense', 0.0), ('0.9', 0.071), ('0.8', 0.214)]
    """
    asked = {"params": params, "blocks": blocks, "latency": latency, "kv_cache": kv_cache}
    check_options(asked)
    tables = [each if isinstance(each, LatencyTable) else LatencyTable.load(each) for each in latency_tables]
    if latency is not None and len(tables) > 1:
        raise PrunekitError("--latency is met by one --latency-table; give the one of the phase that matters to you.")
    sizes = read_sizes(asked, tables[0] if tables else None)
    configs = [plan_config(each.goals, method, effort, calib, recipe, dtype=dtype, device=device) for each in sizes]
    format_ = None if ships_as is None else read_format(ships_as)
    config = config or EvalConfig(max_tokens=TOKENS)
    place = Place(_tokens(context), None if memory is None else parse_size(_bytes(memory), "--device-memory"), {})
    from prunekit.evaluation.check import check_there
    from prunekit.models.source import as_source
    from prunekit.utils.files.atomic import check_output_folder

    out = Path(out)
    named = model if isinstance(model, str) else str(model.path)
    files = [each for each in latency_tables if not isinstance(each, LatencyTable)]
    inputs = local(named, calib, text, *files)
    check_output_folder(out, overwrite, kind=CANDIDATES, inputs=inputs)
    check_there(text)
    source = as_source(model, revision=revision)
    place = replace(place, tables=read_tables(tables, source.shape))
    check_sizes(source, configs)
    rows = map(_row, (_DENSE, *(each.name for each in sizes)))
    with phases(*plan_phases(configs[0].recipe), *phases_again(source, configs), _PLANS, *rows):
        made = _Work(source, sizes, configs, format_, text, config, out).all(place)
    write_folder(made, out, overwrite, inputs)
    return replace(made, path=out)


def _tokens(context: int) -> int:
    if isinstance(context, bool) or not isinstance(context, int) or not 1 <= context <= _LONGEST:
        raise PrunekitError(f"--context must be a number of tokens from 1 to {_LONGEST:,}, got {context!r}.")
    return context


def _bytes(memory: str | int) -> str:
    return f"{memory}B" if isinstance(memory, int) else memory


_DENSE, _PLANS = "dense", "plans"


def _row(name: str) -> str:
    """What the phase is called in which a size is pruned in memory and measured."""
    return f"quality of {name}"


def _succeeded(found: Candidate, missing: str | None) -> bool:
    """Whether a size was measured, and exported where a format was asked for that can be written here."""
    exported = found.shipped is None or missing is not None or bool(found.shipped.facts)
    return found.own.result is not None and exported


@dataclass
class _Work:
    """One comparison: what is asked for, checked."""

    source: Source
    sizes: Sequence[Size]
    configs: Sequence[PlanConfig]
    format_: Format | None
    text: str
    config: EvalConfig
    out: Path

    def all(self, place: Place) -> Candidates:
        """Measure everything."""
        from prunekit.data.calibration import check_length
        from prunekit.data.mixture import calibration_text
        from prunekit.data.sources import source_name
        from prunekit.models.dense import DenseModel
        from prunekit.models.source import load_tokenizer, pick_device, pick_dtype
        from prunekit.pipeline.candidates.quality import Judge
        from prunekit.pipeline.candidates.shipping import why_not
        from prunekit.utils.machine import describe_machine
        from prunekit.utils.provenance import model_label, versions

        source, first = self.source, self.configs[0]
        dense = DenseModel(source, dtype=first.dtype, device=first.device)
        tokenizer = load_tokenizer(source)
        judge = Judge(dense, tokenizer, self.text, self.config)
        check_length(first.recipe.calibration, source.config)
        missing = None if self.format_ is None else why_not(self.format_)
        if missing is not None:
            _log.warning("Sizes and quality in %s are not measured: %s", self.format_ and self.format_.text, missing)
        # Where the model has text to write, nothing else is kept: it is told before. Else what is kept is known first.
        unwritten = bool(still_to_write(dense, first.recipe.calibration))
        if unwritten:
            self._foretell(dense, judge, {each.name for each in self.sizes}, planned=False)
        calibration = calibration_text(first.recipe.calibration, tokenizer, dense)
        seen = share_seen(judge.ids, calibration.input_ids)
        shared = shared_text(self.text, first.recipe.calibration.source, seen)
        if shared is not None:
            _log.warning("%s", shared)
        kept = Kept.of(
            "quality", source.fingerprint, judge.digest, first.dtype, str(pick_device(first.device)), versions()
        )
        todo = self._to_measure(calibration, kept, missing)
        if not unwritten:
            planned = all(kept_plan(source, each, calibration) is not None for each in self.configs)
            self._foretell(dense, judge, todo, planned=planned)
        self._weigh(todo)
        plans, rounding = make_plans(source, self.configs, self.format_, dense, calibration, _PLANS)
        with progress(_row(_DENSE), 1) as advance:
            found = [self._dense(dense, judge, kept, missing)]
            advance()
        for size, plan in zip(self.sizes, plans, strict=True):
            with progress(_row(size.name), 1) as advance:
                partly = self._is_kept_in_part(plan.file_digest(), kept, missing)
                found.append(self._pruned(size, plan, dense, judge, kept, missing))
                # Only a size that was all made now tells how long the others take.
                advance(kept=partly or not _succeeded(found[-1], missing))
        facts = Facts(source.shape, source.dtype, source_name(self.text), self.format_, place)
        rows = [row for each in found for row in rows_of(each, facts)]
        told = dict(zip((size.name for size in self.sizes), rounding, strict=True))
        rows = [replace(row, advice=advice(row.fallbacks, told.get(row.name.split(" ")[0]))) for row in rows]
        result = found[0].own.result
        return Candidates(
            model={
                "name": model_label(source.name),
                "fingerprint": source.fingerprint,
                "parameters": source.shape.parameters,
                "family": source.family.model_type,
            },
            machine=describe_machine(pick_device(first.device)),
            versions=versions(),
            calibration=calibration.describe(),
            evaluation={
                "source": source_name(self.text),
                "tokens": len(judge.ids),
                "tokens_predicted": None if result is None else result.tokens_predicted,
                "windows": None if result is None else result.windows,
                "length": min(self.config.length, len(judge.ids)),
                "stride": self.config.step,
                "token_ids_sha256": token_ids_sha256(judge.ids.cpu().numpy()),
                "dtype": str(pick_dtype(first.dtype) or source.dtype).removeprefix("torch."),
                "device": pick_device(first.device).type,
                "shared_with_calibration": round(seen, 4),
            },
            ships_as=None if self.format_ is None else self.format_.text,
            context=place.context,
            memory=place.memory,
            rows=with_front(rows),
            not_measured=not_measured(self.text, shared, self.format_, missing, bool(place.tables)),
        )

    def _to_measure(self, calibration: CalibrationText, kept: Kept, missing: str | None) -> set[str]:
        """The names of the sizes that were not measured before."""
        found = set()
        for size, config in zip(self.sizes, self.configs, strict=True):
            plan = kept_plan(self.source, config, calibration)
            if plan is None or not self._is_kept(plan.file_digest(), kept, missing):
                found.add(size.name)
        return found

    def _foretell(self, dense: DenseModel, judge: Judge, todo: set[str], *, planned: bool) -> None:
        """Tell how long it will take to measure the sizes ``todo``."""
        from prunekit.evaluation.windows import windows

        recipe, ids, run = self.configs[0].recipe, len(judge.ids), current.get()
        spans = windows(ids, self.config.length, self.config.step)
        shares = {size.name: share_left(self.source, each) for size, each in zip(self.sizes, self.configs, strict=True)}
        if run is not None:
            run.foresee({_row(name): 0.0 for name in shares if name not in todo})
        asked = Comparison(
            shares={_row(name): share for name, share in shares.items() if name in todo},
            plans=_PLANS,
            dense=_row(_DENSE),
            tokens=len(spans) * min(ids, self.config.length),
            stored=self.source.dtype.itemsize,
            exports=self.format_ is not None,
            rounds=max((rounds_on_the_way(self.source, each) for each in self.configs), key=len),
        )
        foretell_sizes(dense, recipe, asked, planned=planned, out=self.out)

    def _weigh(self, todo: set[str]) -> None:
        """Sizes are the same work each: the first tells how long the others take, and of later models the same."""
        from prunekit.models.source import pick_device
        from prunekit.utils.machine import speed_key

        if (run := current.get()) is None:
            return
        first, text = self.configs[0], self.configs[0].recipe.calibration
        solved = first.recipe.refit is not None, first.recipe.rescale is not None
        format_ = None if self.format_ is None else self.format_.text
        what = ["candidates", text.sequences, text.length, *solved, self.config.max_tokens, first.dtype, format_]
        work = {_row(size.name): float(self.source.shape.parameters) for size in self.sizes if size.name in todo}
        run.weigh(work, [*what, *speed_key(pick_device(first.device))])

    def _is_kept(self, digest: str, kept: Kept, missing: str | None) -> bool:
        """Whether everything of a size was measured before."""
        shipped = self.format_ is None or self._kept_shipped(digest, kept, missing) is not None
        return shipped and kept.measured("prune", digest) is not None

    def _is_kept_in_part(self, digest: str, kept: Kept, missing: str | None) -> bool:
        """Whether something of a size was measured before."""
        shipped = None if missing is not None else self._kept_shipped(digest, kept, missing)
        return kept.measured("prune", digest) is not None or shipped is not None

    def _dense(self, dense: DenseModel, judge: Judge, kept: Kept, missing: str | None) -> Candidate:
        own = kept.measured("dense") or kept.keep(judge.of_dense(), "dense")
        shipped = self._shipped("dense", judge, kept, missing, None, None)
        return Candidate("dense", None, own, shipped, "nothing is pruned")

    def _pruned(
        self, size: Size, plan: Plan, dense: DenseModel, judge: Judge, kept: Kept, missing: str | None
    ) -> Candidate:
        """What is known of a size, and what is not, measured."""
        from prunekit.pipeline.candidates.quality import failed, solved_in_memory

        digest, how = plan.file_digest(), how_made(plan)
        own = kept.measured("prune", digest)
        shipped = self._kept_shipped(digest, kept, missing)
        if own is not None and (shipped is not None or self.format_ is None):
            return Candidate(size.name, plan, own, shipped, how)
        judge.prepare()
        options = {"dtype": dense.dtype, "device": dense.device}
        try:
            model, solved, weights, seconds = solved_in_memory(self.source, plan, lambda: solve(dense, plan), **options)
        except PrunekitError as error:
            return Candidate(size.name, plan, failed(error), failed(error) if self.format_ else None, how)
        if own is None:
            own = kept.keep(replace(judge.of(model), seconds=seconds), "prune", digest)
        # Room for what is exported.
        del model
        gc.collect()
        shipped = self._shipped(digest, judge, kept, missing, solved, weights)
        return Candidate(size.name, plan, own, shipped, how)

    def _kept_shipped(self, digest: str, kept: Kept, missing: str | None) -> Measured | None:
        if self.format_ is None:
            return None
        return Measured(why=missing) if missing is not None else kept.measured(*self._export_key(self.format_, digest))

    @staticmethod
    def _export_key(format_: Format, digest: str) -> tuple[str | None, ...]:
        """Under which name an export is kept: what writes it decides its bytes."""
        writers = (f"{each.package} {each.version}" for each in format_.target.writes_with)
        return (format_.text, digest, *writers)

    def _shipped(
        self, digest: str, judge: Judge, kept: Kept, missing: str | None, plan: Plan | None, weights: Any
    ) -> Measured | None:
        """The export of the model of that plan's ``digest``."""
        found = self._kept_shipped(digest, kept, missing)
        if self.format_ is None or found is not None:
            return found
        from prunekit.pipeline.candidates.shipping import shipped

        if self.format_.rounds:
            judge.prepare()
        # Beside the result, where there is to be space: a temporary folder elsewhere may be small.
        parent = self.out.absolute().parent
        beside = parent if parent.is_dir() else None
        device = self.configs[0].device
        made = shipped(self.source, self.format_, judge, device, beside, plan, weights)
        # What failed may work the next time.
        return kept.keep(made, *self._export_key(self.format_, digest)) if made.facts else made
