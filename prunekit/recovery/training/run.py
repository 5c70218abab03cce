"""From a pruned model, its dense one and text to a trained checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prunekit.checkpoint.trained import plan_of, with_recovery, write_trained
from prunekit.data.calibration import check_length
from prunekit.data.token_file import PackedText, open_text, pack_text
from prunekit.errors import PrunekitError
from prunekit.models.dense import DenseModel
from prunekit.models.recompute import activation_bytes, free_bytes
from prunekit.models.source import load_model, load_tokenizer
from prunekit.models.tokenizer.same_tokens import first_difference, shown
from prunekit.recovery.training import state
from prunekit.recovery.training.loop import Events, Training
from prunekit.recovery.training.optimizer import Optimizer
from prunekit.recovery.training.precision import precision
from prunekit.recovery.training.progress import Standing
from prunekit.recovery.training.run_folder import RunFolder, end, run_folder
from prunekit.recovery.training.student import Student
from prunekit.recovery.training.teacher import OnlineTeacher
from prunekit.recovery.training.trial import Trial, run_trial
from prunekit.utils.files.atomic import check_output_folder
from prunekit.utils.files.hashes import sha256
from prunekit.utils.files.replacing import CHECKPOINT, local
from prunekit.utils.progress import progress
from prunekit.utils.provenance import model_label, versions

if TYPE_CHECKING:
    from prunekit.checkpoint.manifest import Written
    from prunekit.models.source import Source
    from prunekit.plan import Plan
    from prunekit.plan.recovery import TrainingConfig
    from prunekit.plan.training import TextConfig

SUFFIX = ".training"


@dataclass(frozen=True)
class Budget:
    """How long to train: so many ``tokens``, or about so many ``minutes`` at the speed that three trial steps have."""

    tokens: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.minutes is None):
            raise PrunekitError("Say how long to train: --tokens 10M or --minutes 60, one of the two.")
        if self.tokens is not None and self.tokens < 1:
            raise PrunekitError(f"A training takes 1 token at least, got {self.tokens}.")
        if self.minutes is not None and not 0 < self.minutes < 1e6:
            raise PrunekitError(f"A training takes more than 0 minutes, got {self.minutes:g}.")


@dataclass(frozen=True)
class Listener:
    """What the caller is told: ``row`` every line of the learning curve, ``note`` sentences that a user should read,
    ``estimate`` the trial before the training begins."""

    row: Callable[[dict[str, Any]], None] = lambda row: None
    note: Callable[[str], None] = lambda text: None
    estimate: Callable[[Estimate], None] = lambda estimate: None


@dataclass(frozen=True)
class Estimate:
    """What a training will take: ``tokens`` in ``steps`` steps of which ``left`` are to do, at ``tokens_per_second``;
    ``memory`` is what this process held at most in the trial, ``disk`` what its checkpoints take, in bytes (None: the
    system doesn't tell). ``start_kl`` is the divergence on held-out text now, nats a token."""

    tokens: int
    steps: int
    left: int
    tokens_per_second: float
    memory: int | None
    disk: int
    start_kl: float

    @property
    def seconds(self) -> float:
        """About how long the steps that are left will take."""
        return self.tokens * self.left / self.steps / self.tokens_per_second

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds}


@dataclass(frozen=True)
class Recovered:
    """``written`` is the checkpoint, ``standing`` how the training went, ``before`` and ``after`` the divergence on
    held-out text, nats a token: of the model that was given, and of what was written. ``used`` is the step whose
    weights were written; 0: nothing was better than the model that was given."""

    written: Written
    plan: Plan
    standing: Standing
    before: float
    after: float
    used: int
    facts: dict[str, Any] = field(default_factory=dict)


