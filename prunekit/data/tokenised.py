"""Documents as token ids, one after another, with what a tokenizer sets before and after each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from prunekit.data.sources import Piece
from prunekit.errors import PrunekitError
from prunekit.utils.quiet import reason

# The document separator that GPT-2, SmolLM and Qwen were trained with; their chat versions call another token EOS.
_TRAINING_SEPARATOR = "<|endoftext|>"
_DOCUMENTS_AT_ONCE, _CHARACTERS_AT_ONCE = 256, 1 << 20


class Tokenised(NamedTuple):
    """The token ids of a piece, with the separators where a document begins with it (``begins``) or ends."""

    piece: Piece
    ids: list[int]
    begins: bool


def tokenised(parts: Iterator[Piece], tokenizer: Any) -> Iterator[list[Tokenised]]:
    """``parts`` in groups that are tokenised at once; documents of white space alone are left out.

    Documents are packed as the model saw them in training: with the special tokens that the tokenizer itself adds (a
    BOS before each), else with one end-of-text token after each.
    Raises PrunekitError where the tokenizer fails, or gives a number that is no token's.
    """
    before, after = separators(tokenizer)
    begins = True
    for group in _grouped(parts):
        made = []
        for piece, ids in zip(group, encode(tokenizer, [piece.text for piece in group]), strict=True):
            if ids and not 0 <= max(ids) < 1 << 31:
                raise PrunekitError(
                    f"The tokenizer gives token {max(ids):,}, which no vocabulary has; copy the original model's "
                    "tokenizer files into the model's folder."
                )
            # A chat template may have set it itself.
            if begins and ids[: len(before)] != before:
                ids[:0] = before
            if piece.ends:
                ids += after
            made.append(Tokenised(piece, ids, begins))
            begins = piece.ends
        yield made


def _grouped(parts: Iterator[Piece]) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    length = 0
    begun = False
    for piece in parts:
        if not piece.text.strip() and not begun:
            continue
        begun = not piece.ends
        length += len(piece.text)
        if group and (len(group) == _DOCUMENTS_AT_ONCE or length > _CHARACTERS_AT_ONCE):
            yield group
            group, length = [], len(piece.text)
        group.append(piece)
    if group:
        yield group


def encode(tokenizer: Any, texts: list[str], special: bool = False) -> list[list[int]]:
    """Token ids of each text, with the special tokens that the tokenizer adds to a text where ``special``.

    Raises PrunekitError where the tokenizer fails on one.
    """
    options = {"padding": False, "truncation": False, "return_attention_mask": False, "verbose": False}
    try:
        encoded: list[list[int]] = tokenizer(texts, add_special_tokens=special, **options)["input_ids"]
    except (MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of tokenizers is no Exception; a pattern may fail on some texts only
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise PrunekitError(
            f"The tokenizer fails on this text ({reason(error)}); copy the original model's tokenizer files over it, "
            "or give another text."
        ) from None
    return encoded


def added(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    bare, full = (encode(tokenizer, ["text"], special)[0] for special in (False, True))
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []


def separators(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids that stand before and after each document when documents are packed."""
    before, after = added(tokenizer)
    if before or after:
        return before, after
    end = tokenizer.get_vocab().get(_TRAINING_SEPARATOR, tokenizer.eos_token_id)
    return [], [] if end is None else [end]


def bos(tokenizer: Any) -> int | None:
    """The token that the tokenizer starts every text with, or None where it adds none."""
    before, _ = added(tokenizer)
    return before[0] if before else None


def first_token(tokenizer: Any) -> int | None:
    """The token that a model begins a document after: BOS, or what ends the document before; None where there is
    neither."""
    before, after = separators(tokenizer)
    return next(iter([*before, *after]), None)
