"""The manifest of a checkpoint: what was written, by what, and the hash of every file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.checkpoint.record import made_by, read_record
from prunekit.errors import PrunekitError
from prunekit.models.tokenizer.names import TEMPLATES
from prunekit.plan import Plan
from prunekit.utils.files.atomic import read_json
from prunekit.utils.files.hashes import sha256
from prunekit.utils.process.ranks import from_first
from prunekit.utils.provenance import model_label, versions

if TYPE_CHECKING:
    from prunekit.checkpoint.layout import Layout
    from prunekit.models.source import Source

MANIFEST = "prunekit.json"
MANIFEST_VERSION = 1
TRAINING = "training"
"""The folder in which a checkpoint of a training keeps what else the training needs to go on."""
_FACTS = ("layout", "architecture", "share_of_blocks", "share_of_parameters", "source", "versions")


@dataclass(frozen=True)
class Written:
    """What a rebuild wrote."""

    path: Path
    layout: Layout
    architecture: str
    parameters: int
    weight_bytes: int


def written_once(write: Callable[[], Written]) -> Written:
    """What ``write`` wrote on rank 0; the other ranks wait for it and are told."""

    def told() -> dict[str, Any]:
        made = write()
        return {**asdict(made), "path": str(made.path)}

    facts = from_first(told)
    return Written(**{**facts, "path": Path(facts["path"])})


@dataclass(frozen=True)
class Report:
    """``files`` hashes agree; ``damaged`` names the files whose don't, or that are missing."""

    files: int
    damaged: tuple[str, ...]
    facts: dict[str, Any]
    plan: Plan


def write_manifest(folder: Path, source: Source, plan: Plan, written: Written) -> None:
    """Hash what is in ``folder`` and list it there; nothing may be added afterwards."""
    # What was trained afterwards was still pruned from the dense model.
    record = read_record(source.config) if made_by(source, plan) else None
    own = (model_label(source.name), source.fingerprint)
    name, fingerprint = (record.source, record.fingerprint) if record else own
    manifest = {
        "format": "prunekit-checkpoint",
        "version": MANIFEST_VERSION,
        "layout": written.layout,
        "architecture": written.architecture,
        "parameters": written.parameters,
        "share_of_blocks": round(plan.share_of_blocks, 6),
        "share_of_parameters": round(plan.share_of_parameters, 6),
        "source": {"name": name, "family": source.family.name, "fingerprint": fingerprint},
        "versions": versions(),
        "files": {
            file.relative_to(folder).as_posix(): sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()
        },
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def verify(folder: Path) -> Report:
    """Read the manifest and plan of ``folder`` and hash every file it lists.

    Raises PrunekitError where the folder is no prunekit checkpoint.
    """
    if not folder.is_dir():
        raise PrunekitError(f"There is no folder {folder}; give a checkpoint that prunekit wrote.")
    if not (folder / MANIFEST).is_file():
        raise PrunekitError(f"{folder} has no {MANIFEST}, so prunekit did not write it; nothing to verify against.")
    manifest = read_json(folder / MANIFEST, "manifest")
    if not isinstance(manifest, dict) or manifest.get("format") != "prunekit-checkpoint":
        raise PrunekitError(f"{folder / MANIFEST} is not a prunekit manifest; prune again.")
    if manifest.get("version") != MANIFEST_VERSION:
        raise PrunekitError(
            f"{folder / MANIFEST} has version {manifest.get('version')!r}; this prunekit reads {MANIFEST_VERSION}."
        )
    files = manifest.get("files")
    missing = [name for name in _FACTS if name not in manifest]
    if missing or not isinstance(files, dict) or not files:
        raise PrunekitError(f"{folder / MANIFEST} lacks {(missing or ['files'])[0]}; it is damaged, so prune again.")
    facts = {name: manifest[name] for name in _FACTS}
    for name, value in facts.items():
        kind = dict if name in ("source", "versions") else float if name.startswith("share_") else str
        if not isinstance(value, kind) or (
            isinstance(value, dict) and name == "source" and not {"name", "family"} <= set(value)
        ):
            raise PrunekitError(f"{folder / MANIFEST} makes no sense of {name}; it is damaged, so prune again.")
    damaged = []
    for name, digest in files.items():
        # A manifest from a stranger must not make us read outside its folder.
        if not re.fullmatch(rf"(({TEMPLATES}|{TRAINING})/)?[A-Za-z0-9_.-]+", name) or name.rsplit("/", 1)[-1] in (
            ".",
            "..",
        ):
            raise PrunekitError(f"{folder / MANIFEST} lists the file {name!r}, which is no plain file name.")
        path = folder / name
        if not path.is_file() or sha256(path) != digest:
            damaged.append(name)
    # What decides how the model computes must be listed, or a stranger could add weights or code beside the hashes.
    decisive = sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in files and (path.suffix in (".safetensors", ".py") or path.name == "config.json")
    )
    if decisive:
        raise PrunekitError(
            f"{folder} holds {decisive[0]}, which its {MANIFEST} doesn't list, so prunekit did not write it; remove "
            "it, or prune again."
        )
    if "plan.json" in damaged:
        raise PrunekitError(
            f"{folder} is damaged: plan.json changed since it was written. Copy it again, or prune again."
        )
    plan = Plan.load(folder / "plan.json")
    return Report(len(files) - len(damaged), tuple(damaged), facts, plan)
