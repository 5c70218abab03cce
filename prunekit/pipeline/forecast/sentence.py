"""What a run will take, in a sentence."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.pipeline.forecast.room import Room
from prunekit.utils.phases.words import in_a_sentence, size


@dataclass(frozen=True)
class Parts:
    """Seconds of ``pruning`` in so many ``stages``, and of ``training``, text that the model writes for it included."""

    pruning: float
    training: float
    stages: int = 1


def sentence_of(seconds: float, needed: Room, *, kept: bool = False, parts: Parts | None = None) -> str:
    """``This takes about 9 minutes, 3.1 GB of memory and 0.6 GB of disk …``"""
    less = ", and less time where an earlier run has kept loss curves" if kept else ""
    time = in_a_sentence(seconds)
    if parts is not None:
        stages = "" if parts.stages == 1 else f" in {parts.stages} stages"
        time += f" ({in_a_sentence(parts.pruning)} of pruning{stages}, {in_a_sentence(parts.training)} of training)"
    return (
        f"This takes about {time}, {size(needed.memory)} of memory and {size(needed.disk)} of disk{less} (a "
        "prediction from trial steps with one layer)."
    )
