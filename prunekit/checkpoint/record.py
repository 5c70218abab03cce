"""What config.json says of the pruning: it outlives a fine-tune, which leaves manifest and often the plan behind."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.models.fingerprint import weights_digest
from prunekit.models.folder import read_tensors
from prunekit.plan import Plan, decode_ranges, encode_ranges
from prunekit.utils.files.hashes import sha256
from prunekit.utils.provenance import model_label, versions

if TYPE_CHECKING:
    from prunekit.checkpoint.layout import Layout
    from prunekit.models.source import Source

FIELD = "prunekit"
_MAX_LAYERS = 4096


@dataclass(frozen=True)
class Record:
    """``layers`` are the source's layers that are left, as ranges; ``weights`` is the digest of the tensors as they
    were written, ``plan`` the SHA-256 of plan.json."""

    source: str
    family: str
    fingerprint: str
    method: str
    target: str
    layout: str
    share_of_blocks: float
    share_of_parameters: float
    layers: str
    plan: str
    weights: str
    versions: dict[str, str]

    @property
    def origins(self) -> tuple[int, ...]:
        return decode_ranges(self.layers, _MAX_LAYERS)


def pruning_record(source: Source, plan: Plan, layout: Layout, folder: Path) -> dict[str, Any] | None:
    """The record of the checkpoint in ``folder``, whose weights and plan are written. A copy of a model in another
    layout or dtype keeps what is said of the original; of a model that was never pruned there is nothing to say."""
    weights = weights_digest(read_tensors(folder))
    if made_by(source, plan):
        # Trained here: what was pruned, from what, and how stays true.
        earlier = read_record(source.config)
        return asdict(replace(earlier, plan=sha256(folder / "plan.json"), weights=weights)) if earlier else None
    if plan.shape == plan.source and not plan.provenance:
        earlier = read_record(source.config)
        if earlier and earlier.weights != source.weights_digest:
            # Trained since: of a copy this stays true, in whatever layout or dtype.
            weights = earlier.weights
        return asdict(replace(earlier, layout=layout, weights=weights)) if earlier else None
    method, target = (plan.provenance.get(key) for key in ("method", "target"))
    return asdict(
        Record(
            source=model_label(source.name),
            family=source.family.name,
            fingerprint=source.fingerprint,
            method=str(method.get("name", "")) if isinstance(method, dict) else "",
            target=str(target.get("asked", "")) if isinstance(target, dict) else "",
            layout=layout,
            share_of_blocks=round(plan.share_of_blocks, 6),
            share_of_parameters=round(plan.share_of_parameters, 6),
            layers=encode_ranges(tuple(layer.index for layer in plan.layers)),
            plan=sha256(folder / "plan.json"),
            weights=weights,
            versions={name: str(version) for name, version in versions().items()},
        )
    )


def plan_digest(source: Source) -> str | None:
    """The SHA-256 of the plan that ``source`` was made by; None where it was not pruned, or its weights are no longer
    those that were written. Reads all weights once, as its fingerprint does."""
    record = read_record(source.config)
    return record.plan if record is not None and record.weights == source.weights_digest else None


def made_from(source: Source) -> dict[str, Any]:
    """Of a pruned model: the plan that it was made by, and the dense model that it is compared with. JSON values."""
    record = read_record(source.config)
    if record is None:
        return {}
    dense = {"name": record.source, "fingerprint": record.fingerprint}
    return {"plan_sha256": plan_digest(source), "pruned_from": dense}


def made_by(source: Source, plan: Plan) -> bool:
    """Whether ``plan`` is the one that ``source`` was made by before it was trained, and not one to be applied to
    it."""
    cuts_it = plan.source == source.shape and plan.shape != plan.source
    return bool(plan.provenance.get("recovery")) and not cuts_it


def read_record(config: Any) -> Record | None:
    """The record in a transformers config, None where it has none that makes sense."""
    said = getattr(config, FIELD, None)
    if not isinstance(said, dict):
        return None
    try:
        record = Record(**said)
        texts = [value for value in asdict(record).values() if isinstance(value, str)]
        shares = (record.share_of_blocks, record.share_of_parameters)
        record.origins  # noqa: B018  (raises)
    except Exception:  # written by something else: no record
        return None
    sound = (
        len(texts) == 9
        and all(len(text) <= 40_000 for text in texts)
        and all(type(share) is float and math.isfinite(share) for share in shares)
        and isinstance(record.versions, dict)
        and all(isinstance(each, str) for pair in record.versions.items() for each in pair)
    )
    return record if sound else None
