"""SHA-256 of files and of whole folders, which manifests hold, and of tokens."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any


def token_ids_sha256(ids: Any) -> str:
    """Hex SHA-256 of an array of token ids, whatever the machine: as 64-bit numbers, lowest byte first."""
    return hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """Hex SHA-256 of every file below ``folder``, by its path in it: what manifests hold."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
