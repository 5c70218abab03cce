"""How pruning and training take turns: settings that a model's record holds. Obeyed in prunekit.recovery.stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.plan.knobs import Knob, knob, knobs_of
from prunekit.plan.training import TextConfig, TrainingConfig, sorted_out, text_of, training_knobs


@dataclass(frozen=True)
class StagesConfig:
    """How pruning and training take turns, where a model is pruned in several stages. Tokens are shared between them as
    ``shares`` says: linear gives stage i of n 2i / n(n + 1) of all, and the last one at least ``last_share``.
    ``moments`` of AdamW are cut along with the weights, or begin anew. The rate rises once more over the share
    ``rewarm`` of the steps that follow a cut.

    Where nobody says how many stages, there is one up to ``at_once`` of the parameters, or for fewer tokens than
    ``least_tokens``; else one for every ``removes`` of the parameters.
    """

    shares: str = knob("linear", "tokens of the stages: linear (later ones get more), equal")
    last_share: float = knob(0.35, "the share of all tokens that the last stage gets at least")
    moments: str = knob("sliced", "AdamW's moments after a cut: sliced along with the weights, fresh")
    rewarm: float = knob(0.05, "the share of a stage's steps in which the rate rises again after the cut")
    removes: float = 0.07
    at_once: float = 0.25
    least_tokens: int = 5_000_000

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
        # As its code trains (AdaptPruner, commit 5665876): 128 sequences of up to 1,024 tokens a step.
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
        StagesConfig(last_share=0.0, moments="fresh", rewarm=0.0, removes=0.05, at_once=0.0, least_tokens=0),
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
