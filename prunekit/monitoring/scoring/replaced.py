"""Whether the files of a model were replaced since they were looked at: a release puts others under the same name."""

from __future__ import annotations

import os
from pathlib import Path

from prunekit.models.gguf.convert import BUILTIN
from prunekit.models.source import Source

# What a model is read from: its weights, its geometry, its tokenizer and its template.
_PATTERNS = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "*.model", "vocab.*", "*.jinja")

Look = tuple[tuple[str, int, int, int, int], ...]
"""Of each file its name, size, times of change of contents and of the file, in ns, and inode."""


def may_change(source: Source) -> bool:
    """Whether the name of ``source`` is that of a file or folder: a hub repository is of one commit once it is here."""
    return source.name != BUILTIN and os.path.exists(os.path.expanduser(source.name))


def look(name: str) -> Look:
    """What tells the files of the local model ``name`` from others; links are followed, and no file is read."""
    named = Path(os.path.expanduser(name))
    files = {file for pattern in _PATTERNS for file in named.glob(pattern)} if named.is_dir() else {named}
    return tuple(_look(file) for file in sorted(files))


def _look(file: Path) -> tuple[str, int, int, int, int]:
    try:
        told = file.stat()
    except OSError:  # just now taken away
        return (file.name, -1, 0, 0, 0)
    return (file.name, told.st_size, told.st_mtime_ns, told.st_ctime_ns, told.st_ino)
