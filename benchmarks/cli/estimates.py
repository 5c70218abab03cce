"""How good the estimates of a command were: what it said was left, beside what really was, from its log.

    prunekit prune smollm2-135m --blocks 0.8 --effort quick -v --log run.log -o smaller/
    python -m benchmarks.cli.estimates run.log other.log --conditions "one thread, other work on the other core" \\
        --output benchmarks/results/estimates_cpu.json

Any command with --log will do; with -v there is a line every ten seconds. At 10, 25, 50 and 75 % of the run, and of
each phase that took a minute or more, the last line before that moment says what was left, less the seconds since it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

SHARES = (0.1, 0.25, 0.5, 0.75)
# Of shorter phases, one line or none says what is left.
_LONG = 60.0
_ROW = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (.*)")
_PHASE = re.compile(r"\[(\d+)/(\d+)\+?\] ([^,(]*?)(?: [\d,]+/[\d,]+)?(?: begins)?(?: \([^)]*\))?(?:[,:] (.*))?$")
_TIME = r"((?:[\d.]+ (?:s|min|h|days) ?)+)"
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "days": 86400.0}


@dataclass(frozen=True)
class Said:
    """One line: its second, counted from the first one, the phase that it is about, and what was said to be left of the
    phase and of the run in seconds; ``ended`` where the phase has."""

    second: float
    phase: str
    left: float | None
    in_all: float | None
    ended: bool


def seconds(words: str) -> float:
    """``2 h 05 min`` in seconds."""
    parts = words.split()
    return sum(float(value) * _UNITS[unit] for value, unit in zip(parts[::2], parts[1::2], strict=True))


def read(lines: Iterable[str]) -> tuple[str, list[Said], float]:
    """The command of the last run in a log, its lines, and how many seconds it took. Raises ValueError where the log
    tells of no run that has finished."""
    command, start, end = "", None, None
    said: list[Said] = []
    for line in lines:
        if (row := _ROW.match(line)) is None:
            continue
        moment, words = datetime.strptime(row[1], "%Y-%m-%d %H:%M:%S"), row[2]
        if words.startswith("prunekit "):
            command, start, end, said = words, moment, None, []
        elif start is None:
            continue
        elif words.startswith("finished after"):
            end = (moment - start).total_seconds()
        elif (found := _PHASE.match(words)) is not None:
            said.append(_said(found, words, (moment - start).total_seconds()))
    if end is None:
        raise ValueError("the log tells of no run that has finished")
    return command, said, end


def _said(found: re.Match[str], words: str, second: float) -> Said:
    rest = found[4] or ""
    left = re.search(rf"about {_TIME}left", rest)
    whole = re.search(rf"{_TIME}in all", rest)
    first = seconds(left[1]) if left else None
    # Where nothing follows, what is left of the phase is all.
    last = found[1] == found[2]
    in_all = seconds(whole[1]) if whole else first if last or (left and "of this phase" not in rest) else None
    ended = re.match(r"\[\d+/\d+\+?\] [^,(]*: ", words) is not None
    return Said(second, found[3], first, in_all, ended)


def of_run(said: list[Said], took: float) -> list[dict[str, Any]]:
    """What the command said of its whole."""
    told = [(each.second, each.in_all) for each in said if each.in_all is not None]
    return [_beside(share, 0.0, took, told) for share in SHARES]


def of_phases(said: list[Said]) -> dict[str, list[dict[str, Any]]]:
    """What it said of each long phase."""
    made = {}
    begin = 0.0
    for each in said:
        if not each.ended:
            continue
        took = each.second - begin
        if took >= _LONG:
            own = [one for one in said if one.phase == each.phase and begin <= one.second <= each.second]
            told = [(one.second, one.left) for one in own if one.left is not None]
            made[each.phase] = [_beside(share, begin, took, told) for share in SHARES]
        begin = each.second
    return made


def _beside(share: float, begin: float, took: float, told: list[tuple[float, float]]) -> dict[str, Any]:
    moment = begin + share * took
    known = [(second, left) for second, left in told if second <= moment]
    real = (1 - share) * took
    if not known:
        return {"share": share, "left": round(real, 1), "said": None, "error": None}
    second, left = known[-1]
    guess = max(0.0, left - (moment - second))
    return {"share": share, "left": round(real, 1), "said": round(guess, 1), "error": round(guess / real - 1, 3)}


def table(report: dict[str, Any]) -> str:
    """Markdown."""
    rows = ["| | " + " | ".join(f"at {share:.0%}" for share in SHARES) + " |", "|---" * (len(SHARES) + 1) + "|"]
    for each in report["commands"]:
        rows += [_row(f"`{each['command']}`", each["run"]), *(_row(*phase) for phase in each["phases"].items())]
    return "\n".join(rows)


def _row(name: str, found: list[dict[str, Any]]) -> str:
    cells = [
        "nothing said"
        if each["error"] is None
        else f"{each['said']:.0f} s of {each['left']:.0f} ({each['error']:+.0%})"
        for each in found
    ]
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path, nargs="+", metavar="log")
    parser.add_argument("--conditions", required=True, help="threads, and what else ran on the machine")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    from prunekit.utils.machine import cpu_name
    from prunekit.utils.provenance import versions

    commands = []
    for log in options.logs:
        try:
            command, said, took = read(log.read_text(encoding="utf-8").splitlines())
        except ValueError as error:
            sys.exit(f"{log}: {error}.")
        commands.append(
            {
                # Without places of this machine.
                "command": re.sub(r"(?<= )\S*/(?=\S)", "", command),
                "seconds": took,
                "run": of_run(said, took),
                "phases": of_phases(said),
                "lines": [asdict(each) for each in said],
            }
        )
    report = {
        "format": "prunekit-estimates",
        "conditions": options.conditions,
        "cpu": cpu_name(),
        "versions": versions(),
        "commands": commands,
    }
    print(table(report))
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
