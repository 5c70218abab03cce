"""base.json: a baseline on disk, read with errors that help."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.monitoring.baseline.calibrate import Calibrated
from prunekit.monitoring.baseline.settings import WatchConfig
from prunekit.monitoring.signals.reference import Reference
from prunekit.monitoring.signals.window import LENGTHS
from prunekit.utils.files.atomic import read_json
from prunekit.utils.names import printable

WHAT = "watch-baseline"
FORMAT, VERSION = f"prunekit-{WHAT}", 1


@dataclass(frozen=True)
class Baseline:
    """What is normal for a deployed model. ``outcomes`` counts those of the reference: all, wrong, reworked; ``bounds``
    are the rates that must not be passed; ``log``, ``notes``, ``models`` and ``run`` are for people."""

    config: WatchConfig
    per_day: float
    reference: Reference
    signals: tuple[Calibrated, ...]
    bounds: dict[str, dict[str, Any]]
    outcomes: tuple[int, ...]
    log: dict[str, Any]
    notes: list[str]
    models: dict[str, str]
    run: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "config": asdict(self.config),
            "requests_per_day": self.per_day,
            "signals": [each.to_dict() for each in self.signals],
            "bounds": self.bounds,
            "outcomes": list(self.outcomes),
            "log": self.log,
            "notes": self.notes,
            "models": self.models,
            "run": self.run,
            "reference": self.reference.to_dict(),
        }


def read_baseline(path: Path) -> Baseline:
    """The baseline in ``path``. Raises PrunekitError where it is none, or of another version."""
    data = read_json(path, "baseline")
    shown = printable(str(path))
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise PrunekitError(f"{shown} is no baseline; make one with `prunekit watch init --reference LOG -o {shown}`.")
    if data.get("version") != VERSION:
        raise PrunekitError(
            f"{shown} is a baseline of version {printable(str(data.get('version')))}, and this prunekit reads version "
            f"{VERSION}; make it again with `prunekit watch init`."
        )
    try:
        made = Baseline(
            config=WatchConfig(**data["config"]),
            per_day=float(data["requests_per_day"]),
            reference=Reference.from_dict(data["reference"]),
            signals=tuple(Calibrated.from_dict(each) for each in data["signals"]),
            bounds=dict(data["bounds"]),
            outcomes=tuple(data["outcomes"]),
            log=dict(data["log"]),
            notes=list(data["notes"]),
            models=dict(data["models"]),
            run=dict(data["run"]),
        )
        _check(made)
        return made
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PrunekitError(
            f"The baseline {shown} is damaged ({printable(type(error).__name__)}); make it again with "
            "`prunekit watch init`."
        ) from None


def _check(made: Baseline) -> None:
    """Raises ValueError where figures can't be what `watch init` writes."""
    for each in made.signals:
        null, h = each.null, each.h
        if null is not None and not (null.effective >= 1 and 0 < null.sd < math.inf and math.isfinite(null.mean)):
            raise ValueError
        if h is not None and not 0 < h < math.inf:
            raise ValueError
    reference, mix = made.reference, made.reference.mix
    if not reference.lengths_in.shape == reference.lengths_out.shape == (LENGTHS,):
        raise ValueError
    if mix is not None and not (mix.top.ndim == 1 and len(mix.top) and mix.counts.shape == (len(mix.top) + 1,)):
        raise ValueError
    if any(told["bound"] is not None and not 0 < told["bound"] < 1 for told in made.bounds.values()):
        raise ValueError
    if not 0 < made.per_day < math.inf:
        raise ValueError
