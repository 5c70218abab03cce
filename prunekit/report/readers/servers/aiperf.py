"""``profile_export_aiperf.json`` of AIPerf: aggregates by the tag of each metric, each with its unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunekit.report.facts.claims import Reading
from prunekit.report.facts.fields import Fields, clipped
from prunekit.report.readers.place import Place
from prunekit.report.readers.servers.load import lacking, one_run, served, setup_words

KIND = "load test by AIPerf"
_TOOL = "aiperf profile"
_UNITS = {"ms": 1e-3, "s": 1.0, "sec": 1.0, "us": 1e-6, "ns": 1e-9}


def recognises(data: Mapping[str, Any]) -> bool:
    tags = ("time_to_first_token", "output_token_throughput", "request_throughput", "request_latency")
    return "input_config" in data and any(isinstance(data.get(tag), dict) and "unit" in data[tag] for tag in tags)


def read(data: Fields, place: Place) -> Reading:
    """Raises PrunekitError where it lacks the lengths, the load or the model, or is damaged."""
    config = data.object("input_config")
    lengths = [_value(data, tag, "avg") for tag in ("input_sequence_length", "output_sequence_length")]
    if lengths[0] is None or lengths[1] is None:
        raise lacking(place, "how long prompts and answers were", _TOOL, " with --streaming and a --tokenizer")
    load = _load(config)
    if load is None:
        raise lacking(place, "at what rate or concurrency requests came", _TOOL, "")
    model = _model(config)
    if model is None:
        raise lacking(place, "which model was served", _TOOL, "")
    subject = served(model)
    done = int(_value(data, "request_count", "avg") or 0)
    failed = _value(data, "error_request_count", "avg") or 0
    figures: dict[str, float | None] = {
        "ttft": _seconds(data, "time_to_first_token", "p50"),
        "tpot": _seconds(data, "inter_token_latency", "p50"),
        "ttft_p99": _seconds(data, "time_to_first_token", "p99"),
        "tpot_p99": _seconds(data, "inter_token_latency", "p99"),
        "latency": _seconds(data, "request_latency", "p50"),
        "latency_p99": _seconds(data, "request_latency", "p99"),
        "tokens_per_second": _value(data, "output_token_throughput", "avg"),
        "requests_per_second": _value(data, "request_throughput", "avg"),
        "goodput": _value(data, "goodput", "avg"),
        "output_tokens": lengths[1],
        "failed_share": failed / (done + failed) if done + failed else None,
    }
    version = data.text("aiperf_version", "")
    facts = (("load test", f"AIPerf {version}".strip()),)
    made = one_run(
        KIND,
        subject,
        setup_words(_TOOL, load, done, lengths[0]),
        figures,
        place,
        f"{done:,} requests were answered",
        facts,
    )
    if data.flag("was_cancelled"):
        warning = f"{place.name}: the run was cancelled before its end."
        return Reading(**{**vars(made), "warnings": (*made.warnings, warning)})
    return made


def _value(data: Fields, tag: str, statistic: str) -> float | None:
    said = data.maybe_object(tag)
    return None if said is None else said.maybe(statistic)


def _seconds(data: Fields, tag: str, statistic: str) -> float | None:
    value = _value(data, tag, statistic)
    if value is None:
        return None
    said = data.object(tag)
    unit = said.text("unit")
    if unit not in _UNITS:
        raise said.wrong("unit", f"one of {', '.join(_UNITS)}")
    return value * _UNITS[unit]


def _load(config: Fields) -> str | None:
    """From the phases of the configuration, the last of which is measured, or the options of earlier versions."""
    phases = [each for each in config.objects("phases") if each.text("name", "") != "warmup"]
    said = phases[-1] if phases else config.maybe_object("loadgen")
    if said is None:
        return None
    parts = []
    rate = said.data.get("rate", said.data.get("request_rate"))
    if rate is not None:
        parts.append(f"{said.number('rate' if 'rate' in said else 'request_rate'):g} requests/s")
        kind = said.text("type", "")
        parts += [kind] if kind else []
    if "concurrency" in said:
        parts.append(f"at most {said.number('concurrency'):.0f} at a time")
    return ", ".join(parts) or None


def _model(config: Fields) -> str | None:
    models = config.data.get("models")
    if isinstance(models, Mapping):
        models = models.get("items")
    endpoint = config.data.get("endpoint")
    if models is None and isinstance(endpoint, Mapping):
        models = endpoint.get("model_names")
    first = models[0] if isinstance(models, list) and models else models
    name = first.get("name") if isinstance(first, Mapping) else first
    return clipped(name) if isinstance(name, str) and name else None
