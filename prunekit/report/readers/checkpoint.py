"""A checkpoint that prunekit wrote: its plan, sizes, and the fingerprint by which other files speak of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.plan import Plan
from prunekit.report.facts.claims import CHECKPOINT, Planned, Reading, Subject
from prunekit.report.facts.fields import Fields, clipped
from prunekit.report.readers.place import Place, file_size, geometry, in_memory, version_words
from prunekit.report.readers.plan import plan_facts, reasons_in
from prunekit.utils.files.hashes import sha256

KIND = "checkpoint"


def recognises(data: Mapping[str, Any]) -> bool:
    return data.get("format") == "prunekit-checkpoint"


def read(data: Fields, place: Place) -> Reading:
    """Reads all weights once, for their fingerprint. Raises PrunekitError where the folder is not whole."""
    from prunekit.checkpoint.history import trainings
    from prunekit.models.source import resolve

    folder = place.path.parent
    listed, made_from = data.object("files"), data.object("source")
    file = folder / "plan.json"
    if not file.is_file() or sha256(file) != listed.maybe_text("plan.json"):
        raise PrunekitError(
            f"{folder} is damaged: plan.json changed since it was written, or is missing. Copy it again."
        )
    plan = Plan.load(file)
    source = resolve(str(folder))
    itemsize = source.dtype.itemsize
    subject = Subject(clipped(folder.resolve().name), False, source.fingerprint, sha256(file))
    dense = Subject(made_from.text("name"), True, made_from.maybe_text("fingerprint"))
    claims = [*geometry(plan, subject, dense, place)]
    shape = source.shape
    memory = (shape.weight_bytes(itemsize), shape.kv_bytes_per_token(itemsize))
    claims += in_memory(subject, CHECKPOINT, *memory, shape.parameters, place)
    size = sum(each.stat().st_size for each in source.weight_files())
    claims.append(file_size(subject, CHECKPOINT, size, shape.parameters, place, "weight files"))
    facts = [
        ("made from", dense.name),
        ("layout", f"{data.text('layout')} ({data.text('architecture')})"),
        *plan_facts(plan, place),
        *(("trained on", each.words()) for each in trainings(plan)),
        ("written with", version_words(data.maybe_object("versions"))),
    ]
    return Reading(
        KIND,
        ((subject, CHECKPOINT), (dense, CHECKPOINT)),
        tuple(claims),
        plans=(Planned(subject, plan, place.name),),
        reasons=tuple(reasons_in(plan, subject.name, place)),
        facts=tuple((name, clipped(words, 500)) for name, words in facts if words),
    )
