"""Everything ``prunekit bench-server`` says, and the files it writes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.profiling.server.config import ServerConfig
from prunekit.profiling.server.joules import Energy
from prunekit.profiling.server.load import Shot, Volley
from prunekit.profiling.server.measured import LoadResult, medians
from prunekit.profiling.server.slo import Capacity
from prunekit.profiling.server.statistics import Ratio, Trend, trend
from prunekit.utils.files.atomic import write_text

FORMAT, ROWS = "prunekit-server-bench", "prunekit-server-requests"
NAMES = ("baseline", "endpoint")


@dataclass(frozen=True)
class Served:
    """One endpoint: its ``model`` by the server's word, ``label`` (no host's name), what else is known of it
    (``identity``), how the warm-up went, what its prefix cache counted meanwhile, and the API plain texts were sent
    to."""

    model: str
    label: str
    identity: dict[str, Any] | None
    warmup_requests: int = 0
    warmup_steady: bool = False
    warmup_medians: tuple[float, ...] = ()
    exact: bool = True
    cache_queries: float | None = None
    cache_hits: float | None = None
    api: str = "completions"


@dataclass(frozen=True)
class Compared:
    """One load on both endpoints, or on one: results in the order of ``ServerReport.served``, and ratios
    endpoint/baseline over neighbouring blocks by quantity; ``energy`` of each endpoint, where that was asked for."""

    results: tuple[LoadResult, ...]
    ratios: dict[str, Ratio]
    volleys: tuple[tuple[Volley, ...], ...] = ()
    energy: tuple[Energy, ...] = ()


@dataclass(frozen=True)
class ServerReport:
    """A load test. ``served`` has the baseline first, where there is one; ``loads`` what was measured; ``capacity`` the
    highest load within the SLO (None: no SLO was named). ``stopped`` says why it ended before all was measured.
    ``cost`` is :class:`~prunekit.profiling.server.money.Money` as JSON, where there are prices."""

    served: tuple[Served, ...]
    loads: tuple[Compared, ...]
    capacity: Capacity | None
    config: ServerConfig
    workload: dict[str, Any]
    machine: dict[str, Any]
    notes: tuple[str, ...] = ()
    stopped: str = ""
    seconds: float = 0.0
    cost: dict[str, Any] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return NAMES[-len(self.served) :]

    @property
    def believed(self) -> bool:
        """Whether nothing speaks against any of the figures."""
        void = any(each.void for load in self.loads for each in load.results)
        return bool(self.loads) and not void and not (self.capacity is not None and self.capacity.void)

    @property
    def drift(self) -> Trend:
        """How the time of a token changed from the first turn of a load to its last, of closed loops, in which nothing
        but the server decides it."""
        groups = []
        for load in self.loads:
            begins = [each.begin for volleys in load.volleys for each in volleys if each.shots]
            span = max(begins, default=0.0) - min(begins, default=0.0)
            if load.results[0].load.kind in ("closed", "natural") and span > 0:
                groups += [_course(volleys, min(begins), span) for volleys in load.volleys]
        return trend(groups)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only. Times are in seconds; ratios are endpoint/baseline."""
        served = [_served(each) for each in self.served]
        loads = [
            {
                "load": load.results[0].load.name,
                **{name: each.to_dict() for name, each in zip(self.names, load.results, strict=True)},
                "ratios": {name: each.to_dict() for name, each in load.ratios.items()},
                "energy": {name: each.to_dict() for name, each in zip(self.names, load.energy, strict=True)}
                if load.energy
                else None,
            }
            for load in self.loads
        ]
        return {
            "format": FORMAT,
            "version": 1,
            "status": "measured",
            "stopped": self.stopped or None,
            "believed": self.believed,
            "served": dict(zip(self.names, served, strict=True)),
            "loads": loads,
            "capacity": None if self.capacity is None else self.capacity.to_dict(),
            "cost": self.cost,
            "drift": self.drift.to_dict(),
            "workload": self.workload,
            "config": self.config.to_dict(),
            "machine": self.machine,
            "notes": [*self.notes],
            "seconds": self.seconds,
        }

    def rows(self) -> Iterable[dict[str, Any]]:
        """One JSON object for each request, without its texts."""
        for load in self.loads:
            for name, result, volleys in zip(self.names, load.results, load.volleys, strict=True):
                for block, volley in enumerate(volleys):
                    begin = volley.begin
                    for shot in sorted(volley.shots, key=lambda each: each.scheduled):
                        yield {"load": result.load.name, "to": name, "block": block, **_row(shot, begin)}


def _course(volleys: Sequence[Volley], begin: float, span: float) -> list[tuple[float, float]]:
    """Where in its load each block of one endpoint began, 0 to 1, and the logarithm of its median time of a token."""
    found = [((each.begin - begin) / span, medians(each)["tpot"]) for each in volleys if each.shots]
    return [(place, math.log(tpot)) for place, tpot in found if 0 < tpot < math.inf]


def _served(each: Served) -> dict[str, Any]:
    data = dict(vars(each))
    data["warmup_medians"] = [value if math.isfinite(value) else None for value in each.warmup_medians]
    return data


def _row(shot: Shot, begin: float) -> dict[str, Any]:
    answer = shot.answer
    usage = answer.usage
    tpot = shot.tpot
    return {
        "id": answer.id,
        "scheduled": round(shot.scheduled - begin, 6),
        "lag": round(shot.lag, 6),
        "ttft": None if math.isinf(shot.ttft) else round(shot.ttft, 6),
        "tpot": None if tpot is None or math.isinf(tpot) else round(tpot, 6),
        "first_answer": None if math.isinf(shot.first_answer) else round(shot.first_answer, 6),
        "e2e": None if math.isinf(shot.e2e) else round(shot.e2e, 6),
        "chunks": len(answer.chunks),
        "asked": shot.asked,
        "prompt_tokens": None if usage is None else usage.prompt,
        "tokens": shot.tokens if answer.ok else None,
        "characters": len(answer.text),
        "cached_tokens": None if usage is None else usage.cached,
        "finish_reason": answer.finish_reason,
        "error": answer.error,
        "status": answer.status,
    }


def write_report(report: ServerReport, path: Path, *, overwrite: bool = False) -> None:
    """The figures as JSON. Raises PrunekitError where it can't be written."""
    text = json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n"
    write_text(path, text, overwrite, what="server-bench")


def write_rows(report: ServerReport, path: Path, *, overwrite: bool = False) -> None:
    """A line of JSON for each request, after one that says what they are."""
    lines = [{"format": ROWS, "version": 1}, *report.rows()]
    text = "".join(json.dumps(each, allow_nan=False) + "\n" for each in lines)
    write_text(path, text, overwrite, what="server-requests")
