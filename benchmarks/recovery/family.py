"""A family: one dense model at several sizes, each pruned and trained back, all in one table.

    python -m benchmarks.recovery.family --dense smollm2-135m --blocks 0.79 --blocks 0.6 --blocks 0.5 --blocks 0.4 \\
        --calib calibration.txt:0.67,self:0.33 --text own.jsonl:0.6,self:0.4 --minutes 60 \\
        --held-out wikitext2_test.txt --held-out politics.txt --held-out handbook.txt \\
        --tasks mmlu,truthfulqa,agieval --task-data benchmarks --limit 20 \\
        --folder family --output benchmarks/results/family_cpu.json
    python -m benchmarks.recovery.family … --tokens 4096 --limit 1        # a rehearsal

For each size: `prunekit prune`, `prunekit recover`, `prunekit eval` of both beside the dense model, and `prunekit
bench` of the trained one against the dense one, in turns. --prune, --recover, --eval and --bench take what these
commands are told beside. A step that is done is kept in --output with its model in --folder, and a training that was
interrupted goes on. The first size fills the cache with what all need (loss curves, text that the model writes), so its
seconds are larger.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common.run_info import commit
from benchmarks.quality.measured_command import measured
from benchmarks.quality.report_file import begun, save
from benchmarks.recovery.processes import run
from benchmarks.recovery.trial import summary
from prunekit.data.sources import source_name


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", required=True)
    parser.add_argument("--blocks", type=float, action="append", required=True, help="repeatable: shares to keep")
    parser.add_argument("--calib", required=True, help="text to prune for")
    parser.add_argument("--text", required=True, help="text to train on")
    parser.add_argument("--held-out", action="append", required=True, help="repeatable: texts to judge on")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--tokens", help="of each training, such as 1M")
    budget.add_argument("--minutes", help="of each training, about")
    parser.add_argument("--prune", default="", help="what else prune is told, such as '--effort best'")
    parser.add_argument("--recover", default="", help="what else recover is told, such as '--set learning_rate=2e-4'")
    parser.add_argument("--eval", default="", help="what else eval is told, such as '--few-shot 0'")
    parser.add_argument("--bench", default="", help="what else bench is told, such as '--runtime gguf'")
    parser.add_argument("--max-tokens", type=int, default=8192, help="tokens judged of each text")
    parser.add_argument("--dtype", default="bfloat16", help="of judging and timing")
    parser.add_argument("--prompts", type=int, default=32, help="that are continued of each text")
    parser.add_argument("--tasks", help="benchmarks, as in prunekit eval; none without")
    parser.add_argument("--task-data", help="their folder; else the hub")
    parser.add_argument("--limit", type=int, help="questions of each task")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--folder", type=Path, required=True, help="where the models are made and stay")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/family_cpu.json"))
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    report = begun(options.output, "family", _asked(options), options.device)
    for share in options.blocks:
        entry = next((run for run in report["runs"] if run["blocks"] == share), None)
        if entry is None:
            entry = {"blocks": share, "commit": commit()}
            report["runs"].append(entry)
        for step, take in STEPS.items():
            if step in entry:
                continue
            print(f"{share:.0%} of the blocks: {step} …", file=sys.stderr, flush=True)
            try:
                entry[step] = take(options, share)
            except subprocess.CalledProcessError as error:
                sys.exit(f"{step} failed: {(error.stderr or '').strip()[-500:]}")
            save(options.output, report)
    print(table(report))
    options.output.with_suffix(".md").write_text(table(report) + "\n", encoding="utf-8")


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """What rows of one report must have in common."""
    return {
        "dense": source_name(options.dense),
        "calib": ",".join(source_name(part) for part in options.calib.split(",")),
        "text": ",".join(source_name(part) for part in options.text.split(",")),
        "held_out": [source_name(text) for text in options.held_out],
        **{name: getattr(options, name) for name in ("tokens", "minutes", "prune", "recover", "eval", "bench")},
        **{name: getattr(options, name) for name in ("max_tokens", "dtype", "prompts", "tasks", "limit", "device")},
    }


def _place(options: argparse.Namespace, step: str, share: float) -> Path:
    return Path(options.folder / f"{step}-{share:g}")


def _pruned(options: argparse.Namespace, share: float) -> dict[str, Any]:
    out = _place(options, "pruned", share)
    command = ["prune", options.dense, "--blocks", share, "--calib", options.calib, "--device", options.device]
    _, spent = measured([*command, *shlex.split(options.prune), "-o", out, "--overwrite"])
    return spent.to_dict()


def _recovered(options: argparse.Namespace, share: float) -> dict[str, Any]:
    out = _place(options, "recovered", share)
    command = ["recover", str(_place(options, "pruned", share)), "--teacher", options.dense, "--text", options.text]
    command += ["--tokens", options.tokens] if options.tokens else ["--minutes", options.minutes]
    command += [*shlex.split(options.recover), "--device", options.device, "-o", str(out), "--json"]
    # Without its row it is of a run that ended in between; --overwrite would throw away an unfinished training too.
    shutil.rmtree(out, ignore_errors=True)
    ended = run(command, out.with_name(f"{out.name}.jsonl"))
    if ended.code:
        raise subprocess.CalledProcessError(ended.code, command, stderr=ended.error)
    return summary(ended)


def _judged(options: argparse.Namespace, share: float) -> dict[str, Any]:
    models = [_place(options, step, share) for step in ("pruned", "recovered")]
    command = ["eval", *models, "--baseline", options.dense, "--max-tokens", options.max_tokens, "--generate"]
    command += ["--prompts", options.prompts, "--dtype", options.dtype, "--device", options.device]
    command += [word for text in options.held_out for word in ("--text", text)]
    for name in ("tasks", "task_data", "limit"):
        value = getattr(options, name)
        command += [] if value is None else [f"--{name.replace('_', '-')}", value]
    found, _ = measured([*command, *shlex.split(options.eval)])
    return dict(found)


def _timed(options: argparse.Namespace, share: float) -> dict[str, Any]:
    model = _place(options, "recovered", share)
    command = ["bench", model, "--baseline", options.dense, "--dtype", options.dtype, "--device", options.device]
    found, _ = measured([*command, *shlex.split(options.bench)])
    return dict(found)


STEPS: dict[str, Callable[[argparse.Namespace, float], dict[str, Any]]] = {
    "pruned": _pruned,
    "recovered": _recovered,
    "judged": _judged,
    "timed": _timed,
}


def table(report: dict[str, Any]) -> str:
    """Markdown: the dense model, then every size before and after its training: what it is, how it does on each text
    and in each benchmark, what it writes, and how fast it decodes."""
    texts = report["asked"]["held_out"]
    done = [run for run in report["runs"] if "judged" in run]
    scored = _scores(done[0]["judged"]["models"][0]) if done else []
    heads = ["model", "parameters, M", *(f"perplexity, {text}" for text in texts), "KL", "loss added"]
    heads += ["same next token", "repetition", "as dense, tokens", *(f"{each['task']}" for each in scored)]
    heads += ["decode, tokens/s", "against dense"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---|" * (len(heads) - 1)]
    for at, entry in enumerate(done):
        judged, tpot = entry["judged"], entry["timed"]["results"][0]["tpot"] if "timed" in entry else None
        if at == 0:
            lines.append(_line(_dense(judged, tpot)))
        for model, name in zip(judged["models"], ("pruned", "recovered"), strict=True):
            speed = tpot if name == "recovered" else None
            lines.append(_line([f"{entry['blocks']:.0%} {name}", *_cells(model, speed)]))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _scores(model: dict[str, Any]) -> list[dict[str, Any]]:
    """The scores of what was asked for, without the tasks of a group."""
    return [each for each in model.get("tasks", {}).get("scores", ()) if not each["level"]]


def _dense(judged: dict[str, Any], tpot: dict[str, Any] | None) -> list[str]:
    model = judged["models"][0]
    cells = ["dense", f"{judged['baseline_parameters'] / 1e6:.1f}"]
    cells += [f"{each['baseline_perplexity']:.1f}" for each in model["results"]]
    cells += ["0", "0", "100 %", f"{mean(each['baseline']['repetition'] or 0 for each in model['generation']):.2f}"]
    cells += [f"{model['generation'][0]['new_tokens']}"]
    cells += [f"{each['baseline']:.3f}" for each in _scores(model)]
    return [*cells, "–" if tpot is None else f"{1 / tpot['dense']['median']:.1f}", "1"]


def _cells(model: dict[str, Any], tpot: dict[str, Any] | None) -> list[str]:
    found, written = model["results"], model["generation"]
    cells = [f"{model['parameters'] / 1e6:.1f}", *(f"{each['perplexity']:.1f}" for each in found)]
    cells += [f"{mean(each[name] for each in found):.3f}" for name in ("kl", "nll_increase")]
    cells.append(f"{100 * mean(each['agreement'] for each in found):.0f} %")
    cells.append(f"{mean(each['model']['repetition'] or 0 for each in written):.2f}")
    cells.append(f"{mean(each['common_prefix'] for each in written):.1f}")
    cells += [_score(each) for each in _scores(model)]
    if tpot is None:
        return [*cells, "–", "–"]
    ratio = tpot["ratio"]
    return [
        *cells,
        f"{1 / tpot['pruned']['median']:.1f}",
        f"{1 / ratio['median']:.2f} ({1 / ratio['p80']:.2f} to {1 / ratio['p20']:.2f})",
    ]


def _score(each: dict[str, Any]) -> str:
    spread = each["standard_error"]
    return f"{each['score']:.3f}" + (f" ± {spread:.3f}" if spread is not None else "")


if __name__ == "__main__":
    main()
