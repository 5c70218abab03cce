"""What long work tells of its steps. Apart from the bar, which needs a library that a bare GPU machine has not."""

from __future__ import annotations

from typing import Protocol


class Advance(Protocol):
    """Told of ``steps`` that are done; ``note`` is a short text to show beside them (a loss, a width).

    Where steps differ, ``kind`` and ``cost`` say what these were, by the work that the phase was announced with
    (:func:`prunekit.utils.progress.progress`). ``kept`` steps were done by an earlier run.
    """

    def __call__(
        self, steps: float = 1, note: str = "", *, kind: str = "", cost: float | None = None, kept: bool = False
    ) -> None: ...


def untold(steps: float = 1, note: str = "", *, kind: str = "", cost: float | None = None, kept: bool = False) -> None:
    """An :class:`Advance` where nobody watches."""
