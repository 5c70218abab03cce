"""All methods at several sizes on one model: perplexity, KL, agreement on texts that no method saw; time and memory.

    python -m benchmarks.quality.quality smollm2-135m --calib calibration.txt.gz --text heldout.txt --text other.txt \\
        --blocks 0.79 --blocks 0.6 --output benchmarks/results/quality.json

Every method cuts the same model to the same size on the same calibration text, through the same rebuild, each in a
process of its own; `prunekit` mixes it with a third that the model writes (the ablation's "text alone"
doesn't).
What is kept in the cache folder (sampled text, loss curves) is not made again, so that only the first run that needs it
counts its seconds: start from an empty PRUNEKIT_CACHE. What is done is kept in --output: a run that was cut short goes
on where it was. Beside the JSON go a Markdown table and a plot of quality against parameters (and against latency, with
--latency).
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.quality.measured_command import measured
from benchmarks.quality.report_file import begun, save

# Each a label and what `prunekit prune` is told beside model, target, text and seed.
METHODS: dict[str, str] = {
    "random": "--method random",
    "magnitude": "--method magnitude",
    "shortgpt": "--method shortgpt",
    "slicegpt": "--method slicegpt",
    "minitron": "--method minitron",
    "wanda-sp": "--method wanda-sp",
    "llm-pruner": "--method llm-pruner",
    "flap": "--method flap",
    "fisher-global": "--method fisher-global",
    "adapt-pruner": "--method adapt-pruner",
    "prunekit": "--method prunekit --calib {mix}",
    "prunekit, 512 sequences": "--method prunekit --set sequences=512 --calib {mix}",
}
# What each part of the best recipe brings: allocation, selection and refit, one changed at a time.
ABLATION: dict[str, str] = {
    "uniform taylor": "--method llm-pruner --set protect_layers=none",
    "uniform taylor + refit": "--method llm-pruner --set protect_layers=none --set refit=true --calib {mix}",
    "adapt + refit": "--method adapt-pruner --set refit=true --calib {mix}",
    "global fisher": "--method fisher-global",
    "global fisher + refit": "--method fisher-global --set refit=true --calib {mix}",
    "curves (optimal), no refit": "--method prunekit --set refit=false --calib {mix}",
    "curves + refit": "--method prunekit --set rescale=false --calib {mix}",
    "curves + refit + rescale, text alone": "--method prunekit",
    "curves + refit + rescale (prunekit)": "--method prunekit --calib {mix}",
}
# What more calibration text brings, and the built-in text in place of one's own.
SIZES: dict[str, str] = {
    "16k tokens": "--method prunekit --set sequences=32 --calib {mix}",
    "64k tokens": "--method prunekit --set sequences=128 --calib {mix}",
    "256k tokens": "--method prunekit --set sequences=512 --calib {mix}",
    # What `prunekit prune` does where nothing is said: 64k tokens, for the built-in text holds no more than 40k.
    "built-in text, half self-written": "--method prunekit --calib builtin:0.5,self:0.5",
}
SETS = {"methods": METHODS, "ablation": ABLATION, "sizes": SIZES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calib", required=True, help="calibration text of all methods, or a mix")
    parser.add_argument("--text", action="append", required=True, help="repeatable: texts to evaluate on")
    parser.add_argument("--blocks", action="append", type=float, help="repeatable: shares of the blocks (0.79)")
    parser.add_argument("--set", choices=sorted(SETS), default="methods")
    parser.add_argument("--only", action="append", metavar="LABEL", help="repeatable: only these of the set")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each, with seeds 0, 1, …")
    parser.add_argument("--seed", action="append", type=int, help="repeatable: these seeds instead")
    parser.add_argument("--sequences", type=int, help="calibration sequences of every method (default: each its own)")
    parser.add_argument("--length", type=int, help="tokens in each")
    parser.add_argument("--ffn-multiple", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=32768, help="tokens evaluated of each text")
    parser.add_argument("--dtype", default="float32", help="of the evaluation (bfloat16: half the time here)")
    parser.add_argument("--latency", action="store_true", help="also time each result against the dense model")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    chosen = {name: SETS[options.set][name] for name in options.only or SETS[options.set]}
    report = begun(options.output, "quality", _asked(options))
    for share in options.blocks or [0.79]:
        for label, arguments in chosen.items():
            for seed in options.seed or range(options.seeds):
                key = {"method": label, "blocks": share, "seed": seed}
                if any(all(run[name] == value for name, value in key.items()) for run in report["runs"]):
                    continue
                print(f"{label}, {share:.0%} of the blocks, seed {seed} …", file=sys.stderr, flush=True)
                report["runs"].append({**key, **_run(options, arguments, share, seed)})
                save(options.output, report)
    print(table(report))
    options.output.with_suffix(".md").write_text(table(report) + "\n", encoding="utf-8")
    draw(report, options.output.with_suffix(".png"))


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """What rows of one report must have in common."""
    from prunekit.data.sources import source_name

    return {
        "model": source_name(options.model),
        "calib": [source_name(part) for part in options.calib.split(",")],
        "texts": [source_name(text) for text in options.text],
        "sequences": options.sequences,
        "length": options.length,
        "ffn_multiple": options.ffn_multiple,
        "max_tokens": options.max_tokens,
        "dtype": options.dtype,
    }


def _run(options: argparse.Namespace, arguments: str, share: float, seed: int) -> dict[str, Any]:
    """Prune, evaluate and, where asked, time one method. Seconds are wall clock; peak memory is the process's own."""
    own = [part.format(mix=_mix(options.calib, 0.33)) for part in shlex.split(arguments)]
    settings = {"seed": seed, "sequences": options.sequences, "length": options.length}
    settings |= {"ffn_multiple": options.ffn_multiple}
    told = [part for name, value in settings.items() if value is not None for part in ("--set", f"{name}={value}")]
    with tempfile.TemporaryDirectory(prefix="prunekit-quality-") as folder:
        out = str(Path(folder) / "pruned")
        # What a method says of its own comes later and counts.
        command = ["prune", options.model, "--blocks", str(share), "--calib", options.calib, *told, *own, "-o", out]
        started = time.perf_counter()
        judged = ["eval", out, "--baseline", options.model, "--max-tokens", str(options.max_tokens)]
        judged += ["--dtype", options.dtype, *(part for text in options.text for part in ("--text", text))]
        try:
            made, peak = _prunekit(command)
            seconds = time.perf_counter() - started
            evaluation, _ = _prunekit(judged)
        except subprocess.CalledProcessError as error:
            return {"arguments": arguments, "error": error.stderr.strip()[-500:]}
        result = {
            "arguments": arguments,
            "parameters": made["pruned"]["parameters"],
            "share_of_blocks": made["share_of_blocks"],
            "seconds": round(seconds, 1),
            "peak_bytes": peak,
            "texts": evaluation["results"],
        }
        if options.latency:
            timed, _ = _prunekit(["bench", out, "--baseline", options.model, "--repeats", "10"])
            result["latency"] = {name: timed["results"][0][name]["ratio"] for name in ("ttft", "tpot")}
        return result


