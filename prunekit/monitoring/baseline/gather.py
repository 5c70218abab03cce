"""From the requests of a log to closed windows, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from prunekit.monitoring.log.request import Request, sample
from prunekit.monitoring.signals.protocol import WINDOW_SAMPLE, ModelSignal, Shortens
from prunekit.monitoring.signals.window import Figures, WindowCounts

P = TypeVar("P")
# A log of outcomes alone fills windows too.
_OUTCOMES_A_REQUEST = 50


@dataclass(frozen=True)
class Closed(Generic[P]):
    """A window, the sample of its requests for the models, and the ``place`` in the log after it."""

    figures: Figures
    sampled: list[Request]
    place: P


def windows(
    requests: Iterable[tuple[Request, P]],
    size: int,
    signals: Sequence[ModelSignal],
    heard: Callable[[], Any] = lambda: None,
) -> Iterator[Closed[P]]:
    """Every ``size`` requests in the log's order, sampled where there are ``signals`` of models. What is left at the
    end is no window. ``heard`` is called for each request."""
    shorten = next((each.shortened for each in signals if isinstance(each, Shortens)), lambda request: request)
    counts, sampled = WindowCounts(), list[Request]()
    for request, place in requests:
        counts.add(request)
        heard()
        if signals and not request.is_label:
            sampled.append(shorten(request))
            if len(sampled) > 4 * WINDOW_SAMPLE:
                sampled = sample(sampled, WINDOW_SAMPLE)
        if counts.requests >= size or len(counts.outcomes) >= _OUTCOMES_A_REQUEST * size:
            yield Closed(counts.close(), sample(sampled, WINDOW_SAMPLE), place)
            counts, sampled = WindowCounts(), []
