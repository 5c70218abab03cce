"""What a model folder says of itself beside its weights: the head of its model card, its licence and notices."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.utils.files.strict_json import read_regular

CARD = "README.md"
# What such files' names begin with; "-" stands for itself, "_", or nothing.
_WORDS = (
    "license",
    "licence",
    "copying",
    "copyright",
    "notice",
    "third-party",
    "unlicense",
    "eula",
    "disclaimer",
    "use-policy",
    "acceptable-use",
    "responsible-use",
    "prohibited-use",
    "legal",
    "patents",
    "terms",
)
# Also behind the name of what they are about, as in MODEL_LICENSE.
_BEHIND = ("license", "licence", "notice", "use-policy")
_START, _MIDDLE = (f"({'|'.join(each).replace('-', '[-_]?')})" for each in (_WORDS, _BEHIND))
_LEGAL = re.compile(
    rf"({_START}|[a-z0-9_.-]{{1,64}}[-_.]{_MIDDLE})s?([-_.][a-z0-9_.-]*|notices?(\.[a-z]*)?)?", re.IGNORECASE
)
# A licence that is a program or a table of weights is none.
_LEGAL_ENDINGS = ("", ".md", ".txt", ".rst", ".html", ".pdf")
_MAX_LEGAL_BYTES = 4 << 20
_MAX_CARD_BYTES = 4 << 20
_MAX_HEAD = 64 << 10
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_SNAPSHOT = re.compile(r"models--([A-Za-z0-9._-]+?)--([A-Za-z0-9._-]+)")
# Tags that say how the files are stored, which the files that are written from them are not.
_STORED_AS = {"gguf", "ggml", "mlx", "onnx", "openvino", "safetensors", "pytorch", "tf", "jax", "custom_code"}


@dataclass(frozen=True)
class Origin:
    """``hub_id`` is the model's own name on the hub, where it has one. ``license`` None: its card names none."""

    hub_id: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    base_model: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    legal_files: tuple[str, ...] = ()

    @property
    def bases(self) -> tuple[str, ...]:
        """The hub ids of what a model made of this one is based on."""
        return (self.hub_id,) if self.hub_id else self.base_model


def legal_patterns() -> list[str]:
    """Patterns of ``fnmatch``, in which case counts, for the licence files of a hub repository."""
    words = [("", word) for word in _WORDS] + [("*[-_.]", word) for word in _BEHIND]
    forms = sorted((start, word.replace("-", mark)) for start, word in words for mark in ("-", "_", ""))
    made = (
        start + "".join(f"[{char.upper()}{char}]" if char.isalpha() else char for char in word) + "*"
        for start, word in forms
    )
    return list(dict.fromkeys(made))


def read_origin(name: str, folder: Path) -> Origin:
    """The origin of the model that the user named ``name`` and that lies in ``folder``.

    What a card says wrongly, or too much of, is left out: a card is no reason to refuse a model.
    """
    head = _front_matter(folder / CARD)
    snapshot = _SNAPSHOT.fullmatch(folder.absolute().parent.parent.name)
    hub_id = f"{snapshot[1]}/{snapshot[2]}" if snapshot else name if not Path(name).expanduser().exists() else None
    license_, license_name, license_link = (
        next(iter(_words(head.get(key))), None) for key in ("license", "license_name", "license_link")
    )
    return Origin(
        hub_id if hub_id and _HUB_ID.fullmatch(hub_id) else None,
        license_,
        license_name,
        license_link,
        tuple(base for base in _words(head.get("base_model")) if _HUB_ID.fullmatch(base)),
        _words(head.get("language")),
        tuple(tag for tag in _words(head.get("tags")) if tag not in _STORED_AS),
        tuple(sorted(file.name for file in folder.iterdir() if _is_legal(file))),
    )


def copy_legal_files(source: Path, origin: Origin, folder: Path) -> None:
    """Copy the licence, notices and policies of ``source`` into ``folder``, but over nothing that is there."""
    for name in origin.legal_files:
        if not (folder / name).exists():
            shutil.copyfile(source / name, folder / name)


def _is_legal(file: Path) -> bool:
    if not _LEGAL.fullmatch(file.name) or _ending(file.name) not in _LEGAL_ENDINGS or not file.is_file():
        return False
    # What it links to must lie with the model (the hub's cache keeps blobs beside snapshots): what is copied is shared.
    home = file.absolute().parent
    real = file.resolve()
    inside = real.is_relative_to(home.resolve()) or real.is_relative_to(home.parent.parent.resolve() / "blobs")
    return inside and real.stat().st_size <= _MAX_LEGAL_BYTES


def _ending(name: str) -> str:
    """The file ending; versions, as in LICENSE-2.0, are none."""
    ending = Path(name).suffix.lower()
    return "" if re.fullmatch(r"\.[0-9]+", ending) or ending.lstrip(".") in ("apache", "mit", "bsd") else ending


def _front_matter(card: Path) -> dict[str, Any]:
    """The YAML between two lines of three dashes at the top of a model card, or nothing."""
    import yaml

    try:
        text = read_regular(card, _MAX_CARD_BYTES).decode("utf-8", "replace")
    except Exception:  # no card, a device, too large: the same as a card that says nothing
        return {}
    match = re.match(r"\ufeff?\s*---\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if not match or len(match[1]) > _MAX_HEAD:
        return {}
    try:
        head = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError):
        return {}
    return head if isinstance(head, dict) else {}


def _words(value: Any) -> tuple[str, ...]:
    """A string, or the strings of a list, as far as they are short words on one line."""
    values = value if isinstance(value, list) else [value]
    # YAML reads the language code of Norwegian as a truth value.
    texts = ["no" if each is False else each for each in values[:64]]
    return tuple(text for text in texts if isinstance(text, str) and 0 < len(text) <= 200 and text.isprintable())
