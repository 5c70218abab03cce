"""How much a sequence repeats itself."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

NGRAM = 4


def ngrams(tokens: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """All runs of ``n`` tokens, in order."""
    return [tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1)]


def repeated_share(tokens: Sequence[Hashable], n: int = NGRAM) -> float | None:
    """1 - unique / all n-grams (rep-n of Welleck et al., arXiv 1908.04319); None where there is no n-gram."""
    grams = ngrams(tokens, n)
    return 1 - len(set(grams)) / len(grams) if grams else None
