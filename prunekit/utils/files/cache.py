"""What is kept between runs, below the cache folder: nobody else's to write, and taken only where it is as written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.errors import PrunekitError
from prunekit.utils.files.atomic import cache_folder, keep_bytes
from prunekit.utils.files.hashes import sha256
from prunekit.utils.files.private_folder import clear, make_private, why_not_private
from prunekit.utils.files.strict_json import parse, read_regular

if TYPE_CHECKING:
    import torch

TRUST = "PRUNEKIT_TRUST_CACHE"
INDEX = "prunekit-cache.json"
_DIGEST = "sha256"


def cache_place(*parts: str, make: bool = True, needed: bool = True) -> Path:
    """The folder ``parts`` of the cache, made where it is missing.

    Raises PrunekitError where it can't be made (unless it is not ``needed``: nothing is kept then), or where other
    users may write to it: what they put there would change results without a word. The environment variable
    PRUNEKIT_TRUST_CACHE=1 allows that.
    """
    top = cache_folder()
    place = top
    try:
        if make:
            make_private(top)
            for part in parts:
                place = place / part
                if not place.is_dir():
                    # Whatever else bears this name is damage.
                    clear(place)
                    make_private(place)
        place = top.joinpath(*parts)
        why = None if os.environ.get(TRUST) == "1" else why_not_private(place, top)
    except OSError as error:
        if not needed:
            return top.joinpath(*parts)
        raise PrunekitError(
            f"The cache folder {place} can't be used: {error.strerror or error}. Set PRUNEKIT_CACHE to a folder with "
            "space that you may write to."
        ) from None
    if why:
        raise PrunekitError(
            f"The cache is not used, because {why}. Take that away (chmod go-w), set PRUNEKIT_CACHE to another folder, "
            f"or, if you trust everyone who can write there, set {TRUST}=1."
        )
    return place


def cache_key(what: Any) -> str:
    """A name in the cache for what depends on ``what``, JSON values: 32 hex digits."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


def tensors_digest(tensors: Iterable[tuple[str, torch.Tensor]], *said: str) -> str:
    """Hex SHA-256 over ``said`` and named tensors: their names, dtypes, shapes and bytes, in the order given."""
    import torch

    digest = hashlib.sha256(json.dumps(said).encode())
    for name, tensor in tensors:
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _json_digest(file: Path, data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([file.parent.name, file.name, data], sort_keys=True).encode()).hexdigest()


def write_kept(file: Path, data: dict[str, Any]) -> None:
    """Keep a JSON object, with its digest, in ``file``; a note on stderr says where that is impossible."""
    clear_for(file)
    # As it will be read: tuples become lists.
    data = json.loads(json.dumps(data))
    keep_bytes(file, json.dumps({**data, _DIGEST: _json_digest(file, data)}).encode())


def clear_for(file: Path) -> None:
    """Take away what lies at the place of a ``file`` of the cache and is none. Where that fails, so will keeping it."""
    if file.is_symlink() or not file.is_file():
        with suppress(OSError):
            clear(file)


def read_kept(file: Path) -> dict[str, Any] | None:
    """The object that :func:`write_kept` wrote to ``file``; None where there is none, or it is not as written."""
    try:
        data = parse(read_regular(file))
        if not isinstance(data, dict):
            return None
        said = data.pop(_DIGEST, None)
        return data if said == _json_digest(file, data) else None
    except (OSError, ValueError):
        return None


def seal(folder: Path) -> None:
    """Keep the digests of all files in ``folder``, at any depth, beside them."""
    files = {name: sha256(folder / name) for name in _names(folder)}
    (folder / INDEX).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")


def is_as_sealed(folder: Path) -> bool:
    """Whether ``folder`` holds the files that were there at :func:`seal`, byte for byte, and nothing else. A process
    reads them once, and again where they changed since."""
    try:
        names = _names(folder)
        state = tuple((name, *_state(folder / name)) for name in names)
        if _sealed.get(folder) == state:
            return True
        files = parse(read_regular(folder / INDEX))["files"]
        if sorted([*files, INDEX]) != names or not all(
            (folder / name).is_file() and sha256(folder / name) == digest for name, digest in files.items()
        ):
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    _sealed[folder] = state
    return True


def _names(folder: Path) -> list[str]:
    """Everything in ``folder`` but its subfolders, whose contents count."""
    found = (each for each in folder.rglob("*") if each.is_symlink() or not each.is_dir())
    return sorted(each.relative_to(folder).as_posix() for each in found)


_sealed: dict[Path, tuple[Any, ...]] = {}


def _state(file: Path) -> tuple[int, ...]:
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
