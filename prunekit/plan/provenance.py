"""What a plan says of how it was made, checked once: whoever reads it later finds the types that prunekit writes.

Plans of earlier versions have no recipe, and their provenance says what is still to be computed: it is read here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.plan.allocations import ALLOCATIONS, MEASURED, SCORED
from prunekit.plan.methods import METHODS
from prunekit.plan.recipe import DEFAULT, Recipe
from prunekit.plan.settings import CalibrationConfig, RefitConfig, RescaleConfig
from prunekit.utils.names import printable

_Fits = Callable[[Any], bool]


def _text(value: Any) -> bool:
    """These go into tables, model cards and file names: one line, and no more than a sentence or two."""
    return value is None or (isinstance(value, str) and len(value) <= 2000 and printable(value) == value)


def _string(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _whole(value: Any) -> bool:
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
    "seed": _whole,
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
    "seed": _whole,
    "protected_layers": _counts,
    "history": lambda value: isinstance(value, list),
}
_WHY: dict[str, _Fits] = {
    "unit": _text,
    "shadow_price": _number,
    "sequences": _count,
    "not_measured": lambda value: isinstance(value, list) and all(map(_text, value)),
}
_REASON: dict[str, _Fits] = {
    **dict.fromkeys(("loss", "loss_without", "narrower", "wider", "alone", "alone_standard_error"), _number),
    **dict.fromkeys(("rank", "rank_low", "rank_high"), lambda value: value is None or _count(value)),
    "without_measured": lambda value: isinstance(value, bool),
    **dict.fromkeys(("kept", "dense", "least"), lambda value: _count(value) or (_counts(value) and len(value) == 2)),
    "texts": lambda value: value is None or (isinstance(value, dict) and all(map(_number, value.values()))),
    "pays_most": lambda value: value is None or _text(value),
}
_TRAINING: dict[str, _Fits] = {"tokens": _whole, "used_step": _count, "step": _count, "steps": _whole}
_OF_TRAINING: dict[str, dict[str, _Fits]] = {
    "teacher": {"name": _text},
    "text": {"source": _string},
    "held_out_kl": {"before": _number, "after": _number},
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
    if provenance.get("why") is not None:
        _check_why(provenance["why"])
    trainings = provenance.get("recovery", [])
    if not isinstance(trainings, list):
        raise ValueError("provenance.recovery is no list")
    for training in trainings:
        _check_object("provenance.recovery", training, _TRAINING)
        for name, fields in _OF_TRAINING.items():
            if training.get(name) is not None:
                _check_object(f"provenance.recovery.{name}", training[name], fields)
    for name in ("calibration", "computed_on"):
        parts = (provenance.get(name) or {}).get("mix")
        if parts is None:
            continue
        if not isinstance(parts, list):
            raise ValueError(f"provenance.{name}.mix is no list")
        for part in parts:
            _check_object(f"provenance.{name}.mix", part, _TEXT)
    return provenance


def _check_why(value: Any) -> None:
    """The reasons of layers: :mod:`prunekit.pruning.reasons`."""
    _check_object("provenance.why", value, _WHY)
    tau, layers = value.get("kendall_tau", {}), value.get("layers", [])
    _check_object("provenance.why.kendall_tau", tau, {"attention": _number, "ffn": _number})
    if not isinstance(layers, list):
        raise ValueError("provenance.why.layers is no list")
    for layer in layers:
        _check_object("provenance.why.layers", layer, {"index": _count, "words": _text})
        for kind in ("attention", "ffn"):
            _check_object(f"provenance.why.layers.{kind}", layer.get(kind, {}), _REASON)


def _check_object(where: str, value: Any, fields: Mapping[str, _Fits]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is no JSON object")
    _check(where, value, fields)


def _check(where: str, value: Mapping[str, Any], fields: Mapping[str, _Fits]) -> None:
    for name, fits in fields.items():
        if name in value and not fits(value[name]):
            raise ValueError(f"{where}.{name} is {str(value[name])[:60]!r}, which prunekit never writes")


# What refits of earlier versions had, and what says nothing where `_check_dropped` finds nothing.
_DROPPED = ("inputs", "held_out")


def recipe_before(said: Mapping[str, Any]) -> Recipe | None:
    """The recipe that the provenance ``said`` of an earlier version's plan tells of; None where it tells of nothing.

    What chose the widths is read as far as today's methods have it: the plan has the widths. Raises PrunekitError where
    it asks for what makes no sense, or is done no more.
    """
    if not said.get("method") and not said.get("refit") and not said.get("rescale") and not said.get("calibration"):
        return None
    told = said.get("method") or {}
    name = str(told.get("name")).removeprefix("custom (from ").removesuffix(")")
    preset = METHODS.get(name, METHODS[DEFAULT])
    kind = ALLOCATIONS.get(str(told.get("allocation")), type(preset.allocation))
    priced = (*SCORED, *(MEASURED if kind.draws_curves else ()))
    refit, rescale = said.get("refit"), said.get("rescale")
    if refit is not None:
        _check_dropped(refit)
        refit = {name: value for name, value in refit.items() if name not in _DROPPED}
    elif rescale is not None:
        raise PrunekitError("The plan's refit settings are damaged: it rescales without a refit; make the plan again.")
    method = replace(
        preset,
        custom=name != told.get("name"),
        allocation=preset.allocation if kind is type(preset.allocation) else kind(),
        importance=str(told.get("importance") or preset.importance),
        layer_importance=told.get("layer_importance") or preset.layer_importance or "cosine",
        units=tuple(unit for unit in told.get("units") or () if unit in priced) or preset.units,
        compensate=told.get("compensate") is True,
        refit=_config("refit", refit, RefitConfig),
        rescale=_config("rescale", rescale, RescaleConfig),
        calibration=_calibration(said.get("calibration") or {}),
    )
    seed = said.get("seed")
    return Recipe(method, protected=frozenset(said.get("protected_layers") or ()), seed=seed if seed is not None else 0)


def _check_dropped(said: dict[str, Any]) -> None:
    """Raises PrunekitError where the settings of an earlier version's refit ask for what is done no more."""
    asked = None
    if said.get("inputs"):
        asked = f"fits input projections too (--refit-inputs {said['inputs']})"
    elif said.get("ridge", 0) is None:
        asked = "chooses a ridge for every projection (--ridge auto)"
    if asked:
        raise PrunekitError(
            f"The plan's refit {asked}, which this version of prunekit can't do; make the plan again without that, or "
            "apply it with the version that made it."
        )


def _config(name: str, said: dict[str, Any] | None, kind: Any) -> Any:
    if said is None:
        return None
    try:
        return kind(**said)
    except TypeError:
        raise PrunekitError(f"The plan's {name} settings {said!r} are damaged; make the plan again.") from None


def _calibration(said: dict[str, Any]) -> CalibrationConfig:
    """The text that a plan says it was made on; of a mix, the field and split of the last part that names them."""
    names = ("source", "sequences", "length", "batch_size", "seed")
    known = {name: said[name] for name in names if said.get(name) is not None}
    for part in said.get("mix") or [said]:
        known |= {name: part[name] for name in ("field", "split") if part.get(name)}
    return CalibrationConfig(**known)