def _mix(calib: str, written: float) -> str:
    return calib if "," in calib or calib == "self" else f"{calib}:{1 - written:g},self:{written:g}"


def _prunekit(arguments: Sequence[str]) -> tuple[Any, int]:
    """What a prunekit command prints as JSON, and the bytes of memory it took at most."""
    made, spent = measured(arguments)
    return made, spent.peak_bytes


def _groups(report: dict[str, Any]) -> dict[tuple[float, str], list[dict[str, Any]]]:
    made: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for run in report["runs"]:
        made.setdefault((run["blocks"], run["method"]), []).append(run)
    return made


def table(report: dict[str, Any]) -> str:
    """Markdown: per size and method, for every text perplexity (mean of the seeds, ± their standard deviation) and the
    excess loss in nats a token, KL and agreement averaged over texts, seconds and memory."""
    texts = report["asked"]["texts"]
    lines = []
    for share in sorted({run["blocks"] for run in report["runs"]}, reverse=True):
        heads = [f"{text}: perplexity (excess)" for text in texts]
        lines += [f"{share:.0%} of the blocks", ""]
        lines.append("| method | " + " | ".join(heads) + " | KL | same top token | seconds | peak memory, MiB |")
        lines.append("|---|" + "---|" * (len(texts) + 4))
        for (size, label), runs in _groups(report).items():
            if size != share:
                continue
            good = [run for run in runs if "error" not in run]
            if not good:
                lines.append(f"| {label} | " + "failed | " * (len(texts) + 4))
                continue
            cells = [label]
            for place in range(len(texts)):
                each = [run["texts"][place] for run in good]
                excess = mean(result["nll_increase"] for result in each)
                cells.append(f"{_spread([result['perplexity'] for result in each])} ({excess:.3f})")
            flat = [result for run in good for result in run["texts"]]
            cells.append(f"{mean(result['kl'] for result in flat):.3f}")
            cells.append(f"{mean(result['agreement'] for result in flat):.1%}")
            cells.append(f"{mean(run['seconds'] for run in good):,.0f}")
            cells.append(f"{mean(run['peak_bytes'] for run in good) / 2**20:,.0f}")
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _spread(values: list[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def draw(report: dict[str, Any], path: Path) -> None:
    """Excess loss, averaged over texts, against parameters, and against latency where that was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    timed = any("latency" in run for run in report["runs"])
    figure, axes = pyplot.subplots(1, 2 if timed else 1, figsize=(12 if timed else 7, 5), squeeze=False)
    lines: dict[str, list[tuple[float, float, float | None]]] = {}
    for (_, label), runs in _groups(report).items():
        good = [run for run in runs if "error" not in run]
        if good:
            excess = mean(result["nll_increase"] for run in good for result in run["texts"])
            ratios = [run["latency"]["tpot"]["median"] for run in good if "latency" in run]
            point = (mean(run["parameters"] for run in good) / 1e6, excess, mean(ratios) if ratios else None)
            lines.setdefault(label, []).append(point)
    for label, points in sorted(lines.items()):
        points.sort()
        axes[0][0].plot([point[0] for point in points], [point[1] for point in points], marker="o", label=label)
        if timed:
            known = [point for point in points if point[2] is not None]
            axes[0][1].plot([point[2] for point in known], [point[1] for point in known], marker="o", label=label)
    axes[0][0].set_xlabel("parameters, millions")
    if timed:
        axes[0][1].set_xlabel("time of a decoded token, pruned / dense")
    for axis in axes[0]:
        axis.set_ylabel("excess loss, nats a token")
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