def recover(
    source: Source,
    teacher: Source,
    out: Path,
    *,
    text: TextConfig,
    budget: Budget,
    config: TrainingConfig,
    dtype: str = "auto",
    device: str = "auto",
    store_dtype: str = "auto",
    max_shard_bytes: int = 2 * 2**30,
    overwrite: bool = False,
    checkpoint_minutes: float = 10.0,
    beside: Callable[[Path, Recovered], None] = lambda folder, made: None,
    listener: Listener | None = None,
) -> Recovered:
    """Train the pruned model ``source`` toward the dense ``teacher`` and write it as the checkpoint ``out``.

    What the training needs to go on lies in the folder ``out`` + ".training" until ``out`` is there: the same call goes
    on from the last checkpoint. The weights that are written are those of least divergence on text that was not trained
    on, and those of ``source`` where none were better. ``beside`` adds files to the checkpoint.

    Raises PrunekitError where the two models or the text don't belong together, the loss is not finite, or something
    can't be written.
    """
    listener = listener or Listener()
    inputs = (*source.inputs, *teacher.inputs, *local(*text.source.split(",")))
    place = out.absolute().with_name(out.absolute().name + SUFFIX)
    if not overwrite:
        end(place, out)
    check_output_folder(out, overwrite, kind=CHECKPOINT, inputs=inputs)
    check_length(text, source.config)
    tokenizer = load_tokenizer(teacher)
    _check_pair(source, teacher, tokenizer)
    sequences = max(1, round(config.batch_tokens / text.length))
    asked = _asked(source, teacher, text, budget, config, dtype)
    with run_folder(place, asked, overwrite) as folder:
        folder.settle(model=model_label(source.name), teacher=model_label(teacher.name))
        model = load_model(source, dtype="float32", device=device)
        kind, computing = precision(model.device, dtype)
        fast = kind == "bfloat16"
        student = Student(model, config, computing, fast=fast)
        optimizer = Optimizer(student.parameters, config)
        dense = DenseModel(teacher, dtype="auto" if model.device.type == "cuda" else "float32", device=device)
        separate = config.documents == "separate"
        online = OnlineTeacher(dense.share(), computing, separate=separate, fast=fast)
        standing = _begin(folder, student, optimizer, config, source, text, sequences)
        trial = run_trial(student, online, config, standing, text.length, sequences, listener.note)
        if "steps" not in folder.settled:
            tokens = budget.tokens or int(trial.tokens_per_second * 60 * (budget.minutes or 0))
            folder.settle(steps=max(1, math.ceil(tokens / (sequences * text.length))))
        steps = folder.settled["steps"]
        packed = _text(folder, text, steps * sequences * text.length, tokenizer, dense)
        plan = plan_of(source)
        clock = _Clock(checkpoint_minutes)

        def save(why: str) -> None:
            state.save(folder, source, plan, student, optimizer, standing)
            clock.reset()

        training = Training(
            student,
            online,
            packed,
            config,
            optimizer,
            standing,
            steps=steps,
            sequences=sequences,
        )
        if not standing.held_out:
            training.measure()
        listener.estimate(_estimate(standing, steps, sequences * text.length, trial, source))
        with _shown(steps - standing.step, sequences * text.length, listener) as events:
            events.save, events.due = save, clock.due
            training.events = events
            training.run()
        made = _finish(folder, source, training, optimizer, store_dtype)
        facts = {
            "teacher": {"name": model_label(teacher.name), "fingerprint": teacher.fingerprint},
            "text": packed.describe(),
            "settings": asdict(config),
            "tokens": standing.tokens,
            "steps": standing.step,
            "computed_in": {"dtype": kind, "device": model.device.type},
            "held_out_kl": {"before": made.before, "after": made.after},
            "used_step": made.used,
            "versions": versions(),
        }
        plan = with_recovery(plan, facts)
        folder.settle(plan=plan.file_digest())
        result = Recovered(None, plan, standing, made.before, made.after, made.used, facts)  # type: ignore[arg-type]
        written = write_trained(
            source,
            plan,
            made.weights,
            out,
            dtype=store_dtype,
            overwrite=overwrite,
            max_shard_bytes=max_shard_bytes,
            beside=lambda path: beside(path, result),
        )
        folder.erase()
    return Recovered(written, plan, standing, made.before, made.after, made.used, facts)


