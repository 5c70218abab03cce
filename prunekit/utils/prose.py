"""The prose that every CPython carries: a text that is there without a network."""

from __future__ import annotations

import re
from functools import cache
from typing import Literal

from prunekit.errors import PrunekitError

Part = Literal["calibration", "evaluation"]


@cache
def builtin_documents(part: Part) -> tuple[str, ...]:
    """The prose of the Python language reference as CPython ships it for ``help()``: about 55,000 tokens of English.

    Every fifth topic is for evaluation; the rest, less the paragraphs that stand there too, for calibration.
    The text differs a little between Python versions, so its SHA-256 belongs in every report.
    Raises PrunekitError where the interpreter was shipped without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise PrunekitError(
            "This Python was shipped without pydoc_data, which the built-in text comes from; give a text file instead."
        ) from None
    paragraphs = {name: _prose(topics[name]) for name in sorted(topics)}
    held_out = set(sorted(topics)[2::5])
    seen: set[str] = set()
    made: dict[Part, list[str]] = {"calibration": [], "evaluation": []}
    # Topics repeat each other; what the evaluation part holds is seen before the calibration part is made.
    for name in sorted(topics, key=lambda name: (name not in held_out, name)):
        fresh = [paragraph for paragraph in paragraphs[name] if paragraph not in seen]
        seen.update(fresh)
        if fresh:
            made["evaluation" if name in held_out else "calibration"].append("\n\n".join(fresh))
    return tuple(made[part])


_CODE = re.compile(r"""::=|>>>|\+---|\.\.\. |={3}|\*{3}|(^|\s)['"]{3}|#\s""")
# A letter, perhaps after a bullet, a number or a footnote mark, and quotes or emphasis.
_SENTENCE = re.compile(r"""([*]|\d+\.|\[\d+\])?\s*["*“(]*[A-Za-z]""")


def _prose(topic: str) -> list[str]:
    """The paragraphs of a topic that read as sentences, unwrapped; headings, code, grammar and tables are left out."""
    kept = []
    for block in re.split(r"\n\s*\n", topic):
        text = " ".join(line.strip() for line in block.splitlines())
        if len(text.split()) < 8 or not text.endswith((".", ":", "?", "!", ")", '"')):
            continue
        if _CODE.search(text) or not _SENTENCE.match(text):
            continue
        # Code and signatures are dense in symbols; English is letters and spaces.
        if sum(char.isalpha() or char.isspace() for char in text) / len(text) >= 0.85:
            kept.append(text)
    return kept
