"""Fields in a model's files that make a library read, run or build something else than what prunekit reads and checks.

transformers follows them without a word: other weights, another config, an adapter on top, a kernel from the hub, a
tokenizer's file from another folder. They are refused by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.utils.files.atomic import read_json

# What each of them leads to.
_OTHER_FILES = {
    "transformers_weights": "weights in another file",
    "configuration_files": "another config",
}
_OTHER_MODELS = ("text_config", "decoder", "generator", "text_encoder", "vision_config", "audio_config", "base_config")
_KERNELS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation")
_ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_DTYPES = (None, "auto", "float64", "float32", "float16", "bfloat16")
# 32 labels that nobody named take a few bytes each; this many of them still fit into memory.
_NUMBERS = {
    "max_position_embeddings": (1, 1 << 31),
    "original_max_position_embeddings": (1, 1 << 31),
    "sliding_window": (1, 1 << 31),
    "sliding_window_pattern": (1, 1 << 20),
    "_sliding_window_pattern": (1, 1 << 20),
    "max_window_layers": (0, 1 << 20),
    "no_rope_layer_interval": (1, 1 << 20),
    "num_labels": (0, 1 << 16),
    "pretraining_tp": (0, 1 << 10),
}
_PATH_KEY = re.compile(r"(_file|_files|_path|_dir|_folder)$")
# Files that transformers loads beside a tokenizer, and that are read in small pieces nowhere else.
_TOKENIZER_JSON = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# What transformers computes with, or asks for, without a look at its type.
_SETTINGS: dict[str, tuple[type, ...]] = {
    "model_max_length": (int, float),
    "padding_side": (str,),
    "truncation_side": (str,),
    "clean_up_tokenization_spaces": (bool,),
    "split_special_tokens": (bool,),
    "tokenizer_class": (str,),
    "add_bos_token": (bool,),
    "add_eos_token": (bool,),
    "add_prefix_space": (bool,),
    "legacy": (bool,),
    "model_input_names": (list,),
    "chat_template": (str, list, dict),
}


def check_config(path: Path, raw: dict[str, Any]) -> None:
    """Raises PrunekitError where the config ``raw``, read from ``path``, leads to something else than what lies beside
    it, or holds a number that would be counted to."""
    _refuse_keys(path, raw, "transformers.configuration_utils", "PreTrainedConfig")
    for name, what in _OTHER_FILES.items():
        if raw.get(name) is not None:
            raise PrunekitError(f"{path} has the field {name!r}, which names {what}; remove it.")
    for name in _OTHER_MODELS:
        if raw.get(name) is not None:
            raise PrunekitError(
                f"{path} has the field {name!r}, which describes a model inside the model; extract the text model."
            )
    for name in _KERNELS:
        if raw.get(name) not in _ATTENTION:
            raise PrunekitError(
                f"{path} asks for {str(raw[name])[:60]!r} in {name!r}, which may load code from elsewhere; remove it."
            )
    for name in ("dtype", "torch_dtype"):
        value = raw.get(name)
        if (value.removeprefix("torch.") if isinstance(value, str) else value) not in _DTYPES:
            raise PrunekitError(
                f"{path} names the dtype {str(value)[:60]!r}; expected one of {', '.join(_DTYPES[1:])}."
            )
    for name, (least, most) in _NUMBERS.items():
        value = raw.get(name)
        if value is not None and (type(value) is not int or not least <= value <= most):
            raise PrunekitError(
                f"{name} in {path} must be a whole number from {least} to {most}, got {str(value)[:60]!r}."
            )
    for name in ("rope_parameters", "rope_scaling"):
        _check_rope(path, name, raw.get(name))
    adapter = path.with_name("adapter_config.json")
    if adapter.exists():
        raise PrunekitError(
            f"{path.parent} holds {adapter.name} beside a whole model: where peft is installed, transformers adds that "
            "adapter to the weights. Merge it (peft: merge_and_unload, save_pretrained), or remove it."
        )
    generation = path.with_name("generation_config.json")
    if generation.is_file():
        said = read_json(generation, "generation config")
        if not isinstance(said, dict):
            raise PrunekitError(f"{generation} is no JSON object; copy the original model's over it.")
        _refuse_keys(generation, said, "transformers.generation.configuration_utils", "GenerationConfig")


def _check_rope(path: Path, name: str, value: Any) -> None:
    """Kinds of rotary embeddings are looked up by their names; layers of different kinds have an object each."""
    if value is not None and not isinstance(value, dict):
        raise PrunekitError(f"{name} in {path} is no JSON object; copy the original model's config over it.")
    for key, inner in (value or {}).items():
        if key in ("rope_type", "type") and not (isinstance(inner, str) and inner in _rope_types()):
            raise PrunekitError(
                f"{name}.{key} in {path} is {str(inner)[:60]!r}, no kind of rotary embeddings; expected one of "
                f"{', '.join(sorted(_rope_types()))}. Copy the original model's config over it."
            )
        if isinstance(inner, dict):
            _check_rope(path, f"{name}.{key}", inner)


@cache
def _rope_types() -> frozenset[str]:
    """The kinds that transformers computes, and "su", as old configs of Phi-3 call longrope."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return frozenset({"default", "su", *ROPE_INIT_FUNCTIONS})


