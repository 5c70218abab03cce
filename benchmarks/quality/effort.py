"""What each effort takes and brings: seconds, memory and KL of the default method at one size.

    python -m benchmarks.quality.effort smollm2-135m --calib calibration.txt:0.67,self:0.33 --text heldout.txt \\
        --text other.txt --stored benchmarks/results/quality_cpu.json --output benchmarks/results/effort.json

Each run is a `prunekit prune` in a process of its own, from an empty cache, and then a `prunekit eval` on texts that
nothing was calibrated on. Efforts are run in turns, as often as --repeats says; --variant adds others. What is done is
kept in --output: a run that was cut short goes on where it was. --stored takes adapt-pruner and the 512 sequences of an
earlier report, to compare with, where they are not run here. Beside the JSON go a Markdown table and a plot.

Beside other work, seconds by the clock say little: CPU seconds, of all cores together, are told too. Divided by the
number of cores, they are the least that a quiet machine can take.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.quality.measured_command import measured
from benchmarks.quality.report_file import begun, save

ADAPT, BEST = "adapt-pruner", "best"
VARIANTS: dict[str, str] = {
    "quick": "--effort quick --calib {calib}",
    "standard": "--effort standard --calib {calib}",
    BEST: "--effort best --calib {calib}",
    # Of a mix, the first text alone: this method takes nothing that the model writes.
    ADAPT: "--method adapt-pruner --calib {alone}",
}
# Rows of `benchmarks/quality/quality.py` that say the same.
_STORED = {"adapt-pruner": ADAPT, "prunekit, 512 sequences": BEST}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calib", required=True, help="calibration text or a mix of texts")
    parser.add_argument("--text", action="append", required=True, help="repeatable: texts to evaluate on")
    parser.add_argument("--blocks", type=float, default=0.79)
    parser.add_argument("--only", action="append", help=f"repeatable: {', '.join(VARIANTS)}, or the name of a variant")
    parser.add_argument(
        "--variant", action="append", default=[], metavar="NAME=ARGUMENTS", help="repeatable: what prune is told else"
    )
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--ffn-multiple", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=8192, help="tokens evaluated of each text")
    parser.add_argument("--dtype", default="bfloat16", help="of the evaluation")
    parser.add_argument("--stored", type=Path, help="a report of benchmarks/quality/quality.py on the same texts")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    variants = {**VARIANTS, **dict(each.split("=", 1) for each in options.variant)}
    report = begun(options.output, "effort", _asked(options))
    if options.stored:
        _take_over(report, options)
        save(options.output, report)
    for repeat in range(options.repeats):
        for name in options.only or variants:
            if any((run["name"], run["repeat"]) == (name, repeat) for run in report["runs"]):
                continue
            print(f"{name}, run {repeat + 1} …", file=sys.stderr, flush=True)
            report["runs"].append({"name": name, "repeat": repeat, **_run(options, variants[name])})
            save(options.output, report)
    print(table(report))
    options.output.with_suffix(".md").write_text(table(report) + "\n", encoding="utf-8")
    draw(report, options.output.with_suffix(".png"))


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """What rows of one report must have in common."""
    from prunekit.data.sources import source_name

    return {
        "model": source_name(options.model),
        "calib": ",".join(source_name(part) for part in options.calib.split(",")),
        "texts": [source_name(text) for text in options.text],
        "blocks": options.blocks,
        "ffn_multiple": options.ffn_multiple,
        "max_tokens": options.max_tokens,
        "dtype": options.dtype,
    }


def _take_over(report: dict[str, Any], options: argparse.Namespace) -> None:
    """The rows of an earlier report to compare with, if it asked for the same."""
    earlier: dict[str, Any] = json.loads(options.stored.read_text(encoding="utf-8"))
    for name in ("texts", "ffn_multiple", "max_tokens", "dtype"):
        if earlier["asked"][name] != report["asked"][name]:
            sys.exit(f"{options.stored} was made with another {name}: {earlier['asked'][name]}.")
    there = {run["name"] for run in report["runs"]}
    for run in earlier["runs"]:
        taken = _STORED.get(run["method"])
        if taken and taken not in there and run["blocks"] == options.blocks:
            report["runs"].append({**run, "name": taken, "repeat": 0, "stored": options.stored.name})


def _run(options: argparse.Namespace, arguments: str) -> dict[str, Any]:
    from prunekit.data.mixture import parse_mix

    alone = parse_mix(options.calib)[0][0]
    told = [part.format(calib=options.calib, alone=alone) for part in shlex.split(arguments)]
    with tempfile.TemporaryDirectory(prefix="prunekit-effort-") as folder:
        out, fresh = Path(folder) / "pruned", {"PRUNEKIT_CACHE": str(Path(folder) / "cache")}
        pruned = ["prune", options.model, "--blocks", options.blocks, "--set", f"ffn_multiple={options.ffn_multiple}"]
        judged = ["eval", out, "--baseline", options.model, "--max-tokens", options.max_tokens]
        judged += ["--dtype", options.dtype, *(part for text in options.text for part in ("--text", text))]
        try:
            made, spent = measured([*pruned, *told, "-o", out], fresh)
            evaluation, _ = measured(judged, fresh)
        except subprocess.CalledProcessError as error:
            return {"arguments": arguments, "error": error.stderr.strip()[-500:]}
    return {
        "arguments": arguments,
        "parameters": made["pruned"]["parameters"],
        "share_of_blocks": made["share_of_blocks"],
        **spent.to_dict(),
        "texts": evaluation["results"],
    }


def _kl(runs: Sequence[dict[str, Any]]) -> float:
    return mean(text["kl"] for run in runs for text in run["texts"])


def _by_name(report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    made: dict[str, list[dict[str, Any]]] = {}
    for run in report["runs"]:
        if "error" not in run:
            made.setdefault(run["name"], []).append(run)
    return made


def table(report: dict[str, Any]) -> str:
    """Markdown: per effort the KL of each text and their mean, the share of best's gain over adapt-pruner, seconds by
    the clock and of all cores, memory, and the load of the machine."""
    named = _by_name(report)
    heads = " | ".join(f"KL, {text}" for text in report["asked"]["texts"])
    lines = [f"| effort | {heads} | KL | share of best's gain | seconds | CPU seconds | load | peak memory, MiB |"]
    lines.append("|---|" + "---|" * (len(report["asked"]["texts"]) + 6))
    for name, runs in sorted(named.items(), key=lambda each: _kl(each[1]), reverse=True):
        cells = [name + (" (stored)" if "stored" in runs[0] else "")]
        cells += [f"{mean(run['texts'][at]['kl'] for run in runs):.3f}" for at in range(len(report["asked"]["texts"]))]
        cells.append(f"{_kl(runs):.3f}")
        both = ADAPT in named and BEST in named
        gain = (_kl(named[ADAPT]) - _kl(runs)) / (_kl(named[ADAPT]) - _kl(named[BEST])) if both else None
        cells.append("–" if gain is None else f"{gain:.0%}")
        cells.append(f"{mean(run['seconds'] for run in runs):,.0f}")
        for field, text in (("cpu_seconds", "{:,.0f}"), ("load", "{:.1f}")):
            known = [run[field] for run in runs if field in run]
            cells.append(text.format(mean(known)) if known else "–")
        cells.append(f"{max(run['peak_bytes'] for run in runs) / 2**20:,.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(report: dict[str, Any], path: Path) -> None:
    """KL against seconds by the clock, each with its peak memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4.5))
    points = []
    for name, runs in _by_name(report).items():
        seconds, kl = mean(run["seconds"] for run in runs), _kl(runs)
        peak = max(run["peak_bytes"] for run in runs) / 2**30
        axis.annotate(f"{name}, {peak:.1f} GiB", (seconds, kl), xytext=(6, 6), textcoords="offset points")
        axis.scatter([seconds], [kl], marker="s" if name == ADAPT else "o", color="tab:grey" if name == ADAPT else "C0")
        if name != ADAPT:
            points.append((seconds, kl))
    axis.plot(*zip(*sorted(points), strict=True), color="C0", alpha=0.5)
    axis.set_xlabel("seconds")
    axis.set_ylabel("KL from the dense model, nats a token")
    # Room for what stands right of the last point, and above the highest.
    axis.margins(x=0.3, y=0.12)
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
