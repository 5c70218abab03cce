"""Trying a tokenizer in a child process with limits, before it is loaded: it may hang, grow or crash."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from prunekit.errors import PrunekitError
from prunekit.models.tokenizer.names import TOKENIZER_FILES
from prunekit.utils.files.hashes import sha256
from prunekit.utils.files.leftovers import temporary_folder
from prunekit.utils.process.child import Limits, run_python
from prunekit.utils.quiet import reason

# A vocabulary of 262,000 tokens takes 4 seconds of a slow core and 1 GiB.
_SECONDS = 20
# Of transformers.
_IMPORTS = 30
_WAIT = 120.0
_MEMORY = 2 << 30
_OUTPUT = 1 << 20
# What libraries try out their folder for temporary files with.
_TEMPORARY = 1 << 20
_LARGEST = 256 << 20
# These are parsed more than once, and a template is a few kB.
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json")
_LARGEST_SETTINGS = 8 << 20
# Threads reserve address space, and a panic's stack is nobody's concern.
_QUIET = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"}


def try_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Raises PrunekitError where a file of the tokenizer in ``folder`` is a pipe or a device, or larger than any; or
    the tokenizer can't be loaded, or loading it and encoding a few texts takes 20 seconds of a CPU, 2 GiB, or makes far
    more of a text than there is. Costs about half a second, once for each file's content; a few seconds where there is
    no tokenizer.json. With ``trust_remote_code`` only that file is tried: the others may be read by any code."""
    for path in (*(folder / name for name in TOKENIZER_FILES), *folder.glob("additional_chat_templates/*")):
        # What is missing, or a link to nothing, is left to transformers.
        if path.exists() and not path.is_file():
            raise PrunekitError(f"{path} is no regular file; copy the original model's tokenizer files over it.")
        most = _LARGEST if path.name not in _SETTINGS else _LARGEST_SETTINGS
        if path.exists() and (size := path.stat().st_size) > most:
            raise PrunekitError(
                f"{path} has {size:,} bytes, more than any tokenizer's; copy the original model's over it."
            )
    path = folder / "tokenizer.json"
    try:
        if path.exists():
            error = _error(str(path), sha256(path))
        elif not trust_remote_code:
            files = (folder / name for name in (*TOKENIZER_FILES, "config.json"))
            error = _folder_error(str(folder), *((file.name, sha256(file)) for file in files if file.exists()))
        else:
            error = None
    except OSError as failed:
        raise PrunekitError(f"{path} can't be checked: {failed.strerror or failed}.") from None
    if error is not None:
        what = path.name if path.exists() else "tokenizer files"
        raise PrunekitError(
            f"The tokenizer in {folder} can't be loaded: {error}; copy the original model's {what} over it."
        )


@lru_cache(maxsize=256)
def _error(path: str, digest: str) -> str | None:
    limits = Limits(memory_bytes=_MEMORY, cpu_seconds=_SECONDS, output_bytes=_OUTPUT, file_bytes=0)
    return _tried("prunekit.models.tokenizer.check_child", path, limits, _QUIET)


@lru_cache(maxsize=256)
def _folder_error(folder: str, *digests: tuple[str, str]) -> str | None:
    # transformers reserves address space by the gigabyte.
    seconds = _SECONDS + _IMPORTS
    limits = Limits(data_bytes=_MEMORY, cpu_seconds=seconds, output_bytes=_OUTPUT, file_bytes=_TEMPORARY)
    with temporary_folder("tokenizer") as temporary:
        return _tried("prunekit.models.tokenizer.folder_child", folder, limits, {**_QUIET, "TMPDIR": str(temporary)})


def _tried(module: str, argument: str, limits: Limits, variables: dict[str, str]) -> str | None:
    ended = run_python(module=module, arguments=[argument], timeout=_WAIT, limits=limits, variables=variables)
    if ended.code < 0 and ended.stopped is None:
        return "it took more memory than any tokenizer needs, or crashed"
    if not ended.ok:
        return reason(Exception(ended.reason.removeprefix("pyo3_runtime.PanicException: ")), 200)
    said = json.loads(ended.out).get("error")
    return None if said is None else str(said)
