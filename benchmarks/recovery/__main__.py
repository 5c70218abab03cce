"""What each choice in recovery training brings: one pruned model trained in many ways, judged on texts nobody saw.

    python -m benchmarks.recovery --dense smollm2-135m --pruned pruned --text own.txt --held-out politics.txt \\
        --held-out handbook.txt --tokens 300K --output benchmarks/results/recovery_cpu.json
    python -m benchmarks.recovery … --variants kd,ce,lora-8,kd+learning_rate=2e-4 --minutes 10
    python -m benchmarks.recovery … --device cuda --minutes 2 --stop-after 8
    python -m benchmarks.recovery … --steps 3        # a rehearsal

All variants see equally many --tokens, or train about equally long (--minutes). Each is `prunekit recover` in a process
of its own, and is judged as by `prunekit eval --baseline`, on the texts of `benchmarks/quality/heldout.py`. What is
done is kept in --output: a run that was cut short goes on where it was, and with --folder in the midst of a training.
What is kept in the cache folder (text that the dense model writes) is not made again, so that only the first variant
that needs it counts its seconds; those of training leave it out.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.quality.report_file import begun, save
from benchmarks.recovery.judge import Judge
from benchmarks.recovery.trial import Bench, Failed
from benchmarks.recovery.variants import ARMS, GIVEN, GROUPS, Variant, chosen, configured
from prunekit.data.sources import source_name
from prunekit.errors import PrunekitError
from prunekit.plan import Plan
from prunekit.plan.goals import parse_count

START = "start"
"""The checkpoint as it was given."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", required=True, help="the model that was pruned, which teaches")
    parser.add_argument("--pruned", type=Path, required=True, help="the checkpoint that is trained")
    parser.add_argument("--text", action="append", help="repeatable: text of one's own to train on (builtin)")
    parser.add_argument("--calib", help="what the arms are pruned for (default: what `prunekit prune` takes)")
    parser.add_argument("--held-out", action="append", required=True, help="repeatable: texts to judge on")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--tokens", help="of each training, such as 300K")
    budget.add_argument("--minutes", type=float, help="of each training, about")
    budget.add_argument("--steps", type=int, help="of each training: a rehearsal of a few")
    parser.add_argument(
        "--variants",
        default=",".join(GROUPS),
        help=f"separated by commas: variants, variants with more settings, or groups ({', '.join(GROUPS)})",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=32768, help="tokens judged of each text")
    parser.add_argument("--dtype", default="float32", help="of the judging (bfloat16: half the time on some CPUs)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--stop-after", type=float, help="minutes after which no further variant begins")
    parser.add_argument("--folder", type=Path, help="where models are made (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the trained models in --folder")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/recovery_cpu.json"))
    options = parser.parse_args(arguments)
    try:
        variants = chosen(options.variants.split(","))
        for variant in variants:
            # What an arm that trains is told may be more than `prunekit recover` knows.
            if variant.arm == GIVEN or not ARMS[variant.arm].trains:
                configured(variant)
    except PrunekitError as error:
        parser.error(str(error))
    tokens = None if options.tokens is None else parse_count(options.tokens, "--tokens")
    report = begun(options.output, "recovery", _asked(options, tokens), options.device)
    if tokens is None and options.minutes is None:
        report["rehearsal"] = f"{options.steps} steps each: this shows that it runs, and nothing else."
    with _folder(options.folder) as folder:
        bench = Bench(
            dense=options.dense,
            pruned=options.pruned,
            own=options.text or ["builtin"],
            tokens=tokens,
            minutes=options.minutes,
            steps=options.steps,
            seed=options.seed,
            calib=options.calib,
            device=options.device,
            folder=folder,
        )
        judge = Judge(options.dense, options.held_out, options.max_tokens, options.dtype, options.device)
        if not _has(report, START):
            report["runs"].append({"variant": START, "texts": judge(options.pruned)})
            save(options.output, report)
        for variant in _within(variants, options.stop_after):
            if _has(report, variant.name):
                continue
            if (why := missing(variant)) is not None:
                print(f"{variant.name} is skipped: {why}", file=sys.stderr, flush=True)
                report.setdefault("skipped", {})[variant.name] = why
                continue
            print(f"{variant.name} …", file=sys.stderr, flush=True)
            record = _measured(bench, judge, variant)
            report["runs"] = [*(run for run in report["runs"] if run["variant"] != variant.name), record]
            report.get("skipped", {}).pop(variant.name, None)
            save(options.output, report)
            if not options.keep:
                bench.forget(variant.name)
    save(options.output, report)
    print(table(report))
    options.output.with_suffix(".md").write_text(table(report) + "\n", encoding="utf-8")


