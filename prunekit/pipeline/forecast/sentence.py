"""What a run will take, in a sentence."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.pipeline.forecast.room import Room
from prunekit.utils.phases.words import size


@dataclass(frozen=True)
class Parts:
    """Seconds of ``pruning`` in so many ``stages``, and of ``training``, text that the model writes for it included."""

    pruning: float
    training: float
    stages: int = 1


def sentence_of(seconds: float, needed: Room, *, kept: bool = False, parts: Parts | None = None) -> str:
    """``This takes about 9 minutes, 3.1 GB of memory and 0.6 GB of disk …``"""
    less = ", and less time where an earlier run has kept loss curves" if kept else ""
    time = duration(seconds)
    if parts is not None:
        stages = "" if parts.stages == 1 else f" in {parts.stages} stages"
        time += f" ({duration(parts.pruning)} of pruning{stages}, {duration(parts.training)} of training)"
    return (
        f"This takes about {time}, {size(needed.memory)} of memory and {size(needed.disk)} of disk{less} (a "
        "prediction from trial steps with one layer)."
    )


def duration(seconds: float) -> str:
    """Such as "45 seconds", "9 minutes", "2.5 hours"."""
    minutes = seconds / 60
    if minutes >= 100:
        return f"{minutes / 60:.1f} hours"
    return f"{minutes:.0f} minutes" if minutes >= 1.5 else f"{seconds:.0f} seconds"
