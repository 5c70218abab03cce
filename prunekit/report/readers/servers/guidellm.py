"""A report of guidellm, version 2: a benchmark for each load, whose metrics are split by how requests ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunekit.report.facts.claims import Reading
from prunekit.report.facts.fields import Fields
from prunekit.report.readers.place import Place
from prunekit.report.readers.servers.load import first_text, lacking, ms, one_run, reading, served, setup_words

KIND = "load test by guidellm"
_TOOL = "guidellm"
_MOST = 100


def recognises(data: Mapping[str, Any]) -> bool:
    runs = data.get("benchmarks")
    return (
        isinstance(data.get("metadata"), dict)
        and isinstance(runs, list)
        and bool(runs)
        and all(isinstance(each, dict) and "metrics" in each for each in runs)
    )


def read(data: Fields, place: Place) -> Reading:
    """Raises PrunekitError where it lacks the lengths, the load or the model, or is damaged."""
    return reading(KIND, [_run(each, data, place) for each in data.objects("benchmarks", _MOST)])


def _run(run: Fields, whole: Fields, place: Place) -> Reading:
    metrics, config = run.object("metrics"), run.maybe_object("config")
    lengths = [_statistic(metrics, name, "mean") for name in ("prompt_token_count", "output_token_count")]
    if lengths[0] is None or lengths[1] is None:
        raise lacking(place, "how long prompts and answers were", _TOOL, "")
    load = _load(config.maybe_object("strategy") if config else None)
    if load is None:
        raise lacking(place, "at what rate or concurrency requests came", _TOOL, "")
    model = _model(config, whole)
    if model is None:
        raise lacking(place, "which model was served", _TOOL, " with --model")
    totals = metrics.maybe_object("request_totals")
    done = totals.count("successful") if totals and "successful" in totals else 0
    failed = totals.count("errored") if totals and "errored" in totals else 0
    figures: dict[str, float | None] = {
        "ttft": ms(_statistic(metrics, "time_to_first_token_ms", "median")),
        "tpot": ms(_statistic(metrics, "inter_token_latency_ms", "median")),
        "ttft_p99": ms(_percentile(metrics, "time_to_first_token_ms", "p99")),
        "tpot_p99": ms(_percentile(metrics, "inter_token_latency_ms", "p99")),
        # In seconds, in contrast to the others.
        "latency": _statistic(metrics, "request_latency", "median"),
        "latency_p99": _percentile(metrics, "request_latency", "p99"),
        "tokens_per_second": _statistic(metrics, "output_tokens_per_second", "mean"),
        "requests_per_second": _statistic(metrics, "requests_per_second", "mean"),
        "goodput": _statistic(metrics, "request_goodput", "mean"),
        "output_tokens": lengths[1],
        "failed_share": failed / (done + failed) if done + failed else None,
    }
    version = first_text((whole.object("metadata"), "guidellm_version")) or ""
    setup = setup_words(_TOOL, load, done + failed, lengths[0])
    facts = (("load test", f"guidellm {version}".strip()),)
    return one_run(KIND, served(model), setup, figures, place, f"{done:,} requests were answered", facts)


def _summary(metrics: Fields, name: str) -> Fields | None:
    """Of the requests that were answered."""
    said = metrics.maybe_object(name)
    return None if said is None else said.maybe_object("successful")


def _statistic(metrics: Fields, name: str, statistic: str) -> float | None:
    said = _summary(metrics, name)
    return None if said is None else said.maybe(statistic)


def _percentile(metrics: Fields, name: str, which: str) -> float | None:
    said = _summary(metrics, name)
    percentiles = None if said is None else said.maybe_object("percentiles")
    return None if percentiles is None else percentiles.maybe(which)


def _load(strategy: Fields | None) -> str | None:
    if strategy is None:
        return None
    kind = strategy.text("type_", "")
    for name, words in (
        ("rate", "{:g} requests/s"),
        ("streams", "{:.0f} at a time"),
        ("max_concurrency", "at most {:.0f} at a time"),
    ):
        if name in strategy:
            return f"{kind}, {words.format(strategy.number(name))}".lstrip(", ")
    return {"synchronous": "one at a time", "throughput": "all requests at once"}.get(kind)


def _model(config: Fields | None, whole: Fields) -> str | None:
    outer = whole.data.get("config")
    places: list[tuple[Fields | None, str]] = []
    for said in (config.data if config else None, outer, outer.get("spec") if isinstance(outer, Mapping) else None):
        if isinstance(said, Mapping):
            places += [(Fields(said, whole.file), "model")]
            backend = said.get("backend")
            places += [(Fields(backend, whole.file), "model")] if isinstance(backend, Mapping) else []
    return first_text(*places) or None
