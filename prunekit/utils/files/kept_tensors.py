"""Named tensors that are kept between runs, and taken only where they are as written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.utils.files.atomic import keep_bytes
from prunekit.utils.files.cache import clear_for, tensors_digest

if TYPE_CHECKING:
    import torch

_DIGEST = "sha256"


def write_kept_tensors(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Keep ``tensors`` of the CPU, with their digest, in the safetensors ``file``; a note on stderr says where that is
    impossible."""
    from safetensors.torch import save

    clear_for(file)
    keep_bytes(file, save(tensors, metadata={_DIGEST: _digest(file, tensors)}))


def read_kept_tensors(file: Path) -> dict[str, torch.Tensor] | None:
    """The tensors that :func:`write_kept_tensors` wrote to ``file``; None where there are none, or they are not as
    written."""
    from safetensors import SafetensorError, safe_open

    try:
        if not file.is_file():
            return None
        with safe_open(file, "pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            said = (handle.metadata() or {}).get(_DIGEST)
        return tensors if said == _digest(file, tensors) else None
    except (OSError, SafetensorError, RuntimeError):
        return None


def _digest(file: Path, tensors: dict[str, torch.Tensor]) -> str:
    return tensors_digest(sorted(tensors.items()), file.parent.name, file.name)
