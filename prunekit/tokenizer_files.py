"""The files of a model folder that belong to its tokenizer and generation defaults, copied from model to model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from prunekit.errors import PrunekitError
from prunekit.files import read_json

# Named templates, as `<name>.jinja`.
TEMPLATES = "additional_chat_templates"
# Data only; code is never copied.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files and the generation defaults of ``source`` that are data; code is left behind."""
    for name in TOKENIZER_FILES:
        file = source / name
        if not file.is_file():
            continue
        if name == "tokenizer_config.json":
            # A tokenizer class of the source's own code would not come along, and must not be asked for.
            settings = read_json(file, "tokenizer's config")
            if not isinstance(settings, dict):
                raise PrunekitError(f"{file} is no JSON object; copy the original model's tokenizer files over it.")
            settings.pop("auto_map", None)
            (folder / name).write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")
        else:
            shutil.copyfile(file, folder / name)
    for file in sorted((source / TEMPLATES).glob("*.jinja")):
        if file.is_file() and re.fullmatch(r"[A-Za-z0-9_.-]+", file.name):
            (folder / TEMPLATES).mkdir(exist_ok=True)
            shutil.copyfile(file, folder / TEMPLATES / file.name)