def _check_pair(source: Source, teacher: Source, tokenizer: Any) -> None:
    """Raises PrunekitError where the two models don't speak of the same tokens."""
    if source.shape.vocab_size != teacher.shape.vocab_size:
        raise PrunekitError(
            f"{source.name} knows {source.shape.vocab_size:,} tokens and {teacher.name} {teacher.shape.vocab_size:,}, "
            "so one can't teach the other; give the dense model that it was pruned from as --teacher."
        )
    text = first_difference(load_tokenizer(source), tokenizer)
    if text is not None:
        raise PrunekitError(
            f"The tokenizers of {source.name} and {teacher.name} give other tokens, for {shown(text)} among others; "
            "give the dense model that it was pruned from as --teacher."
        )


def _asked(
    source: Source, teacher: Source, text: TextConfig, budget: Budget, config: TrainingConfig, dtype: str
) -> dict[str, Any]:
    """What decides the training, in JSON values: paths are told by what the files hold."""
    from prunekit.data.mixture import parse_mix

    named = [name for name, _ in parse_mix(text.source)]
    files = {f"sha256 of {Path(name).name}": sha256(Path(name)) for name in named if Path(name).is_file()}
    return {
        "model": source.fingerprint,
        "teacher": teacher.fingerprint,
        "text": {
            **asdict(text),
            "source": ",".join(Path(name).name for name in text.source.split(",")),
            **files,
        },
        "budget": asdict(budget),
        "settings": asdict(config),
        "dtype": dtype,
    }


def _begin(
    folder: RunFolder,
    student: Student,
    optimizer: Optimizer,
    config: TrainingConfig,
    source: Source,
    text: TextConfig,
    sequences: int,
) -> Standing:
    """Where the last checkpoint stands, or the start."""
    known = folder.checkpoints()
    if known:
        standing = state.load(folder.checkpoint(known[-1]), student, optimizer)
    else:
        micro = config.micro_batch or _fitting(student, source, text.length, sequences)
        short = config.micro_batch is None and micro == 0
        standing = Standing(
            micro_batch=min(max(1, micro), sequences), recompute=short if config.recompute is None else config.recompute
        )
    student.recompute = standing.recompute
    return standing


def _fitting(student: Student, source: Source, length: int, sequences: int) -> int:
    """How many sequences at a time fit into a third of the free memory: a power of two parts of the step; 0: none."""
    room = free_bytes(student.device) / 3
    count = sequences
    while count and activation_bytes(source.shape, count * length, 4) > room:
        count //= 2
    return count


def _text(folder: RunFolder, text: TextConfig, tokens: int, tokenizer: Any, dense: DenseModel) -> PackedText:
    if folder.text.is_dir():
        return open_text(folder.text)
    return pack_text(folder.text, text, tokens, tokenizer, dense)


def _estimate(standing: Standing, steps: int, step_tokens: int, trial: Trial, source: Source) -> Estimate:
    return Estimate(
        tokens=steps * step_tokens,
        steps=steps,
        left=steps - standing.step,
        tokens_per_second=trial.tokens_per_second,
        memory=trial.memory,
        # Weights and two moments in float32, of the last and the best checkpoint, while a third is written.
        disk=3 * 12 * source.shape.parameters,
        start_kl=standing.start["kl"],
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
    with progress("Training", steps) as advance:
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
class _Final:
    weights: dict[str, torch.Tensor]
    before: float
    after: float
    used: int


def _finish(folder: RunFolder, source: Source, training: Training, optimizer: Optimizer, store_dtype: str) -> _Final:
    """The weights to write, in the precision in which they will be stored, and what they are worth on the held-out
    text in it: those of the best step, unless the model that was given is at least as good."""
    standing, student = training.standing, training.student
    before = standing.start["kl"]
    best = int(standing.best["step"])
    if best and best != standing.step:
        student.load(folder.checkpoint(best), {})
    if best:
        student.round_to(store_dtype, source)
        after = training.divergence()
        if after < before:
            return _Final(student.weights(), before, after, best)
    student.load(source.path, {})
    return _Final(student.weights(), before, before, 0)
