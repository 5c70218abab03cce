"""A Hugging Face tokenizer as llama.cpp's vocabulary."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.export.generation import DEFAULT, Generation, end_key, template_key
from prunekit.export.target import Job
from prunekit.models.gguf.pre_tokenizer import BYTE_LEVEL, DIGITS, GPT2, GPT4O, LLAMA3, QWEN2, TEKKEN

# How text is cut before merging: the steps of tokenizer.json's pre_tokenizer, and llama.cpp's name for the same. A
# second name is for tokenizers that look merges up even where a whole word is in the vocabulary (ignore_merges false).
_PRE: dict[tuple[str, ...], tuple[str | None, str | None]] = {
    # (with ignore_merges, without)
    (GPT2,): (None, "gpt-2"),
    (DIGITS, GPT2): (None, "smollm"),
    (LLAMA3, BYTE_LEVEL): ("llama-bpe", "smaug-bpe"),
    (QWEN2, BYTE_LEVEL): (None, "qwen2"),
    (TEKKEN, BYTE_LEVEL): ("tekken", None),
    (GPT4O, BYTE_LEVEL): (None, "gpt-4o"),
}
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
BLANK = "\u2581"

# Token types of the format.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class Vocabulary:
    """What goes into the file. ``model`` is llama.cpp's kind of vocabulary ("none" where the checkpoint has none),
    ``composed``: the tokenizer composes Unicode (NFC) before it cuts, which llama.cpp leaves to the caller.
    ``second_blank``: llama.cpp, like SentencePiece, puts a blank before text that begins with one; the tokenizer, as
    transformers 5 runs it, does not."""

    model: str
    pre: str = "default"
    tokens: tuple[str, ...] = ()
    types: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    special: tuple[tuple[str, int], ...] = ()
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool | None = None
    templates: Mapping[str, str] = field(default_factory=dict)
    composed: bool = False
    second_blank: bool = False


def vocabulary(job: Job) -> Vocabulary:
    """The vocabulary of the checkpoint's tokenizer, or "none" where it has no tokenizer files.

    Raises PrunekitError where llama.cpp has no vocabulary of that kind, or the tokenizer can't be read.
    """
    if not any((job.source.path / name).is_file() for name in _FILES):
        return Vocabulary("none")
    tokenizer = job.tokenizer
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        raise _unknown(job, "it is written in Python, so its rules can't be read")
    data = json.loads(core.to_str())
    model = data["model"]
    if model.get("type") != "BPE":
        raise _unknown(job, f"its model is {model.get('type')}, not BPE")
    steps = _steps(data["pre_tokenizer"])
    composed = (data["normalizer"] or {}).get("type") == "NFC"
    if BYTE_LEVEL in steps or GPT2 in steps:
        if data["normalizer"] is not None and not composed:
            raise _unknown(job, f"it normalises text by {data['normalizer'].get('type')}")
        names = _PRE.get(steps)
        pre = None if names is None else names[not model.get("ignore_merges")]
        if names is not None and pre is None:
            # Where no word is whole in the vocabulary but out of reach of the merges, both readings agree.
            pre = names[bool(model.get("ignore_merges"))]
        if pre is None:
            raise _unknown(job, "it cuts text by a rule that llama.cpp has under no name known to prunekit")
        return _assemble(job, data, "gpt2", pre, composed=composed)
    prefix = _space_prefix(data)
    if not model.get("byte_fallback") or prefix is None:
        raise _unknown(job, "it is neither byte-level BPE nor SentencePiece BPE with byte tokens")
    second = prefix and data["pre_tokenizer"] is not None
    return _assemble(job, data, "llama", "default", add_space_prefix=prefix, second_blank=second)


def _unknown(job: Job, why: str) -> PrunekitError:
    return PrunekitError(
        f"The tokenizer of {job.source.name} can't be written as GGUF: {why}. Export to onnx, or convert the "
        "tokenizer with llama.cpp's own script and name its vocabulary there."
    )


def _steps(pre: dict[str, Any] | None) -> tuple[str, ...]:
    """The pre_tokenizer of a tokenizer.json, one word or regular expression a step."""
    if pre is None:
        return ()
    if pre["type"] == "Sequence":
        return tuple(step for each in pre["pretokenizers"] for step in _steps(each))
    if pre["type"] == "ByteLevel":
        if pre.get("add_prefix_space"):
            return ("prefixed bytes",)
        return (GPT2 if pre.get("use_regex", True) else BYTE_LEVEL,)
    if pre["type"] == "Digits" and pre.get("individual_digits"):
        return (DIGITS,)
    # Cutting out what matches, or dropping what doesn't, is the same for a regular expression that matches everything.
    if pre["type"] == "Split" and (pre["behavior"], pre["invert"]) in (("Isolated", False), ("Removed", True)):
        return (pre["pattern"].get("Regex", "another pattern"),)
    return (pre["type"],)


def _space_prefix(data: dict[str, Any]) -> bool | None:
    """Whether SentencePiece-like rules put a blank before the text; None where these are other rules."""
    normalizer = data["normalizer"]
    parts = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    prepends = {"type": "Prepend", "prepend": BLANK}
    pre = data["pre_tokenizer"]
    if parts and pre is not None and (pre["type"], pre.get("pattern")) == ("Split", {"String": " "}):
        # Gemma cuts at blanks after it has replaced them all.
        pre = None
    if pre is None:
        return {str([prepends, replaces]): True, str([replaces]): False}.get(str(parts))
    if pre["type"] == "Metaspace" and pre.get("replacement") == BLANK and not parts:
        return pre.get("prepend_scheme", "always") != "never" if not pre.get("split", True) else None
    return None


def _assemble(job: Job, data: dict[str, Any], kind: str, pre: str, **more: Any) -> Vocabulary:
    tokenizer, size = job.tokenizer, job.source.shape.vocab_size
    model = data["model"]
    merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    texts: dict[int, str] = {index: token for token, index in model["vocab"].items()}
    types = dict.fromkeys(texts, _NORMAL)
    if kind == "llama":
        for index, token in texts.items():
            if _BYTE_TOKEN.fullmatch(token):
                types[index] = _BYTE
        if (unknown := model["vocab"].get(model.get("unk_token"))) is not None:
            types[unknown] = _UNKNOWN
    for added in data["added_tokens"]:
        index = added["id"]
        content = added["content"]
        # llama.cpp looks for these in text as it was given, before blanks are replaced.
        texts[index] = content if added["special"] else content.replace(BLANK, " ")
        if types.get(index) != _UNKNOWN:
            types[index] = _CONTROL if added["special"] else _USER_DEFINED
    if max(texts) >= size:
        raise PrunekitError(
            f"The tokenizer of {job.source.name} has token {max(texts):,}, but the model a vocabulary of {size:,}; "
            "copy the original model's tokenizer files into the checkpoint."
        )
    tokens = tuple(texts.get(index) or f"[PAD{index}]" for index in range(size))
    seen: set[str] = set()
    for token in tokens:
        if token in seen or "\0" in token:
            raise PrunekitError(
                f"The tokenizer of {job.source.name} has the token {token!r}{' twice' * (token in seen)}, which "
                "llama.cpp does not load; copy the original model's tokenizer files into the checkpoint."
            )
        seen.add(token)
    scores: tuple[float, ...] = ()
    if kind == "llama":
        # SentencePiece merges the pair with the best score, which is what comes first in the list of merges.
        ranks: dict[str, int] = {}
        for rank, merge in enumerate(model["merges"]):
            ranks.setdefault("".join(merge.split(" ")) if isinstance(merge, str) else "".join(merge), rank)
        scores = tuple(float(-ranks.get(token, len(merges))) for token in tokens)
        merges = []
    bos, eos = _added(tokenizer)
    special = []
    for name in ("bos", "eos", "unk", "pad"):
        found = getattr(tokenizer, f"{name}_token_id", None)
        if found is None:
            # llama.cpp takes token 11 where none is named.
            found = getattr(job.source.config, f"{name}_token_id", None)
        if isinstance(found, int) and 0 <= found < size:
            special.append((name, found))
    special += _other_ends(job, dict(special).get("eos"))
    return Vocabulary(
        kind,
        pre,
        tokens,
        tuple(types.get(index, _UNUSED) for index in range(size)),
        scores,
        tuple(merges),
        tuple(special),
        bos,
        eos,
        templates=job.generation.templates,
        **more,
    )


def _other_ends(job: Job, first: int | None) -> list[tuple[str, int]]:
    """The other tokens that end a text, under the two names that the format has for such: end of turn and of message.
    llama.cpp stops at each of the three, and at some more by their texts."""
    ends = [each for each in job.generation.ends if each != first]
    if first is None and ends:
        return [("eos", ends[0]), *zip(("eot", "eom"), ends[1:], strict=False)]
    return list(zip(("eot", "eom"), ends, strict=False))


def _added(tokenizer: Any) -> tuple[bool, bool]:
    """Whether the tokenizer puts a begin token before, and an end token behind what it is asked to encode."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a")["input_ids"]
    begins = tokenizer.bos_token_id is not None and len(ids) > len(plain) and ids[0] == tokenizer.bos_token_id
    ends = tokenizer.eos_token_id is not None and len(ids) > len(plain) + begins and ids[-1] == tokenizer.eos_token_id
    return begins, ends


