"""A tokenizer of one token a character, made on the spot."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from prunekit.data.sources import text_pieces

SPECIAL = ("<unk>", "<s>", "</s>")
EOS = 2
BOS = 1


def tiny_tokenizer(*, bos: bool = False, extra: tuple[str, ...] = (), merges: Sequence[tuple[str, str]] = ()) -> Any:
    """Every printable ASCII character is a token, and every merge (fewer than 128 in all); with ``bos`` each text
    starts with <s>."""
    characters = [*SPECIAL, *extra, *(char for char in string.printable if char not in "\r\x0b\x0c")]
    tokens = [*characters, *(left + right for left, right in merges)]
    core = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, list(merges), unk_token="<unk>"))
    if bos:
        core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(extra),
    )


def whole_text(source: str, **options: Any) -> str:
    """:func:`prunekit.data.sources.text_pieces` as one string."""
    return "".join(text_pieces(source, **options))
