"""A plan: which units of every layer are kept, and how that was decided."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.plan import Plan
from prunekit.report.facts.claims import CHECKPOINT, Planned, Reading, Reason, Subject
from prunekit.report.facts.fields import Fields, clipped
from prunekit.report.readers.place import Place, geometry, version_words
from prunekit.utils.files.hashes import sha256

KIND = "plan"
_MOST_REASONS = 1000
_WORDS = ("words", "why", "sentence", "text")


def recognises(data: Mapping[str, Any]) -> bool:
    return data.get("format") == "prunekit-plan"


def read(data: Fields, place: Place) -> Reading:
    """Raises PrunekitError where no plan can be like that."""
    plan = Plan.from_dict(data.data, place.name)
    name = place.name.rpartition("/")[2] if not place.name.endswith("/plan.json") else place.name.partition("/")[0]
    subject = Subject(name.removesuffix(".json"), False, plan=sha256(place.path))
    dense = dense_of(plan)
    return Reading(
        KIND,
        ((subject, CHECKPOINT), (dense, CHECKPOINT)),
        geometry(plan, subject, dense, place),
        plans=(Planned(subject, plan, place.name),),
        reasons=tuple(reasons_of(data.data, subject.name, place)),
        facts=tuple(plan_facts(plan, place)),
    )


def dense_of(plan: Plan) -> Subject:
    """The model that a plan was made for."""
    said = plan.provenance.get("model") or {}
    return Subject(clipped(said.get("name") or "dense model"), True, said.get("fingerprint"))


def plan_facts(plan: Plan, place: Place) -> Iterator[tuple[str, str]]:
    """How a plan was made, for the section on method."""
    said = plan.provenance
    method, target = said.get("method") or {}, said.get("target") or {}
    calibration = said.get("calibration") or {}
    if method.get("name"):
        yield "method", clipped(str(method["name"]))
    if target.get("asked"):
        yield "asked for", clipped(str(target["asked"]))
    for part in calibration.get("mix") or [calibration]:
        if part.get("source"):
            digest = f", SHA-256 {part['text_sha256']}" if part.get("text_sha256") else ""
            counts = f", {part.get('sequences')} sequences of {part.get('length')} tokens"
            yield "calibration text", clipped(f"{part['source']}{counts}{digest}", 500)
    versions = said.get("versions")
    if versions:
        yield "versions of the plan", version_words(Fields(versions, place.name, "provenance.versions"))


def reasons_of(data: Mapping[str, Any], about: str, place: Place) -> Iterator[Reason]:
    """Why layers are as they are, wherever a file says it: in "why", a list or an object by layer, or in the "why" or
    "words" of each of its "layers"."""
    found: list[tuple[str, Any]] = []
    why = data.get("why")
    if isinstance(why, Mapping):
        found += [(str(layer), each) for layer, each in why.items()]
    elif isinstance(why, list):
        found += [(_layer(each, number), each) for number, each in enumerate(why)]
    layers = data.get("layers")
    if isinstance(layers, list):
        for number, each in enumerate(layers):
            if isinstance(each, Mapping) and ("why" in each or "words" in each):
                found.append((_layer(each, number), each.get("why", each.get("words"))))
    if len(found) > _MOST_REASONS:
        raise PrunekitError(f"{place.name} explains {len(found):,} layers, which no model has; make it again.")
    for layer, each in found:
        words = _spoken(each)
        if words:
            yield Reason(about, clipped(layer), clipped(words, 1000), place.name)


def _layer(said: Any, number: int) -> str:
    if isinstance(said, Mapping):
        for name in ("layer", "index"):
            if isinstance(said.get(name), str | int) and not isinstance(said.get(name), bool):
                return str(said[name])
    return str(number)


def _spoken(said: Any) -> str:
    """A sentence, or the values of an object that holds none."""
    if isinstance(said, str):
        return said
    if isinstance(said, list):
        return " ".join(filter(None, (_spoken(each) for each in said[:20] if isinstance(each, str))))
    if not isinstance(said, Mapping):
        return ""
    words = next((said[name] for name in _WORDS if isinstance(said.get(name), str)), None)
    if words is not None:
        return words
    values = [
        (key, each)
        for key, each in said.items()
        if isinstance(each, str | int | float) and key not in ("layer", "index")
    ]
    return ", ".join(f"{key} {each:.4g}" if isinstance(each, float) else f"{key} {each}" for key, each in values[:20])
