"""From a pruned model, its dense one and text to a trained checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.checkpoint.manifest import Written, written_once
from prunekit.checkpoint.trained import with_recovery, write_trained
from prunekit.data.calibration import check_length
from prunekit.data.self_generated import Writing
from prunekit.errors import PrunekitError
from prunekit.models.source import load_tokenizer, pick_device
from prunekit.models.tokenizer.same_tokens import first_difference, shown
from prunekit.plan.training import RESOURCES
from prunekit.recovery.lessons import Lessons
from prunekit.recovery.training.lora import check_peft
from prunekit.recovery.training.progress import Listener, Standing
from prunekit.recovery.training.run_folder import RunFolder, end, run_folder
from prunekit.utils.files.atomic import check_output_folder
from prunekit.utils.files.hashes import sha256
from prunekit.utils.files.replacing import CHECKPOINT, local
from prunekit.utils.process import ranks
from prunekit.utils.process.ranks import from_first
from prunekit.utils.provenance import model_label

if TYPE_CHECKING:
    from prunekit.models.source import Source
    from prunekit.plan import Plan
    from prunekit.plan.training import TextConfig, TrainingConfig

SUFFIX = ".training"
_UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "B": 1}


@dataclass(frozen=True)
class Budget:
    """How long to train: so many ``tokens``, or about so many ``minutes`` at the speed that three trial steps have,
    what the dense model writes before included."""

    tokens: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.minutes is None):
            raise PrunekitError("Say how long to train: --tokens 10M or --minutes 60, one of the two.")
        if self.tokens is not None and self.tokens < 1:
            raise PrunekitError(f"A training takes 1 token at least, got {self.tokens}.")
        if self.minutes is not None and not 0 < self.minutes < 1e6:
            raise PrunekitError(f"A training takes more than 0 minutes, got {self.minutes:g}.")

    def in_tokens(self, reach: Callable[[float], int]) -> int:
        """The tokens that it is: ``reach`` says how many can be trained on in so many seconds, and is asked where that
        is needed."""
        return self.tokens if self.tokens is not None else reach(60 * (self.minutes or 0))


@dataclass(frozen=True)
class Recovered:
    """``written`` is the checkpoint, ``standing`` how the training went, ``before`` and ``after`` the divergence on
    held-out text, nats a token: of the model that was given, and of what was written. ``used`` is the step whose
    weights were written; 0: nothing was better than the model that was given. ``facts`` are what its plan tells of it,
    and ``stages`` of each, where there were several."""

    written: Written
    plan: Plan
    standing: Standing
    before: float
    after: float
    used: int
    facts: dict[str, Any] = field(default_factory=dict)
    stages: Sequence[dict[str, Any]] = ()


def recover(
    source: Source,
    teacher: Source,
    out: Path,
    *,
    text: TextConfig,
    budget: Budget,
    config: TrainingConfig,
    writing: Writing,
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
    on, and those of ``source`` where none were better. ``beside`` adds files to the checkpoint; ``writing`` gives what
    samples the text that the teacher writes.

    Raises PrunekitError where the two models or the text don't belong together, the loss is not finite, or something
    can't be written.
    """
    listener = listener if listener and ranks.is_first() else Listener()
    if config.lora:
        check_peft()
    inputs = (*source.inputs, *teacher.inputs, *local(*text.source.split(",")))
    from_first(lambda: _check_free(out, overwrite, inputs))
    check_length(text, source.config)
    tokenizer = load_tokenizer(teacher)
    _check_pair(source, teacher, tokenizer)
    asked = {"model": source.fingerprint, **asked_of(teacher, text, budget, config, dtype)}
    with run_folder(place_of(out), asked, overwrite) as folder:
        folder.settle(model_name=model_label(source.name), teacher_name=model_label(teacher.name))
        begun_with(folder, checkpoint_minutes, listener.note, store_dtype=store_dtype, max_shard=max_shard_bytes)
        config = settled(config, folder, device)
        lessons = Lessons(
            folder,
            teacher,
            text,
            config,
            tokenizer=tokenizer,
            dtype=dtype,
            device=device,
            checkpoint_minutes=checkpoint_minutes,
            writing=writing,
        )
        trained = lessons.train(source, folder, lambda reach: lessons.span(lambda: budget.in_tokens(reach)), listener)
        made = trained.finish(store_dtype)
        trained.tell(made, listener.note)
        facts = trained.facts(made)
        plan = with_recovery(trained.plan, facts)
        standing = trained.training.standing
        folder.settle(plan=plan.file_digest())
        result = Recovered(None, plan, standing, made.before, made.after, made.used, facts)  # type: ignore[arg-type]
        written = written_once(
            lambda: write_trained(
                source,
                plan,
                made.weights,
                out,
                dtype=store_dtype,
                overwrite=overwrite,
                max_shard_bytes=max_shard_bytes,
                beside=lambda path: beside(path, result),
            )
        )
        folder.erase()
    return replace(result, written=written)