def _asked(options: argparse.Namespace, tokens: int | None) -> dict[str, Any]:
    """What rows of one report must have in common."""
    return {
        "dense": source_name(options.dense),
        "pruned": options.pruned.resolve().name,
        "calib": None if options.calib is None else source_name(options.calib),
        "text": [source_name(text) for text in options.text or ["builtin"]],
        "held_out": [source_name(text) for text in options.held_out],
        "tokens": tokens,
        **{name: getattr(options, name) for name in ("minutes", "steps", "seed", "max_tokens", "dtype", "device")},
    }


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="prunekit-recovery-") as folder:
        yield Path(folder)


def _has(report: dict[str, Any], name: str) -> bool:
    return any(run["variant"] == name and "error" not in run for run in report["runs"])


def _within(variants: Iterable[Variant], minutes: float | None) -> Iterator[Variant]:
    """``variants``, until one as long as the longest before would no longer end within so many ``minutes``."""
    began = last = time.monotonic()
    longest = 0.0
    for variant in variants:
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        if minutes is not None and now - began + longest > 60 * minutes:
            print(f"{variant.name} and what follows is left for another run.", file=sys.stderr, flush=True)
            return
        yield variant


def _measured(bench: Bench, judge: Judge, variant: Variant) -> dict[str, Any]:
    try:
        made, record = bench.train(variant)
    except Failed as error:
        return {"variant": variant.name, "error": str(error)}
    return {**record, "parameters": Plan.load(made / "plan.json").shape.parameters, "texts": judge(made)}


def missing(variant: Variant) -> str | None:
    """Why ``variant`` can't be measured by this prunekit; None where it can."""
    if variant.arm == GIVEN:
        return None
    import typer

    from prunekit.cli import app

    group: Any = typer.main.get_command(app)
    known = {word for each in group.commands["prune"].params for word in each.opts}
    lacking = [option for option in ARMS[variant.arm].needs if option not in known]
    return f"`prunekit prune` has no {lacking[0]} in this version." if lacking else None


def table(report: dict[str, Any]) -> str:
    """Markdown: of every variant divergence and excess loss in nats a token, text by text, then what it took."""
    texts = report["asked"]["held_out"]
    lines = ["| variant | " + " | ".join(f"{text}: KL; excess" for text in texts) + " | mean KL | mean excess | "]
    lines[0] += "tokens | tokens/s | training, s | CPU, s | peak memory, MiB |"
    lines.append("|---|" + "---|" * (len(texts) + 7))
    for run in report["runs"]:
        if "error" in run:
            lines.append(f"| {run['variant']} | failed: {run['error'].splitlines()[-1] if run['error'] else ''} |")
            continue
        found = run["texts"]
        cells = [f"{each['kl']:.3f}; {each['nll_increase']:.3f}" for each in found]
        cells += [f"{mean(each[name] for each in found):.4f}" for name in ("kl", "nll_increase")]
        if "tokens" in run:
            speed = run["tokens_per_second"]
            cells += [
                f"{run['tokens']:,}",
                "–" if speed is None else f"{speed:,.0f}",
                f"{run['training_seconds']:,.0f}",
            ]
            cells += [f"{run['cpu_seconds']:,.0f}", f"{run['peak_bytes'] / 2**20:,.0f}"]
        else:
            cells += ["–"] * 5
        lines.append(f"| {run['variant']} | " + " | ".join(cells) + " |")
    lines += [f"\nskipped: {name} ({why})" for name, why in report.get("skipped", {}).items()]
    if "rehearsal" in report:
        lines.append(f"\n{report['rehearsal']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
