"""The tables of ``prunekit bench-server``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from prunekit.cli.common import console, table

if TYPE_CHECKING:
    from rich.console import Console

    from prunekit.profiling.server.measured import LoadResult
    from prunekit.profiling.server.report import Compared, ServerReport
    from prunekit.profiling.server.slo import Capacity
    from prunekit.profiling.server.statistics import Quantile, Ratio

_CAPTION = (
    "Milliseconds from when a request was to be sent: p50 / p95 / p99 (-: too few requests; p95 needs 59, p99 299)."
)
_ENERGY = (
    ("J an output token", "per_token"),
    ("J a request", "per_request"),
    ("J a request above idle", "above_idle_per_request"),
)
_FIRST = ("first answer token", "first_answer")
_TIMES = (("TTFT", "ttft"), ("TPOT", "tpot"), ("E2E", "e2e"), ("chunk gap", "gap"))


def show(report: ServerReport) -> None:
    """Each load with both endpoints, the load within the SLO, and what to know before believing it."""
    out = console()
    for name, each in zip(report.names, report.served, strict=True):
        server = (
            "" if each.identity is None else f", {each.identity.get('server')} {each.identity.get('version') or ''}"
        )
        steady = "steady" if each.warmup_steady else "not steady"
        out.print(
            f"{name}: {each.model} at {each.label}{server}; warm-up of {each.warmup_requests} requests, {steady}",
            highlight=False,
        )
    out.print(f"Workload: {report.workload['label']}", highlight=False)
    for load in report.loads:
        _show_load(load, report.names, out)
    if report.capacity is not None:
        _show_capacity(report.capacity, report.names, out)
    if report.cost is not None:
        _show_cost(report.cost, report.names, out)
    for said in report.notes:
        out.print(said, highlight=False)
    if report.stopped:
        out.print(f"The test ended early: {report.stopped}. What is shown was measured before.", highlight=False)


def _show_load(load: Compared, names: tuple[str, ...], out: Console) -> None:
    two = len(names) == 2
    shown = table(
        f"{load.results[0].load.name}: {load.results[0].requests} requests each",
        "",
        *names,
        *(("ratio", "95 % interval") if two else ()),
        caption=_CAPTION + (" Ratio: endpoint/baseline, of the medians of blocks." if two else ""),
    )
    reasons = any(each.reasoning for each in load.results)
    for title, name in (*_TIMES[:1], *((_FIRST,) if reasons else ()), *_TIMES[1:]):
        cells = [" / ".join(map(_ms, getattr(each, name))) for each in load.results]
        shown.add_row(title, *cells, *(_ratio(load.ratios.get(name)) if two else ()))
    for title, name in (("requests/s", "requests_per_second"), ("output tokens/s", "tokens_per_second")):
        cells = [_number(getattr(each, name)) for each in load.results]
        shown.add_row(title, *cells, *(_ratio(load.ratios.get(name)) if two else ()))
    if load.results[0].goodput is not None:
        cells = [f"{_number(each.goodput)} ({_share(each.good_share)})" for each in load.results]
        shown.add_row("within the SLO/s (share)", *cells, *(("", "") if two else ()))
    tokens = [f"{_number(each.prompt_tokens)} in, {_number(each.tokens)} out" for each in load.results]
    shown.add_row("tokens", *tokens, *(_ratio(load.ratios.get("tokens")) if two else ()))
    letters = [_number(each.characters) for each in load.results]
    shown.add_row("characters out", *letters, *(_ratio(load.ratios.get("characters")) if two else ()))
    shown.add_row(
        "ended at their limit", *(_share(each.truncated) for each in load.results), *(("", "") if two else ())
    )
    shown.add_row("failed", *(_failed(each) for each in load.results), *(("", "") if two else ()))
    for title, name in _ENERGY if load.energy else ():
        known = [getattr(each, name) for each in load.energy]
        cells = ["not measured" if each.value is None else f"{each.value:,.3g}" for each in known]
        shown.add_row(title, *cells, *(("", "") if two else ()))
    lags = [f"{1000 * each.lag_p99:.1f} ms, {each.client_cpu:.0%}" for each in load.results]
    shown.add_row("client lag p99, CPU", *lags, *(("", "") if two else ()))
    out.print(shown)
    for why in sorted({each.per_request.how for each in load.energy if each.per_request.value is None}):
        out.print(f"Energy is not measured: {why}.", highlight=False)
    for name, each in zip(names, load.results, strict=True):
        for why in each.void:
            out.print(f"Do not believe {name}: {why}", highlight=False)
        for said in each.notes:
            out.print(f"{name}: {said}", highlight=False)


def _show_capacity(capacity: Capacity, names: tuple[str, ...], out: Console) -> None:
    out.print(f"Highest load within the SLO ({capacity.slo.words}):", highlight=False)
    for name, said in zip(names, capacity.words, strict=True):
        out.print(f"  {name}: {said}", highlight=False)
    if len(names) == 2:
        ratio = capacity.ratio
        if ratio.value is None:
            out.print("  ratio: none, because it takes a load for both", highlight=False)
        else:
            interval = (
                "too few blocks for an interval" if ratio.low is None else f"95 % {ratio.low:.3f} to {ratio.high:.3f}"
            )
            out.print(f"  ratio endpoint/baseline: {ratio.value:.3f} ({interval})", highlight=False)
    if capacity.void:
        out.print(
            f"  Do not believe it: the client was too slow at {capacity.void} of the rates tried.", highlight=False
        )


def _show_cost(cost: dict[str, Any], names: tuple[str, ...], out: Console) -> None:
    shown = table(
        "What it costs at the highest load within the SLO",
        "",
        *names,
        caption="Estimated from your prices. Used: the share of an hour in which the server is loaded so.",
    )
    endpoints = cost["endpoints"]
    for number, first in enumerate(endpoints[names[0]]):
        for title, key in (("$ a million output tokens", "per_million_tokens"), ("$ a request", "per_request")):
            cells = [_dollars(endpoints[name][number][key]) for name in names]
            shown.add_row(f"{first['utilisation']:.0%} used: {title}", *cells)
    out.print(shown)
    allowed = cost["allowed_rework_points"]
    if allowed is not None and allowed["value"] is not None:
        used = endpoints[names[0]][0]["utilisation"]
        ends = "" if allowed["low"] is None else f" ({allowed['low']:.3g} to {allowed['high']:.3g})"
        words = (
            f"Nothing is saved where {allowed['value']:.3g}{ends} more of 100 answers must be mended"
            if allowed["value"] > 0
            else "A request costs as much as the baseline's or more: break-even is at "
            f"{allowed['value']:.3g}{ends} more of 100 answers to mend"
        )
        out.print(f"{words}, at {used:.0%} used ({allowed['how']}).", highlight=False)
    elif allowed is not None:
        out.print(f"How much rework may be added is not known: {allowed['how']}.", highlight=False)
    firsts = [endpoints[name][0]["per_request"] for name in names]
    for each in sorted({first["how"] for first in firsts if first["value"] is None}):
        out.print(f"Costs are not told: {each}.", highlight=False)


def _dollars(cost: dict[str, Any]) -> str:
    if cost["value"] is None:
        return "not measured"
    bound = f"{cost['bound']} " if cost.get("bound") else ""
    ends = "" if cost["low"] is None else f" ({cost['low']:,.4g} to {cost['high']:,.4g})"
    return f"{bound}{cost['value']:,.4g}{ends}"


def _ms(each: Quantile) -> str:
    if each.value is None or (each.status == "too few" and each.share > 0.5):
        return "-"
    return "failed" if math.isinf(each.value) else f"{1000 * each.value:,.1f}"


def _ratio(ratio: Ratio | None) -> tuple[str, str]:
    if ratio is None or ratio.value is None:
        some = ratio is not None and 0 < ratio.failed < ratio.count
        return ("none", f"{ratio.failed} of {ratio.count} turns have none") if ratio and some else ("", "")
    interval = "too few" if ratio.low is None or ratio.high is None else f"{ratio.low:.3f} to {ratio.high:.3f}"
    return f"{ratio.value:.3f}", interval


def _number(value: float | None) -> str:
    return "not told" if value is None else f"{value:,.4g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _failed(each: LoadResult) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in each.errors.items())
    return f"{each.failed}" + (f" ({kinds})" if kinds else "")
