"""How much room files take."""

from __future__ import annotations

from pathlib import Path


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in ``folder``, at any depth."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
