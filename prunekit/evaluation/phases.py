"""What the parts of an evaluation are called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prunekit.data.sources import source_name


def reads(name: str, text: str) -> str:
    """A model reads a text."""
    return f"{name} reads {source_name(text)}"


def continues(name: str, text: str) -> str:
    """A model writes on from a text."""
    return f"{name} continues {source_name(text)}"


def answers(name: str) -> str:
    """A model answers the questions of tasks."""
    return f"{name} answers"


def evaluation_phases(names: Iterable[str], texts: Iterable[str], *, writes: bool, tasks: bool) -> Iterator[str]:
    """Of models in turn."""
    texts = list(texts)
    for name in names:
        yield from (reads(name, text) for text in texts)
        yield from (continues(name, text) for text in texts if writes)
        if tasks:
            yield answers(name)
