"""The trainings of one run: what they share, how one goes, and what it leaves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prunekit.checkpoint.trained import plan_of, with_recovery
from prunekit.data.self_generated import Writing
from prunekit.data.token_file import PackedText, open_text, pack_text, packing_phases
from prunekit.errors import PrunekitError
from prunekit.models.dense import DenseModel
from prunekit.models.source import load_model, pick_device
from prunekit.recovery.expected import expected_kl
from prunekit.recovery.own_text import OwnText
from prunekit.recovery.precision import precision
from prunekit.recovery.teachers.choice import Teaching, settle_teacher
from prunekit.recovery.teachers.online import OnlineTeacher
from prunekit.recovery.training import state
from prunekit.recovery.training.loop import Diverged, Events, Training
from prunekit.recovery.training.lora import LoraStudent
from prunekit.recovery.training.optimizer import Optimizer
from prunekit.recovery.training.progress import Estimate, Listener, Standing
from prunekit.recovery.training.run_folder import Checkpoints, RunFolder
from prunekit.recovery.training.schedule import Span
from prunekit.recovery.training.sharding import shard
from prunekit.recovery.training.student import Student
from prunekit.recovery.training.trial import Trial, run_trial
from prunekit.utils.machine import WRITTEN_A_SECOND
from prunekit.utils.measuring.crowd import watched
from prunekit.utils.numerics.recompute import free_bytes
from prunekit.utils.phases.telling import foresee, keeping, phases, unneeded
from prunekit.utils.phases.titles import CHECK, TRAINING, TRIAL, WRITING
from prunekit.utils.process import ranks
from prunekit.utils.process.launcher import local_size
from prunekit.utils.process.ranks import from_first, in_order
from prunekit.utils.progress import progress
from prunekit.utils.provenance import model_label, versions

if TYPE_CHECKING:
    from prunekit.models.source import Source
    from prunekit.plan import Plan
    from prunekit.plan.training import TextConfig, TrainingConfig

# Text that is read up to so often is worth about as much as new text (arXiv 2305.16264).
_AS_NEW = 4
# The check after a training takes about as long as so many tokens of it (4,096 read by both models, and two short texts
# written).
_CHECKED_AS = 2400

Reach = Callable[[float], int]
"""How many tokens can be trained on in so many seconds."""


class Lessons:
    """What all trainings of one run share: the dense ``teacher`` with its ``tokenizer``, the text, the settings (all
    settled: :meth:`~prunekit.plan.training.TrainingConfig.on`), and the ``folder`` that they go on from. ``writing``
    gives what samples the text that the teacher writes."""

    def __init__(
        self,
        folder: RunFolder,
        teacher: Source,
        text: TextConfig,
        config: TrainingConfig,
        *,
        tokenizer: Any,
        dtype: str,
        device: str,
        checkpoint_minutes: float,
        writing: Writing,
    ):
        self.folder, self.teacher, self.text, self.config = folder, teacher, text, config
        self._tokenizer, self._dtype, self._device = tokenizer, dtype, device
        self._minutes = checkpoint_minutes
        self._writing = writing
        self._own = OwnText(text)
        self._crowded = False
        assert config.batch_tokens is not None
        self.sequences = max(1, round(config.batch_tokens / text.length))
        """Windows a step: however many processes share them."""

    @property
    def step_tokens(self) -> int:
        return self.sequences * self.text.length

    def steps(self, tokens: int) -> int:
        """How many steps it takes to see so many ``tokens``."""
        return max(1, math.ceil(tokens / self.step_tokens))

    def span(self, tokens: Callable[[], int]) -> Span:
        """The steps that so many ``tokens`` take, settled once for this run and those that go on from it: ``tokens`` is
        asked for where they are not yet."""
        if "steps" not in self.folder.settled:
            self.folder.settle(steps=self.steps(tokens()))
        return Span(self.folder.settled["steps"])

    def speed(self, source: Source, listener: Listener) -> float:
        """How many tokens of a second's training the model ``source`` would see, by three trial steps."""
        made = self._seats(source)
        return self._trial(made, self._start(made, source), listener).tokens_per_second

    def reach(self, seconds: float, speed: float, dense: DenseModel | None = None) -> int:
        """How many tokens can be trained on in so many ``seconds`` at that ``speed``, once the ``dense`` model has
        written what is missing."""
        if from_first(self.folder.text.is_dir):
            return int(seconds * speed)
        with self._writing(self.teacher, self._device) as writer:
            return self._own.reach(seconds, speed, dense or self._dense(), writer)

    def train(
        self,
        source: Source,
        kept: Checkpoints,
        span_of: Callable[[Reach], Span],
        listener: Listener,
        *,
        carried: bool = False,
    ) -> Trained:
        """Train the pruned model ``source``, from the last of its checkpoints that are ``kept`` on. ``span_of`` says
        how long, and may ask what can be trained on in a time, by three trial steps. Where ``carried``, the optimizer
        begins with the state that lies beside the weights of ``source``.

        Raises PrunekitError where the loss is not finite, or something can't be written.
        """
        with phases(*packing_phases(self.text.source), TRIAL, TRAINING):
            return self._train(source, kept, span_of, listener, carried)

    def _train(
        self,
        source: Source,
        kept: Checkpoints,
        span_of: Callable[[Reach], Span],
        listener: Listener,
        carried: bool,
    ) -> Trained:
        if self.sequences < ranks.size():
            listener.note(
                f"A step has {self.sequences} sequences of {self.text.length} tokens, and there are {ranks.size()} "
                "processes, so some have nothing to do. Take fewer, or larger steps (--set batch_tokens=...)."
            )
        made = self._seats(source)
        standing = self._begin(made, kept, source, carried, listener.note)
        trial = cache(lambda: self._trial(made, standing, listener))
        span = span_of(lambda seconds: self.reach(seconds, trial().tokens_per_second, made.dense))
        # Before a trial where there was none: text that is no good is refused at once.
        tokens = (span.whole or span.steps) * self.step_tokens
        packed = self._packed(tokens, made.dense, listener.note)
        # Nothing is written with it from here on.
        shard(made.dense.share())
        reserve = _checkpoint_bytes(made.student, source)
        teaching = settle_teacher(
            self.folder, made.teacher, self.teacher.shape, self.config, packed, tokens, reserve, listener.note
        )
        training = Training(
            made.student,
            teaching.teacher,
            packed,
            self.config,
            made.optimizer,
            standing,
            span=span,
            sequences=self.sequences,
        )
        optimizer, kind = made.optimizer, made.kind
        trained = Trained(source, self.teacher, plan_of(source), kept, training, optimizer, packed, kind, teaching)
        clock = _Clock(self._minutes)

        def save(why: str) -> None:
            trained.save()
            clock.reset()

        taken = trial()
        if not standing.held_out:
            training.measure()
        moving = sum(each.numel() for each in made.student.parameters.values())
        expected = expected_kl(standing.start["kl"], span.steps * self.step_tokens, moving, self.config)
        estimate = _estimate(standing, span.steps, self.step_tokens, taken, teaching, reserve, expected)
        listener.estimate(estimate)
        foresee({TRAINING: estimate.seconds, **_afterwards(source, taken)})
        with _shown(span.steps - standing.step, self.step_tokens, listener) as events:
            events.save, events.due = save, lambda: ranks.any_rank(clock.due())
            training.events = events
            try:
                training.run()
            except Diverged as error:
                raise Diverged(f"{error} {_remedy(self.config, made.kind)}{_left(kept, standing)}") from None
        # A stage that follows sees the same text again.
        teaching.flush()
        return trained

    def _seats(self, source: Source) -> _Seats:
        model = load_model(source, dtype="float32", device=self._device)
        if not self.config.lora:
            # Adapters are small: every process has them whole.
            shard(model)
        kind, computing = precision(model.device, self._dtype)
        fast = kind == "bfloat16"
        student = (LoraStudent if self.config.lora else Student)(model, self.config, computing, fast=fast)
        dense = self._dense()
        separate = self.config.documents == "separate"
        online = OnlineTeacher(dense.share(), computing, separate=separate, fast=fast)
        return _Seats(student, Optimizer(student.parameters, self.config), dense, online, kind)

    def _dense(self) -> DenseModel:
        on_gpu = pick_device(self._device).type == "cuda"
        return DenseModel(self.teacher, dtype="auto" if on_gpu else "float32", device=self._device)

    def _begin(
        self, made: _Seats, kept: Checkpoints, source: Source, carried: bool, note: Callable[[str], None]
    ) -> Standing:
        """Where the last checkpoint stands, or the start."""
        made.optimizer.begin()
        known = from_first(kept.checkpoints)
        if known:
            standing = state.load(kept.checkpoint(known[-1]), made.student, made.optimizer)
            best = int(standing.best["step"])
            if best and best != standing.step and (why := _damage(kept.checkpoint(best))) is not None:
                note(
                    f"The weights of step {best}, the best so far, are lost: {why} Training goes on to look for better."
                )
                standing.lost.append(best)
            self._turn(standing)
            made.student.recompute = standing.recompute
        else:
            standing = self._start(made, source)
            if carried:
                standing.updates = state.take_over(source.path, made.optimizer)
        return standing

    def _start(self, made: _Seats, source: Source) -> Standing:
        config, student, most = self.config, made.student, self._most()
        micro = config.micro_batch or _least(_fitting(student, source, self.text.length, most))
        short = config.micro_batch is None and micro == 0
        student.recompute = short if config.recompute is None else config.recompute
        return Standing(
            micro_batch=min(max(1, micro), most),
            recompute=student.recompute,
            ce_share=config.ce_share,
            resources=config.resources,
        )

    def _most(self) -> int:
        """How many sequences of a step a process has at most."""
        return -(-self.sequences // ranks.size())

    def _turn(self, standing: Standing) -> None:
        """Compute steps as is asked for now, where that is not what was asked for before ``standing`` was kept."""
        asked = self.config.resources
        turned = {name for name, value in asked.items() if value is not None and value != standing.resources.get(name)}
        if "micro_batch" in turned:
            standing.micro_batch = min(asked["micro_batch"], self._most())
        if "recompute" in turned:
            standing.recompute = asked["recompute"]
        standing.resources = asked

    def _trial(self, made: _Seats, standing: Standing, listener: Listener) -> Trial:
        length = self.text.length
        with progress(TRIAL, 1) as advance:
            tried, crowd = watched(
                lambda: run_trial(
                    made.student, made.teacher, self.config, standing, length, self.sequences, listener.note
                ),
                made.student.device,
            )
            advance()
        # Once: a stage that follows has a trial of its own.
        if crowd is not None and not self._crowded:
            self._crowded = True
            listener.note(crowd)
        return tried

    def _packed(self, tokens: int, dense: DenseModel, note: Callable[[str], None]) -> PackedText:
        if from_first(self.folder.text.is_dir):
            for title in packing_phases(self.text.source):
                unneeded(title, "kept from an earlier run")
            return open_text(self.folder.text)
        with self._writing(self.teacher, self._device) as writer:
            self._own.tell(tokens, dense, writer, note)
            packed = pack_text(self.folder.text, self.text, tokens, self._tokenizer, dense, writer=writer)
        for part, times in zip(packed.parts, packed.epochs(tokens), strict=True):
            if times > _AS_NEW:
                note(
                    f"{part.source} has {part.training * packed.length:,} tokens to train on, which are read "
                    f"{times:.1f} times; after {_AS_NEW} times that brings little. Give more text, or train on fewer "
                    "tokens."
                )
        return packed


@dataclass(frozen=True)
class _Seats:
    student: Student
    optimizer: Optimizer
    dense: DenseModel
    teacher: OnlineTeacher
    kind: str


def _fitting(student: Student, source: Source, length: int, sequences: int) -> int:
    """How many sequences at a time fit into a third of the free memory, which processes on one CPU share: a power of
    two parts of the step; 0: none."""
    room = free_bytes(student.device) / 3 / (1 if student.device.type == "cuda" else local_size())
    count = sequences
    while count and 4 * count * length * source.shape.activation_numbers_per_token() > room:
        count //= 2
    return count


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with the ``checkpoint``; None where it is as it was written."""

    def look() -> str | None:
        try:
            state.check(checkpoint)
        except PrunekitError as error:
            return str(error).partition(" Delete ")[0]
        return None

    return from_first(look)


def _least(count: int) -> int:
    """The least ``count`` of all ranks."""
    return min(in_order([count], ranks.size()))


def _afterwards(source: Source, trial: Trial) -> dict[str, float]:
    """Seconds, by phases, of what follows a training: one process does it alone."""
    written = 4 * source.shape.parameters / WRITTEN_A_SECOND
    return {WRITING: written, CHECK: ranks.size() * _CHECKED_AS / trial.tokens_per_second}


def _checkpoint_bytes(student: Student, source: Source) -> int:
    """Weights and two moments of what moves, in float32, of the last and the best checkpoint, while a third is
    written."""
    return 3 * (4 * source.shape.parameters + 8 * sum(each.numel() for each in student.parameters.values()))


def _estimate(
    standing: Standing,
    steps: int,
    step_tokens: int,
    trial: Trial,
    teaching: Teaching,
    checkpoints: int,
    expected: float | None,
) -> Estimate:
    return Estimate(
        tokens=steps * step_tokens,
        steps=steps,
        left=steps - standing.step,
        tokens_per_second=trial.tokens_per_second,
        memory=trial.memory,
        disk=checkpoints + teaching.kept_bytes,
        teacher=teaching.mode,
        teacher_bytes=teaching.kept_bytes,
        times=teaching.times,
        start_kl=standing.start["kl"],
        expected_kl=expected,
    )


class _Clock:
    """Whether it is time for the next checkpoint."""

    def __init__(self, minutes: float):
        self._seconds = minutes * 60
        self.reset()

    def reset(self) -> None:
        self._last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= self._seconds


def _remedy(config: TrainingConfig, kind: str) -> str:
    """What to do where numbers are not finite. Nothing of it goes on with this training."""
    lower = f"Begin anew with a lower rate (--set learning_rate={config.learning_rate / 4:g} --overwrite)"
    return f"{lower}." if kind == "float32" else f"{lower}, or in float32 (--dtype float32 --overwrite)."


def _left(kept: Checkpoints, standing: Standing) -> str:
    """Where the best weights so far are."""
    best = int(standing.best["step"]) if standing.held_out else 0
    if not best or not from_first(kept.checkpoint(best).is_dir):
        return ""
    place = kept.checkpoint(best)
    return f" The weights of step {best}, the best so far, are a model like any other: move {place} away before that."


@contextmanager
def _shown(steps: int, step_tokens: int, listener: Listener) -> Iterator[Events]:
    """Events that move a progress bar and tell the listener."""
    with progress(TRAINING, steps, tokens=steps * step_tokens) as advance:
        smooth = 0.0
        kl: list[float] = []

        def on_step(row: dict[str, float], seconds: float) -> None:
            nonlocal smooth
            speed = step_tokens / seconds
            smooth = 0.9 * smooth + 0.1 * speed if smooth else speed
            if row["kl"] is not None:
                kl.append(row["kl"])
            shown = sum(kl[-20:]) / max(1, len(kl[-20:]))
            advance(note=f"KL {shown:.4f}, {smooth:,.0f} tokens/s")
            listener.row({**row, "seconds": round(seconds, 4)})

        yield Events(on_step=on_step, on_held_out=lambda row: listener.row({"held_out": row}), note=listener.note)


@dataclass(frozen=True)
class Final:
    """The ``weights`` that a training leaves, those of step ``used`` (0: those it was given); the divergence on the
    held-out text ``before`` it and ``after``, with these weights."""

    weights: Mapping[str, torch.Tensor]
    before: float
    after: float
    used: int
    lost: str | None = None
    """Why the weights of the best step could not be had."""


@dataclass(frozen=True)
class Trained:
    """A training that has made its last step: of the model ``source``, which was made by ``plan``."""

    source: Source
    teacher: Source
    plan: Plan
    kept: Checkpoints
    training: Training
    optimizer: Optimizer
    packed: PackedText
    kind: str
    teaching: Teaching

    def save(self) -> None:
        """Keep a checkpoint of where it stands."""
        self.teaching.flush()
        standing, steps = self.training.standing, self.training.span.steps
        told = {
            "teacher": {"name": model_label(self.teacher.name), "fingerprint": self.teacher.fingerprint},
            "text": {"source": self.packed.describe()["source"]},
            "tokens": standing.tokens,
            "step": standing.step,
            "steps": steps,
            "unfinished": True,
        }
        plan = with_recovery(self.plan, told)
        state.save(self.kept, self.source, plan, self.training.student, self.optimizer, standing)
        keeping("steps of the training", standing.step, steps)

    def finish(self, store_dtype: str, like: Source | None = None) -> Final:
        """The weights to write, rounded to the precision in which they will be stored (auto: as ``like`` stores them),
        and what they are worth on the held-out text in it: those of the best step, unless the model that was given is
        at least as good."""
        training = self.training
        standing, student = training.standing, training.student
        before = standing.start["kl"]
        best = int(standing.best["step"])
        lost = None
        if best and best != standing.step:
            lost = _damage(self.kept.checkpoint(best))
            if lost is None:
                student.load(self.kept.checkpoint(best), {})
            else:
                # The last step's are at hand.
                lost, best = f"The weights of step {best}, the best so far, could not be read: {lost}", standing.step
        if best:
            student.round_to(store_dtype, like or self.source)
            seen = training.look()
            if standing.judged(seen) < standing.judged(standing.start):
                return Final(student.weights(), before, seen["kl"], best, lost)
        student.load(self.source.path, {})
        # That takes something away as well, where it is not what they were stored in.
        student.round_to(store_dtype, like or self.source)
        return Final(student.weights(), before, training.look()["kl"], 0, lost)

    def tell(self, made: Final, note: Callable[[str], None]) -> None:
        """``note`` what a user should know of what it led to."""
        if made.lost is not None:
            taken = f"step {made.used}, the last one, are" if made.used else "the model that was given are"
            note(f"{made.lost} So the weights of {taken} written.")
        share = self.training.config.ce_share
        if made.after > made.before:
            note(
                f"KL from the dense model rose on held-out text, from {made.before:.4f} to {made.after:.4f}: with "
                f"ce_share={share:g} the step of least loss is written, and the text's own next tokens are a part of "
                "that."
            )

    def facts(self, made: Final) -> dict[str, Any]:
        """What a plan tells of the training, which led to ``made``."""
        standing = self.training.standing
        return {
            "teacher": {
                "name": model_label(self.teacher.name),
                "fingerprint": self.teacher.fingerprint,
                "distributions": self.teaching.mode,
            },
            "text": self.packed.describe(),
            "settings": asdict(self.training.config),
            "tokens": standing.tokens,
            "steps": standing.step,
            "computed_in": {"dtype": self.kind, "device": self.training.student.device.type},
            "held_out_kl": {"before": made.before, "after": made.after},
            "used_step": made.used,
            "versions": versions(),
        }
