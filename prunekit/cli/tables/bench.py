"""The tables of ``prunekit bench``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit.cli.common import console, table

if TYPE_CHECKING:
    from rich.console import Console

    from prunekit.profiling.bench_report import BenchReport
    from prunekit.profiling.costs import Costs, Pair
    from prunekit.profiling.energy import Energy
    from prunekit.utils.measuring.load import Load
    from prunekit.utils.timing import Comparison

_SIZES = (
    ("parameters", "parameters", 1e6, "M"),
    ("weight files", "file_bytes", 2**20, "MiB"),
    ("weights", "weight_bytes", 2**20, "MiB"),
    ("weights read a decode step", "decode_bytes", 2**20, "MiB"),
    ("KV cache a token", "kv_bytes_per_token", 2**10, "KiB"),
    ("peak memory", "peak_bytes", 2**20, "MiB"),
)


def show(report: BenchReport, costs: Costs | None = None) -> None:
    """Sizes, times with what speaks against believing them, and costs where there are prices."""
    machine = report.machine
    out = console()
    out.print(
        f"{machine['cpu']}, {machine['threads']} threads, {machine['device']}, {report.runtime}, {report.dtype}, "
        f"torch {machine['torch']}, transformers {machine['transformers']}",
        highlight=False,
    )
    _show_sizes(report, out)
    _show_times(report, out)
    if report.peak_how:
        out.print(f"Peak memory: {report.peak_how}.", highlight=False)
    if report.energy is not None:
        _show_energy(report.energy, out)
    if costs is not None:
        _show_costs(costs, out)


def _show_sizes(report: BenchReport, out: Console) -> None:
    sizes = table("What it takes", "", report.dense.name, report.pruned.name, "ratio")
    for title, name, unit, suffix in _SIZES:
        dense, pruned = getattr(report.dense, name), getattr(report.pruned, name)
        if dense and pruned is not None:
            sizes.add_row(
                title, f"{dense / unit:,.1f} {suffix}", f"{pruned / unit:,.1f} {suffix}", f"{pruned / dense:.3f}"
            )
    out.print(sizes)


def _show_times(report: BenchReport, out: Console) -> None:
    config = report.config
    shown = table(
        f"What it gains (prompt {config.prompt}, {config.tokens} tokens decoded)",
        *("", "dense ms", "pruned ms", "ratio", "p20 to p80", "ideal", "runs", "verdict"),
        caption="Medians. Ratio: pruned/dense of neighbouring runs, below 1 is faster. Ideal: FLOPs for the first "
        "token, bytes read for the others. No gain is shown where p20 to p80 includes 1.",
    )
    rows = [
        (title, comparison)
        for result in report.results
        for title, comparison in (
            (f"first token, batch {result.batch}", result.ttft),
            (f"each further token, batch {result.batch}", result.tpot),
        )
    ]
    for title, comparison in rows:
        shown.add_row(*_row(title, comparison))
    out.print(shown)
    # What is said of several rows is said once.
    reasons: dict[str, list[str]] = {}
    for title, comparison in rows:
        for doubt in comparison.doubts:
            reasons.setdefault(doubt.why, []).append(title)
    for why, titles in reasons.items():
        out.print(f"Do not believe {'; '.join(titles)}: {why}", highlight=False)
    for result in report.results:
        out.print(f"Batch {result.batch}: {_said(report.load_before, result.load)}.", highlight=False)


def _row(title: str, comparison: Comparison) -> tuple[str, ...]:
    ratio = comparison.ratio
    return (
        title,
        f"{comparison.dense.median * 1e3:,.2f}",
        f"{comparison.pruned.median * 1e3:,.2f}",
        f"{ratio.median:.3f}",
        f"{ratio.p20:.3f} to {ratio.p80:.3f}",
        f"{comparison.ideal_ratio:.3f}",
        f"{ratio.count}",
        comparison.verdict if comparison.believed else "not believed",
    )


def _said(before: Load | None, during: Load | None) -> str:
    """ "other processes kept 0.02 of 2 CPUs busy before, and 0.01 during the timing"."""
    if during is None or during.others is None:
        return "the load of the machine is not measured: this system does not tell it"
    if before is None or before.others is None:
        return f"other processes kept {during.others:.2f} of {during.cpus} CPUs busy during the timing"
    return (
        f"other processes kept {before.others:.2f} of {during.cpus} CPUs busy before, and {during.others:.2f} during "
        "the timing"
    )


def _show_energy(energy: Energy, out: Console) -> None:
    if energy.why is not None:
        out.print(f"Energy is not measured: {energy.why}.", highlight=False)
    if energy.dense is None or energy.pruned is None:
        return
    about = "≈ " if energy.status == "estimated" else ""
    how = energy.method if energy.status == "estimated" else f"{energy.method}; {energy.scope}"
    shown = table(
        f"Energy at batch {energy.batch}, {energy.status} ({how})",
        *("", "dense", "pruned", "ratio"),
    )
    rows = [("joules an output token", energy.dense.joules_per_token, energy.pruned.joules_per_token)]
    if energy.dense.above_idle is not None and energy.pruned.above_idle is not None:
        rows.append(("of them above idle", energy.dense.above_idle, energy.pruned.above_idle))
    for title, dense, pruned in rows:
        ratio = f"{pruned / dense:.3f}" if dense > 0 else ""
        shown.add_row(title, f"{about}{dense:.4g}", f"{about}{pruned:.4g}", ratio)
    out.print(shown)


def _show_costs(costs: Costs, out: Console) -> None:
    hour, power = costs.prices.dollars_an_hour, costs.electricity
    if power.dense is not None and power.pruned is not None:
        out.print(
            f"Electricity alone, a million output tokens: ${power.dense:,.4g} dense, ${power.pruned:,.4g} pruned.",
            highlight=False,
        )
    if hour is None:
        out.print(f"Costs are not told: {costs.prices.left_out}.", highlight=False)
        return
    shown = table(
        f"What it costs at ${hour:,.4g} an hour",
        *("", "dense", "pruned", "ratio"),
        caption="Estimated from the medians above and your prices, for output tokens: one process, one batch after the "
        "other. A loaded server answers at other rates. Used: the share of an hour in which it answers.",
    )
    seen = set()
    for each in costs.rows:
        mark = "" if each.believed else " (not believed)"
        if each.batch not in seen:
            seen.add(each.batch)
            shown.add_row(f"batch {each.batch}: output tokens/s{mark}", *_pair(each.tokens_per_second))
        used = f"batch {each.batch}, {each.utilisation:.0%} used"
        shown.add_row(f"{used}: $ a million tokens{mark}", *_pair(each.dollars_per_million_tokens))
        shown.add_row(f"{used}: $ a request{mark}", *_pair(each.dollars_per_request))
    out.print(shown)
    if costs.prices.left_out:
        out.print(f"Of the hour, {costs.prices.left_out}.", highlight=False)


def _pair(both: Pair) -> tuple[str, ...]:
    if both.dense is None or both.pruned is None:
        return ("", "", "")
    ratio = f"{both.pruned / both.dense:.3f}" if both.dense else ""
    return f"{both.dense:,.4g}", f"{both.pruned:,.4g}", ratio
