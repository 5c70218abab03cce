"""Hidden states of the reference's prompts, in a safetensors file beside the baseline that names its SHA-256."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.monitoring.scoring.mmd import MOST, Reference
from prunekit.utils.files.atomic import check_output_file, rewrite_bytes
from prunekit.utils.files.hashes import sha256

FORMAT = "prunekit-watch-features"
_IDS = "requests"
_SUFFIX = ".features.safetensors"
_MOST_BYTES = 64 << 20


def features_file(baseline: Path) -> Path:
    """Where the hidden states of a baseline lie."""
    return baseline.with_name(baseline.name.removesuffix(".json") + _SUFFIX)


def check_features_file(file: Path, overwrite: bool = False) -> None:
    """Raises PrunekitError where hidden states can't be written to ``file``: before any long work is done. Those that
    a failed `watch init` left, without a baseline, are in nobody's way."""
    name = file.name.removesuffix(_SUFFIX)
    left = not any(file.with_name(each).exists() for each in (name, name + ".json"))
    if not ((overwrite or left) and _is_ours(file)):
        check_output_file(file)


def write_features(file: Path, made: Reference, *, overwrite: bool = False) -> dict[str, Any]:
    """Write ``made`` and return what the baseline says of it. Raises PrunekitError where that is impossible."""
    data = packed(made)
    write_packed(file, data, overwrite=overwrite)
    return about(file, made, data)


def write_packed(file: Path, data: bytes, *, overwrite: bool = False) -> None:
    """Write what :func:`packed` made. Raises PrunekitError where that is impossible."""
    check_features_file(file, overwrite)
    rewrite_bytes(file, data)


def about(file: Path, made: Reference, data: bytes) -> dict[str, Any]:
    """What a baseline says of the ``file`` that holds ``made`` as ``data``, or will hold it."""
    return {"file": file.name, "sha256": hashlib.sha256(data).hexdigest(), "prompts": len(made.features)}


def packed(made: Reference) -> bytes:
    """The bytes of the file. Two calls may give other ones, in another order."""
    import numpy as np
    from safetensors.numpy import save

    tensors = {
        "features": made.features.astype(np.float16),
        "centre": made.centre,
        "scale": made.scale,
        "width": np.array([made.width]),
    }
    return bytes(save(tensors, metadata={"format": FORMAT, _IDS: json.dumps(made.ids)}))


def _is_ours(file: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    if not file.is_file() or file.is_symlink():
        return False
    try:
        with safe_open(file, "np") as handle:
            return (handle.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


def read_features(folder: Path, said: dict[str, Any]) -> Reference:
    """What a baseline in ``folder`` says of its hidden states. Raises PrunekitError where the file is not the one that
    was written with it."""
    import numpy as np
    from safetensors import SafetensorError, safe_open

    name = str(said.get("file"))
    file = folder / name
    if Path(name).name != name or not file.is_file():
        raise PrunekitError(f"{file} is missing: it belongs to the baseline, so keep the two together.")
    if file.stat().st_size > _MOST_BYTES or sha256(file) != said.get("sha256"):
        raise PrunekitError(f"{file} is not the one that was written with the baseline; make both again (watch init).")
    try:
        with safe_open(file, "np") as handle:
            tensors = {key: handle.get_tensor(key) for key in ("features", "centre", "scale", "width")}
            ids = tuple(json.loads((handle.metadata() or {})[_IDS]))
        features = tensors["features"].astype(np.float32)
        if not 2 <= len(features) == len(ids) <= MOST or features.shape[1:] != tensors["centre"].shape:
            raise ValueError
        return Reference(features, tensors["centre"], tensors["scale"], float(tensors["width"][0]), ids)
    except (SafetensorError, KeyError, ValueError, IndexError, OSError):
        raise PrunekitError(
            f"{file} holds no hidden states of prompts; make the baseline again (watch init)."
        ) from None
