"""The figures that a report knows: what they are called, and how they are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_Shown = Callable[[float], str]


@dataclass(frozen=True)
class Metric:
    """``title`` heads a column, ``unit`` is said once in it, ``write`` writes a value without its unit."""

    title: str
    unit: str
    write: _Shown


def plain(value: float) -> str:
    """Three digits or more: 1,234, 12.3, 0.0123, 1.2e+09 for what no column holds."""
    size = abs(value)
    if size >= 1e9 or (0 < size < 1e-4):
        return f"{value:.2e}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.3g}"


def _scaled(unit: float, digits: int = 1) -> _Shown:
    return lambda value: f"{value / unit:,.{digits}f}" if abs(value / unit) < 1e9 else f"{value / unit:.2e}"


def _fixed(digits: int, sign: str = "") -> _Shown:
    return lambda value: f"{value:{sign},.{digits}f}" if abs(value) < 1e9 else f"{value:{sign}.2e}"


def _share(value: float) -> str:
    return f"{100 * value:.1f}" if abs(value) < 1e6 else f"{100 * value:.2e}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}" if abs(value) < 1e6 else f"{100 * value:+.2e}"


RATIOS = ("ttft_ratio", "tpot_ratio", "slo_load_ratio")
QUALITY = ("loss_added", "kl", "top1_agreement", "perplexity")

METRICS: dict[str, Metric] = {
    "loss_added": Metric("Loss added", "nats a token", _fixed(3, "+")),
    "kl": Metric("KL from dense", "nats a token", _fixed(3)),
    "top1_agreement": Metric("First choices kept", "%", _share),
    "perplexity": Metric("Perplexity", "", plain),
    "ttft_ratio": Metric("First token", "× dense", _fixed(3)),
    "tpot_ratio": Metric("Each further token", "× dense", _fixed(3)),
    "ttft": Metric("First token", "ms", _scaled(1e-3)),
    "tpot": Metric("Each further token", "ms", _scaled(1e-3, 2)),
    "ttft_p95": Metric("First token, p95", "ms", _scaled(1e-3)),
    "tpot_p95": Metric("Each further token, p95", "ms", _scaled(1e-3, 2)),
    "ttft_p99": Metric("First token, p99", "ms", _scaled(1e-3)),
    "tpot_p99": Metric("Each further token, p99", "ms", _scaled(1e-3, 2)),
    "latency": Metric("Whole answer, median", "ms", _scaled(1e-3)),
    "latency_p95": Metric("Whole answer, p95", "ms", _scaled(1e-3)),
    "latency_p99": Metric("Whole answer, p99", "ms", _scaled(1e-3)),
    "users": Metric("Users that fit", "", plain),
    "tokens_per_second": Metric("Output", "tokens/s", plain),
    "requests_per_second": Metric("Answered", "requests/s", plain),
    "goodput": Metric("Answered within the limits", "requests/s", plain),
    "slo_load": Metric("Highest load within the SLO", "requests/s", plain),
    "slo_load_ratio": Metric("Highest load within the SLO", "× dense", _fixed(3)),
    "failed_share": Metric("Failed", "%", _share),
    "output_tokens": Metric("Length of answers, mean", "tokens", plain),
    "length_ratio": Metric("Length of answers", "× dense", _fixed(3)),
    "truncated_share": Metric("Answers cut off", "%", _share),
    "error_rate": Metric("Wrong answers", "% of the records", _share),
    "error_rise": Metric("Rise of wrong answers", "percentage points", _points),
    "flips": Metric("Right to wrong, or back", "% of the records", _share),
    "shadow_kl": Metric("KL from dense on requests", "nats a token", _fixed(4)),
    "shadow_agreement": Metric("First choices kept on requests", "%", _share),
    "rejected_share": Metric("Answers rejected", "%", _share),
    "reworked_share": Metric("Answers reworked", "%", _share),
    "alarms": Metric("Alarms", "", plain),
    "peak_bytes": Metric("Peak memory", "MiB", _scaled(2**20)),
    "memory_bytes": Metric("Weights and KV cache", "MiB", _scaled(2**20)),
    "weight_bytes": Metric("Weights in memory", "MiB", _scaled(2**20)),
    "kv_bytes_per_token": Metric("KV cache a token", "KiB", _scaled(2**10)),
    "file_bytes": Metric("File size", "MiB", _scaled(2**20)),
    "parameters": Metric("Parameters", "M", _scaled(1e6)),
    "blocks_share": Metric("Decoder blocks kept", "%", _share),
    "joules_per_token": Metric("Energy", "J/token", plain),
    "joules_per_request": Metric("Energy of a request", "J", plain),
    "dollars_per_million": Metric("Cost", "$/M tokens", plain),
    "electricity_per_million": Metric("Electricity alone", "$/M tokens", plain),
    "dollars_per_request": Metric("Cost of a request", "$", plain),
    "dollars_per_accepted": Metric("Cost of an accepted answer", "$", plain),
    "rework_allowed": Metric("Rework that may be added", "%", lambda value: plain(100 * value)),
    "prune_minutes": Metric("Time to prune", "minutes", plain),
}
