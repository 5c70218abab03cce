"""``prunekit inspect``: what a checkpoint is, where it came from, and whether its files are whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunekit.cli import options as o
from prunekit.cli.common import app, console, print_json, table
from prunekit.errors import PrunekitError

if TYPE_CHECKING:
    from prunekit.models.source import Source
    from prunekit.plan import Plan


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="A checkpoint that prunekit wrote.", show_default=False)],
    json: o.Json = False,
) -> None:
    """Show a pruned checkpoint's shapes and provenance, and verify the hashes of its files.

    A pruned model that was trained and saved again has no such hashes: it is shown, and whether its weights changed.
    """
    from prunekit.checkpoint.manifest import MANIFEST
    from prunekit.models.source import resolve

    saved_again = (folder / "config.json").is_file() and not (folder / MANIFEST).is_file()
    facts, plan, origins = _saved_again(folder) if saved_again else _as_written(folder)
    source = resolve(str(folder))
    shape = source.shape
    data: dict[str, Any] = {
        "checkpoint": str(folder),
        **facts,
        "provenance": plan.provenance if plan else {},
        "parameters": shape.parameters,
        "dtype": str(source.dtype).removeprefix("torch."),
        "weight_bytes": shape.weight_bytes(source.dtype.itemsize),
        "kv_bytes_per_token": shape.kv_bytes_per_token(source.dtype.itemsize),
        "layers": [
            {
                "num_attention_heads": a.num_attention_heads,
                "num_key_value_heads": a.num_key_value_heads,
                "intermediate_size": a.intermediate_size,
            }
            for a in shape.layers
        ],
    }
    if len(origins or shape.layers) != shape.num_hidden_layers:
        raise PrunekitError(
            f"{folder} holds {shape.num_hidden_layers} layers, but its plan keeps {len(origins)}; the two don't belong "
            "together, so prune again."
        )
    if json:
        print_json(data)
    else:
        shown = table(f"{folder}", "", "")
        shown.columns[1].justify = "left"
        for name, value in _facts(data):
            shown.add_row(name, value)
        console().print(shown)
        widths = table("Layers", "layer", "from", "query heads", "KV heads", "FFN width")
        for place, layer in enumerate(shape.layers):
            widths.add_row(
                str(place),
                str(origins[place]) if origins else "unknown",
                str(layer.num_attention_heads or "none"),
                str(layer.num_key_value_heads or "none"),
                str(layer.intermediate_size or "none"),
            )
        console().print(widths)


def _as_written(folder: Path) -> tuple[dict[str, Any], Plan, tuple[int, ...]]:
    """What the manifest says of a folder whose files are as prunekit wrote them, its plan, and the layers it keeps."""
    from prunekit.checkpoint.manifest import MANIFEST, verify

    report = verify(folder)
    if report.damaged:
        raise PrunekitError(
            f"{folder} is damaged: {', '.join(report.damaged)} changed since it was written. Copy it again, or prune "
            f"again. If you trained it and saved it there yourself, remove {MANIFEST}."
        )
    facts = {"verified_files": report.files, "weights_changed": False, **report.facts}
    return facts, report.plan, tuple(layer.index for layer in report.plan.layers)


def _saved_again(folder: Path) -> tuple[dict[str, Any], Plan | None, tuple[int, ...]]:
    """The same of a folder that transformers wrote, from what its config carries."""
    from prunekit.checkpoint.manifest import verify
    from prunekit.checkpoint.record import read_record
    from prunekit.models.source import resolve
    from prunekit.plan import Plan
    from prunekit.utils.files.hashes import sha256

    source = resolve(str(folder))
    record = read_record(source.config)
    if record is None:
        if source.config.model_type != source.family.pruned_model_type:
            verify(folder)  # says that there is nothing to tell
        return {"verified_files": 0, "weights_changed": None, "architecture": _architecture(source)}, None, ()
    file = folder / "plan.json"
    plan = Plan.load(file) if file.is_file() and sha256(file) == record.plan else None
    facts = {
        "verified_files": 0,
        "weights_changed": source.weights_digest != record.weights,
        "layout": record.layout,
        "architecture": _architecture(source),
        "share_of_blocks": record.share_of_blocks,
        "share_of_parameters": record.share_of_parameters,
        "source": {"name": record.source, "family": record.family, "fingerprint": record.fingerprint},
        "versions": record.versions,
        "method": record.method,
        "target": record.target,
    }
    return facts, plan, record.origins


def _architecture(source: Source) -> str:
    return str(next(iter(source.config.architectures or ()), "unknown"))


def _object(value: Any) -> dict[str, Any]:
    """What provenance says, or nothing where it was written by something else."""
    return value if isinstance(value, dict) else {}


def _facts(data: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows that ``data`` can fill."""
    said = data["provenance"]
    method, calibration, target = (_object(said.get(name)) for name in ("method", "calibration", "target"))
    judged = (("importance", "units"), ("layer_importance", "layers"))
    chosen = next((f"{method[name]} {what}, " for name, what in judged if name in method), "")
    versions = ", ".join(f"{name} {version}" for name, version in data.get("versions", {}).items())
    source = data.get("source")
    rows = [
        ("made from", f"{source['name']} ({source['family']})" if source else "unknown"),
        (
            "method",
            f"{method.get('name')}: {chosen}{method.get('allocation')} allocation" if said else data.get("method"),
        ),
        ("target", str(target.get("asked")) if said else data.get("target")),
        (
            "calibration",
            f"{calibration.get('source')}, {calibration.get('sequences')} x {calibration.get('length')} tokens a pass"
            if said
            else None,
        ),
        ("left of blocks", f"{data['share_of_blocks']:.2%}" if source else None),
        ("left of all parameters", f"{data['share_of_parameters']:.2%}" if source else None),
        ("layout", f"{data['layout']} ({data['architecture']})" if source else data["architecture"]),
        ("parameters stored", f"{data['parameters']:,} in {data['dtype']}, {data['weight_bytes']:,} bytes"),
        ("KV cache", f"{data['kv_bytes_per_token']:,} bytes a token"),
        ("made with", versions),
        ("weights", _state(data["weights_changed"])),
        ("file hashes", f"{data['verified_files']} files as written" if data["verified_files"] else None),
    ]
    return [(name, value) for name, value in rows if value]


def _state(changed: bool | None) -> str:
    if changed is None:
        return "saved by another program, so nothing tells whether they changed after pruning"
    return "changed after pruning (trained, merged or converted)" if changed else "as pruned"
