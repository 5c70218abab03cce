"""What was found out of every candidate: rows of figures, what they hold for, and which no other one beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from prunekit.pipeline.candidates.figure import Figure
from prunekit.pipeline.candidates.words import why
from prunekit.plan import Plan
from prunekit.report.front import front

Kind = Literal["dense", "prune", "quantise", "both"]
FORMAT, VERSION = "prunekit-candidates", 1
FIGURES = (
    "parameters",
    "blocks_share",
    "loss_added",
    "kl",
    "top1_agreement",
    "perplexity",
    "file_bytes",
    "memory_bytes",
    "kv_bytes_per_token",
    "users",
    "ttft_ratio",
    "tpot_ratio",
    "prune_minutes",
)


@dataclass(frozen=True)
class Row:
    """One candidate. ``plan`` is what prunes it (None: nothing is pruned), ``dtype`` what its weights are stored in,
    ``figures`` are by the names of :data:`FIGURES`. ``verdict`` is fine, costs quality or broken, None where nothing
    was compared. ``pareto``: no other candidate is smaller and better. ``notes`` are what its export tells, and
    ``advice`` says what to do about tensors that fell back to larger types (``fallbacks`` counts them)."""

    name: str
    kind: Kind
    plan: Plan | None
    dtype: str
    figures: Mapping[str, Figure]
    verdict: str | None
    pareto: bool = False
    notes: tuple[str, ...] = ()
    fallbacks: Mapping[str, int] | None = None
    advice: str | None = None

    @property
    def why(self) -> tuple[str, ...]:
        """Why its layers are as wide as they are, in a few sentences of its plan."""
        return why(self.plan)

    @property
    def plan_file(self) -> str | None:
        """The name of its plan in the folder of candidates: a pruned model and its quantised form share one."""
        return None if self.plan is None else f"plan-{self.name.split(' ')[0]}.json"

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "name": self.name,
            "kind": self.kind,
            "plan": self.plan_file,
            "plan_sha256": None if self.plan is None else self.plan.file_digest(),
            "dtype": self.dtype,
            "figures": {name: self.figures[name].to_dict() for name in FIGURES},
            "verdict": self.verdict,
            "pareto": self.pareto,
            "notes": [*self.notes, *([self.advice] if self.advice else [])],
            "why": list(self.why),
            **({} if self.fallbacks is None else {"fallbacks": dict(self.fallbacks)}),
        }


@dataclass(frozen=True)
class Candidates:
    """All candidates of ``model`` (its name, fingerprint, parameters and family), the dense one first. ``calibration``
    and ``evaluation`` describe the texts, ``ships_as`` is the format asked for, ``context`` the tokens of a user whose
    KV cache is counted, ``memory`` the bytes of the device where it is known. ``path`` is the folder that was written.
    """

    model: Mapping[str, Any]
    machine: Mapping[str, Any]
    versions: Mapping[str, Any]
    calibration: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    ships_as: str | None
    context: int
    memory: int | None
    rows: tuple[Row, ...]
    not_measured: tuple[str, ...]
    path: Path | None = field(default=None, compare=False)

    @property
    def pareto(self) -> tuple[Row, ...]:
        """The rows that no other is better than in both size and quality."""
        return tuple(row for row in self.rows if row.pareto)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": dict(self.model),
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "calibration": dict(self.calibration),
            "evaluation": dict(self.evaluation),
            "for": self.ships_as,
            "context": self.context,
            "memory_bytes": self.memory,
            "rows": [row.to_dict() for row in self.rows],
            "not_measured": list(self.not_measured),
        }


def with_front(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows, told whether they are on the front of file size and loss added."""
    points = [_point(row) for row in rows]
    return tuple(replace(row, pareto=told) for row, told in zip(rows, front(points), strict=True))


def _point(row: Row) -> tuple[float, float] | None:
    size, loss = row.figures["file_bytes"].value, row.figures["loss_added"].value
    return None if size is None or loss is None else (float(size), float(loss))
