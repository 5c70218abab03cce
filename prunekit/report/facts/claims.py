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
ASKED, OWN_LENGTHS = "as long as asked", "own lengths"


@dataclass(frozen=True)
class Figure:
    """One number. ``low`` and ``high`` bound what ``interval`` names; ``how`` is a short sentence; ``files`` are the
    names of those that it was read from or computed from. A ``value`` of None is not measured, for the reason ``how``,
    or contradictory. ``believed`` is False where the file itself says that it should not be. ``bound`` is "at least"
    or "at most" where the value only bounds it."""

    value: float | None
    status: str
    low: float | None = None
    high: float | None = None
    how: str = ""
    files: tuple[str, ...] = ()
    interval: str = INTERVAL
    believed: bool = True
    bound: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        bounds = {} if self.low is None else {"low": self.low, "high": self.high, "interval": self.interval}
        doubt = {} if self.believed else {"believed": False}
        only = {"bound": self.bound} if self.bound else {}
        said = {"value": self.value, "status": self.status, **only, **bounds, **doubt}
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
    precision. ``against`` is the model that a difference or a ratio is to. ``apart`` says that this is a time of the
    model alone, in a run of its own. ``answers`` says of a load test whether they were as long as :data:`ASKED`, alike
    of all models, or ended by themselves (:data:`OWN_LENGTHS`)."""

    subject: Subject
    form: str
    metric: str
    figure: Figure
    setup: str = ""
    against: Subject | None = None
    detail: str = ""
    apart: bool = False
    answers: str = ""


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
    """A beginning, and what two models went on with. ``texts`` are what it may be from. ``kl`` is KL from the dense
    model, in nats a token, on what follows in the text, where it was chosen by that (:mod:`prunekit.evaluation.worst`);
    infinite where no number holds it."""

    subject: Subject
    texts: tuple[str, ...]
    prompt: str
    model: str
    dense: str | None
    file: str
    kl: float | None = None


@dataclass(frozen=True)
class Reason:
    """Why a layer is as wide as it is, in the words of the file. ``plan`` is the SHA-256 of the plan that says so, as
    it was before any training; None where it is no plan that does."""

    about: str
    layer: str
    words: str
    file: str
    plan: str | None = None


@dataclass(frozen=True)
class Compared:
    """An export, and how it compares with PyTorch: ``rows`` of a name and a text."""

    subject: Subject
    form: str
    verified: bool
    rows: tuple[tuple[str, str], ...]
    file: str


LOAD, ACCEPTANCE, WATCH = "load at the server", "acceptance", "watch"
"""Kinds of proofs, in the order in which they are shown."""


@dataclass(frozen=True)
class Sheet:
    """A small table of words; the first cell of each row names it."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Case:
    """A record of the user's own that the model got wrong: a sentence on it, and names with ``texts``. All of it may
    be private."""

    words: str
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Proof:
    """What a file says of a model in service, or before it goes there. ``word`` is the verdict, ``passes`` whether it
    speaks for the model (None: for neither), ``do`` what is to be done. ``subject`` is None where the file names no
    model. ``cases`` are the worst."""

    subject: Subject | None
    form: str
    kind: str
    word: str
    passes: bool | None
    file: str
    reasons: tuple[str, ...] = ()
    do: str = ""
    sheets: tuple[Sheet, ...] = ()
    cases: tuple[Case, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values only, and no texts."""
        return {
            "kind": self.kind,
            "verdict": self.word,
            "passes": self.passes,
            "reasons": list(self.reasons),
            "do": self.do or None,
            "files": [self.file],
        }


@dataclass(frozen=True)
class Reading:
    """All that one file says. ``facts`` are names and texts for the section on method; ``not_measured`` and
    ``warnings`` are whole sentences. ``weights`` are the SHA-256 of files of weights, each with the model and form that
    it is: by it a served file is known."""

    kind: str
    subjects: tuple[tuple[Subject, str], ...] = ()
    claims: tuple[Claim, ...] = ()
    verdicts: tuple[Judged, ...] = ()
    plans: tuple[Planned, ...] = ()
    examples: tuple[Example, ...] = ()
    reasons: tuple[Reason, ...] = ()
    parity: tuple[Compared, ...] = ()
    proofs: tuple[Proof, ...] = ()
    weights: tuple[tuple[str, Subject, str], ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    not_measured: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileSaid:
    """A file of the report: its ``name`` without folders, the SHA-256 of what was read, and what it says."""

    name: str
    sha256: str
    reading: Reading
