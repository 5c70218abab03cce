"""How a server's model is called where others will read it, and whether it is the one that was asked for."""

from __future__ import annotations

import re

from prunekit.utils.names import printable

_PATH = re.compile(r"[/\\~]|\.{1,2}[/\\]|[A-Za-z]:[/\\]|file:", re.IGNORECASE)
# What servers add to a name: transformers serve a revision, Ollama a tag, OpenAI a date.
_VERSION = re.compile(r"@.+|:latest|-\d{4}-?\d{2}-?\d{2}")
LONGEST = 200
"""Characters of a model's name that are compared."""


def shown_model(name: str) -> str:
    """A model's id, as a server tells it or is asked for it, for reports and tables: of a path the last part, so that
    none tells where it lies; anything else (``organisation/model``) as it is."""
    parts = [each for each in re.split(r"[/\\]", name) if each not in ("", ".", "..", "~")]
    return printable(parts[-1] if parts and _PATH.match(name) else name)


def is_model_asked(asked: str, answered: str) -> bool:
    """Whether the model named in an answer is the one that was ``asked`` for. Servers may add its version: a revision
    (``@main``), a tag (``:latest``) or a date."""
    asked, answered = asked[:LONGEST], answered[:LONGEST]
    rest = answered.removeprefix(asked)
    return asked == answered or (answered.startswith(asked) and _VERSION.fullmatch(rest) is not None)
