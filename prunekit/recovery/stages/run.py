"""From a dense model to a pruned and trained one, in one or several stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from prunekit.checkpoint.manifest import written_once
from prunekit.checkpoint.overrides import LAYER
from prunekit.checkpoint.rebuild import cut_tensors, rebuild
from prunekit.checkpoint.trained import plan_of
from prunekit.data.calibration import check_length
from prunekit.data.self_generated import Writing
from prunekit.errors import PrunekitError
from prunekit.models.source import load_tokenizer, resolve
from prunekit.plan import Plan, compose
from prunekit.recovery.lessons import Final, Lessons, Reach, Trained
from prunekit.recovery.stages.carry import cut_moments
from prunekit.recovery.stages.shares import average_work, spans, stage_count, token_shares
from prunekit.recovery.training import state
from prunekit.recovery.training.lora import check_peft
from prunekit.recovery.training.progress import Listener, Standing
from prunekit.recovery.training.run import Budget, Recovered, asked_of, begun_with, place_of, settled
from prunekit.recovery.training.run_folder import RunFolder, run_folder
from prunekit.recovery.training.schedule import Span
from prunekit.utils.process import ranks
from prunekit.utils.process.ranks import from_first, shared
from prunekit.utils.provenance import model_label

if TYPE_CHECKING:
    from prunekit.checkpoint.layout import Layout
    from prunekit.models.source import Source
    from prunekit.plan.training import StagesConfig, TextConfig, TrainingConfig


@dataclass(frozen=True)
class Cut:
    """``plan`` says which units of a model stay, ``weights`` are what was solved for those that do (None: nothing), as
    :func:`prunekit.checkpoint.rebuild.rebuild` takes them."""

    plan: Plan
    weights: Mapping[str, torch.Tensor] | None


class Cutter(Protocol):
    """How a model is pruned. ``asked`` is what is wanted, in JSON values, and ``removed`` the share of the dense model
    that must go."""

    asked: dict[str, Any]
    removed: float

    def targets(self, stages: int) -> list[float]:
        """How far along the way to its target each of ``stages`` brings the dense model, rising to 1."""

    def cut(self, source: Source, so_far: Plan | None, target: float, stage: tuple[int, int]) -> Cut:
        """Prune ``source``, which was made of the dense model by the plan ``so_far`` (None: it is that model), until
        it is so far along the way. ``stage`` is its number, from 1, and how many there are."""


@dataclass(frozen=True)
class Ladder:
    """All stages: how far each goes along the way to the target, and which steps of the schedule it trains (None: all
    of them, and how many is found out by a trial)."""

    targets: Sequence[float]
    spans: Sequence[Span | None]

    def __len__(self) -> int:
        return len(self.targets)


def prune_and_train(
    source: Source,
    out: Path,
    cutter: Cutter,
    *,
    stages: int | None,
    text: TextConfig,
    budget: Budget,
    config: TrainingConfig,
    turns: StagesConfig,
    writing: Writing,
    loop: str | None = None,
    layout: Layout = "per-layer",
    dtype: str = "auto",
    device: str = "auto",
    store_dtype: str = "auto",
    max_shard_bytes: int = 2 * 2**30,
    overwrite: bool = False,
    checkpoint_minutes: float = 10.0,
    beside: Callable[[Path, Recovered], None] = lambda folder, made: None,
    listener: Listener | None = None,
) -> Recovered:
    """Prune the dense ``source`` and train what is left toward it, in so many ``stages`` (None: as many as ``turns``
    finds best), and write that as the checkpoint ``out``. ``loop`` names the published one that was asked for;
    ``writing`` gives what samples the text that the dense model writes to train on.

    Every stage prunes what the one before has trained. Its own training ends with the weights of least loss on text
    that is not trained on; where none were better, with those it began with. Text and rate go on from stage to stage.
    What is needed to go on lies in the folder ``out`` + ".training" until ``out`` is there: the same call goes on from
    the last checkpoint.

    Raises PrunekitError where something makes no sense or can't be met, the loss is not finite, or something can't be
    written.
    """
    listener = listener if listener and ranks.is_first() else Listener()
    if config.lora:
        check_peft()
    check_length(text, source.config)
    asked = {
        **cutter.asked,
        "stages": stages,
        "turns": asdict(turns),
        "loop": loop,
        **asked_of(source, text, budget, config, dtype),
    }
    with run_folder(place_of(out), asked, overwrite) as folder:
        folder.settle(model_name=model_label(source.name), teacher_name=model_label(source.name))
        form: dict[str, str | int] = {"store_dtype": store_dtype, "layout": layout, "max_shard": max_shard_bytes}
        begun_with(folder, checkpoint_minutes, listener.note, **form)
        config = settled(config, folder, device)
        lessons = Lessons(
            folder,
            source,
            text,
            config,
            tokenizer=load_tokenizer(source),
            dtype=dtype,
            device=device,
            checkpoint_minutes=checkpoint_minutes,
            writing=writing,
        )
        run = _Run(source, cutter, folder, lessons, turns, budget, listener)
        trained, made = run.climb(run.ladder(stages), store_dtype)
        trained.tell(made, listener.note)
        facts = run.facts(trained, made)
        told = [*run.earlier(), facts]
        plan = replace(trained.plan, provenance={**trained.plan.provenance, "recovery": told}, file=None)
        folder.settle(plan=plan.file_digest())
        standing = run.whole_standing(trained)
        used = trained.training.span.offset + made.used
        result = Recovered(None, plan, standing, made.before, made.after, used, facts, told)  # type: ignore[arg-type]
        written = written_once(
            lambda: rebuild(
                source,
                plan,
                out,
                layout=layout,
                dtype=store_dtype,
                weights=_named_as_dense(plan, made.weights, source),
                overwrite=overwrite,
                max_shard_bytes=max_shard_bytes,
                beside=lambda path: beside(path, result),
            )
        )
        folder.erase()
    return replace(result, written=written)


class _Run:
    """One run of stages on the dense ``source``, in ``folder``."""

    def __init__(
        self,
        source: Source,
        cutter: Cutter,
        folder: RunFolder,
        lessons: Lessons,
        turns: StagesConfig,
        budget: Budget,
        listener: Listener,
    ):
        self._source, self._cutter, self._folder, self._lessons = source, cutter, folder, lessons
        self._turns, self._budget, self._listener = turns, budget, listener
        self._count = 0

    def ladder(self, stages: int | None) -> Ladder:
        """All stages, settled once for this run and those that go on from it. How long a single one takes, its own
        training says."""
        folder, lessons = self._folder, self._lessons
        if "targets" not in folder.settled:
            removed, budget = self._cutter.removed, self._budget
            alone = stages == 1 or (stages is None and removed <= self._turns.at_once)
            speed = cache(lambda: lessons.speed(self._source, self._listener))
            dense_tokens = 0 if alone else budget.in_tokens(lambda seconds: lessons.reach(seconds, speed()))
            if stages is None:
                stages = 1 if alone else stage_count(removed, dense_tokens, self._turns)
            if stages == 1:
                folder.settle(targets=[1.0])
            else:
                targets, shares = shared(self._cutter.targets(stages)), token_shares(stages, self._turns)
                # What is pruned trains faster than the dense model did in the trial.
                work = 1.0 if budget.minutes is None else average_work(removed, targets, shares)
                tokens = budget.in_tokens(lambda seconds: lessons.reach(seconds, speed() / work))
                folder.settle(targets=targets, steps=lessons.steps(tokens))
        targets = folder.settled["targets"]
        self._count = len(targets)
        if self._count == 1:
            return Ladder(targets, [None])
        shares = token_shares(self._count, self._turns)
        return Ladder(targets, spans(folder.settled["steps"], shares, self._turns))

    def climb(self, ladder: Ladder, store_dtype: str) -> tuple[Trained, Final]:
        """Go through all stages, from the first one on that has not ended. Returns the last training, and what it
        leaves in ``store_dtype``."""
        folder, count = self._folder, len(ladder)
        if count > 1:
            self._listener.row({"stages": _told(ladder, self._cutter.removed, self._lessons.step_tokens)})
        for number, (target, span) in enumerate(zip(ladder.targets, ladder.spans, strict=True), start=1):
            if self._facts(number) is not None:
                continue
            if not from_first(folder.pruned(number).is_dir):
                self._tell(number, "pruning")
                self._prune(number, target, store_dtype)
            if number > 1 and ranks.is_first():
                folder.forget(number - 1)
            self._tell(number, "training")
            trained = self._train(number, span)
            if number == count:
                return trained, trained.finish(store_dtype, self._source)
            self._conclude(number, trained)
            # Room for the models that the next stage plans with.
            del trained
        raise PrunekitError(f"{folder.path} says that all stages have ended; delete it to begin anew.")

    def earlier(self) -> list[dict[str, Any]]:
        """The facts of all stages but the last one."""
        return [self._ended(number)["facts"] for number in range(1, self._count)]

    def whole_standing(self, trained: Trained) -> Standing:
        """How all trainings went, as if they were one: steps count on from stage to stage."""
        parts = [Standing(**self._ended(number)["standing"]) for number in range(1, self._count)]
        last = trained.training.standing
        made = Standing(**{**last.to_dict(), "steps": [], "held_out": []})
        offset = 0
        for number, part in enumerate([*parts, last], start=1):
            stage = {"stage": number} if self._count > 1 else {}
            made.steps += [{**row, **stage, "step": offset + row["step"]} for row in part.steps]
            made.held_out += [{**row, **stage, "step": offset + row["step"]} for row in part.held_out]
            offset += part.step
        made.step, made.tokens = offset, sum(part.tokens for part in (*parts, last))
        return made

    def facts(self, trained: Trained, made: Final) -> dict[str, Any]:
        """What the plan tells of one stage's training."""
        facts = trained.facts(made)
        if self._count == 1:
            return facts
        span = trained.training.span
        number = len(trained.plan.provenance.get("recovery", ())) + 1
        stage = {
            "number": number,
            "of": self._count,
            "parameters": trained.source.shape.parameters,
            "share_of_blocks": round(trained.source.shape.block_parameters / self._source.shape.block_parameters, 6),
            "first_step": span.offset,
        }
        turns = {name: getattr(self._turns, name) for name in ("shares", "last_share", "moments", "rewarm")}
        return {"stage": {**stage, **turns}, **facts}

    def _facts(self, number: int) -> dict[str, Any] | None:
        return from_first(lambda: self._folder.facts(number))

    def _ended(self, number: int) -> dict[str, Any]:
        facts = self._facts(number)
        assert facts is not None
        return facts

    def _tell(self, number: int, phase: str) -> None:
        self._listener.row({"stage": number, "of": self._count, "phase": phase})

    def _result(self, number: int) -> Path:
        """Where the model lies that ``stage`` came to."""
        used = int(self._ended(number)["used"])
        return self._folder.trained(number).checkpoint(used) if used else self._folder.pruned(number)

    def _prune(self, number: int, target: float, store_dtype: str) -> None:
        """Write the model that is trained in this stage: where there is but one, as pruning alone would write it."""
        dense = self._source
        if number == 1:
            made = self._cutter.cut(dense, None, target, (number, self._count))
            stored = store_dtype if self._count == 1 else "float32"
            self._write(number, made.plan, lambda: made.weights or {}, None, dtype=stored)
            return
        before = self._result(number - 1)
        from_first(lambda: state.check(before))
        source = resolve(str(before))
        so_far = plan_of(source)
        facts = [self._ended(each)["facts"] for each in range(1, number)]
        so_far = replace(so_far, provenance={**so_far.provenance, "recovery": facts}, file=None)
        made = self._cutter.cut(source, so_far, target, (number, self._count))
        plan = compose(so_far, made.plan)
        tensors: dict[str, torch.Tensor] = {}

        def weights() -> dict[str, torch.Tensor]:
            tensors.update(cut_tensors(source, made.plan, torch.float32, made.weights))
            return _named_as_dense(plan, tensors, dense)

        def carry(folder: Path) -> None:
            standing, kept = state.read_state(before)
            shapes = {name: each.shape for name, each in tensors.items()}
            refitted = made.plan.cuts and made.plan.recipe is not None and made.plan.recipe.refit is not None
            moments = cut_moments(state.moments_of(kept), source.family, made.plan, shapes, refitted=refitted)
            state.write_state(folder, moments, Standing(updates=standing.updates))

        # Adapters are gone with every cut: their weights have taken them in.
        fresh = (
            self._turns.moments == "fresh"
            or self._lessons.config.lora
            or not from_first(lambda: state.has_state(before))
        )
        self._write(number, plan, weights, None if fresh else carry)

    def _write(
        self,
        number: int,
        plan: Plan,
        weights: Callable[[], Mapping[str, torch.Tensor]],
        beside: Callable[[Path], None] | None,
        dtype: str = "float32",
    ) -> None:
        """Write the model that ``plan`` makes of the dense one, with the ``weights`` that are not just its own, as the
        one that this stage trains."""
        place = self._folder.pruned(number)
        written_once(
            lambda: rebuild(
                self._source,
                plan,
                place,
                dtype=dtype,
                weights=weights(),
                beside=beside or (lambda folder: None),
            )
        )

    def _train(self, number: int, span: Span | None) -> Trained:
        folder, lessons = self._folder, self._lessons
        stage = {"stage": number} if self._count > 1 else {}
        listener = replace(self._listener, row=lambda row: self._listener.row({**stage, **row}))

        def span_of(reach: Reach) -> Span:
            return span or lessons.span(lambda: self._budget.in_tokens(reach))

        place = folder.pruned(number)
        carried = from_first(lambda: state.has_state(place))
        return lessons.train(resolve(str(place)), folder.trained(number), span_of, listener, carried=carried)

    def _conclude(self, number: int, trained: Trained) -> None:
        """Keep the model that this stage came to, and what it was worth."""
        standing, kept = trained.training.standing, trained.kept
        best = standing.best
        used = int(best["step"])
        if used == standing.step:
            trained.save()
        made = Final({}, standing.start["kl"], best["kl"], used)
        facts = {"facts": self.facts(trained, made), "used": used, "standing": standing.to_dict()}

        def conclude() -> None:
            kept.keep(used)
            self._folder.conclude(number, facts)

        from_first(conclude)


def _told(ladder: Ladder, removed: float, step_tokens: int) -> list[dict[str, Any]]:
    """The stages as they are told before they begin."""
    return [
        {
            "stage": number,
            "removed": round(target * removed, 6),
            "steps": span.steps,
            "tokens": span.steps * step_tokens,
        }
        for number, (target, span) in enumerate(zip(ladder.targets, ladder.spans, strict=True), start=1)
        if span is not None
    ]


def _named_as_dense(plan: Plan, tensors: Mapping[str, torch.Tensor], dense: Source) -> dict[str, torch.Tensor]:
    """``tensors`` of the model that ``plan`` made of the ``dense`` one, by their names in that."""
    named: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        match = LAYER.fullmatch(name)
        if match is not None:
            named[f"model.layers.{plan.layers[int(match[1])].index}.{match[2]}"] = tensor
        elif not (dense.shape.tie_word_embeddings and name == "lm_head.weight"):
            named[name] = tensor
    return named
