"""Runs every model in a process of its own, in turns, and writes what is known after each measurement."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.server.announce import announce
from benchmarks.server.arms import Arm
from prunekit.utils.process.child import end

KINDS = {"offline": "benchmarks.server.engine", "sweep": "benchmarks.server.serve"}
FORMAT = "prunekit-server"


@dataclass(frozen=True)
class Settings:
    """``prompts`` and ``new`` count tokens; a sweep takes the first prompt length, ``requests`` requests a rate.
    ``mode`` is one of engine.MODES. ``kv_bytes`` sizes the KV cache, else ``memory_share`` of the GPU is all that vLLM
    takes. ``limit_s`` ends a process, and a request that gets no answer."""

    batches: tuple[int, ...] = (1, 8, 64, 256)
    prompts: tuple[int, ...] = (128, 2048)
    new: int = 64
    repeats: int = 3
    rates: tuple[float, ...] = (1.0, 4.0, 16.0, float("inf"))
    requests: int = 64
    mode: str = "graphs"
    dtype: str = "bfloat16"
    load_format: str = "dummy"
    kv_bytes: int | None = None
    memory_share: float = 0.9
    limit_s: float = 240.0


def in_turns(arms: Sequence[Arm]) -> list[tuple[Arm, int]]:
    """Each arm twice, in the order A B C C B A, so that a machine that warms up or slows down wrongs nobody."""
    return [*((arm, 0) for arm in arms), *((arm, 1) for arm in reversed(arms))]


def measure(
    kind: str,
    arms: Sequence[Arm],
    settings: Settings,
    out: Path,
    *,
    budget_s: float | None = None,
    twice: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure ``arms`` (``kind``: offline, or sweep) into ``out``, and return what it holds.

    A run that ``out`` already holds, of the same settings and without a problem, is not run again, so that a
    measurement that was cut short goes on. Nothing begins after ``budget_s`` seconds.
    """
    start = time.perf_counter()
    facts = {"kind": kind, "settings": asdict(settings), "decode_bytes": {arm.name: arm.decode_bytes for arm in arms}}
    # As it will be read again.
    facts = json.loads(json.dumps(facts))
    report: dict[str, Any] = {"format": FORMAT, **facts, "runs": _kept(out, facts)}
    done = {(run["arm"], run["turn"]) for run in report["runs"]}
    for arm, turn in in_turns(arms) if twice else [(arm, 0) for arm in arms]:
        if (arm.name, turn) in done:
            continue
        left = None if budget_s is None else budget_s - (time.perf_counter() - start)
        if left is not None and left <= 0:
            tell(f"{arm.name}: no time left")
            continue
        limit = settings.limit_s if left is None else min(left, settings.limit_s)
        run = {"arm": arm.name, "turn": turn}
        report["runs"].append(run)

        def write(found: dict[str, Any], run: dict[str, Any] = run) -> None:
            run.update(found)
            out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

        _run_one(KINDS[kind], arm, settings, limit, write)
        tell(f"{arm.name}, turn {turn}: {run.get('problem') or str(len(run.get('rows', []))) + ' rows'}")
    return report


def _kept(out: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    if not out.exists():
        return []
    held = json.loads(out.read_text(encoding="utf-8"))
    same = all(held.get(name) == facts[name] for name in ("kind", "settings"))
    return [run for run in held["runs"] if "problem" not in run] if same else []


def _run_one(
    module: str, arm: Arm, settings: Settings, limit_s: float, write: Callable[[dict[str, Any]], None]
) -> None:
    """Run ``module`` on one arm and write what it says, while it runs and at its end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        site = folder / "site"
        site.mkdir()
        environment = announce(site)
        if module == KINDS["offline"]:
            # The engine in the process that is timed: a process more costs start-up, and hides its peak memory.
            environment.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        job, out, log = folder / "job.json", folder / "out.json", folder / "log"
        given = {**asdict(settings), "folder": str(arm.folder), "implementation": arm.implementation, "out": str(out)}
        job.write_text(json.dumps(given), encoding="utf-8")
        seen = ""
        with log.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", module, str(job)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder,
                start_new_session=True,
            )
            begin = time.perf_counter()
            try:
                while process.poll() is None and time.perf_counter() - begin < limit_s:
                    time.sleep(0.2)
                    seen = _passed_on(out, seen, write)
                code = process.poll()
            finally:
                end(process)
        _passed_on(out, seen, write)
        if code != 0:
            said = f"took more than {limit_s:.0f} s" if code is None else f"ended with code {code}"
            write({"problem": said, "log": log.read_text(encoding="utf-8", errors="replace")[-3000:]})


def _passed_on(out: Path, seen: str, write: Callable[[dict[str, Any]], None]) -> str:
    """What ``out`` holds now, written where it is new and whole."""
    text = out.read_text(encoding="utf-8") if out.exists() else ""
    if text and text != seen:
        try:
            found = json.loads(text)
        except ValueError:  # it is being written
            return seen
        write(found)
        return text
    return seen
