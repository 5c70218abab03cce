"""Whose turn it is, and what many timed runs say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from prunekit.errors import PrunekitError
from prunekit.utils.measuring.doubts import Doubt, median_interval, of_ratio
from prunekit.utils.measuring.doubts import quantile as percentile

if TYPE_CHECKING:
    import torch

Clock = Callable[[], float]
_T = TypeVar("_T")


def check_counts(counts: Sequence[tuple[str, int, int]], threads: int | None) -> None:
    """Raises PrunekitError where one of ``counts`` (name, value, least value) is no whole number or too small, or
    ``threads``, if any are named."""
    more = [] if threads is None else [("threads", threads, 1)]
    for name, value, least in (*counts, *more):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise PrunekitError(f"{name.capitalize()} must be a whole number of at least {least}, got {value!r}.")


@dataclass(frozen=True)
class Summary:
    """Median and the 20th and 80th percentile of ``count`` values."""

    median: float
    p20: float
    p80: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        low, middle, high = (percentile(values, share) for share in (0.2, 0.5, 0.8))
        return cls(middle, low, high, len(values))


@dataclass(frozen=True)
class Comparison:
    """One quantity of both models in seconds, the ratio pruned/dense of runs that followed each other, and the ratio
    that the work alone would give. Below 1 the pruned model is faster.

    ``interval`` holds the median ratio with 95 % (order statistics; None for fewer than six runs); ``doubts`` are the
    reasons not to believe these figures.
    """

    dense: Summary
    pruned: Summary
    ratio: Summary
    ideal_ratio: float
    interval: tuple[float, float] | None = None
    doubts: tuple[Doubt, ...] = ()

    @property
    def verdict(self) -> str:
        """``faster`` or ``slower``, or ``no gain shown`` where p20 to p80 of the ratio includes 1."""
        if self.ratio.p80 < 1:
            return "faster"
        return "slower" if self.ratio.p20 > 1 else "no gain shown"

    @property
    def believed(self) -> bool:
        return not self.doubts

    def to_dict(self) -> dict[str, Any]:
        """JSON values: the fields, the verdict, and whether to believe it: ``flags`` for programs, ``why`` in
        sentences."""
        data = asdict(self)
        del data["doubts"]
        return {
            **data,
            "verdict": self.verdict,
            "believed": self.believed,
            "flags": [each.flag for each in self.doubts],
            "why": [each.why for each in self.doubts],
        }


def compare(dense: Sequence[float], pruned: Sequence[float], ideal: float) -> Comparison:
    """Summaries of both, and of the ratios of the runs that were taken next to each other, with what in these numbers
    speaks against believing them."""
    ratios = [after / before for before, after in zip(dense, pruned, strict=True)]
    return Comparison(
        Summary.of(dense),
        Summary.of(pruned),
        Summary.of(ratios),
        ideal,
        median_interval(ratios),
        tuple(of_ratio(dense, pruned, ideal)),
    )


def turns(names: Sequence[_T], rounds: int) -> Iterator[_T]:
    """Whose turn it is: A B C C B A A B C …, forth and back, ``rounds`` times each. A steady drift favours none."""
    for turn in range(rounds):
        yield from names if turn % 2 == 0 else reversed(names)


def order(repeats: int) -> list[int]:
    """The turns of two models: 0 1 1 0 0 1 1 0 …, ``repeats`` times each."""
    return list(turns((0, 1), repeats))


def prompt_ids(batch: int, length: int, vocab_size: int, seed: int) -> torch.Tensor:
    """Random token ids, int64 [batch, length], none of them 0: real text is not one token over and over."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, vocab_size, (batch, length), generator=generator)
