"""``prunekit inspect``: what something is that prunekit wrote, where it came from, and whether its files are whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunekit.cli import options as o
from prunekit.cli.common import app, console, print_json, table
from prunekit.cli.tables.inspected import as_object, facts_of, text_of, widths_table
from prunekit.cli.tables.plan import plan_summary, plan_tables
from prunekit.cli.tables.reasons import why_tables
from prunekit.errors import PrunekitError
from prunekit.utils.files.atomic import read_json
from prunekit.utils.files.listed_folder import check_listed, is_plain
from prunekit.utils.files.replacing import EXPORT, PROFILE

if TYPE_CHECKING:
    from prunekit.models.source import Source
    from prunekit.plan import Plan
    from prunekit.plan.shape import ModelShape
    from prunekit.recovery.training.run_folder import RunFolder


@app.command()
def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint, an export, a training that is not finished, or a plan that prunekit wrote.",
            show_default=False,
        ),
    ],
    json: o.Json = False,
) -> None:
    """Show what prunekit wrote: a plan's widths, or a folder's shapes and origin; verify the hashes of its files.

    A pruned model that was trained and saved again has no such hashes: it is shown, and whether its weights changed.
    """
    from prunekit.recovery.training.run_folder import look

    if path.is_file():
        _plan(path, json)
    elif (path / PROFILE.manifest).is_file():
        _profile(path, json)
    elif (path / EXPORT.manifest).is_file():
        _export(path, json)
    elif (found := look(path)) is not None:
        _training(found, json)
    else:
        _checkpoint(path, json)


# A plan says how many parameters are left, not in how many bits they will be stored.
_PLANNED_BYTES = 2


def _plan(file: Path, json: bool) -> None:
    from prunekit.plan import Plan

    plan = Plan.load(file)
    recipe = None if plan.recipe is None else plan.recipe.to_dict()
    if json:
        print_json({"plan": str(file), "recipe": recipe, **plan_summary(plan, _PLANNED_BYTES)})
        return
    said = plan.provenance
    method, target, model = (as_object(said.get(name)) for name in ("method", "target", "model"))
    shown = table(f"{file}", "", "")
    shown.columns[1].justify = "left"
    for name, value in (
        ("made for", model.get("name")),
        ("method", method.get("name")),
        ("target", target.get("asked")),
        ("calibration", text_of(as_object(said.get("calibration")))),
        ("settings", " ".join(f"{key}={_as_set(value)}" for key, value in (recipe or {}).items() if key != "method")),
    ):
        if value:
            shown.add_row(name, str(value))
    console().print(shown)
    console().print(plan_tables(plan, _PLANNED_BYTES))
    console().print(why_tables(plan))
    console().print("Bytes are counted in 16 bits.")


def _as_set(value: Any) -> str:
    """A setting's value as --set takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _export(folder: Path, json: bool) -> None:
    from prunekit.export.export import read_export

    opened = read_export(folder)
    seen = check_listed(folder, opened.files, EXPORT.manifest)
    data: dict[str, Any] = {
        "export": str(folder),
        "target": opened.target.name,
        "dtype": opened.dtype,
        "source": opened.name,
        "verified": opened.verified,
        "verified_files": len(seen) - 1,
        "context_length": opened.context_length,
        "file_bytes": opened.file_bytes,
        "decode_bytes": opened.decode_bytes,
        "parameters": opened.shape.parameters,
        "layers": _layers(opened.shape),
    }
    if json:
        print_json(data)
        return
    shown = table(f"{folder}", "", "")
    shown.columns[1].justify = "left"
    for name, value in (
        ("export for", f"{data['target']}, {data['dtype']}"),
        ("made from", data["source"]),
        ("compared with PyTorch", "yes, see parity.json" if opened.verified else "no"),
        ("longest text", f"{opened.context_length:,} tokens"),
        ("parameters", f"{opened.shape.parameters:,}"),
        ("files", f"{opened.file_bytes:,} bytes"),
        ("file hashes", f"{data['verified_files']} files as written"),
    ):
        shown.add_row(name, str(value))
    console().print(shown)
    console().print(widths_table(opened.shape, ()))


def _profile(folder: Path, json: bool) -> None:
    from prunekit.export.export import read_export

    said = read_json(folder / PROFILE.manifest, "profile manifest")
    named = said.get("exports") if isinstance(said, dict) else None
    files = said.get("files") if isinstance(said, dict) else None
    if (
        not isinstance(named, list)
        or not all(isinstance(each, str) and is_plain(each) for each in named)
        or not isinstance(files, dict)
    ):
        raise PrunekitError(f"{folder / PROFILE.manifest} is damaged; export the profile again.")
    check_listed(folder, files, PROFILE.manifest)
    exports = [read_export(folder / each) for each in named]
    data = {
        "profile": str(said.get("profile")),
        "verified_files": len(files),
        "exports": [
            {
                "export": str(each.path),
                "target": each.target.name,
                "dtype": each.dtype,
                "verified": each.verified,
                "file_bytes": each.file_bytes,
            }
            for each in exports
        ],
    }
    if json:
        print_json(data)
        return
    shown = table(f"{folder} for {data['profile']}", "folder", "target", "precision", "MiB", "compared with PyTorch")
    for name, each in zip(named, exports, strict=True):
        size = f"{each.file_bytes / 2**20:,.1f}"
        shown.add_row(name, each.target.name, each.dtype, size, "yes" if each.verified else "no")
    console().print(shown)
    console().print(f"{len(files)} files as written.")


def _training(folder: RunFolder, json: bool) -> None:
    from prunekit.cli.tables.unfinished import show_unfinished, unfinished_data

    data = unfinished_data(folder)
    if json:
        print_json(data)
    else:
        show_unfinished(data)


def _checkpoint(folder: Path, json: bool) -> None:
    from prunekit.checkpoint.history import trainings
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
        "layers": _layers(shape),
    }
    if len(origins or shape.layers) != shape.num_hidden_layers:
        raise PrunekitError(
            f"{folder} holds {shape.num_hidden_layers} layers, but its plan keeps {len(origins)}; the two don't belong "
            "together, so prune again."
        )
    if json:
        print_json(data)
        return
    shown = table(f"{folder}", "", "")
    shown.columns[1].justify = "left"
    for name, value in facts_of(data, trainings(plan) if plan else ()):
        shown.add_row(name, value)
    console().print(shown)
    console().print(widths_table(shape, origins))


def _layers(shape: ModelShape) -> list[dict[str, int]]:
    return [
        {
            "num_attention_heads": each.num_attention_heads,
            "num_key_value_heads": each.num_key_value_heads,
            "intermediate_size": each.intermediate_size,
        }
        for each in shape.layers
    ]


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
