"""What one file says: figures of models, each with where it comes from and how far it is to be believed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit.plan import Plan

MEASURED, EXACT, ESTIMATED, PREDICTED = "measured", "exact", "estimated", "predicted"
NOT_MEASURED, CONTRADICTORY = "not measured", "contradictory"
# In the order in which they are believed.
STATUSES = (MEASURED, EXACT, ESTIMATED, PREDICTED, NOT_MEASURED)
CHECKPOINT = "checkpoint"
"""The form of a model as PyTorch runs it, in contrast to exports."""
INTERVAL = "95 % interval"


@dataclass(frozen=True)
class Figure:
    """One number. ``low`` and ``high`` bound what ``interval`` names; ``how`` is a short sentence; ``files`` are the
    names of those that it was read from or computed from. A ``value`` of None is not measured, for the reason ``how``,
    or contradictory. ``believed`` is False where the file itself says that it should not be."""

    value: float | None
    status: str
    low: float | None = None
    high: float | None = None
    how: str = ""
    files: tuple[str, ...] = ()
    interval: str = INTERVAL
    believed: bool = True

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        bounds = {} if self.low is None else {"low": self.low, "high": self.high, "interval": self.interval}
        doubt = {} if self.believed else {"believed": False}
        said = {"value": self.value, "status": self.status, **bounds, **doubt}
        return {**said, "how": self.how, "files": list(self.files)}


def missing(how: str) -> Figure:
    """A figure that nobody measured, and why."""
    return Figure(None, NOT_MEASURED, how=how)


@dataclass(frozen=True)
class Subject:
    """A model as one file speaks of it: its ``name``, and what else tells it from others: the ``fingerprint`` of its
    weights, the SHA-256 of its ``plan``. ``dense`` is None where the file does not say whether it was pruned."""

    name: str
    dense: bool | None = None
    fingerprint: str | None = None
    plan: str | None = None


@dataclass(frozen=True)
class Claim:
    """A figure of a model. ``form`` is what of it runs: the checkpoint, or an export such as "gguf q8_0". ``setup``
    says in words what else must be equal where figures are compared: text and windows, or machine, runtime and load;
    ``detail`` is what must be equal too of checkpoints, and differs between exports by their form: runtime and
    precision. ``against`` is the model that a difference or a ratio is to."""

    subject: Subject
    form: str
    metric: str
    figure: Figure
    setup: str = ""
    against: Subject | None = None
    detail: str = ""


@dataclass(frozen=True)
class Judged:
    """A verdict of :mod:`prunekit.evaluation.verdict` on a model, and the text that it is worst on."""

    subject: Subject
    form: str
    word: str
    text: str
    file: str


@dataclass(frozen=True)
class Planned:
    """A plan that a model was, or will be, made by."""

    subject: Subject
    plan: Plan
    file: str


@dataclass(frozen=True)
class Example:
    """A beginning, and what two models went on with. ``texts`` are what it may be from."""

    subject: Subject
    texts: tuple[str, ...]
    prompt: str
    model: str
    dense: str | None
    file: str


@dataclass(frozen=True)
class Reason:
    """Why a layer is as wide as it is, in the words of the file."""

    about: str
    layer: str
    words: str
    file: str


@dataclass(frozen=True)
class Compared:
    """An export, and how it compares with PyTorch: ``rows`` of a name and a text."""

    subject: Subject
    form: str
    verified: bool
    rows: tuple[tuple[str, str], ...]
    file: str


@dataclass(frozen=True)
class Reading:
    """All that one file says. ``facts`` are names and texts for the section on method; ``not_measured`` and
    ``warnings`` are whole sentences."""

    kind: str
    subjects: tuple[tuple[Subject, str], ...] = ()
    claims: tuple[Claim, ...] = ()
    verdicts: tuple[Judged, ...] = ()
    plans: tuple[Planned, ...] = ()
    examples: tuple[Example, ...] = ()
    reasons: tuple[Reason, ...] = ()
    parity: tuple[Compared, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    not_measured: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileSaid:
    """A file of the report: its ``name`` without folders, the SHA-256 of what was read, and what it says."""

    name: str
    sha256: str
    reading: Reading
