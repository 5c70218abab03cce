"""What is told of a run at one moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

What = Literal["begun", "step", "ended", "unneeded"]


@dataclass(frozen=True)
class ProgressEvent:
    """Phase number ``phase`` of ``phases`` (``more``: of at least so many) was ``begun``, came a ``step`` further, has
    ``ended``, or was found to be ``unneeded``. Loading a model and the like have number 0.

    ``done`` of ``total`` steps are made, ``kept`` of them by an earlier run. ``seconds`` is how long the phase has
    taken; ``left`` how long it will take from now on and ``left_in_all`` how long the whole run will, in seconds, None
    where nothing is known. ``memory`` is the resident memory of this process in bytes, None where the system doesn't
    tell. ``tokens_per_second`` is known of phases that read or write text; ``place`` is the folder where what they
    make is kept for later runs. ``note`` is a short text, such as a loss.
    """

    what: What
    phase: int
    phases: int
    title: str
    done: float = 0.0
    total: float = 1.0
    kept: float = 0.0
    seconds: float = 0.0
    left: float | None = None
    left_in_all: float | None = None
    memory: int | None = None
    tokens_per_second: float | None = None
    place: str | None = None
    note: str = ""
    more: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return dict(vars(self))


Listener = Callable[[ProgressEvent], None]
