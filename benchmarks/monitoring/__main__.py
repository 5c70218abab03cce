"""Does a watch find what it should, how soon, and does it keep quiet else? Real prompts and a real pruned model.

    python -m benchmarks.monitoring smaller --dense smollm2-135m --texts politics=politics.txt,handbook=handbook.txt \
        --questions mmlu_test.jsonl.gz --folder pools --output benchmarks/results/monitoring_cpu.json

Pools of requests are made once and kept in --folder: a run that was cut short goes on where it was. Weeks of windows
are drawn from them, no request twice where the pool is large enough, and judged by the watch itself, with 1 false alarm
a year allowed at one window a week.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.monitoring.pools import ANSWER, PROMPT, Models, Pool, make
from benchmarks.monitoring.simulate import REFERENCE_WINDOWS, WINDOW, Stock, begins, learn, watch
from benchmarks.quality.report_file import begun, save
from prunekit.monitoring.scoring.contexts import ScoringConfig

QUIET_WEEKS, WEEKS = 200, 8
# Requests that the models read.
READ = ScoringConfig().prompts
QUIET = (REFERENCE_WINDOWS + QUIET_WEEKS) * READ
# Enough for tries that share little.
FEW = 2 * WEEKS * READ
POOLS = (
    Pool("politics", "politics", QUIET, others=(REFERENCE_WINDOWS + QUIET_WEEKS) * (WINDOW - READ), own=True),
    Pool("noise-scored", "politics", FEW, scored="noise 1", own=True),
    Pool("head-scored", "politics", FEW, scored="head", own=True),
    Pool("handbook", "handbook", FEW, others=WEEKS * (WINDOW - READ), own=True),
    Pool("wiki", "wiki", FEW, others=WEEKS * (WINDOW - READ), own=True),
    Pool("questions", "questions", REFERENCE_WINDOWS * READ),
    Pool("more-questions", "questions", FEW, first=REFERENCE_WINDOWS * READ),
    Pool("wrong-template", "questions", FEW, first=REFERENCE_WINDOWS * READ, template="wrong"),
    Pool("noise-served", "questions", FEW, first=REFERENCE_WINDOWS * READ, served="noise 1"),
)
# Of a baseline: what is watched, whether its weights are those of the baseline, and what should be said.
WATCHED = {
    "politics": (
        ("handbook", "sound", "re-prune or notice"),
        ("wiki", "sound", "re-prune or notice"),
        ("noise-scored", "other", "investigate"),
        ("head-scored", "other", "investigate"),
    ),
    "questions": (
        ("more-questions", "sound", "ok"),
        ("wrong-template", "sound", "investigate"),
        ("noise-served", "sound", "investigate"),
    ),
}


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
    seeds = report["asked"]["seeds"]
    for name, others in WATCHED.items():
        if not (folder / f"{name}.json").exists():
            continue
        stock = Stock.of(folder, name)
        # A text long enough for two halves.
        rows = [(name, "sound", "ok"), *others] if stock.others else others
        for watched, weights, expected in rows:
            if (name, watched) in done or not (folder / f"{watched}.json").exists():
                continue
            if watched == name:
                row = quiet(stock, folder, seeds)
            else:
                # Faults are tried on the pool's first requests, which the reference is then without.
                rest = stock.without(FEW if stock.others else 0)
                row = found(rest, Stock.of(folder, watched), folder, weights, seeds)
            report["runs"].append({"baseline": name, "watched": watched, "expected": expected, **row})
            save(output, report)
            print(name, watched, row, flush=True)


def quiet(stock: Stock, folder: Path, seeds: int) -> dict[str, Any]:
    """Weeks in which nothing has changed: two halves of one text, split anew for each try."""
    alarms: list[tuple[int, str]] = []
    verdicts: list[str] = []
    for seed in range(seeds):
        share = REFERENCE_WINDOWS / (REFERENCE_WINDOWS + QUIET_WEEKS)
        first, second = stock.halves(share, np.random.default_rng(seed))
        base, file = learn(first, folder, seed)
        weeks = watch(base, file, second, QUIET_WEEKS, 1000 + seed)
        alarms += begins(weeks)
        verdicts += [verdict for verdict, _ in weeks]
    years = QUIET_WEEKS * seeds * 7 / 365.25
    names = sorted({name for _, name in alarms})
    return {
        "promised_a_year": 1.0,
        "weeks": QUIET_WEEKS * seeds,
        "years": round(years, 1),
        "signal_alarms": len(alarms),
        "signal_alarms_a_year": round(len(alarms) / years, 3),
        "by_signal": {name: sum(each == name for _, each in alarms) for name in names},
        "weeks_by_verdict": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
    }


def found(stock: Stock, other: Stock, folder: Path, weights: str, seeds: int) -> dict[str, Any]:
    """Weeks after a change: the verdicts, and after how many requests the first that is no ok came."""
    first, alarmed, last, firsts = [], [], [], []
    for seed in range(seeds):
        base, file = learn(stock, folder, seed)
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
