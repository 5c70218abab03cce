"""Does a watch find what it should, how soon, and does it keep quiet else? Real prompts and a real pruned model.

    python -m benchmarks.monitoring smaller --dense smollm2-135m --texts wiki=wiki.txt,handbook=handbook.txt \
        --questions mmlu_test.jsonl.gz --folder pools --output benchmarks/results/monitoring_cpu.json

Pools of requests are made once and kept in --folder: a run that was cut short goes on where it was. Weeks of windows
are drawn from them, and judged by the watch itself, with 1 false alarm a year allowed at one window a week.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.monitoring.pools import ANSWER, PROMPT, Models, Pool, make
from benchmarks.monitoring.simulate import REFERENCE_WINDOWS, WINDOW, Drawn, begins, learn, watch
from benchmarks.quality.report_file import begun, save

POOLS = (
    Pool("wiki", "wiki", 160, own=True),
    Pool("noise-scored", "wiki", 40, scored="noise 1", own=True),
    Pool("handbook", "handbook", 40, own=True),
    Pool("head-scored", "wiki", 40, scored="head", own=True),
    Pool("questions", "questions", 80),
    Pool("wrong-template", "questions", 40, template="wrong"),
    Pool("noise-served", "questions", 40, served="noise 1"),
    Pool("politics", "politics", 40, own=True),
)
# Of a baseline: what is watched, whether its weights are those of the baseline, what should be said, and which part of
# the pool the baseline is of (one in so many: the same prompts as those that are watched).
WATCHED = {
    "wiki": (
        ("handbook", "sound", "re-prune or notice", 1),
        ("politics", "sound", "re-prune or notice", 1),
        ("noise-scored", "other", "investigate", 4),
        ("head-scored", "other", "investigate", 4),
    ),
    "questions": (("wrong-template", "sound", "investigate", 2), ("noise-served", "sound", "investigate", 2)),
}
QUIET_WEEKS, WEEKS = 200, 8
HALVES = (
    "Half a pool is tens of prompts, drawn again and again: two halves are two small populations that do differ, and "
    "the reference knows nothing of that. So `two halves` shows what a reference of too few different requests does, "
    "and `same requests` whether the promise is kept."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dense", default="smollm2-135m")
    parser.add_argument("--texts", required=True, help="NAME=FILE, separated by commas")
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seeds", type=int, default=10, help="tries of each")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    texts = {name: Path(file) for name, file in (each.split("=") for each in options.texts.split(","))}
    texts["questions"] = options.questions
    options.folder.mkdir(exist_ok=True)
    wanted = [each for each in POOLS if each.of in texts]
    if any(not (options.folder / f"{each.name}.json").exists() for each in wanted):
        from prunekit.models.source import resolve

        models = Models.load(resolve(options.model), resolve(options.dense), options.dtype)
        for pool in wanted:
            make(pool, models, texts, options.folder, lambda words, pool=pool: print(pool.name, words, flush=True))
    asked = {"dense": options.dense, "dtype": options.dtype, "window": WINDOW, "prompt": PROMPT, "answer": ANSWER}
    asked |= {"seeds": options.seeds}
    report = begun(options.output, "monitoring", {**asked, "reference_windows": REFERENCE_WINDOWS}, "cpu")
    run(report, options.folder, options.output)


def run(report: dict[str, Any], folder: Path, output: Path | None) -> None:
    """Add what ``report`` has not yet, and save it after each row."""
    done = {(each["baseline"], each["watched"]) for each in report["runs"]}
    for name, others in WATCHED.items():
        if not (folder / f"{name}.json").exists():
            continue
        pool = Drawn.of(folder, name)
        rows = [(name, "sound", "ok", 1), *others]
        for watched, weights, expected, parts in rows:
            if (name, watched) in done or not (folder / f"{watched}.json").exists():
                continue
            seeds = report["asked"]["seeds"]
            row = (
                quiet(pool, folder, seeds)
                if watched == name
                else found(pool.part(0, parts), folder, watched, weights, seeds)
            )
            report["runs"].append({"baseline": name, "watched": watched, "expected": expected, **row})
            save(output, report)
            print(name, watched, {key: each for key, each in row.items() if key != "alarms"}, flush=True)


def quiet(pool: Drawn, folder: Path, seeds: int) -> dict[str, Any]:
    """Weeks in which nothing has changed: with the whole pool as what the server's users ask, and with one half of it
    as the reference and the other as the weeks."""
    made: dict[str, Any] = {"promised_a_year": 1.0, "note": HALVES}
    for kind in ("same requests", "two halves"):
        alarms: list[tuple[int, str]] = []
        verdicts: list[str] = []
        for seed in range(seeds):
            first, second = (
                (pool, pool) if kind == "same requests" else (pool.part(seed % 2, 2), pool.part(1 - seed % 2, 2))
            )
            base, file = learn(first, folder, seed)
            weeks = watch(base, file, second, QUIET_WEEKS, 1000 + seed)
            alarms += begins(weeks)
            verdicts += [verdict for verdict, _ in weeks]
        years = QUIET_WEEKS * seeds * 7 / 365.25
        names = sorted({name for _, name in alarms})
        made[kind] = {
            "requests_in_pool": [len(first.requests), len(second.requests)],
            "weeks": QUIET_WEEKS * seeds,
            "years": round(years, 1),
            "signal_alarms": len(alarms),
            "signal_alarms_a_year": round(len(alarms) / years, 3),
            "by_signal": {name: sum(each == name for _, each in alarms) for name in names},
            "weeks_by_verdict": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
        }
    return made


def found(pool: Drawn, folder: Path, watched: str, weights: str, seeds: int) -> dict[str, Any]:
    """Weeks after a change: the verdicts, and after how many requests the first that is no ok came."""
    other = Drawn.of(folder, watched)
    first, alarmed, last, firsts = [], [], [], []
    for seed in range(seeds):
        base, file = learn(pool, folder, seed)
        weeks = watch(base, file, other, WEEKS, 2000 + seed, weights)
        verdicts = [verdict for verdict, _ in weeks]
        first.append(next((place + 1 for place, each in enumerate(verdicts) if each != "ok"), None))
        acts = ("re-prune", "investigate", "fall back to dense now")
        alarmed.append(next((place + 1 for place, each in enumerate(verdicts) if each in acts), None))
        last.append(verdicts[-1])
        firsts.append({name: week + 1 for week, name in reversed(begins(weeks))})
    return {
        "seeds": seeds,
        "requests_until_not_ok": _requests(first),
        "requests_until_alarm": _requests(alarmed),
        "verdict_after_8_windows": {each: last.count(each) for each in sorted(set(last))},
        "requests_until_each_signal": {
            name: _requests([each.get(name) for each in firsts])
            for name in sorted({key for each in firsts for key in each})
        },
    }


def _requests(windows: list[int | None]) -> dict[str, Any]:
    """Of several tries: how many found it, and the median and the most requests these took."""
    reached = [each * WINDOW for each in windows if each is not None]
    return {
        "found": len(reached),
        "of": len(windows),
        "median": float(np.median(reached)) if reached else None,
        "most": max(reached, default=None),
    }


if __name__ == "__main__":
    main()
