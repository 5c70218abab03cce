"""The loads of a load test as small tables of words, the dense model beside the smaller one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prunekit.report.facts.claims import Sheet
from prunekit.report.facts.fields import Fields
from prunekit.report.facts.metrics import plain

_NAMES = {"ttft": "first token", "tpot": "each further token", "e2e": "whole answer"}


def load_sheets(data: Fields, names: Mapping[str, str]) -> Iterator[Sheet]:
    """A table for each load: times at p50, p95 and p99, rates, failures; with ratios where there are two models."""
    for load in data.objects("loads", 200):
        results = {side: load.object(side) for side in names}
        ratios = load.object("ratios") if len(results) > 1 else None
        rows = [*_times(results, ratios), *_rates(results, ratios)]
        heads = ["", *names.values(), *(["smaller / dense"] if ratios is not None else [])]
        void = next((each for result in results.values() for each in result.texts("void")), "")
        title = load.text("load")
        yield Sheet(f"{title}: not to be believed. {void}" if void else title, tuple(heads), tuple(rows))


def _times(results: Mapping[str, Fields], ratios: Fields | None) -> Iterator[tuple[str, ...]]:
    for name, title in _NAMES.items():
        told = {
            side: {each.number("share", most=1): each for each in result.objects(name, 50)}
            for side, result in results.items()
        }
        shares = sorted({share for each in told.values() for share in each})
        for share in shares:
            cells = [_quantile(each.get(share)) for each in told.values()]
            ratio = [_ratio(ratios, name) if share == 0.5 else "–"] if ratios is not None else []
            yield (f"{title}, p{100 * share:g}", *cells, *ratio)


def _quantile(said: Fields | None) -> str:
    if said is None:
        return "not measured"
    value, low, high = (said.maybe(name) for name in ("value", "low", "high"))
    if value is None:
        return "infinite: requests failed" if "value" in said.texts("failed") else "not measured"
    shown = f"{1000 * value:,.4g} ms"
    if high is None:
        without = "the upper bound is infinite: requests failed" if "high" in said.texts("failed") else "too few"
        return (
            f"{shown} ({without}: {said.count('count'):,} requests)" if without == "too few" else f"{shown} ({without})"
        )
    return shown if low is None else f"{shown} ({1000 * low:,.4g} to {1000 * high:,.4g})"


def _ratio(ratios: Fields, name: str) -> str:
    said = ratios.maybe_object(name)
    value = None if said is None else said.maybe("value")
    if said is None or value is None:
        return "not measured"
    low, high = said.maybe("low"), said.maybe("high")
    return f"{value:.3f} (too few)" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _rates(results: Mapping[str, Fields], ratios: Fields | None) -> Iterator[tuple[str, ...]]:
    for name, title, of in (
        ("requests_per_second", "answered, requests/s", "requests_per_second"),
        ("tokens_per_second", "output, tokens/s", "tokens_per_second"),
        ("goodput", "within the SLO, requests/s", None),
        ("tokens", "tokens an answer", "tokens"),
    ):
        values = [result.maybe(name) for result in results.values()]
        if all(each is None for each in values):
            continue
        cells = ["not measured" if each is None else plain(each) for each in values]
        ratio = [] if ratios is None else ["–" if of is None else _ratio(ratios, of)]
        yield (title, *cells, *ratio)
    ends = [] if ratios is None else ["–"]
    is_natural = next(iter(results.values())).object("load").text("kind") == "natural"
    if is_natural:
        cut = [result.maybe("truncated", most=1) for result in results.values()]
        yield ("answers cut off", *("not measured" if each is None else f"{each:.1%}" for each in cut), *ends)
    failed = [f"{each.count('failed'):,} of {each.count('requests'):,}" for each in results.values()]
    yield ("failed", *failed, *ends)