def _refuse_keys(path: Path, raw: dict[str, Any], module: str, name: str) -> None:
    """Every field becomes an attribute of that name: a method would be gone."""
    import importlib

    kind = getattr(importlib.import_module(module), name)
    for key in raw:
        if key.startswith("__") or callable(getattr(kind, key, None)):
            raise PrunekitError(f"{path} has the field {key[:60]!r}, which is no field of a config; remove it.")


def check_tokenizer(folder: Path) -> None:
    """Raises PrunekitError where the tokenizer's files in ``folder`` lead to others that lie elsewhere, or are no JSON
    objects."""
    for name in _TOKENIZER_JSON:
        path = folder / name
        if not path.is_file():
            continue
        said = read_json(path, "tokenizer's config")
        if not isinstance(said, dict):
            raise PrunekitError(f"{path} is no JSON object; copy the original model's tokenizer files over it.")
        if name != _TOKENIZER_JSON[0]:
            continue
        if said.get("fast_tokenizer_files") not in (None, [], ["tokenizer.json"]):
            raise PrunekitError(
                f"{path} has the field 'fast_tokenizer_files', which names other tokenizers; remove it."
            )
        for field, kinds in _SETTINGS.items():
            if said.get(field) is not None and type(said[field]) not in kinds:
                raise PrunekitError(
                    f"{path} has {str(said[field])[:60]!r} for {field}, which is no such setting; copy the original "
                    "model's tokenizer files over it."
                )
        if said.get("init_inputs"):
            raise PrunekitError(f"{path} has the field 'init_inputs', which may name any file; remove it.")
        for key, value in _paths(said):
            if _lies_elsewhere(folder, value):
                raise PrunekitError(f"{path} names a file outside its folder in {key!r}; remove that field.")


def _paths(value: Any, key: str = "", all_of_it: bool = False) -> Iterator[tuple[str, str]]:
    """The texts in a tokenizer's config that are read as names of files, with their keys."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _paths(inner, name, all_of_it or bool(_PATH_KEY.search(name)) or name.endswith("_kwargs"))
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner, key, all_of_it)
    elif isinstance(value, str) and all_of_it:
        # Options of other programs hold paths among words.
        yield from ((key, word) for word in (value, *value.split()))


def _lies_elsewhere(folder: Path, name: str) -> bool:
    """Old files name paths of the machine they were made on; only what is there can be read."""
    if os.sep not in name and name != "..":
        return False
    try:
        found = os.path.exists(name) or os.path.exists(folder / name)
        return found and Path(os.path.realpath(folder)) not in Path(os.path.realpath(folder / name)).parents
    except (OSError, ValueError):
        return False
