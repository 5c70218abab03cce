"""A model's tokenizer and generation defaults, taken from folder to folder as files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.models.source import Source, has_tokenizer, load_tokenizer
from prunekit.models.tokenizer.names import TEMPLATES, TOKENIZER_FILES
from prunekit.models.tokenizer.same_tokens import check_same_tokens
from prunekit.utils.files.atomic import read_json

_CONFIG = "tokenizer_config.json"
# Reads tokenizer.json as it stands, in every release of transformers and for every model_type but qwen2.
_CLASS = "PreTrainedTokenizerFast"
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token")
# Already done in the tokenizer.json that is written; the code of a class that is not copied must not be asked for.
_DONE = ("auto_map", "fix_mistral_regex", "tokenizer_file", "name_or_path")


def copy_tokenizer(source: Source, folder: Path, *, config: Any = None, trust_remote_code: bool = False) -> None:
    """Give ``folder`` the tokenizer of ``source`` and its generation defaults, as data; code is left behind.

    What a tokenizer class does depends on the model's type too: transformers puts wrong classes right by it, which it
    does not do for the types of pruned models, and what other programs read is tokenizer.json alone. So that file gets
    the tokenizer as it is in effect for ``source``, under the class that takes it as it stands, and both are compared
    on texts. ``config`` is the transformers config that ``folder`` will have, where it is not written yet.
    Raises PrunekitError where the tokenizer can't be loaded or would give other tokens than that of ``source``.
    """
    for name in TOKENIZER_FILES:
        if name != _CONFIG and (source.path / name).is_file():
            shutil.copyfile(source.path / name, folder / name)
    for file in sorted((source.path / TEMPLATES).glob("*.jinja")):
        if file.is_file() and re.fullmatch(r"[A-Za-z0-9_.-]+", file.name):
            (folder / TEMPLATES).mkdir(exist_ok=True)
            shutil.copyfile(file, folder / TEMPLATES / file.name)
    settings = _settings(source.path / _CONFIG)
    tokenizer = _in_effect(source, settings, trust_remote_code)
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        _write_in_effect(tokenizer, folder / "tokenizer.json")
        settings |= _as_data(tokenizer, settings)
    if settings:
        for name in _DONE:
            settings.pop(name, None)
        (folder / _CONFIG).write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")
    if tokenizer is not None:
        check_same_tokens(tokenizer, folder, config)


def _settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    settings = read_json(file, "tokenizer's config")
    if not isinstance(settings, dict):
        raise PrunekitError(f"{file} is no JSON object; copy the original model's tokenizer files over it.")
    return settings


def _in_effect(source: Source, settings: dict[str, Any], trust_remote_code: bool) -> Any:
    """The tokenizer that transformers makes for ``source``; None where it has none, or only code of its own knows."""
    if not has_tokenizer(source):
        return None
    try:
        return load_tokenizer(source, trust_remote_code=trust_remote_code)
    except PrunekitError:
        if "auto_map" in settings and not trust_remote_code:
            return None
        raise


def _write_in_effect(tokenizer: Any, file: Path) -> None:
    """The copied file stays byte for byte where nothing in it would change."""
    from tokenizers import Tokenizer

    new = tokenizer.backend_tokenizer.to_str()
    if not file.is_file() or Tokenizer.from_file(str(file)).to_str() != new:
        file.write_text(new, encoding="utf-8")


def _as_data(tokenizer: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """What the class of ``tokenizer`` knows beyond tokenizer.json, as settings that hold without that class."""
    made: dict[str, Any] = {"tokenizer_class": _CLASS, "model_input_names": list(tokenizer.model_input_names)}
    made["padding_side"] = tokenizer.padding_side
    made["clean_up_tokenization_spaces"] = bool(tokenizer.clean_up_tokenization_spaces)
    for name in _NAMED:
        value = getattr(tokenizer, name)
        stated = settings.get(name)
        content = stated.get("content") if isinstance(stated, dict) else stated
        # A stated null, too: classes of stock model types have tokens of their own where none is stated.
        if content != value or name not in settings:
            made[name] = value
    return made
