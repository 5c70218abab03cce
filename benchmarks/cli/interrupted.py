"""What a command does twice where it is interrupted: stopped in one phase after the other, each time begun again.

    python -m benchmarks.cli.interrupted --stop "own text" --stop "Fisher information" --stop "loss curves" \\
        --stop refit --stop rescaling --folder work --output benchmarks/results/interrupted_cpu.json \\
        -- prune smollm2-135m --blocks 0.79 --effort quick --calib calibration.txt:0.67,self:0.33 -o smaller

Ctrl-C (SIGINT) comes when half of the steps of a phase are done. The same command then goes on, in a cache that was
empty at first. What counts is how long it takes until it stands where it was stopped: loading, and what is done again.
The log has a line every ten seconds, so that this is up to ten seconds too much.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.quality.report_file import begun, save
from prunekit.utils.process.child import environment, python_command

_LINE = re.compile(r"\S+ \S+ \[\d+/\d+\+?\] ([^:,(]*?)(?: ([\d,]+)/([\d,]+))?( begins)?(?: \([^)]*\))?(: .*|, .*)?$")
_LOOK = 0.2


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stop", action="append", required=True, help="repeatable: phases, in their order")
    parser.add_argument("--folder", type=Path, required=True, help="where the cache and the log of the runs are made")
    parser.add_argument("--conditions", default="", help="what else the machine does")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after --: what prunekit is told")
    options = parser.parse_args(arguments)
    told = [each for each in options.command if each != "--"]
    options.folder.mkdir(parents=True, exist_ok=True)
    # A shell starts what is to run in the background with Ctrl-C ignored, and what is started here would ignore it too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    asked = {"command": "prunekit " + " ".join(told), "stops": options.stop, "conditions": options.conditions}
    report = begun(options.output, "interrupted", asked, "cpu")
    before: tuple[str, float] | None = None
    for stop in [*options.stop, None]:
        row = run(told, options.folder, stop, before)
        report["runs"].append(row)
        save(options.output, report)
        print(json.dumps(row), file=sys.stderr, flush=True)
        before = None if stop is None else (stop, row["done"])
    print(table(report))


def run(told: list[str], folder: Path, stop: str | None, before: tuple[str, float] | None) -> dict[str, Any]:
    """The command, until half of the phase ``stop`` is done (None: to its end). ``before`` is where the last run was
    stopped: the phase and the share of its steps; ``back`` are the seconds until this one stands there."""
    log = folder / "run.log"
    log.unlink(missing_ok=True)
    cache = {"PRUNEKIT_CACHE": str(folder.absolute() / "cache")}
    command = python_command(module="prunekit", arguments=[*told, "-v", "--log", str(log)])
    began = time.monotonic()
    back = None
    with subprocess.Popen(
        command, env={**environment(), **cache}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        stopped = False
        while process.poll() is None and not stopped:
            time.sleep(_LOOK)
            found = reached(log)
            if before is not None and back is None and stands(found, *before):
                back = time.monotonic() - began
            if stop is not None and stands(found, stop, 0.5):
                process.send_signal(signal.SIGINT)
                stopped = True
        _, error = process.communicate()
    seconds = time.monotonic() - began
    if process.returncode != (130 if stop is not None else 0):
        raise SystemExit(f"{'stopping in ' + stop if stop else 'the end'} came to {process.returncode}: {error[-500:]}")
    said = error.strip().splitlines()
    return {
        "stopped_in": stop,
        "done": reached(log).get(stop, 0.5) if stop else None,
        "seconds": round(seconds, 1),
        "back_after": None if back is None else round(back, 1),
        "kept": next((each for each in reversed(said) if "the same command goes on" in each), None) if stop else None,
        "load": round(os.getloadavg()[0], 1),
    }


def reached(log: Path) -> dict[str, float]:
    """The share of its steps that each phase has done, by the log."""
    made: dict[str, float] = {}
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
    except OSError:
        return made
    for line in lines:
        if (found := _LINE.match(line)) is None:
            continue
        name, done, whole, begins, rest = found.groups()
        if begins or (rest or "").startswith(","):
            share = int(done.replace(",", "")) / int(whole.replace(",", "")) if done else 0.0
        else:
            share = 1.0
        made[name] = max(share, made.get(name, 0.0))
    return made


def stands(found: dict[str, float], phase: str, share: float) -> bool:
    """Whether a run that has ``found`` so much done is at ``share`` of ``phase``, or beyond it."""
    return found.get(phase, -1.0) >= share


def table(report: dict[str, Any]) -> str:
    """Markdown: each stop, and how long it took to be there again."""
    rows = report["runs"]
    lines = ["| stopped in | steps done | after, s | there again after, s |", "|---|---|---|---|"]
    for row, later in itertools.pairwise(rows):
        again = "–" if later["back_after"] is None else f"{later['back_after']:.0f}"
        lines.append(f"| {row['stopped_in']} | {row['done']:.0%} | {row['seconds']:.0f} | {again} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
