"""The trainings of one run: what they share, how one goes, and what it leaves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from prunekit.checkpoint.trained import plan_of, with_recovery
from prunekit.data.self_generated import Writing
from prunekit.data.token_file import PackedText, open_text, pack_text, packing_phases
from prunekit.models.dense import DenseModel
from prunekit.models.source import load_model
from prunekit.recovery.expected import expected_kl
from prunekit.recovery.precision import precision
from prunekit.recovery.teachers.choice import Teaching, settle_teacher
from prunekit.recovery.teachers.online import OnlineTeacher
from prunekit.recovery.training import state
from prunekit.recovery.training.loop import Events, Training
from prunekit.recovery.training.lora import LoraStudent
from prunekit.recovery.training.optimizer import Optimizer
from prunekit.recovery.training.progress import Estimate, Listener, Standing
from prunekit.recovery.training.run_folder import Checkpoints, RunFolder
from prunekit.recovery.training.schedule import Span
from prunekit.recovery.training.sharding import shard
from prunekit.recovery.training.student import Student
from prunekit.recovery.training.trial import Trial, run_trial
from prunekit.utils.numerics.recompute import free_bytes
from prunekit.utils.phases.telling import foresee, keeping, phases, unneeded
from prunekit.utils.phases.titles import TRAINING, TRIAL
from prunekit.utils.process import ranks
from prunekit.utils.process.ranks import from_first, shared
from prunekit.utils.progress import progress
from prunekit.utils.provenance import model_label, versions

if TYPE_CHECKING:
    from prunekit.models.source import Source
    from prunekit.plan import Plan
    from prunekit.plan.training import TextConfig, TrainingConfig

# Text that is read up to so often is worth about as much as new text (arXiv 2305.16264).
_AS_NEW = 4


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
        assert config.batch_tokens is not None
        # Every process takes as many.
        self.sequences = -(-max(1, round(config.batch_tokens / text.length)) // ranks.size()) * ranks.size()

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

    def train(
        self,
        source: Source,
        kept: Checkpoints,
        span_of: Callable[[Callable[[], float]], Span],
        listener: Listener,
        *,
        carried: bool = False,
    ) -> Trained:
        """Train the pruned model ``source``, from the last of its checkpoints that are ``kept`` on. ``span_of`` says
        how long, and may ask for the tokens a second of three trial steps. Where ``carried``, the optimizer begins with
        the state that lies beside the weights of ``source``.

        Raises PrunekitError where the loss is not finite, or something can't be written.
        """
        with phases(*packing_phases(self.text.source), TRIAL, TRAINING):
            return self._train(source, kept, span_of, listener, carried)

    def _train(
        self,
        source: Source,
        kept: Checkpoints,
        span_of: Callable[[Callable[[], float]], Span],
        listener: Listener,
        carried: bool,
    ) -> Trained:
        made = self._seats(source)
        standing = self._begin(made, kept, source, carried)
        trial = cache(lambda: self._trial(made, standing, listener))
        span = span_of(lambda: trial().tokens_per_second)
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
        foresee({TRAINING: estimate.seconds})
        with _shown(span.steps - standing.step, self.step_tokens, listener) as events:
            events.save, events.due = save, lambda: ranks.any_rank(clock.due())
            training.events = events
            training.run()
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
        dense = DenseModel(
            self.teacher, dtype="auto" if model.device.type == "cuda" else "float32", device=self._device
        )
        separate = self.config.documents == "separate"
        online = OnlineTeacher(dense.share(), computing, separate=separate, fast=fast)
        return _Seats(student, Optimizer(student.parameters, self.config), dense, online, kind)

    def _begin(self, made: _Seats, kept: Checkpoints, source: Source, carried: bool) -> Standing:
        """Where the last checkpoint stands, or the start."""
        known = from_first(kept.checkpoints)
        if known:
            standing = state.load(kept.checkpoint(known[-1]), made.student, made.optimizer)
            made.student.recompute = standing.recompute
        else:
            standing = self._start(made, source)
            if carried:
                standing.updates = state.take_over(source.path, made.optimizer)
        return standing

    def _start(self, made: _Seats, source: Source) -> Standing:
        config, student, most = self.config, made.student, self.sequences // ranks.size()
        micro = config.micro_batch or shared(_fitting(student, source, self.text.length, most))
        short = config.micro_batch is None and micro == 0
        student.recompute = short if config.recompute is None else config.recompute
        return Standing(micro_batch=min(max(1, micro), most), recompute=student.recompute, ce_share=config.ce_share)

    def _trial(self, made: _Seats, standing: Standing, listener: Listener) -> Trial:
        length = self.text.length
        with progress(TRIAL, 1) as advance:
            tried = run_trial(made.student, made.teacher, self.config, standing, length, self.sequences, listener.note)
            advance()
        return tried

    def _packed(self, tokens: int, dense: DenseModel, note: Callable[[str], None]) -> PackedText:
        if from_first(self.folder.text.is_dir):
            for title in packing_phases(self.text.source):
                unneeded(title, "kept from an earlier run")
            return open_text(self.folder.text)
        with self._writing(self.teacher, self._device) as writer:
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
    """How many sequences at a time fit into a third of the free memory: a power of two parts of the step; 0: none."""
    room = free_bytes(student.device) / 3
    count = sequences
    while count and 4 * count * length * source.shape.activation_numbers_per_token() > room:
        count //= 2
    return count


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
        if best and best != standing.step:
            student.load(self.kept.checkpoint(best), {})
        if best:
            student.round_to(store_dtype, like or self.source)
            seen = training.look()
            if standing.judged(seen) < standing.judged(standing.start):
                return Final(student.weights(), before, seen["kl"], best)
        student.load(self.source.path, {})
        return Final(student.weights(), before, before, 0)

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
