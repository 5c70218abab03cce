"""How long the same work took here the last time, so that a run can say at its start how long it will take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from prunekit.errors import PrunekitError
from prunekit.utils.files.atomic import rewrite_text
from prunekit.utils.files.cache import cache_key, cache_place
from prunekit.utils.files.strict_json import read_regular

_LONGEST = 64


def recall(what: Sequence[object]) -> float | None:
    """Seconds that a unit of ``what``, JSON values, took here; None where nobody remembers."""
    try:
        unit = float(read_regular(_place(what, make=False), _LONGEST))
    except (OSError, ValueError, PrunekitError):
        return None
    return unit if math.isfinite(unit) and unit > 0 else None


def remember(what: Sequence[object], unit: float) -> None:
    """Keep it for :func:`recall`. An estimate is not worth a word where that fails."""
    with suppress(OSError, PrunekitError):
        place = _place(what, make=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        rewrite_text(place, f"{unit:.6g}\n")


def _place(what: Sequence[object], *, make: bool) -> Path:
    return cache_place("lasted", make=make, needed=False) / cache_key([*what])
