"""The tokenizer in a GGUF file: every key is used, known to be harmless, or refused by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from prunekit.errors import PrunekitError
from prunekit.models.gguf.pre_tokenizer import BYTE_LEVEL, DIGITS, GPT2, PRE_TOKENIZERS, PreTokenizer

if TYPE_CHECKING:
    from prunekit.models.gguf.header import Header

Refuse = Callable[[str], PrunekitError]

_PREFIX, _TEMPLATE = "tokenizer.ggml.", "tokenizer.chat_template"
_BLANK = "\u2581"
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6
_NONE = ("none", "no_vocab")
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
# Ends of a turn and of a message, beside the end of a text.
_ENDS = ("eos", "eot", "eom")
# What llama.cpp takes where a SentencePiece vocabulary does not say.
_SENTENCEPIECE = {"bos": 1, "eos": 2, "unk": 0}
_IDS = frozenset(f"{name}_token_id" for name in (*_SPECIAL.values(), *_ENDS))
_USED = _IDS | frozenset(
    {
        *("model", "pre", "tokens", "token_type", "scores", "merges", "chat_template"),
        *("add_bos_token", "add_eos_token", "add_space_prefix"),
    }
)
# Names of tokens that no text is cut by, and other forms of what the file says already.
_HARMLESS = frozenset(
    {
        *(f"{name}_token_id" for name in ("seperator", "separator", "cls", "mask", "prefix", "suffix", "middle")),
        *(f"fim_{name}_token_id" for name in ("pre", "suf", "mid", "pad", "rep", "sep")),
        *("token_type_count", "added_tokens"),
    }
)
# Harmless with this value only.
_NEUTRAL: dict[str, Any] = {
    "add_sep_token": False,
    "remove_extra_whitespaces": False,
    "normalizer.lowercase": False,
    "normalizer.strip_accents": False,
}
_MAX_CUTTING = 1 << 30
_UNSET = (-1, 0xFFFFFFFF)
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# In files of this name the blanks behind a special token are the token's, but for those behind some.
_SWALLOWING = ("phi-3", "phi3")
_NOT_SWALLOWING = ("<unk>", "<s>", "<|endoftext|>")


def special_ids(header: Header) -> dict[str, int | None]:
    """The ids of "bos", "eos", "unk" and "pad", each None where the model has no such token."""
    defaults = _SENTENCEPIECE if header.fields.get(f"{_PREFIX}model") == "llama" else {}
    return {mine: _id(header, theirs, defaults.get(mine)) for mine, theirs in _SPECIAL.items()}


def ends(header: Header) -> list[int]:
    """Every token that the file names as an end, that of a text first."""
    named = [special_ids(header)["eos"], *(_id(header, name) for name in _ENDS[1:])]
    return [each for each in dict.fromkeys(named) if each is not None]


def _id(header: Header, name: str, default: int | None = None) -> int | None:
    value = header.fields.get(f"{_PREFIX}{name}_token_id", default)
    return value if type(value) is int and value not in _UNSET else None


def _is_id(value: Any, size: int) -> bool:
    return type(value) is int and (value in _UNSET or 0 <= value < size)


def tokenizer_of(header: Header, size: int, refuse: Refuse) -> Any:
    """The transformers tokenizer of the file, for a model with ``size`` embeddings; None where it holds none.

    Raises ``refuse`` of what it can't express.
    """
    from transformers import PreTrainedTokenizerFast

    kind = header.fields.get(f"{_PREFIX}model")
    if kind is None or kind in _NONE:
        return None
    if kind not in ("gpt2", "llama"):
        raise refuse(f"its vocabulary is of the kind {str(kind)[:40]!r} (tokenizer.ggml.model), not gpt2 or llama")
    _check_keys(header, refuse)
    tokens = _tokens(header, size, refuse)
    types = _numbers(header, "token_type", len(tokens), refuse) or [1] * len(tokens)
    special = special_ids(header)
    core, begins = (
        _byte_level(header, tokens, refuse) if kind == "gpt2" else _sentencepiece(header, tokens, types, refuse)
    )
    core.add_tokens(list(_added(header, tokens, types)))
    core.post_processor = _around(
        tokens,
        special["bos"] if _flag(header, "add_bos_token", begins, refuse) else -1,
        special["eos"] if _flag(header, "add_eos_token", False, refuse) else -1,
        refuse,
    )
    named = {f"{name}_token": tokens[index] for name, index in special.items() if index is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, chat_template=_templates(header, refuse), clean_up_tokenization_spaces=False, **named
    )


def _check_keys(header: Header, refuse: Refuse) -> None:
    for key, value in header.fields.items():
        if not key.startswith("tokenizer.") or key == "tokenizer.huggingface.json" or key.startswith(_TEMPLATE):
            continue
        name = key.removeprefix(_PREFIX)
        if name in _IDS and not _is_id(value, len(header.fields.get(f"{_PREFIX}tokens") or ())):
            raise refuse(f"its key {key!r} names no token of its vocabulary")
        if name == key or not (name in _USED or name in _HARMLESS or (name in _NEUTRAL and value == _NEUTRAL[name])):
            raise refuse(f"its key {key[:80]!r} is not known, or not with this value")


def _tokens(header: Header, size: int, refuse: Refuse) -> list[str]:
    tokens = header.fields.get(f"{_PREFIX}tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise refuse("it has no list of tokens (tokenizer.ggml.tokens)")
    if len(tokens) > size:
        raise refuse(f"its vocabulary has {len(tokens):,} tokens, but the model only {size:,}")
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
    if len(set(tokens)) < len(tokens):
        twice = Counter(tokens).most_common(1)[0][0]
        raise refuse(f"its vocabulary has the token {twice[:40]!r} twice")
    # All places where a token can be cut in two are tried.
    if sum(len(token) ** 2 for token in tokens) > _MAX_CUTTING:
        raise refuse("the tokens of its vocabulary are longer than those of any model")
    return tokens


def _numbers(header: Header, name: str, count: int, refuse: Refuse) -> list[Any] | None:
    values = header.fields.get(f"{_PREFIX}{name}")
    if values is None:
        return None
    good = isinstance(values, list) and len(values) >= count
    # A NaN has no place in any order.
    if not good or not all(type(value) in (int, float) and value == value for value in values):
        raise refuse(f"its tokenizer.ggml.{name} is no list of a number for every token")
    return values[:count]


def _flag(header: Header, name: str, default: bool, refuse: Refuse) -> bool:
    value = header.fields.get(f"{_PREFIX}{name}", default)
    if not isinstance(value, bool):
        raise refuse(f"its tokenizer.ggml.{name} is neither true nor false")
    return value


def _byte_level(header: Header, tokens: list[str], refuse: Refuse) -> tuple[Any, bool]:
    """Byte-level BPE, and whether texts begin with a begin token where the file does not say."""
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    name = header.fields.get(f"{_PREFIX}pre")
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        said = "nothing" if name is None else repr(str(name)[:40])
        raise refuse(f"how its text is cut into words is not known (tokenizer.ggml.pre says {said})")
    if _flag(header, "add_space_prefix", False, refuse):
        raise refuse("its byte-level tokenizer puts a blank before the text (tokenizer.ggml.add_space_prefix)")
    rule = PRE_TOKENIZERS[name]
    lines = header.fields.get(f"{_PREFIX}merges")
    if not isinstance(lines, list) or not all(isinstance(line, str) and " " in line[1:] for line in lines):
        raise refuse("it has no list of merges (tokenizer.ggml.merges)")
    merges = [(line[: (at := line.index(" ", 1))], line[at + 1 :]) for line in lines]
    vocab = {token: index for index, token in enumerate(tokens)}
    for left, right in merges:
        if not {left, right, left + right} <= vocab.keys():
            raise refuse(f"its merge {f'{left} {right}'[:40]!r} makes or takes a token that its vocabulary has not")
    model = BPE(
        vocab=vocab,
        merges=merges,
        continuing_subword_prefix="",
        end_of_word_suffix="",
        ignore_merges=rule.ignore_merges,
    )
    core = Tokenizer(model)
    if rule.composes:
        core.normalizer = normalizers.NFC()
    core.pre_tokenizer = _cutting(rule)
    core.decoder = decoders.ByteLevel()
    return core, rule.begins


def _cutting(rule: PreTokenizer) -> Any:
    from tokenizers import Regex, pre_tokenizers

    made: list[Any] = []
    for step in rule.steps:
        if step == DIGITS:
            made.append(pre_tokenizers.Digits(individual_digits=True))
        elif step in (GPT2, BYTE_LEVEL):
            made.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step == GPT2))
        else:
            made.append(pre_tokenizers.Split(Regex(step), "isolated"))
    return made[0] if len(made) == 1 else pre_tokenizers.Sequence(made)


def _sentencepiece(header: Header, tokens: list[str], types: list[Any], refuse: Refuse) -> tuple[Any, bool]:
    """SentencePiece BPE with bytes for what is not in the vocabulary; texts begin with a begin token."""
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    pre = header.fields.get(f"{_PREFIX}pre", "default")
    if pre not in ("default", "llama-spm", ""):
        raise refuse(f"its SentencePiece vocabulary cuts text by the rule {str(pre)[:40]!r} (tokenizer.ggml.pre)")
    scores = _numbers(header, "scores", len(tokens), refuse)
    if scores is None:
        raise refuse("it has no scores of its tokens (tokenizer.ggml.scores)")
    vocab = {token: index for index, token in enumerate(tokens)}
    lacking = next((name for name in (f"<0x{value:02X}>" for value in range(256)) if name not in vocab), None)
    if lacking is not None:
        raise refuse(f"its vocabulary lacks the token {lacking}, and so has no token for every byte")
    unknown = special_ids(header)["unk"]
    core = Tokenizer(
        BPE(
            vocab=vocab,
            merges=list(_merges(vocab, types, scores)),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefixed = _flag(header, "add_space_prefix", True, refuse)
    replace = normalizers.Replace(" ", _BLANK)
    core.normalizer = normalizers.Sequence([normalizers.Prepend(_BLANK), replace]) if prefixed else replace
    last = [decoders.Strip(" ", 1, 0)] if prefixed else []
    core.decoder = decoders.Sequence([decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), *last])
    return core, True


def _merges(vocab: dict[str, int], types: list[Any], scores: list[Any]) -> Iterator[tuple[str, str]]:
    """SentencePiece joins the two neighbours that make the token with the best score, whatever these two are."""
    order = sorted((-scores[index], index, token) for token, index in vocab.items() if types[index] != _BYTE)
    for _, _, token in order:
        for at in range(1, len(token)):
            if token[:at] in vocab and token[at:] in vocab:
                yield token[:at], token[at:]


def _added(header: Header, tokens: list[str], types: list[Any]) -> Iterator[Any]:
    """The tokens that are looked for in the text before it is cut."""
    from tokenizers import AddedToken

    name = str(header.fields.get("general.name", "")).lower()
    swallowing = any(each in name for each in _SWALLOWING)
    for token, kind in zip(tokens, types, strict=True):
        swallows = swallowing and token not in _NOT_SWALLOWING
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
            yield AddedToken(token, special=kind != _USER_DEFINED, normalized=False, rstrip=swallows)
        elif token == "</s>" and swallows:
            yield AddedToken(token, special=True, normalized=False, rstrip=True)


def _around(tokens: list[str], begin: int | None, end: int | None, refuse: Refuse) -> Any:
    """The tokens before and behind every text; -1 is for none, and None for one that the file does not name."""
    from tokenizers.processors import TemplateProcessing

    for index, name in ((begin, "bos"), (end, "eos")):
        if index is None:
            raise refuse(f"it says add_{name}_token, but names no such token (tokenizer.ggml.{name}_token_id)")
    first = [tokens[begin]] if begin is not None and begin >= 0 else []
    last = [tokens[end]] if end is not None and end >= 0 else []
    pair = [*first, "$A", *last, *(f"{token}:1" for token in first), "$B:1", *(f"{token}:1" for token in last)]
    named = {token: tokens.index(token) for token in (*first, *last)}
    return TemplateProcessing(single=[*first, "$A", *last], pair=pair, special_tokens=list(named.items()))


def _templates(header: Header, refuse: Refuse) -> Any:
    """The chat template, or a dict of them by name where there are others than the default one."""
    found = {}
    for key, value in header.fields.items():
        if not key.startswith(_TEMPLATE) or key == f"{_TEMPLATE}s":
            continue
        name = key.removeprefix(_TEMPLATE).removeprefix(".") or "default"
        # It becomes the name of a file.
        if not isinstance(value, str) or not _NAME.fullmatch(name):
            raise refuse(f"its key {key[:80]!r} is no chat template")
        found[name] = value
    return found.get("default") if set(found) <= {"default"} else found