def _check_free(out: Path, overwrite: bool, inputs: tuple[Path, ...]) -> None:
    if not overwrite:
        end(place_of(out), out)
    check_output_folder(out, overwrite, kind=CHECKPOINT, inputs=inputs)


def place_of(out: Path) -> Path:
    """Where what a training needs to go on lies until ``out`` is there."""
    return out.absolute().with_name(out.absolute().name + SUFFIX)


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


def settled(config: TrainingConfig, folder: RunFolder, device: str) -> TrainingConfig:
    """``config`` with every setting settled: what was left to the device, as it was when the training began. How a step
    is computed is written down for people."""
    config = replace(config, batch_tokens=config.batch_tokens or folder.settled.get("batch_tokens"))
    config = config.on(pick_device(device).type)
    folder.settle(batch_tokens=config.batch_tokens, resources=config.resources)
    return config


def begun_with(folder: RunFolder, checkpoint_minutes: float, note: Callable[[str], None], **form: str | int) -> None:
    """Write down, for the command that goes on with the training in ``folder``, in which ``form`` its result is asked
    for: by the options' names, sizes in bytes. ``note`` where the training was begun with another: what is said now is
    done."""
    begun = folder.settled.get("form", {})
    for name, value in form.items():
        if begun.get(name, value) != value:
            before, now = (f"--{name.replace('_', '-')} {in_option(each)}" for each in (begun[name], value))
            note(
                f"This training was begun with {before}, and its result will be written with {now}. If you don't want "
                f"that, stop it and give the same command with {before}: it goes on."
            )
    folder.settle(form={**form, **begun}, checkpoint_minutes=checkpoint_minutes)


def in_option(value: str | int) -> str:
    """A word as it is, and bytes as an option takes them."""
    if isinstance(value, str):
        return value
    unit = next((unit for unit in ("GiB", "MiB", "KiB") if value % _UNITS[unit] == 0), "B")
    return f"{value // _UNITS[unit]}{unit}"


def asked_of(teacher: Source, text: TextConfig, budget: Budget, config: TrainingConfig, dtype: str) -> dict[str, Any]:
    """What decides a training beside the model, in JSON values."""
    return {
        "teacher": teacher.fingerprint,
        "text": {**asdict(text), **told_by_content(text.source)},
        "budget": asdict(budget),
        "settings": {name: value for name, value in asdict(config).items() if name not in RESOURCES},
        "dtype": dtype,
    }


def told_by_content(source: str) -> dict[str, str]:
    """The texts of a mix by their names, and files by what they hold: not by their paths."""
    from prunekit.data.mixture import parse_mix

    named = [name for name, _ in parse_mix(source)]
    return {
        "source": ",".join(Path(name).name for name in source.split(",")),
        **{f"sha256 of {Path(name).name}": sha256(Path(name)) for name in named if Path(name).is_file()},
    }
