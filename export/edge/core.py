"""What bench.py of every export does: read a prompt, answer it, time both, and say whether to believe it."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.utils.measuring.doubts import (
    Doubt,
    is_narrow,
    median_interval,
    of_drift,
    of_machine,
    of_spread,
    quantile,
)
from prunekit.utils.measuring.load import Load, between, load_during, read_counters, usable_cpus
from prunekit.utils.measuring.resident import peak_bytes

FORMAT, VERSION = "prunekit-bench-edge", 1
MANIFEST = "prunekit-export.json"
_MOST_RUNS = 1000
# Runtimes that choose their device by their own build or settings.
_CHOOSE = ("onnx-genai", "vllm")


class Refused(Exception):
    """What the user can mend, as one sentence."""


def parser() -> argparse.ArgumentParser:
    """The options of bench.py."""
    made = argparse.ArgumentParser(
        prog="bench.py",
        description="Times the model in this folder on this machine, in the runtime that it was exported for: the "
        "first token (a prompt is read) and each further one. Prints a table and writes bench.json. Needs that runtime "
        "and numpy, and no network.",
    )
    made.add_argument("--prompt-tokens", type=int, default=128, help="tokens of a prompt (128)")
    made.add_argument("--new-tokens", type=int, default=32, help="tokens to decode after the first (32)")
    made.add_argument("--repeats", type=int, default=10, help="measured runs, of which medians are taken (10)")
    made.add_argument(
        "--max-minutes",
        type=float,
        default=2.0,
        help="take more runs for at most so long, until the 95 %% interval of both medians is narrow; 0 takes "
        "--repeats runs (2)",
    )
    made.add_argument("--warmup", type=int, default=2, help="runs before measuring (2)")
    made.add_argument(
        "--threads", type=int, help="CPU threads (as many as CPUs that this process may use, or OMP_NUM_THREADS)"
    )
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: what it was made for")
    made.add_argument("--seed", type=int, default=0, help="seed of the prompt's random tokens (0)")
    made.add_argument("--output", default="bench.json", help="where to write the result (bench.json)")
    made.add_argument("--overwrite", action="store_true", help="replace an earlier result of that name")
    made.add_argument("--json", action="store_true", help="print the result as JSON instead of a table")
    return made


def main(runtime: Callable[[], tuple[Any, Sequence[str]]], folder: Path, words: Sequence[str] | None = None) -> int:
    """Measure the export in ``folder``. ``runtime`` imports its runtime, and returns the class that runs it and the
    packages whose versions count. Returns the exit code."""
    asked = parser().parse_args(words)
    try:
        made = measure(runtime, folder, asked)
        _write(Path(asked.output), made, asked.overwrite)
    except Refused as error:
        print(f"bench.py: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("bench.py: stopped; nothing was written.", file=sys.stderr)  # noqa: T201
        return 130
    print(json.dumps(made, indent=1) if asked.json else table(made))  # noqa: T201
    return 0


def measure(
    runtime: Callable[[], tuple[Any, Sequence[str]]], folder: Path, asked: argparse.Namespace
) -> dict[str, Any]:
    """What bench.json holds. Raises Refused."""
    counts = {"prompt-tokens": 1, "new-tokens": 1, "repeats": 2, "warmup": 0, "threads": 1, "seed": 0}
    for name, least in counts.items():
        value = getattr(asked, name.replace("-", "_"))
        if value is not None and value < least:
            raise Refused(f"--{name} must be a whole number of at least {least}, got {value}.")
    if not 0 <= asked.max_minutes <= 24 * 60:
        raise Refused(f"--max-minutes must be from 0 to {24 * 60}, got {asked.max_minutes:g}.")
    _check_output(Path(asked.output), asked.overwrite)
    export, devices, room = _manifest(folder)
    needed = asked.prompt_tokens + asked.new_tokens + 1
    if needed > room:
        raise Refused(f"{needed} tokens are more than the {room} that this export was made for; ask for fewer.")
    device = export["device"] if asked.device == "auto" else asked.device
    # These choose for themselves, by their build or by what the folder says.
    own = export["target"] in _CHOOSE and device != export["device"]
    if own or device not in devices:
        there = export["device"] if own else " or ".join(devices)
        raise Refused(f"This export runs on {there}, not on {device}; leave --device out, or export it for {device}.")
    try:
        kind, packages = runtime()
    except ImportError as error:
        raise Refused(f"The runtime of this export, {export['target']}, is not here: {error}. Install it.") from None
    held = peak_bytes()
    threads = asked.threads or _threads()
    try:
        model = kind(folder, threads, device, room)
        ids = np.random.default_rng(asked.seed).integers(1, model.vocab_size, asked.prompt_tokens).tolist()
        before = load_during(0.5)
        ttft, tpot, during = timed(model, ids, asked)
    except Exception as error:  # every runtime has types of its own
        why = " ".join(str(error).split())[:500].rstrip(".")
        raise Refused(f"The export can't be run here ({type(error).__name__}): {why}.") from error
    doubts = of_machine(during.others, during.stolen, during.swapped, during.cpus, during.throttled)
    first = _figure(ttft, doubts, "the time to the first token", "The first token")
    other = _figure(tpot, doubts, "the time of a further token", "A further token")
    names = ("prompt_tokens", "new_tokens", "repeats", "max_minutes", "warmup", "seed")
    return {
        "format": FORMAT,
        "version": VERSION,
        "export": export,
        "machine": _machine(),
        "packages": _versions(packages),
        "device": device,
        "config": {**{name: getattr(asked, name) for name in names}, "threads": threads},
        "ttft": first,
        "tpot": other,
        "peak_bytes": peak_bytes() if device == "cpu" else None,
        "peak_how": "peak resident memory of this process, Python and the loading of the model with it"
        if device == "cpu"
        else "not measured: this script does not see the memory of a GPU",
        "before_bytes": held,
        "load_before": asdict(before),
        "load": asdict(during),
        "believed": first["believed"] and other["believed"],
    }


def _threads() -> int:
    """How many threads every runtime is told to compute on where nobody says: their own defaults differ."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if re.fullmatch(r"0*[1-9][0-9]{0,3}", said) else usable_cpus()


