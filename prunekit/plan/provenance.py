"""What a plan says of how it was made, checked once: whoever reads it later finds the types that prunekit writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from prunekit.utils.names import printable

_Fits = Callable[[Any], bool]


def _text(value: Any) -> bool:
    """These go into tables, model cards and file names: one line, and no more than a sentence or two."""
    return value is None or (isinstance(value, str) and len(value) <= 2000 and printable(value) == value)


def _string(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _seed(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _number(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_count, value))


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


_TEXT: dict[str, _Fits] = {
    "source": _string,
    "field": _string,
    "split": _string,
    "text_sha256": _text,
    "sequences": _count,
    "length": _count,
    "batch_size": _count,
    "seed": _seed,
    "draw": _count,
    "blocks_available": _count,
    "fingerprint": _text,
}
# Fields that are left out here are shown as they are, or never read.
_OBJECTS: dict[str, dict[str, _Fits]] = {
    "model": {"name": _text, "family": _text, "fingerprint": _text},
    "method": {
        "name": _text,
        "allocation": _text,
        "importance": _text,
        "layer_importance": _text,
        "units": _texts,
        "starts": _texts,
    },
    "target": {"asked": _text},
    "rounding": {},
    "calibration": _TEXT,
    "computed_on": _TEXT,
    "computed_in": {},
    "compensation": {"projections": _texts, "without": _text},
    "refit": {"towards": _number, "inputs": _number, "ridge": _number, "held_out": _number},
    "rescale": {"share": _number, "rate": _number, "batch_size": _count, "held_out": _number},
    "versions": {},
}
_FIELDS: dict[str, _Fits] = {
    "seed": _seed,
    "protected_layers": _counts,
    "history": lambda value: isinstance(value, list),
}


def check_provenance(provenance: Any) -> dict[str, Any]:
    """``provenance`` as it is. Raises ValueError, with a clause that names the field, where one that prunekit reads
    holds what prunekit never writes."""
    if not isinstance(provenance, dict):
        raise ValueError("its provenance is no JSON object")
    _check("provenance", provenance, _FIELDS)
    for name, fields in _OBJECTS.items():
        if provenance.get(name) is not None:
            _check_object(f"provenance.{name}", provenance[name], fields)
    for name in ("calibration", "computed_on"):
        parts = (provenance.get(name) or {}).get("mix")
        if parts is None:
            continue
        if not isinstance(parts, list):
            raise ValueError(f"provenance.{name}.mix is no list")
        for part in parts:
            _check_object(f"provenance.{name}.mix", part, _TEXT)
    return provenance


def _check_object(where: str, value: Any, fields: Mapping[str, _Fits]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is no JSON object")
    _check(where, value, fields)


def _check(where: str, value: Mapping[str, Any], fields: Mapping[str, _Fits]) -> None:
    for name, fits in fields.items():
        if name in value and not fits(value[name]):
            raise ValueError(f"{where}.{name} is {str(value[name])[:60]!r}, which prunekit never writes")
