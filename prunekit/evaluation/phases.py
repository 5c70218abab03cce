"""What the parts of an evaluation are called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prunekit.data.sources import source_name
from prunekit.plan.shape import ModelShape

# Products that the softmax over one entry of the vocabulary takes as long as: by SmolLM2-135M on a CPU.
_SOFTMAX = 300


def reads(name: str, text: str) -> str:
    """A model reads a text."""
    return f"{name} reads {source_name(text)}"


def continues(name: str, text: str) -> str:
    """A model writes on from a text."""
    return f"{name} continues {source_name(text)}"


def continues_worst(name: str, text: str) -> str:
    """The baseline writes on where a model is farthest from it."""
    return f"{name} continues the worst of {source_name(text)}"


def answers(name: str) -> str:
    """A model answers the questions of tasks."""
    return f"{name} answers"


def evaluation_phases(
    names: Iterable[str], texts: Iterable[str], *, writes: Sequence[str], tasks: bool
) -> Iterator[str]:
    """Of models in turn, which read ``texts`` and write on from those of ``writes``."""
    texts = list(texts)
    for name in names:
        yield from (reads(name, text) for text in texts)
        yield from (continues(name, text) for text in writes)
        if tasks:
            yield answers(name)


def reading_work(shape: ModelShape, tokens: int, heads: int) -> float:
    """Products of a model that reads so many tokens, where logits of so many models are made of it: of none where
    hidden states are kept for later, of two where a model is compared with a baseline."""
    return float(tokens) * (shape.block_parameters + heads * shape.vocab_size * (shape.hidden_size + _SOFTMAX))