def timed(model: Any, ids: list[int], asked: argparse.Namespace) -> tuple[list[float], list[float], Load]:
    """Seconds until the first token and of each other one, run after run, and what the machine did meanwhile."""
    answer = getattr(model, "answer", None) or (lambda *given: _answer(model, *given))
    for _ in range(asked.warmup):
        answer(ids, asked.new_tokens, time.perf_counter)
    ttft: list[float] = []
    tpot: list[float] = []
    counters, begin = read_counters(), time.monotonic()
    while True:
        first, other = answer(ids, asked.new_tokens, time.perf_counter)
        ttft.append(first)
        tpot.append(other)
        if len(ttft) < asked.repeats:
            continue
        up = time.monotonic() - begin >= 60 * asked.max_minutes or len(ttft) >= _MOST_RUNS
        if up or (is_narrow(ttft) and is_narrow(tpot)):
            return ttft, tpot, between(counters, read_counters())


def _answer(model: Any, ids: list[int], tokens: int, clock: Callable[[], float]) -> tuple[float, float]:
    begin = clock()
    token = model.start(ids)
    first = clock()
    for _ in range(tokens):
        token = model.step(token)
    return first - begin, (clock() - first) / tokens


def _figure(seconds: list[float], doubts: list[Doubt], what: str, whose: str) -> dict[str, Any]:
    milliseconds = [1e3 * each for each in seconds]
    found = [*doubts, *of_spread(milliseconds, what, "ms"), *of_drift(seconds, whose)]
    interval = median_interval(seconds)
    return {
        "median": quantile(seconds, 0.5),
        "p20": quantile(seconds, 0.2),
        "p80": quantile(seconds, 0.8),
        "count": len(seconds),
        "interval": None if interval is None else list(interval),
        "believed": not found,
        "flags": [each.flag for each in found],
        "why": [each.why for each in found],
    }


