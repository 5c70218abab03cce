"""The proof that llama.cpp and transformers cut text into the same tokens."""

from __future__ import annotations

import inspect
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.data.chat_template import render_chats
from prunekit.errors import PrunekitError
from prunekit.export.formats.gguf.runner import load, token_ids
from prunekit.export.formats.gguf.vocab import BLANK, Vocabulary
from prunekit.export.target import Job
from prunekit.utils.prose import builtin_documents

_REAL_LINES = 1000
_SPECIAL_TOKENS = 500
_CHAT = ({"role": "user", "content": "What is 12 + 30?"},)
_HARD_TEXTS = (
    "0 1 12 123 1234 12345 3.14159 1,000,000 0x1F 2024-12-31 ½ ² ٣ 10⁻³",
    "def f(x):\n    if x:\n\treturn  x+1\n\n\n        # done\r\n",
    "  two    four        eight \t tab \t\t tabs   ",
    " ",
    "   ",
    "\n\n \n  \n\t\n",
    "I'm you're he'll we've they'd isn't I'M YOU'RE 'tis ''quoted''",
    "naïve café Straße Ærøskøbing İstanbul ŁÓDŹ Ελληνικά Кириллица",
    "日本語のテキスト 中文文本，標點。 한국어 텍스트 ไทย हिन्दी עברית العربية",
    "😀😃 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ☃ \u200b zero width",
    "snake_case camelCase SCREAMING kebab-case path/to/file.py https://example.org/?q=a%20b&c=d#e",
    "!!! ??? ... --- *** ((())) [[]] {{}} <<>> // \\\\ || && ~~ `code` $x^2$ @user #tag €5 £6 %7",
    "e\u0301 combining, ﬁ ligature, № №, … ellipsis — dash – “quotes” ‘single’ «guillemets»",
    "\u00a0no-break\u00a0space\u3000ideographic\u2003em",
    "aAaA AAAaaa aaaAAA A1b2C3 x86_64 v1.2.3-rc4 1st 2nd 3rd",
)


def sample_texts(vocabulary: Vocabulary) -> list[str]:
    """A thousand lines of prose, indented code, what tokenizers disagree about; without what ``vocabulary`` is known
    to leave to the caller (composing Unicode) or to do otherwise (text that begins with a blank)."""
    lines: list[str] = []
    for document in (*builtin_documents("evaluation"), *builtin_documents("calibration")):
        lines += [line for line in document.splitlines() if line.strip()]
        if len(lines) >= _REAL_LINES:
            break
    code = inspect.getsource(textwrap)
    texts = [*lines[:_REAL_LINES], *code.splitlines(), code, *_HARD_TEXTS]
    if vocabulary.composed:
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    if vocabulary.second_blank:
        texts = [text for text in (text.lstrip(" ") for text in texts) if text]
    return texts


def _with_special_tokens(tokenizer: Any) -> tuple[list[str], list[str]]:
    """Special tokens alone; and between words and in a chat, where there is a template."""
    added = sorted(tokenizer.get_added_vocab().items(), key=lambda item: item[1])
    # Of runs of blanks (Gemma's) the text has blanks.
    alone = [token.replace(BLANK, " ") for token, _ in added[:_SPECIAL_TOKENS]]
    between = [f"before{token}behind {token} behind" for token in alone]
    if getattr(tokenizer, "chat_template", None):
        # A template may ask for more than a message has.
        with suppress(PrunekitError):
            between += [each for each in render_chats(tokenizer, [_CHAT], generation=True) if isinstance(each, str)]
    return alone, between


@dataclass(frozen=True)
class Checked:
    """``texts`` were cut alike; ``special_alike``: so were texts with special tokens inside. llama.cpp stops at
    ``ends``, of the tokens that end texts."""

    texts: int
    special_alike: bool
    ends: tuple[int, ...]


def check_tokens(job: Job, file: Path, vocabulary: Vocabulary) -> Checked:
    """Tokenise texts in llama.cpp and in transformers.

    Raises PrunekitError with the first one that both cut differently. Around special tokens only the answer tells:
    many tokenizers let these swallow blanks, which llama.cpp does not.
    """
    import llama_cpp

    tokenizer = job.tokenizer
    texts = sample_texts(vocabulary)
    alone, between = _with_special_tokens(tokenizer)
    model = load(file, vocab_only=True)

    def differing(some: Sequence[str], special: bool = False) -> Iterator[tuple[str, list[int], list[int]]]:
        expected = tokenizer(list(some), add_special_tokens=special)["input_ids"] if some else []
        for text, wanted in zip(some, expected, strict=True):
            if (made := token_ids(model, text, special)) != list(wanted):
                yield text, made, list(wanted)

    try:
        for found in (*differing([*texts, *alone]), *differing(texts[:3], special=True)):
            raise _cut_differently(job, vocabulary, *found)
        vocab = llama_cpp.llama_model_get_vocab(model)
        ends = tuple(each for each in job.generation.ends if llama_cpp.llama_vocab_is_eog(vocab, each))
        return Checked(len(texts), not any(differing(between)), ends)
    finally:
        llama_cpp.llama_model_free(model)


def _cut_differently(
    job: Job, vocabulary: Vocabulary, text: str, made: Sequence[int], wanted: Sequence[int]
) -> PrunekitError:
    pairs = zip(made, wanted, strict=False)
    at = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(made), len(wanted)))
    near = job.tokenizer.decode(list(wanted)[max(0, at - 2) : at + 3])
    return PrunekitError(
        f"llama.cpp cuts text into other tokens than {job.source.name}'s tokenizer (token {at} of {text[:40]!r}, near "
        f"{near!r}), though its rules look like llama.cpp's {vocabulary.pre!r}; export to onnx instead, and report "
        "this."
    )
