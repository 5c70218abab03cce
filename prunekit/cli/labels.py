"""Names of models for tables and reports."""

from __future__ import annotations

from pathlib import Path


def label(name: str) -> str:
    """A model as it is named in a report: a local folder or file by its last part, so that no report tells where it
    was made; anything else as it was typed."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name
