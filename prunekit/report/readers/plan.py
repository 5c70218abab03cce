"""A plan: which units of every layer are kept, and how that was decided."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.plan import Plan
from prunekit.report.facts.claims import CHECKPOINT, Planned, Reading, Reason, Subject
from prunekit.report.facts.fields import Fields, clipped
from prunekit.report.readers.place import Place, geometry, version_words
from prunekit.utils.files.hashes import sha256

KIND = "plan"
_MOST_REASONS = 1000


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
        reasons=tuple(reasons_in(plan, subject.name, place)),
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


def reasons_in(plan: Plan, about: str, place: Place) -> Iterator[Reason]:
    """Why layers are as they are, as ``plan`` says. A model before and after its training has one plan."""
    untrained = {name: each for name, each in plan.provenance.items() if name != "recovery"}
    digest = replace(plan, provenance=untrained).file_digest()
    return (replace(each, plan=digest) for each in reasons_of(plan.provenance, about, place))


def reasons_of(said: Mapping[str, Any], about: str, place: Place) -> Iterator[Reason]:
    """Why layers are as they are: the words of "layers" in an analysis, and in the "why" of a plan's provenance."""
    why = said.get("why")
    layers = (why if isinstance(why, Mapping) else said).get("layers")
    if not isinstance(layers, list):
        return
    if len(layers) > _MOST_REASONS:
        raise PrunekitError(f"{place.name} explains {len(layers):,} layers, which no model has; make it again.")
    for layer in layers:
        if isinstance(layer, Mapping) and isinstance(layer.get("words"), str):
            yield Reason(about, clipped(str(layer.get("index", ""))), clipped(layer["words"], 1000), place.name)
