"""The state of a watch as a text file of Prometheus' exposition format, for node_exporter's textfile collector."""

from __future__ import annotations

from typing import Any

from prunekit.monitoring.verdicts.rule import SEVERITY

_HELP = {
    "verdict": ("gauge", "1 for the verdict that holds, 0 for the others."),
    "alarm": ("gauge", "1 while an alarm is active."),
    "windows_total": ("counter", "Windows judged."),
    "requests_total": ("counter", "Requests in windows judged."),
    "alarms_total": ("counter", "Alarms so far."),
    "telling_failures_total": ("counter", "Times that a command or a webhook failed."),
    "problem_lines": ("gauge", "Lines of the log with a problem that the last run read, by kind."),
    "blind": ("gauge", "1 while the log does not tell what the reference told."),
    "last_request_timestamp_seconds": ("gauge", "Time of the newest request that was read."),
    "signal_value": ("gauge", "A signal's figure in the last window."),
    "signal_sum": ("gauge", "A signal's sum of deviations (CUSUM)."),
    "signal_limit": ("gauge", "The limit of that sum."),
    "signal_active": ("gauge", "1 while the sum is or was past its limit and is not back at 0."),
    "outcome_wealth": ("gauge", "Wealth against a bound on outcomes; an alarm at 1 / alpha."),
}


def text(watch: dict[str, Any]) -> str:
    """The file's text, from the data of watch.json."""
    rows: dict[str, list[tuple[dict[str, str], float | int | None]]] = {name: [] for name in _HELP}
    for verdict in SEVERITY:
        rows["verdict"].append(({"verdict": verdict}, int(verdict == watch["verdict"])))
    rows["alarm"].append(({}, int(watch["alarm"] is not None)))
    rows["blind"].append(({}, int(bool(watch["blind"]))))
    rows["last_request_timestamp_seconds"].append(({}, watch["last_request"]))
    for name in ("windows", "requests", "alarms", "telling_failures"):
        rows[f"{name}_total"].append(({}, watch[name]))
    for kind, told in watch["log"]["problems"].items():
        rows["problem_lines"].append(({"kind": kind}, told["lines"]))
    last = watch["last_window"]
    if last is not None:
        for name, signal in last["signals"].items():
            labels = {"signal": name}
            rows["signal_value"].append((labels, signal.get("value")))
            rows["signal_sum"].append((labels, signal.get("sum")))
            rows["signal_limit"].append((labels, signal.get("limit")))
            active = signal.get("active")
            rows["signal_active"].append((labels, None if active is None else int(active)))
        for name, wealth in last["outcomes"]["wealth"].items():
            rows["outcome_wealth"].append(({"bound": name}, wealth))
    lines = []
    for name, values in rows.items():
        told_values = [(labels, value) for labels, value in values if value is not None]
        if told_values:
            kind, words = _HELP[name]
            lines += [f"# HELP prunekit_watch_{name} {words}", f"# TYPE prunekit_watch_{name} {kind}"]
            lines += [f"prunekit_watch_{name}{_labels(labels)} {value:.10g}" for labels, value in told_values]
    return "\n".join(lines) + "\n"


def _labels(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items()) + "}" if labels else ""


def escaped(value: str) -> str:
    """A label's value as the format wants it."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
