"""Whether two tokenizers give the same ids: on real text, behind special tokens, with digits, blanks and Unicode."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.models.modeling import register_pruned
from prunekit.utils.prose import builtin_documents
from prunekit.utils.quiet import quiet, reason

_ODD = (
    "the end",
    " the end",
    "  two blanks,\tand a tab \t ",
    "In 123123 it's\n\n1234\n    5678\r\n 1,000,000.50",
    "        9  10\n\n\n\n  11",
    "naïve café, Ünïcödé, ﬁne, 中文字符, עברית, русский, 한국어, ไทย",
    "🙂🙃 👩‍👩‍👧 \u00a0\u2009\u200b\ufeff",
    "def f(x):\n    return x ** 2  # comment\n\n\n",
    "it's they'll WE'RE don't (e.g. this) [that] {0}",
    "trailing blanks   ",
    "\n",
    "",
)
# Real text: so many documents, and so many characters of each.
_DOCUMENTS = 4
_CHARACTERS = 1500
_SPECIAL = 16
_SHOWN = 40


@lru_cache(maxsize=1)
def _texts() -> tuple[str, ...]:
    try:
        documents = builtin_documents("calibration")[:_DOCUMENTS]
    except PrunekitError:  # a Python without its documentation
        documents = ()
    return (*_ODD, *(document[:_CHARACTERS] for document in documents))


def _behind_special(tokenizer: Any) -> list[str]:
    """A chat prompt has text behind a special token everywhere, where some tokenizers put a blank and some don't."""
    special = sorted(set(map(str, tokenizer.all_special_tokens)), key=len)[:_SPECIAL]
    return [f"{first}the end{token}\n12 {token} the" for token in special for first in (token, f"a {token} ")]


def first_difference(tokenizer: Any, other: Any) -> str | None:
    """The first text that the two split otherwise, with or without special tokens around it; None where all agree."""
    for text in (*_texts(), *_behind_special(tokenizer)):
        for special in (True, False):
            ids = tokenizer(text, add_special_tokens=special)["input_ids"]
            if ids != other(text, add_special_tokens=special)["input_ids"]:
                return text
    return None


def shown(text: str) -> str:
    """``text`` for a message: on one line, and not too long."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def check_same_tokens(tokenizer: Any, folder: Path, config: Any = None) -> None:
    """Raises PrunekitError where the tokenizer in ``folder``, as transformers reads it there, gives other ids than
    ``tokenizer`` or has other special tokens. ``config`` is as in
    :func:`~prunekit.models.tokenizer.files.copy_tokenizer`."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    register_pruned()
    known: dict[str, Any] = {"local_files_only": True}
    has_config = config is not None or (folder / "config.json").is_file()
    if has_config:
        known |= {"trust_remote_code": False, **({"config": config} if config is not None else {})}
    reader: Any = AutoTokenizer if has_config else PreTrainedTokenizerFast
    try:
        with quiet():
            written = reader.from_pretrained(folder, **known)
            text = first_difference(tokenizer, written)
    except Exception as error:  # tokenizers raises bare Exception
        raise PrunekitError(
            f"The tokenizer could not be carried over ({reason(error)}); check the tokenizer files of the model."
        ) from None
    if text is not None:
        raise PrunekitError(
            f"The tokenizer would give other tokens than the model's own, for {shown(text)} among others; load and "
            "save the model's tokenizer once with transformers (AutoTokenizer, save_pretrained), and try again."
        )
    for name in ("bos_token", "eos_token", "unk_token"):
        if getattr(written, name) != getattr(tokenizer, name):
            raise PrunekitError(
                f"The tokenizer would have {getattr(written, name)!r} as its {name}, where the model's own has "
                f"{getattr(tokenizer, name)!r}; correct {name} in tokenizer_config.json, and try again."
            )
