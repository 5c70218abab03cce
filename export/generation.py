"""How a model's texts begin and end, how chats are written, how tokens are drawn: as the checkpoint's own files say it.

A target says which of these its format holds (:attr:`Written.placed`); a note tells of the others.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.utils.files.atomic import read_json

GENERATION_CONFIG = "generation_config.json"
DEFAULT = "default"
# What transformers does where nothing is said. Such a value is no wish.
_NEUTRAL = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "diversity_penalty": 0.0,
    "min_length": 0,
    "renormalize_logits": False,
}
# Numbers that other formats hold too; everything else in the file goes along as it is, or is named in a note.
_NUMBERS = frozenset(_NEUTRAL) - {"do_sample", "early_stopping", "renormalize_logits"}
_OF_TEXT = (
    *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id"),
    *("stop_strings", "encoder_repetition_penalty", "guidance_scale", "epsilon_cutoff", "eta_cutoff", "sequence_bias"),
)


@dataclass(frozen=True)
class Generation:
    """``begin`` is the token that texts start with, ``ends`` are all that end them, the tokenizer's own first unless
    generation_config.json lists it; ``pad`` fills up shorter prompts. ``templates`` are chat templates by name,
    "default" first. ``sampling`` are the settings of generation_config.json that are not transformers' defaults."""

    begin: int | None
    ends: tuple[int, ...]
    pad: int | None
    templates: Mapping[str, str]
    sampling: Mapping[str, Any]

    def items(self) -> dict[str, str]:
        """What there is to place, by key, in words."""
        found = {end_key(each): f"the end token {each}" for each in self.ends}
        for name in self.templates:
            words = "the chat template" if name == DEFAULT else f"the chat template named {name!r}"
            found[template_key(name)] = words
        for name, value in self.sampling.items():
            found[name] = f"{name} {value}" if isinstance(value, int | float) else name
        return found

    def left_out(self, placed: Collection[str]) -> str | None:
        """A sentence about what is in none of the places ``placed``; None where all is."""
        left = [words for key, words in self.items().items() if key not in placed]
        if not left:
            return None
        some = left if len(left) < 9 else [*left[:8], f"{len(left) - 8} more"]
        listed = " and ".join(filter(None, (", ".join(some[:-1]), some[-1])))
        return (
            f"This format has no place for {listed}; give them to the program that generates, where it takes them (the "
            "checkpoint's own values are in generation_config.json and the tokenizer's files here)."
        )

    @property
    def all_ends(self) -> frozenset[str]:
        return frozenset(map(end_key, self.ends))

    @property
    def everything(self) -> frozenset[str]:
        """The keys of all items, for formats that come with the checkpoint's own files and read them."""
        return frozenset(self.items())


def end_key(token: int) -> str:
    return f"end token {token}"


def template_key(name: str = DEFAULT) -> str:
    return f"chat template {name}"


def generation_of(source: Any, tokenizer: Any) -> Generation:
    """Read from the folder of ``source`` (a prunekit Source), its config, and ``tokenizer`` (None where there is none).
    Ids that are no tokens of the model are left out. Raises PrunekitError where a file is damaged."""
    told = _generation_config(source.path)
    size = source.shape.vocab_size

    def ids(*values: Any) -> list[int]:
        """Of the first value that names tokens."""
        for value in values:
            found = [each for each in (value if isinstance(value, list | tuple) else [value]) if _is_token(each, size)]
            if found:
                return list(dict.fromkeys(found))
        return []

    def named(name: str) -> list[int]:
        return ids(told.get(name), getattr(source.config, name, None), getattr(tokenizer, name, None))

    ends = named("eos_token_id")
    own: Any = getattr(tokenizer, "eos_token_id", None)
    if _is_token(own, size) and own not in ends:
        ends.insert(0, own)
    for name in ("eot_token", "eom_token"):
        # Some tokenizers name the end of a turn, and of a message, beside the end of a text.
        named_too = _token_id(tokenizer, name)
        if _is_token(named_too, size) and named_too not in ends:
            ends.append(named_too)
    begin, pad = named("bos_token_id"), named("pad_token_id")
    return Generation(
        begin[0] if begin else None,
        tuple(ends),
        pad[0] if pad else None,
        chat_templates(source.path),
        _sampling(told, source.path / GENERATION_CONFIG),
    )


