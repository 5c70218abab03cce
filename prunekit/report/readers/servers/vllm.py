"""A result of ``vllm bench serve --save-result``. Its times are in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunekit.report.facts.claims import Reading
from prunekit.report.facts.fields import Fields
from prunekit.report.readers.place import Place
from prunekit.report.readers.servers.load import lacking, ms, one_run, served, setup_words

KIND = "load test by vLLM"
_TOOL = "vllm bench serve"


def recognises(data: Mapping[str, Any]) -> bool:
    return "output_throughput" in data and "completed" in data and any(name.endswith("_ttft_ms") for name in data)


def read(data: Fields, place: Place) -> Reading:
    """Raises PrunekitError where it lacks the lengths, the rate or the model, or is damaged."""
    if not {"total_input_tokens", "total_output_tokens"} <= data.data.keys():
        raise lacking(place, "how long prompts and answers were", _TOOL, "")
    if "request_rate" not in data and "max_concurrency" not in data:
        raise lacking(place, "at what rate requests came", _TOOL, " with --request-rate and --save-result")
    if "model_id" not in data:
        raise lacking(place, "which model was served", _TOOL, "")
    done = data.count("completed")
    if not done:
        raise lacking(place, "any request that was answered", _TOOL, "")
    asked = data.count("num_prompts") if "num_prompts" in data else done + int(data.maybe("failed") or 0)
    subject = served(data.text("model_id"))
    setup = setup_words(_TOOL, _load(data), asked, data.number("total_input_tokens") / done)
    figures: dict[str, float | None] = {
        "ttft": ms(data.maybe("median_ttft_ms")),
        "tpot": ms(data.maybe("median_tpot_ms")),
        "ttft_p99": ms(data.maybe("p99_ttft_ms")),
        "tpot_p99": ms(data.maybe("p99_tpot_ms")),
        "latency": ms(data.maybe("median_e2el_ms")),
        "latency_p99": ms(data.maybe("p99_e2el_ms")),
        "tokens_per_second": data.number("output_throughput"),
        "requests_per_second": data.maybe("request_throughput"),
        "goodput": data.maybe("request_goodput"),
        "output_tokens": data.number("total_output_tokens") / done,
        "failed_share": max(0, asked - done) / asked if asked else None,
    }
    facts = (("load test", f"{_TOOL}, {data.text('backend', data.text('endpoint_type', 'server not told'))}"),)
    return one_run(KIND, subject, setup, figures, place, f"{done:,} requests were answered", facts)


def _load(data: Fields) -> str:
    rate = data.data.get("request_rate")
    # vLLM writes the text "inf" where all requests are sent at once.
    words = "all requests at once" if rate in (None, "inf") else f"{data.number('request_rate'):g} requests/s"
    most = data.maybe("max_concurrency")
    return words if most is None else f"{words}, at most {most:.0f} at a time"
