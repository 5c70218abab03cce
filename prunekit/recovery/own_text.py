"""What the dense model has still to write before a training: how long that takes, and what time it leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prunekit.data.self_generated import CHUNK, Writer
from prunekit.data.token_file import Expected, expected
from prunekit.data.writing_speed import writing_speed
from prunekit.utils.phases.words import in_a_sentence
from prunekit.utils.process import ranks
from prunekit.utils.process.ranks import from_first, shared
from prunekit.utils.progress import aside

if TYPE_CHECKING:
    from prunekit.models.dense import DenseModel
    from prunekit.plan.training import TextConfig

# Fewer operations are over before it is worth to time any; seconds that are worth a sentence.
_SOON, _WORTH = 4e11, 30.0


class OwnText:
    """The part of ``text`` that the dense model writes. All ranks ask together."""

    def __init__(self, text: TextConfig):
        self._text = text
        self._speed: float | None = None

    def tell(self, tokens: int, dense: DenseModel, writer: Writer | None, note: Callable[[str], None]) -> None:
        """``note`` what the ``dense`` model (or the ``writer`` in its place) has to write for a training on so many
        ``tokens``, where that takes long."""
        missing = self._missing(tokens, dense, writer)
        if not _is_long(missing, dense):
            return
        seconds = _seconds(missing, self._measured(missing, dense, writer))
        if seconds >= _WORTH:
            note(
                f"First the dense model writes {missing.tokens:,} tokens of text (self): about "
                f"{in_a_sentence(seconds)}, by a few trial steps. What it has written is kept, also where this is "
                "stopped. Text of your own (--text) needs no such time."
            )

    def reach(self, seconds: float, speed: float, dense: DenseModel, writer: Writer | None) -> int:
        """How many tokens can be trained on in so many ``seconds``: at the ``speed`` in tokens a second, once what is
        missing is written."""
        most = int(seconds * speed)
        if most < 1:
            return most
        missing = self._missing(most, dense, writer)
        if not _is_long(missing, dense):
            return most
        written = self._measured(missing, dense, writer)

        def left(tokens: int) -> float:
            asked = expected(self._text, tokens, dense, writer=writer)
            return seconds - tokens / speed - _seconds(asked, written)

        return from_first(lambda: _largest(most, lambda tokens: left(tokens) >= 0))

    def _missing(self, tokens: int, dense: DenseModel, writer: Writer | None) -> Expected:
        # Rank 0's cache is that of all.
        return Expected(*from_first(lambda: list(expected(self._text, tokens, dense, writer=writer))))

    def _measured(self, missing: Expected, dense: DenseModel, writer: Writer | None) -> float:
        """Tokens a second of one process."""
        if self._speed is None:
            sequences = min(CHUNK, -(-missing.tokens // self._text.length))
            with aside("trial steps of writing"):
                self._speed = shared(writing_speed(dense, self._text.length, sequences=sequences, writer=writer))
        return self._speed


def _is_long(missing: Expected, dense: DenseModel) -> bool:
    return 2.0 * dense.source.shape.parameters * missing.tokens >= _SOON


def _seconds(missing: Expected, speed: float) -> float:
    """Ranks share out the chunks."""
    if not missing.tokens:
        return 0.0
    rounds = -(-missing.chunks // ranks.size())
    return missing.tokens * rounds / missing.chunks / speed


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``most`` that ``fits``, as all smaller ones do; 0 where none does."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
