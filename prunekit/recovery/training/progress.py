"""What a training has come to: where it stands, and what was seen on the way. Kept with every checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Standing:
    """``step`` is the next step, ``updates`` how many moved the weights, ``tokens`` how many were seen, ``skipped`` how
    many steps in a row were not finite; ``micro_batch`` sequences are computed at a time. ``held_out`` has what was
    measured on text that is not trained on, by step; ``steps`` a row for each step: its number, divergence and loss
    (nats a token, before the step), rate, gradient norm. Rows hold no clock times, so that a run that was continued
    ends as one that was not."""

    step: int = 0
    updates: int = 0
    tokens: int = 0
    skipped: int = 0
    micro_batch: int = 0
    recompute: bool = False
    held_out: list[dict[str, float]] = field(default_factory=list)
    steps: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def start(self) -> dict[str, float]:
        """The held-out measurement before the first step."""
        return self.held_out[0]

    @property
    def best(self) -> dict[str, float]:
        """The held-out measurement of least divergence, the first of equals."""
        return min(self.held_out, key=lambda row: row["kl"])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