def write_generation_config(generation: Generation, source: Path, folder: Path) -> None:
    """Have ``folder``'s generation_config.json name every end token: programs that read it stop at these alone. It is
    written anew where the checkpoint in ``source`` has one that lacks some, or none."""
    told = _generation_config(source)
    listed = told.get("eos_token_id")
    if set(listed if isinstance(listed, list) else [listed]) >= set(generation.ends):
        return
    made = {**told, "eos_token_id": list(generation.ends) if len(generation.ends) > 1 else generation.ends[0]}
    for name, value in (("bos_token_id", generation.begin), ("pad_token_id", generation.pad)):
        if value is not None:
            made.setdefault(name, value)
    (folder / GENERATION_CONFIG).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def chat_templates(folder: Path) -> dict[str, str]:
    """The chat templates of a model folder by name, "default" first: of the files chat_template.jinja and
    additional_chat_templates/*.jinja, else of tokenizer_config.json (one, or a list of named ones), else of
    chat_template.json. Nothing is run. Raises PrunekitError where a file can't be read."""
    files = {DEFAULT: folder / "chat_template.jinja"}
    more = folder / "additional_chat_templates"
    if more.is_dir():
        files |= {file.stem: file for file in sorted(more.glob("*.jinja"))}
    found = {name: _text(file) for name, file in files.items() if file.is_file()}
    for name, what in (("tokenizer_config.json", "tokenizer's config"), ("chat_template.json", "chat template")):
        file = folder / name
        if not found and file.is_file():
            settings = read_json(file, what)
            found = _named(settings.get("chat_template") if isinstance(settings, dict) else settings)
    return {name: found[name] for name in sorted(found, key=lambda each: (each != DEFAULT, each))}


def put_templates(templates: Mapping[str, str], folder: Path, *, named: bool = True) -> None:
    """Have tokenizer_config.json in ``folder`` hold the chat templates, which is where many programs look for them.
    Without ``named``, for programs that refuse a list of them, it holds the default one; the others are files then."""
    if not templates:
        return
    if set(templates) == {DEFAULT}:
        made: Any = templates[DEFAULT]
    elif named:
        made = [{"name": name, "template": template} for name, template in templates.items()]
    else:
        made = templates.get(DEFAULT)
        _write_files(templates, folder)
    _set_in_tokenizer_config(folder, "chat_template", made)


def pad_left(folder: Path) -> None:
    """Have programs that read tokenizer_config.json in ``folder`` fill up shorter prompts on the left: what they take
    for a prompt's last logits are those at its end."""
    _set_in_tokenizer_config(folder, "padding_side", "left")


def _set_in_tokenizer_config(folder: Path, name: str, value: Any) -> None:
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return
    settings = read_json(file, "tokenizer's config")
    if settings.get(name) != value:
        settings[name] = value
        file.write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")


def _write_files(templates: Mapping[str, str], folder: Path) -> None:
    """The form of transformers 5: where there is one such file, it looks nowhere else."""
    others = folder / "additional_chat_templates"
    others.mkdir(exist_ok=True)
    for name, template in templates.items():
        plain = re.sub(r"[^\w.-]", "_", name)
        file = folder / "chat_template.jinja" if name == DEFAULT else others / f"{plain}.jinja"
        file.write_text(template, encoding="utf-8")


def _named(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, dict):
        value = [{"name": name, "template": template} for name, template in value.items()]
    if not isinstance(value, list):
        return {}
    pairs = [(each.get("name"), each.get("template")) for each in value if isinstance(each, dict)]
    return {name: template for name, template in pairs if isinstance(name, str) and isinstance(template, str)}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PrunekitError(f"The chat template {file} can't be read ({error}); copy the original model's.") from None


def _generation_config(folder: Path) -> dict[str, Any]:
    file = folder / GENERATION_CONFIG
    told = read_json(file, "generation config") if file.is_file() else {}
    if not isinstance(told, dict):
        raise PrunekitError(f"{file} is no JSON object; copy the original model's over it.")
    return told


def _sampling(told: Mapping[str, Any], file: Path) -> dict[str, Any]:
    found = {}
    for name in (*_NEUTRAL, *_OF_TEXT):
        value = told.get(name)
        if value is None or value == _NEUTRAL.get(name):
            continue
        if name in _NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value)):
            raise PrunekitError(
                f"{file} has {name} {str(value)[:40]!r}, which is no number; mend it, or remove the line."
            )
        found[name] = value
    return found


def _finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _token_id(tokenizer: Any, name: str) -> Any:
    token = getattr(tokenizer, name, None)
    return tokenizer.convert_tokens_to_ids(str(token)) if token is not None else None


def _is_token(value: Any, size: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < size
