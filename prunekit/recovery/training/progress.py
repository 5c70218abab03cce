"""What a training has come to: where it stands, and what was seen on the way. Kept with every checkpoint, and told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Standing:
    """``step`` is the next step, ``updates`` how many moved the weights, ``tokens`` how many were seen, ``skipped`` how
    many steps in a row were not finite; ``micro_batch`` sequences are computed at a time. ``held_out`` has what was
    measured on text that is not trained on, by step; ``steps`` a row for each step: its number, divergence and loss
    (nats a token, before the step), rate, gradient norm. Rows hold no clock times, so that a run that was continued
    ends as one that was not. ``ce_share`` is that of the loss, by which held-out measurements are judged too.
    ``resources`` are the settings of how a step is computed that were asked for. Of the steps ``lost`` the weights are
    gone."""

    step: int = 0
    updates: int = 0
    tokens: int = 0
    skipped: int = 0
    micro_batch: int = 0
    recompute: bool = False
    held_out: list[dict[str, float]] = field(default_factory=list)
    steps: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    ce_share: float = 0.0
    resources: dict[str, Any] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)

    @property
    def start(self) -> dict[str, float]:
        """The held-out measurement before the first step."""
        return self.held_out[0]

    @property
    def best(self) -> dict[str, float]:
        """The held-out measurement of least loss, the first of equals, of those whose weights are there."""
        return min((each for each in self.held_out if each["step"] not in self.lost), key=self.judged)

    def judged(self, row: Mapping[str, float]) -> float:
        """The training's own loss in a held-out measurement: where nothing else is asked for, the divergence."""
        return (1 - self.ce_share) * row["kl"] + self.ce_share * row["loss"]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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
    ``memory`` is what this process held at most in the trial (None: the system doesn't tell), ``disk`` what its
    checkpoints and what is kept of the ``teacher`` (online, hidden, sampled) take at most, in bytes; ``teacher_bytes``
    are those of the latter, of text that comes ``times`` times. ``start_kl`` is the divergence on held-out text now,
    nats a token, and ``expected_kl`` what other trainings let expect at the end (None: nothing is known)."""

    tokens: int
    steps: int
    left: int
    tokens_per_second: float
    memory: int | None
    disk: int
    teacher: str
    teacher_bytes: int
    times: float
    start_kl: float
    expected_kl: float | None = None

    @property
    def seconds(self) -> float:
        """About how long the steps that are left will take."""
        return self.tokens * self.left / self.steps / self.tokens_per_second

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds}
