"""What ``prunekit analyze`` found: how much each layer matters, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunekit.report.facts.claims import CHECKPOINT, Reading, Subject
from prunekit.report.facts.fields import Fields, clipped
from prunekit.report.readers.place import Place, version_words
from prunekit.report.readers.plan import reasons_of

KIND = "analysis of layers"


def recognises(data: Mapping[str, Any]) -> bool:
    return all(name in data for name in ("model", "layer_importance", "layers"))


def read(data: Fields, place: Place) -> Reading:
    """Raises PrunekitError where it is damaged."""
    subject = Subject(data.text("model"))
    data.values("layers")
    calibration = data.maybe_object("calibration")
    facts = [("layers judged by", f"{data.text('layer_importance')}: {clipped(data.text('meaning', ''), 300)}")]
    if calibration is not None:
        digest = calibration.text("text_sha256", "")
        said = calibration.text("source", "") + (f", SHA-256 {digest}" if digest else "")
        facts.append(("text that layers were judged on", said))
    facts.append(("versions of the analysis", version_words(data.maybe_object("versions"))))
    return Reading(
        KIND,
        ((subject, CHECKPOINT),),
        reasons=tuple(reasons_of(data.data, subject.name, place)),
        facts=tuple(row for row in facts if row[1]),
    )
