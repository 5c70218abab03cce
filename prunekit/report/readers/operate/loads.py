"""The loads of a load test as one small table of words, the dense model beside the smaller one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prunekit.report.facts.claims import Sheet
from prunekit.report.facts.fields import Fields
from prunekit.report.facts.metrics import plain

_TIMES = {
    "ttft": "first token, p50 / p95 / p99",
    "first_answer": "first token after the reasoning, p50 / p95 / p99",
    "tpot": "each further token, p50 / p95 / p99",
}
_RATES = {"requests_per_second": "answered, requests/s", "goodput": "within the SLO, requests/s"}


def load_sheet(data: Fields, names: Mapping[str, str]) -> Sheet | None:
    """Times, rates and failures at each load, with ratios where there are two models; None without a load. Intervals of
    single times stand with the page's other figures."""
    rows: list[tuple[str, ...]] = []
    for load in data.objects("loads", 200):
        results = {side: load.object(side) for side in names}
        ratios = load.object("ratios") if len(results) > 1 else None
        void = any(result.texts("void") for result in results.values())
        title = f"{load.text('load')}{' (not to be believed)' if void else ''}"
        rows += [(f"{title}: {name}", *cells) for name, *cells in _rows(results, ratios)]
    heads = ("Load", *names.values(), *(("smaller / dense",) if len(names) > 1 else ()))
    return Sheet("Each load", heads, tuple(rows)) if rows else None


def _rows(results: Mapping[str, Fields], ratios: Fields | None) -> Iterator[tuple[str, ...]]:
    def row(title: str, cells: list[str], of: str | None = None) -> tuple[str, ...]:
        beside = [] if ratios is None else ["–" if of is None else _ratio(ratios, of)]
        return (title, *cells, *beside)

    for name, title in _TIMES.items():
        if name == "first_answer" and not any(each.maybe("reasoning", most=1) for each in results.values()):
            continue
        yield row(title, [_quantiles(each, name) for each in results.values()], name)
    for name, title in _RATES.items():
        values = [each.maybe(name) for each in results.values()]
        if any(each is not None for each in values):
            of = name if name == "requests_per_second" else None
            yield row(title, ["not measured" if each is None else plain(each) for each in values], of)
    if any(each.object("load").text("kind") == "natural" for each in results.values()):
        lengths = [each.maybe("tokens") for each in results.values()]
        yield row("tokens an answer", ["not measured" if each is None else plain(each) for each in lengths], "tokens")
        cut = [each.maybe("truncated", most=1) for each in results.values()]
        yield row("answers cut off", ["not measured" if each is None else f"{each:.1%}" for each in cut])
    if any(each.count("failed") for each in results.values()):
        yield row("failed", [f"{each.count('failed'):,} of {each.count('requests'):,}" for each in results.values()])


def _quantiles(result: Fields, name: str) -> str:
    """All percentiles of a time, in milliseconds."""
    told = {each.number("share", most=1): each for each in result.objects(name, 50)}
    if not told:
        return "not measured"
    return " / ".join(_quantile(told.get(share)) for share in (0.5, 0.95, 0.99)) + " ms"


def _quantile(said: Fields | None) -> str:
    value = None if said is None else said.maybe("value")
    if said is None or value is None:
        return "infinite" if said is not None and "value" in said.texts("failed") else "–"
    has_bound = said.maybe("high") is not None or "high" in said.texts("failed")
    return f"{1000 * value:,.4g}" if has_bound else f"{1000 * value:,.4g} (too few)"


def _ratio(ratios: Fields, name: str) -> str:
    said = ratios.maybe_object(name)
    value = None if said is None else said.maybe("value")
    if said is None or value is None:
        return "not measured"
    low, high = said.maybe("low"), said.maybe("high")
    return f"{value:.3f} (too few)" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"