def _manifest(folder: Path) -> tuple[dict[str, Any], list[str], int]:
    """Which export this is, what it runs on, and the tokens that it has room for."""
    try:
        data = (folder / MANIFEST).read_bytes()
        told = json.loads(data)
        export = {
            "target": told["target"],
            "dtype": told["dtype"],
            "name": told["source"]["name"],
            "fingerprint": told["source"]["fingerprint"],
            "manifest_sha256": hashlib.sha256(data).hexdigest(),
            "device": told["device"]["kind"],
        }
        return export, [*map(str, told["runs_on"])], int(told["context_length"])
    except (OSError, ValueError, KeyError, TypeError):
        raise Refused(f"{folder / MANIFEST} is missing or damaged; export the model again.") from None


def _machine() -> dict[str, Any]:
    """Processor, system and Python; not the machine's name."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(
                (line.partition(":")[2].strip() for line in file if line.startswith(("model name", "Model"))), name
            )
    except OSError:
        pass
    return {
        "cpu": name,
        "logical_cpus": os.cpu_count(),
        "os": platform.platform(),
        "python": platform.python_version(),
    }


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in ("numpy", *packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _check_output(path: Path, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise Refused(f"The folder {path.parent} does not exist; make it, or write elsewhere with --output.")
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise Refused(f"{path} already exists; choose another name with --output, or say --overwrite.")
    try:
        with path.open("rb") as file:
            ours = f'"format": "{FORMAT}"'.encode() in file.read(200)
    except OSError:
        ours = False
    if path.is_symlink() or not ours:
        raise Refused(f"{path} is no result of bench.py, so it is not replaced; choose another name with --output.")


def _write(path: Path, made: dict[str, Any], overwrite: bool) -> None:
    """Under another name first, so that no half of it is ever there."""
    _check_output(path, overwrite)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(made, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise Refused(f"{path} can't be written: {error.strerror or error}.") from None


def table(made: dict[str, Any]) -> str:
    """The result as people read it."""
    export, config, load = made["export"], made["config"], made["load"]
    lines = [
        f"{_plain(export['name'])} for {export['target']}, {export['dtype']}, on {made['device']}: "
        f"{made['machine']['cpu']}",
        f"prompt {config['prompt_tokens']}, {config['new_tokens']} tokens decoded, "
        f"{config['threads']} {'thread' if config['threads'] == 1 else 'threads'}, {made['ttft']['count']} runs; "
        + ", ".join(f"{name} {found}" for name, found in made["packages"].items()),
        "",
        f"{'':26}{'median ms':>12}{'p20':>12}{'p80':>12}{'tokens/s':>12}",
    ]
    for title, name, tokens in (
        ("first token", "ttft", config["prompt_tokens"]),
        ("each further token", "tpot", 1),
    ):
        figure = made[name]
        cells = "".join(f"{figure[key] * 1e3:>12,.2f}" for key in ("median", "p20", "p80"))
        rate = f"{tokens / figure['median']:>12,.1f}" if figure["median"] > 0 else f"{'-':>12}"
        lines.append(f"{title:26}{cells}{rate}{'' if figure['believed'] else '  not believed'}")
    if made["peak_bytes"] is None:
        lines.append(f"peak memory: {made['peak_how'] if made['device'] != 'cpu' else 'not measured on this system'}")
    else:
        lines.append(
            f"peak memory{made['peak_bytes'] / 2**20:>27,.1f} MiB ({made['before_bytes'] / 2**20:,.1f} MiB before the "
            "model was loaded)"
        )
    if load["others"] is not None:
        lines.append(f"other processes kept {load['others']:.2f} of {load['cpus']} CPUs busy while timing")
    lines += [f"Do not believe this: {why}" for why in dict.fromkeys([*made["ttft"]["why"], *made["tpot"]["why"]])]
    return "\n".join(lines)


def _plain(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in str(text))
