"""How a pruned model is trained back, on what text, and in turns with pruning: settings that its record holds. Obeyed
in prunekit.data and prunekit.recovery."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.plan.knobs import Knob, knob, knobs_of, words
from prunekit.plan.settings import check_text
from prunekit.utils.names import nearest

CHOICES = {
    "schedule": ("linear", "cosine", "wsd"),
    "train": ("blocks", "all"),
    "documents": ("joined", "separate"),
    "teacher": ("auto", "online", "hidden", "sampled"),
}

RESOURCES = ("micro_batch", "recompute")
"""Settings that say how a step is computed, and not what comes of it: a training goes on with others."""

# More steps brought more than larger ones: 67,584 tokens of SmolLM2-135M at 50 % of its blocks took 0.023 off the KL in
# steps of 512, and 0.015 in steps of 2,048. A GPU would mostly wait with steps so small.
CPU_BATCH, BATCH = 512, 2048


@dataclass(frozen=True)
class TextConfig:
    """What text a pruned model is trained on: windows of ``length`` tokens, in an order drawn by ``seed``.

    ``source``, ``field`` and ``split`` are those of :class:`~prunekit.plan.settings.CalibrationConfig`. ``held_out``
    windows in all, at least one of each text of a mix, are never trained on: they judge how near the model has come.
    """

    source: str = knob(
        "builtin:0.5,self:0.5", "a file, a Hugging Face dataset, wikitext, builtin, self, or a mix", name="text"
    )
    length: int = knob(512, "tokens a window of training text", name="text_length")
    held_out: int = knob(16, "windows of training text that are only judged by", name="text_held_out")
    seed: int = 0
    field: str = knob("text", "the field or column of the rows that holds the text or the chat", name="text_field")
    split: str = knob("train", "the dataset's split", name="text_split")

    def __post_init__(self) -> None:
        check_text(self, "training", {"length": 2, "held_out": 1})


@dataclass(frozen=True)
class TrainingConfig:
    """``ce_share`` λ weighs the loss of the text's own next tokens against the divergence from the dense model:
    (1 - λ) · KL(dense ‖ pruned) + λ · CE. ``batch_tokens`` make one step of the optimizer (AdamW), whatever fits into
    memory at a time; None is settled by the device (:meth:`on`). The rate rises over the share ``warmup`` of all steps,
    then follows ``schedule``: linear and cosine fall to 0, wsd stays and falls linearly over the share ``decay`` at the
    end.

    ``train`` says which weights move: those of the decoder blocks and the last norm, or the embeddings and the head
    too. With ``lora`` above 0 only adapters of that rank move, and they are merged into the weights afterwards.
    ``documents`` that share a sequence see each other (joined) or not (separate). ``teacher`` says where the dense
    model's distributions come from: computed beside each step (online), kept as last hidden states (hidden), kept as
    ``samples`` tokens drawn a position (sampled), or the cheapest of these for the run (auto).
    """

    learning_rate: float = knob(1e-4, "AdamW's step at its largest")
    batch_tokens: int | None = knob(
        None, f"tokens a step of the optimizer (default: {CPU_BATCH} on a CPU, else {BATCH})"
    )
    schedule: str = knob("linear", "how the rate goes on after the warm-up: linear, cosine, wsd")
    warmup: float = knob(0.05, "the share of the steps in which the rate rises")
    decay: float = knob(0.1, "the share of the steps in which the rate falls at the end, with schedule=wsd")
    ce_share: float = knob(0.0, "the share of the text's own next tokens in the loss")
    train: str = knob("blocks", "which weights move: blocks, or all (embeddings and head too)")
    lora: int = knob(0, "train adapters of this rank instead of the weights (needs peft)")
    documents: str = knob("joined", "whether documents of a sequence see each other: joined, separate")
    teacher: str = knob("auto", "the dense model's distributions: online, hidden, sampled (kept), or auto")
    samples: int = knob(50, "tokens drawn a position, with teacher=sampled")
    weight_decay: float = knob(0.0, "AdamW's decay of matrices")
    beta1: float = knob(0.9, "AdamW's memory of the gradient")
    beta2: float = knob(0.95, "AdamW's memory of its square")
    clip: float = knob(1.0, "the largest norm of a step's gradient")
    micro_batch: int | None = knob(None, "sequences computed at a time (default: what fits)")
    recompute: bool | None = knob(
        None, "recompute activations instead of keeping them (default: where memory is short)"
    )

    def __post_init__(self) -> None:
        _check("learning_rate", self.learning_rate, 0 < self.learning_rate <= 1, "above 0 and at most 1")
        if self.batch_tokens is not None:
            _check("batch_tokens", self.batch_tokens, self.batch_tokens >= 2, "at least 2")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise PrunekitError(f"{name} is one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        for name in ("warmup", "decay"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        _check("ce_share", self.ce_share, 0 <= self.ce_share <= 1, "between 0 and 1")
        _check("lora", self.lora, 0 <= self.lora <= 1024, "between 0 and 1024")
        _check("samples", self.samples, 1 <= self.samples <= 4096, "between 1 and 4096")
        _check("weight_decay", self.weight_decay, 0 <= self.weight_decay < 1, "at least 0 and below 1")
        for name in ("beta1", "beta2"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        _check("clip", self.clip, 0 < self.clip < math.inf, "a number above 0")
        if self.micro_batch is not None:
            _check("micro_batch", self.micro_batch, self.micro_batch >= 1, "at least 1")
        if self.lora and self.train == "all":
            raise PrunekitError("Adapters (lora) train the blocks' matrices alone; leave out train=all, or lora.")

    @property
    def resources(self) -> dict[str, Any]:
        """The settings of :data:`RESOURCES`."""
        return {name: getattr(self, name) for name in RESOURCES}

    def on(self, device: str) -> TrainingConfig:
        """The same with every setting settled, on a ``device`` of that kind (cpu, cuda, mps)."""
        return replace(self, batch_tokens=self.batch_tokens or (CPU_BATCH if device == "cpu" else BATCH))


def _check(name: str, value: float, fits: bool, words: str) -> None:
    if not fits:
        raise PrunekitError(f"{name} must be {words}, got {value}.")


def check_checkpoint_minutes(minutes: float) -> None:
    """Raises PrunekitError where it is no time between two checkpoints."""
    _check("checkpoint_minutes", minutes, 0 <= minutes < math.inf, "a number of minutes, 0 or more")


def training_knobs() -> Mapping[str, Knob]:
    """The settings of a training and of its text, by name; but for the text itself, which has an option."""
    found = (*knobs_of(TrainingConfig), *knobs_of(TextConfig))
    return {each.name: each for each in found if each.name != "text"}


def training_of(text: str | None, seed: int | None, settings: Mapping[str, Any]) -> tuple[TrainingConfig, TextConfig]:
    """The training that ``settings`` ask for, by their names, on ``text``.

    Raises PrunekitError where there is no such setting, or a value makes no sense.
    """
    changes = sorted_out(settings, training_knobs())
    return TrainingConfig(**changes.get(TrainingConfig, {})), text_of(text, seed, changes)


def sorted_out(settings: Mapping[str, Any], known: Mapping[str, Knob]) -> dict[type, dict[str, Any]]:
    """``settings`` by the config that has them, under the names of its fields. Raises PrunekitError where one is not
    ``known``, or of another type."""
    made: dict[type, dict[str, Any]] = {}
    for name, value in settings.items():
        if name not in known:
            raise PrunekitError(
                f"There is no setting {name!r} of a training{nearest(name, known)}; there are {', '.join(known)}."
            )
        knob_ = known[name]
        if not knob_.fits(value):
            raise PrunekitError(f"{name} takes {words(knob_.type)}, got {value!r}.")
        made.setdefault(knob_.config, {})[knob_.field] = value
    return made


def text_of(text: str | None, seed: int | None, changes: Mapping[type, Mapping[str, Any]]) -> TextConfig:
    """The text of that name, with the ``changes`` that :func:`sorted_out` found."""
    told: dict[str, Any] = {name: value for name, value in (("source", text), ("seed", seed)) if value is not None}
    return TextConfig(**changes.get(TextConfig, {}), **told)


@dataclass(frozen=True)
class StagesConfig:
    """How pruning and training take turns, where a model is pruned in several stages. Tokens are shared between them as
    ``shares`` says: linear gives stage i of n 2i / n(n + 1) of all, and the last one at least ``last_share``.
    ``moments`` of AdamW are cut along with the weights, or begin anew. The rate rises once more over the share
    ``rewarm`` of the steps that follow a cut.

    Where nobody says how many stages, there is one up to ``at_once`` of the parameters; else one for every ``removes``
    of the parameters, or of fewer tokens than ``many_tokens``, whose training takes less time than the cuts do, for
    every ``removes_of_few`` (SmolLM2 at 50 %, 66,000 tokens: three stages ended at a KL of 0.84, one at 0.92).
    """

    shares: str = knob("linear", "tokens of the stages: linear (later ones get more), equal")
    last_share: float = knob(0.35, "the share of all tokens that the last stage gets at least")
    moments: str = knob("sliced", "AdamW's moments after a cut: sliced along with the weights, fresh")
    rewarm: float = knob(0.05, "the share of a stage's steps in which the rate rises again after the cut")
    removes: float = 0.07
    removes_of_few: float = 0.14
    at_once: float = 0.25
    many_tokens: int = 5_000_000

    def __post_init__(self) -> None:
        for name, choices in (("shares", ("linear", "equal")), ("moments", ("sliced", "fresh"))):
            if getattr(self, name) not in choices:
                raise PrunekitError(f"{name} is one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        for name in ("last_share", "rewarm"):
            if not 0 <= getattr(self, name) < 1:
                raise PrunekitError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}.")


@dataclass(frozen=True)
class Loop:
    """A published way to prune and train in turns: ``method`` is what its cuts are planned by."""

    summary: str
    method: str
    training: TrainingConfig
    stages: StagesConfig


LOOPS: Mapping[str, Loop] = {
    "adapt-accel": Loop(
        "adapt-pruner and training on the next token in turns (the paper's); with prune --recover",
        "adapt-pruner",
        # As its code trains (AdaptPruner, commit 5665876): 128 sequences of up to 1,024 tokens a step. Here these are
        # 256 windows of 512, unless text_length says more.
        TrainingConfig(
            learning_rate=2e-5,
            batch_tokens=131_072,
            schedule="wsd",
            warmup=0.05,
            decay=0.1,
            ce_share=1.0,
            train="all",
            weight_decay=0.0,
            beta1=0.9,
            beta2=0.999,
            clip=1.0,
        ),
        StagesConfig(last_share=0.0, moments="fresh", rewarm=0.0, removes=0.05, at_once=0.0, many_tokens=0),
    )
}


def recovery_knobs() -> Mapping[str, Knob]:
    """:func:`~prunekit.plan.training.training_knobs`, and the settings of stages."""
    return {**training_knobs(), **{each.name: each for each in knobs_of(StagesConfig)}}


def recovery_of(
    text: str | None, seed: int | None, settings: Mapping[str, Any], loop: str | None = None
) -> tuple[TrainingConfig, TextConfig, StagesConfig]:
    """The training and the stages that ``settings`` ask for, by their names, on ``text``: on top of the ``loop`` of
    that name, where there is one.

    Raises PrunekitError where there is no such setting, or a value makes no sense.
    """
    changes = sorted_out(settings, recovery_knobs())
    training = TrainingConfig() if loop is None else LOOPS[loop].training
    stages = StagesConfig() if loop is None else LOOPS[loop].stages
    return (
        replace(training, **changes.get(TrainingConfig, {})),
        text_of(text, seed, changes),
        replace(stages, **changes.get(StagesConfig, {})),
    )
