"""Loads a tokenizer.json and encodes a little with it, for a parent that has set limits: its patterns and replacements
are a stranger's program. Prints a JSON object: {"error"} with a clause that says what is wrong, or {}.

    python -m prunekit.models.tokenizer.check_child tokenizer.json
"""

from __future__ import annotations

import json
import string
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A tokenizer of bytes makes 3 or 4 tokens of a character that is not Latin, and Unicode's normal forms 18 characters of
# one; a replacement makes one or three of one.
_MOST_GROWTH = 64
_MOST_ADDED = 64
_LONGEST_REPLACEMENT = 4096
_MOST_STEPS = 1000
# The library counts the numbers that no token has when it writes a vocabulary.
_MOST_HOLES = 1 << 20
_TOKEN_FIELDS = {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}
_LONGEST_TOKEN = 4096
_PROSE = (
    "The quick brown fox jumps over the lazy dog, 12345 times. Don't stop!\n\n\tif (x == 0) { return y[1] + 2.5e-3; }\n"
    "Größe, naïve, Москва, 東京都, العربية, हिन्दी, 한국어 🙂\u200d🚀 https://example.org/a?b=c&d=%20\r\n"
)


def examine(path: str) -> str | None:
    """A clause that says what is wrong with the tokenizer.json at ``path``; None for nothing."""
    from tokenizers import Tokenizer

    with open(path, encoding="utf-8") as file:
        return grows(json.load(file)) or fails(Tokenizer.from_file(path))


def main() -> None:
    error = examine(sys.argv[1])
    sys.stdout.write(json.dumps({"error": error} if error else {}))


def grows(made: Any) -> str | None:
    """What is wrong with the lengths that the file names: of added tokens, and of what replacements may make."""
    if not isinstance(made, dict):
        return "it is no JSON object"
    added = made.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and len(str(token.get("content"))) > _LONGEST_TOKEN:
            return f"it has an added token of more than {_LONGEST_TOKEN:,} characters"
        # The library prints the names of others as they are.
        if isinstance(token, dict) and (unknown := sorted(set(token) - _TOKEN_FIELDS)):
            return f"an added token has the field {ascii(unknown[0])[:60]}, which no such token has"
    model = made.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    numbers = [*vocab.values()] if isinstance(vocab, dict) else []
    numbers += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    highest = max((number for number in numbers if isinstance(number, int)), default=0)
    if highest > len(numbers) + _MOST_HOLES:
        return f"one of its {len(numbers):,} tokens has the number {highest:,}"
    growth = 1.0
    for count, step in enumerate(_steps(made.get("normalizer"))):
        pattern = step.get("pattern")
        literal = pattern.get("String") if isinstance(pattern, dict) else None
        text = next((step[name] for name in ("content", "prepend") if isinstance(step.get(name), str)), "")
        if step.get("type") == "Replace":
            growth *= max(1.0, len(text) / max(1, len(literal) if isinstance(literal, str) else 1))
        if len(text) > _LONGEST_REPLACEMENT or growth > _MOST_GROWTH or count > _MOST_STEPS:
            return f"its normalizer may make a text more than {_MOST_GROWTH} times as long"
    return None


def _steps(node: Any) -> Iterator[dict[str, Any]]:
    """The parts of a normalizer, however they are nested."""
    waiting = [node]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield each
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)


def fails(tokenizer: Tokenizer) -> str | None:
    """What is wrong with what it makes of texts; None for nothing."""
    # As transformers does before each call.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for text in _probes():
        normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
        bare = len(tokenizer.encode(text, add_special_tokens=False).ids)
        most = _MOST_GROWTH * len(text.encode())
        if len(normalized) > most or bare > most:
            return f"it makes {max(len(normalized), bare):,} characters or tokens of a text of {len(text):,} characters"
    added = len(tokenizer.encode("text").ids) - len(tokenizer.encode("text", add_special_tokens=False).ids)
    if added > _MOST_ADDED:
        return f"it adds {added:,} special tokens to each text"
    return None


def _probes() -> Iterator[str]:
    """Ordinary text, and what patterns that try too many ways take longest for: a run that nearly fits."""
    yield _PROSE * 20
    for char in string.printable + "é東":
        yield f"{char * 64}\0"
    for run in ("ab", "a ", "a1", "\n ", "aA", "x."):
        yield f"{run * 64}!\0"


if __name__ == "__main__":
    main()
