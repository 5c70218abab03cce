"""What a signal is to the rest of the watch: a name, a kind, what it keeps of the reference, a figure a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from prunekit.monitoring.log.request import Request

Kind = Literal["input", "output", "load", "server", "quality", "weights"]
"""What a rise means: prompts changed ("input"), answers did, which other prompts may explain ("output"), they came
later, which more traffic may explain ("load"), the server did what no prompt explains ("server"), the deployed model
follows the dense one less well ("quality"), or it is not the model of the baseline ("weights")."""

# So many requests of a window, and of the reference, are what a signal of a model gets to choose from when a baseline
# is made: those that `sample` gives. A signal that takes its own `sample` of a window gets the same ones later.
WINDOW_SAMPLE = 64
REFERENCE_SAMPLE = 512


@dataclass(frozen=True)
class Scored:
    """A window's figure, greater where it is worse; ``value`` None with the ``reason`` where it can't be told.
    ``details`` are figures to show beside it, JSON values by name."""

    value: float | None
    reason: str | None = None
    details: dict[str, Any] | None = None


class ModelSignal(Protocol):
    """A signal that needs a model. ``transform`` names what makes its figures of a healthy log about normal: "none",
    "log" (positive figures) or "cube-root" (distances, skewed to the right)."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def title(self) -> str: ...
    @property
    def transform(self) -> str: ...

    def reference(self, requests: Sequence[Request]) -> dict[str, Any]:
        """What is kept of the reference's requests in base.json: JSON values only, small. Large arrays go to files
        whose names and SHA-256 are kept here (:class:`Keeps`)."""
        ...

    def score(self, window: Sequence[Request], state: dict[str, Any]) -> Scored:
        """The figure of one window, given what :meth:`reference` kept. Deterministic."""
        ...


@runtime_checkable
class Shortens(Protocol):
    """A signal that reads a part of each request."""

    def shortened(self, request: Request) -> Request:
        """That part, of which the same is made as of the whole."""
        ...


@runtime_checkable
class Keeps(Protocol):
    """A signal with a file of its own."""

    def keep(self) -> None:
        """Write it; called just before the baseline is written."""
        ...
