"""Folders that prunekit takes for its own."""

from __future__ import annotations

import json
from pathlib import Path

from prunekit.utils.files.hashes import digests
from prunekit.utils.files.replacing import CHECKPOINT, Kind


def written(folder: Path, kind: Kind = CHECKPOINT, **files: str) -> Path:
    """A folder with ``files`` (their texts by their names) and a manifest that lists them."""
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    manifest = {"format": kind.format, "version": 1, "files": digests(folder)}
    (folder / kind.manifest).write_text(json.dumps(manifest))
    return folder
