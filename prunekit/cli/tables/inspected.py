"""The tables of ``prunekit inspect`` for a checkpoint: what it is and where it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunekit.cli.common import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from prunekit.checkpoint.history import PastTraining
    from prunekit.plan.shape import ModelShape


def facts_of(data: dict[str, Any], history: Sequence[PastTraining]) -> list[tuple[str, str]]:
    """The rows that ``data`` can fill, and one for each training of ``history``."""
    said = data["provenance"]
    method, calibration, target = (as_object(said.get(name)) for name in ("method", "calibration", "target"))
    judged = (("importance", "units"), ("layer_importance", "layers"))
    chosen = next((f"{method[name]} {what}, " for name, what in judged if name in method), "")
    versions = ", ".join(f"{name} {version}" for name, version in data.get("versions", {}).items())
    source = data.get("source")
    rows = [
        ("made from", f"{source['name']} ({source['family']})" if source else "unknown"),
        (
            "method",
            f"{method.get('name')}: {chosen}{method.get('allocation')} allocation" if method else data.get("method"),
        ),
        ("target", str(target.get("asked")) if target else data.get("target")),
        ("calibration", text_of(calibration)),
        *(("trained on", each.words()) for each in history),
        ("left of blocks", f"{data['share_of_blocks']:.2%}" if source else None),
        ("left of all parameters", f"{data['share_of_parameters']:.2%}" if source else None),
        ("layout", f"{data['layout']} ({data['architecture']})" if source else data["architecture"]),
        ("parameters stored", f"{data['parameters']:,} in {data['dtype']}, {data['weight_bytes']:,} bytes"),
        ("KV cache", f"{data['kv_bytes_per_token']:,} bytes a token"),
        ("made with", versions),
        ("weights", _state(data["weights_changed"], trained=any(each.used for each in history))),
        ("file hashes", f"{data['verified_files']} files as written" if data["verified_files"] else None),
    ]
    return [(name, value) for name, value in rows if value]


def text_of(calibration: dict[str, Any]) -> str | None:
    if not calibration:
        return None
    return f"{calibration.get('source')}, {calibration.get('sequences')} x {calibration.get('length')} tokens a pass"


def _state(changed: bool | None, trained: bool) -> str:
    if changed is None:
        return "saved by another program, so nothing tells whether they changed after pruning"
    if changed:
        return "changed after pruning (trained, merged or converted)"
    return "as pruned and trained" if trained else "as pruned"


def widths_table(shape: ModelShape, origins: tuple[int, ...]) -> Table:
    """The layers; ``origins`` are their places in the model that was pruned, where that is known."""
    shown = table("Layers", "layer", *(["from"] if origins else []), "query heads", "KV heads", "FFN width")
    for place, layer in enumerate(shape.layers):
        widths = (layer.num_attention_heads, layer.num_key_value_heads, layer.intermediate_size)
        shown.add_row(
            str(place), *([str(origins[place])] if origins else []), *(str(width or "none") for width in widths)
        )
    return shown


def as_object(value: Any) -> dict[str, Any]:
    """What provenance says, or nothing where it was written by something else."""
    return value if isinstance(value, dict) else {}