def write_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Set the keys tokenizer.ggml.* of a gguf.GGUFWriter."""
    writer.add_tokenizer_model(vocabulary.model)
    if vocabulary.model == "none":
        return
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.types))
    if vocabulary.scores:
        writer.add_token_scores(list(vocabulary.scores))
    if vocabulary.model == "gpt2":
        writer.add_token_merges(list(vocabulary.merges))
    for name, index in vocabulary.special:
        getattr(writer, f"add_{name}_token_id")(index)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    _write_templates(writer, vocabulary.templates)


def _write_templates(writer: Any, templates: Mapping[str, str]) -> None:
    if DEFAULT in templates:
        writer.add_chat_template(templates[DEFAULT])
    named = {re.sub("[^A-Za-z0-9]", "_", name): text for name, text in templates.items() if name != DEFAULT}
    # gguf's own function writes the names in an order of chance.
    for name, text in named.items():
        writer.add_string(f"tokenizer.chat_template.{name}", text)
    if named:
        writer.add_array("tokenizer.chat_templates", sorted(named))


# Settings of generation_config.json by llama.cpp's names.
_SAMPLING = {
    "temperature": ("temp", float),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "repetition_penalty": ("penalty_repeat", float),
}


def write_sampling(writer: Any, generation: Generation) -> None:
    """Set the keys general.sampling.*, which llama.cpp's programs take for their defaults."""
    made = {name: value for name, value in generation.sampling.items() if name in _SAMPLING}
    if generation.sampling.get("do_sample"):
        # llama.cpp's own defaults are others than those that the checkpoint's makers left as they are.
        made = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0, **made}
    for name, value in made.items():
        key, kind = _SAMPLING[name]
        add = writer.add_int32 if kind is int else writer.add_float32
        add(f"general.sampling.{key}", kind(value))


def placed(words: Vocabulary, ends: Collection[int]) -> frozenset[str]:
    """What of the checkpoint's generation settings the file holds; ``ends`` are the tokens that llama.cpp stops at."""
    if words.model == "none":
        return frozenset(_SAMPLING) | {"do_sample"}
    return frozenset({*_SAMPLING, "do_sample", *map(end_key, ends), *map(template_key, words.templates)})


def end_tokens(words: Vocabulary) -> tuple[int, ...]:
    """The tokens that the file itself names as ends."""
    return tuple(token for name, token in words.special if name in ("eos", "eot", "eom"))
