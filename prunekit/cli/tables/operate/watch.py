"""What a watch knows and found, for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.cli.common import console, table

if TYPE_CHECKING:
    from prunekit.monitoring.baseline.stored import Baseline
    from prunekit.monitoring.running.run import WatchResult


def show_baseline(made: Baseline, path: Path) -> None:
    """The signals with what each can find, the bounds, and what to know before the watch is relied on."""
    from prunekit.monitoring.baseline.calibrate import FOUND_AFTER

    out = console()
    log = made.log
    window = made.config.window
    out.print(
        f"Reference: {log['requests']:,} requests in {log['windows']:,} windows of {window}, "
        f"{made.per_day:,.0f} requests a day; {made.config.false_alarms:g} false alarms a year for all together."
    )
    shown = table("Signals", "", "kind", "typical", "found: a rise to", "status")
    for column in (1, 4):
        shown.columns[column].justify = "left"
    for each in (signal.to_dict() for signal in made.signals):
        finds = each["finds"]
        if finds is None:
            shown.add_row(each["name"], each["kind"], "–", "–", f"off: {each['reason']}")
            continue
        shown.add_row(each["name"], each["kind"], _figure(finds["from"]), _figure(finds["to"]), each["status"])
    out.print(shown)
    requests = FOUND_AFTER * window
    out.print(
        f"Rises that last are found after {requests:,} requests ({_days(requests / made.per_day)}) on average: "
        "predicted by Siegmund's formula, not measured."
    )
    for told in made.bounds.values():
        bound = "none" if told["bound"] is None else f"{told['bound']:.2%}"
        out.print(f"Bound on {told['what']}: {bound} ({told['how']}).")
    for words in made.notes:
        out.print(f"Note: {words}")
    out.print(f"Written to {path}. Watch with: prunekit watch run LOG --baseline {path}")


def show_watch(made: WatchResult, folder: Path) -> None:
    """The verdict, the signals of the last window, and what went wrong with lines."""
    from prunekit.monitoring.alarms.alarm import iso

    out = console()
    data = made.data
    last: dict[str, Any] | None = data["last_window"]
    if last is not None:
        shown = table("Last window", "", "figure", "deviation, sd", "sum", "limit", "")
        for name, each in last["signals"].items():
            value = "–" if each["value"] is None else _figure(each["value"])
            rest = ["–" if each.get(key) is None else f"{each[key]:.1f}" for key in ("z", "sum", "limit")]
            shown.add_row(name, value, *rest, "up" if each.get("active") else each.get("reason") or "")
        shown.columns[5].justify = "left"
        out.print(shown)
    for each in data["outcomes"].values():
        if each["seen"]:
            bound = "no bound" if each["bound"] is None else f"at most {each['bound']:.2%} wanted"
            out.print(f"{each['what'].capitalize()}: {each['bad']:,} of {each['seen']:,} ({bound}).")
    out.print(f"{data['windows']:,} windows judged, {data['requests']:,} requests; {data['alarms']} alarms.")
    if data["last_request"] is not None:
        out.print(f"The newest request came at {iso(data['last_request'])}.")
    out.print(f"Verdict: {data['verdict']}.")
    for sentence in data["reasons"]:
        out.print(f"  {sentence}")
    out.print(data["do"])
    out.print(f"History and state are in {folder}.")


def _figure(value: float) -> str:
    return f"{value:.4g}"


def _days(days: float) -> str:
    if days >= 2:
        return f"{days:.0f} days"
    return f"{24 * days:.0f} hours" if 24 * days >= 2 else f"{24 * 60 * days:.0f} minutes"
