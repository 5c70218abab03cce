"""How text is cut before byte-level merges: the rules that llama.cpp's names (``tokenizer.ggml.pre``) stand for."""

from __future__ import annotations

from dataclasses import dataclass

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%(end)s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%(end)s"
)
_CASED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"

# Words for steps that are no regular expression: bytes as characters, without and with GPT-2's own cutting before;
# every digit alone.
BYTE_LEVEL = "bytes"
GPT2 = "gpt2-regex"
DIGITS = "digits"
LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_TAIL}"
QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_TAIL}"
TEKKEN = rf"{_CASED % {'end': ''}}|\p{{N}}|{_CASED_TAIL}"
GPT4O = rf"{_CASED % {'end': _CONTRACTIONS + '?'}}|\p{{N}}{{1,3}}|{_CASED_TAIL}"

_GPT2_TEXT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_CUT_3 = "[0-9][0-9][0-9]"
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
# Letters that have a case, without the mathematical ones.
_CASED_LETTERS = "\\s?[[\\p{Lu}\\p{Ll}\\p{Lt}]&&[^\U0001d400-\U0001d7ff]]+"
_WIDE_MARKS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"


@dataclass(frozen=True)
class PreTokenizer:
    """``steps`` cut one behind the other: regular expressions, of which each match is a piece, as is what lies between;
    or the words above. ``ignore_merges``: a piece that is in the vocabulary is a token whatever the merges say.
    ``begins``: a begin token comes first where the file does not say. ``composes``: Unicode is composed (NFC) before,
    which is so in the models' own tokenizers, and which llama.cpp leaves to the caller."""

    steps: tuple[str, ...]
    ignore_merges: bool = False
    begins: bool = False
    composes: bool = False


_RULES: dict[str, PreTokenizer] = {
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2": PreTokenizer(
        (LLAMA3, BYTE_LEVEL), ignore_merges=True, begins=True
    ),
    "smaug-bpe dbrx glm4 chatglm-bpe": PreTokenizer((LLAMA3, BYTE_LEVEL)),
    "qwen2 megrez": PreTokenizer((QWEN2, BYTE_LEVEL), composes=True),
    "deepseek-r1-qwen stablelm2 kormo hunyuan grok-2 solar-open": PreTokenizer((QWEN2, BYTE_LEVEL)),
    "tekken": PreTokenizer((TEKKEN, BYTE_LEVEL), ignore_merges=True, begins=True),
    "gpt-4o llama4 kanana2": PreTokenizer((GPT4O, BYTE_LEVEL)),
    "gpt-2 phi-2 mpt olmo jais trillion granite-docling gigachat a.x-4.0 mellum exaone4": PreTokenizer((GPT2,)),
    "smollm starcoder refact command-r codeshell exaone minerva-7b": PreTokenizer((DIGITS, GPT2)),
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2_TEXT, r"\p{N}+", _CUT_3, BYTE_LEVEL)),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2_TEXT, _CUT_3, BYTE_LEVEL)),
    "deepseek-llm": PreTokenizer((r"[\r\n]", _CASED_LETTERS, _WIDE_MARKS, r"\s+$", _HAN, r"\p{N}+", BYTE_LEVEL)),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}", BYTE_LEVEL)),
    "deepseek-v3 hunyuan-dense joyai-llm": PreTokenizer((r"\p{N}{1,3}", _KANA, _DEEPSEEK3, BYTE_LEVEL)),
    "poro-chat bloom gpt3-finnish": PreTokenizer((_BLOOM, BYTE_LEVEL)),
    "viking": PreTokenizer((_BLOOM, r"\p{N}", BYTE_LEVEL)),
    "seed-coder": PreTokenizer(
        (rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+", BYTE_LEVEL)
    ),
    "bailingmoe bailingmoe2": PreTokenizer(
        (
            rf"'(?i:[sdmt]|ll|ve|re)|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
            BYTE_LEVEL,
        )
    ),
}
PRE_TOKENIZERS = {name: rule for names, rule in _RULES.items() for name in names.split()}
