"""What a file that travels may say of where it came from: names without local paths, and versions."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from prunekit.utils.names import printable


def model_label(name: str) -> str:
    """A model as it is named in plans and reports: a local folder or file by its last part, so that none tells where
    it was made; anything else as it was typed."""
    path = Path(name).expanduser()
    return printable(path.resolve().name if path.exists() else name)


def installed(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def install_extra(extra: str) -> str:
    """How to get what the extra of that name brings: prunekit is on no index, so it is installed from its source."""
    return f"pip install '.[{extra}]' in the folder of prunekit's source"


def versions() -> dict[str, Any]:
    """Versions that a plan or a report depends on."""
    return {
        "prunekit": metadata.version("prunekit"),
        "torch": metadata.version("torch"),
        "transformers": metadata.version("transformers"),
        "python": platform.python_version(),
    }
