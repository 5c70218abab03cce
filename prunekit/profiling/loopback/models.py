"""What a server is started on: the kind of server that opens a model, and its files, found to be safe to open."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from prunekit.errors import PrunekitError
from prunekit.models.gguf.convert import BUILTIN, builtin_gguf
from prunekit.models.redirections import check_tokenizer
from prunekit.models.source import resolve
from prunekit.models.tokenizer.check import try_tokenizer
from prunekit.profiling.loopback.installed import LLAMA_CPP, TRANSFORMERS, VLLM, has_vllm
from prunekit.utils.files.atomic import read_json
from prunekit.utils.files.hashes import sha256
from prunekit.utils.files.listed_folder import check_listed
from prunekit.utils.files.replacing import EXPORT
from prunekit.utils.provenance import model_label

Kind = Literal["llama.cpp", "transformers", "vllm"]
KINDS: tuple[str, ...] = get_args(Kind)
# Exports that are checkpoints.
_CHECKPOINTS = ("hf", "vllm")


@dataclass(frozen=True)
class Opened:
    """A model that a server of ``kind`` opens: the file or folder ``path``, by the name ``label`` in requests.
    ``digest`` reads all of its weights: the SHA-256 of a .gguf file, or a checkpoint's fingerprint."""

    kind: str
    path: Path
    label: str
    digest: Callable[[], str]


def opened(name: str, kind: str = "auto") -> Opened:
    """The model ``name`` for a server of ``kind``: ``auto`` is llama.cpp for a .gguf file or a folder that
    ``prunekit export --to gguf`` wrote; of a checkpoint vLLM where it is installed, else transformers.

    The built-in model is a checkpoint to ``transformers`` and ``vllm``, and the package's own .gguf to ``llama.cpp``.
    Headers, configs and tokenizers are checked as everywhere in prunekit, and no code of the model is run.
    Raises PrunekitError where nothing of that name can be had or it can't be served so.
    """
    if kind not in ("auto", *KINDS):
        raise PrunekitError(f"There is no kind of server {kind!r}; use auto, {', '.join(KINDS)}.")
    path = Path(name).expanduser()
    file = _gguf_of(path, kind)
    if file is None and name == BUILTIN and kind == LLAMA_CPP:
        file = builtin_gguf()
    if file is not None and kind in ("auto", LLAMA_CPP):
        _check_gguf(file)
        return Opened(LLAMA_CPP, file.resolve(), _label(file.stem), lambda: sha256(file))
    if kind == LLAMA_CPP:
        raise PrunekitError(
            f"llama.cpp's server opens GGUF files, and {name} is none; run `prunekit export {name} --to gguf -o OUT` "
            "and give OUT."
        )
    return _checkpoint(name, kind if kind != "auto" else VLLM if has_vllm() else TRANSFORMERS)


def _checkpoint(name: str, kind: str) -> Opened:
    source = resolve(name)
    source.check_language_model()
    check_tokenizer(source.path)
    try_tokenizer(source.path)
    return Opened(kind, source.path.resolve(), _label(model_label(name)), lambda: source.fingerprint)


def _gguf_of(path: Path, kind: str) -> Path | None:
    """The .gguf file that ``path`` is or holds; None where it is something else."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    if not (path / EXPORT.manifest).is_file():
        return None
    manifest = read_json(path / EXPORT.manifest, "export manifest")
    target = manifest.get("target") if isinstance(manifest, dict) else None
    if target in _CHECKPOINTS:
        return None
    if target != "gguf":
        raise PrunekitError(
            f"{path} is an export for {str(target)[:40]!r}, which has no server here; give a checkpoint, or an export "
            "to gguf."
        )
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise PrunekitError(f"{path / EXPORT.manifest} lists no files; export the model again.")
    check_listed(path, files, EXPORT.manifest)
    found = sorted(path.glob("*.gguf"))
    if len(found) != 1:
        raise PrunekitError(f"{path} holds {len(found)} .gguf files instead of one; export the model again.")
    return found[0]


def _check_gguf(file: Path) -> None:
    """Counts and lengths of its header fit the file. What llama.cpp makes of the rest happens in its own process."""
    from prunekit.models.gguf.header import read_header

    header: Any = read_header(file, "download it again")
    if not header.tensors:
        raise PrunekitError(f"{file} holds no tensors; download it again.")


def _label(name: str) -> str:
    """How requests name it: the last part, of letters that no shell or address changes."""
    made = re.sub(r"[^A-Za-z0-9._-]+", "-", name.rstrip("/").split("/")[-1]).strip("-.")
    return made or "model"
