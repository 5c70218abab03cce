"""``prunekit inspect``: what a checkpoint is, where it came from, and whether its files are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prunekit.cli.common import Json, app, console, print_json, table
from prunekit.errors import PrunekitError


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="A checkpoint that prunekit wrote.", show_default=False)],
    json: Json = False,
) -> None:
    """Show a pruned checkpoint's shapes and provenance, and verify the hashes of its files."""
    from prunekit.manifest import verify
    from prunekit.source import resolve

    report = verify(folder)
    if report.damaged:
        raise PrunekitError(
            f"{folder} is damaged: {', '.join(report.damaged)} changed since it was written. Copy it again, or prune "
            "again."
        )
    source = resolve(str(folder))
    shape = source.shape
    if len(report.plan.layers) != shape.num_hidden_layers:
        raise PrunekitError(
            f"{folder} holds {shape.num_hidden_layers} layers, but its plan.json keeps {len(report.plan.layers)}; the "
            "two don't belong together, so prune again."
        )
    data: dict[str, Any] = {
        "checkpoint": str(folder),
        "verified_files": report.files,
        **report.facts,
        "provenance": report.plan.provenance,
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
    if json:
        print_json(data)
    else:
        facts = table(f"{folder}", "", "")
        facts.columns[1].justify = "left"
        for name, value in _facts(data, report.plan):
            facts.add_row(name, value)
        console().print(facts)
        widths = table("Layers", "layer", "from", "query heads", "KV heads", "FFN width")
        origins = [layer.index for layer in report.plan.layers]
        for place, (origin, layer) in enumerate(zip(origins, shape.layers, strict=True)):
            widths.add_row(
                str(place),
                str(origin),
                str(layer.num_attention_heads or "none"),
                str(layer.num_key_value_heads or "none"),
                str(layer.intermediate_size or "none"),
            )
        console().print(widths)


def _object(value: Any) -> dict[str, Any]:
    """What provenance says, or nothing where it was written by something else."""
    return value if isinstance(value, dict) else {}


def _facts(data: dict[str, Any], plan: Any) -> list[tuple[str, str]]:
    method, calibration, target = (_object(plan.provenance.get(name)) for name in ("method", "calibration", "target"))
    judged = (("importance", "units"), ("layer_importance", "layers"))
    chosen = next((f"{method[name]} {what}, " for name, what in judged if name in method), "")
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    return [
        ("made from", f"{data['source']['name']} ({data['source']['family']})"),
        ("method", f"{method.get('name')}: {chosen}{method.get('allocation')} allocation"),
        ("target", str(target.get("asked"))),
        (
            "calibration",
            f"{calibration.get('source')}, {calibration.get('sequences')} x {calibration.get('length')} tokens a pass",
        ),
        ("left of blocks", f"{data['share_of_blocks']:.2%}"),
        ("left of all parameters", f"{data['share_of_parameters']:.2%}"),
        ("layout", f"{data['layout']} ({data['architecture']})"),
        ("parameters stored", f"{data['parameters']:,} in {data['dtype']}, {data['weight_bytes']:,} bytes"),
        ("KV cache", f"{data['kv_bytes_per_token']:,} bytes a token"),
        ("made with", versions),
        ("file hashes", f"{data['verified_files']} files as written"),
    ]
