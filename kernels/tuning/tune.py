"""Measure every way to compute every op on this GPU, and write the table that
:mod:`prunekit.kernels.ops.utils.dispatch` reads.

    python -m prunekit.kernels.tuning.tune                  # for this machine: into the user's cache folder
    python -m prunekit.kernels.tuning.tune --ship           # for everybody: into kernels/tables of this source tree
    python -m prunekit.kernels.tuning.tune --rehearse       # tiny sizes on the CPU, to see that it runs; writes no
    table

Needs PyTorch and Triton. A way whose result is wrong or that fails is never chosen, and the default is left only for
one that is at least 2 % faster.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from prunekit.errors import PrunekitError
from prunekit.kernels.ops.utils import dispatch as select
from prunekit.kernels.ops.utils.backend import using, why_not_triton
from prunekit.kernels.ops.utils.dispatch import OPS, choosing
from prunekit.kernels.tuning.arena import Arena
from prunekit.kernels.tuning.cases import (
    IN_CHAINS,
    LAYERS,
    PREFILL_ROWS,
    SHAPES,
    Shape,
    candidates,
    cases,
    chain,
    workload,
)
from prunekit.kernels.tuning.chain import Layer
from prunekit.kernels.tuning.measure import Call, Data, copies, in_turns, replayable
from prunekit.utils.files.atomic import check_output_file, rewrite_text, write_text
from prunekit.utils.names import sentence
from prunekit.utils.process.child import environment, find_program, safe_children
from prunekit.utils.provenance import installed

_WHAT = "kernel-table"
# Faster by less than this is noise, or not worth leaving the default; of layers together an op is only a part.
GAIN = 0.98
CHAIN_GAIN = 0.995
# Relative differences from PyTorch in the same dtype: of one op, and of layers one after the other.
_CLOSE, _CLOSE_CHAIN = 0.02, 0.05


def measure(
    op: str,
    sizes: dict[str, int],
    device: torch.device,
    dtype: torch.dtype,
    *,
    forced: dict[str, str] | None = None,
    rounds: int = 20,
    layers: Sequence[Layer] = LAYERS,
    arena: Arena | None = None,
) -> dict[str, Any] | None:
    """One entry of the table; None where nothing can be chosen here. ``forced`` holds choices for other ops. ``us`` are
    of one call of the op, or of some layers of a decode step, whose weights come from ``arena``."""
    names = list(candidates(op, device, dtype, sizes))
    if not names:
        return None
    # No table is read while one is made: it may be the broken one that is to be replaced.
    others = {other: known.default for other, known in OPS.items()} | (forced or {})
    here = (op, select.bucket(op, tuple(sizes.values())))
    data = Data(device, dtype)
    in_chains = op in IN_CHAINS
    if in_chains:
        calls: list[Call] = [chain(op, sizes, data, layers, arena)]
    else:
        calls = [workload(op, data, **sizes)]
        calls += [workload(op, data, **sizes) for _ in range(copies(data.bytes, device) - 1)]
    if device.type == "meta":  # launches are noted, and there is nothing to compare
        for name in names:
            _all(calls[:1], others, {here: name})()
        return None
    with using("torch"), choosing(**others):
        expected = calls[0]().float()
    runs, failed = {}, {}
    for name in names:
        run = _all(calls, others, {here: name})
        try:
            with choosing({here: name}, **others):
                off = ((calls[0]().float() - expected).norm() / expected.norm()).item()
            if not off < (_CLOSE_CHAIN if in_chains else _CLOSE):
                raise ArithmeticError(f"off by {off:.2g} from PyTorch")
            runs[name] = replayable(run, device)
        # A library's kernel may fail in its own way; the others are still to be measured.
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"[:200]
    seconds = in_turns(runs, device, rounds)
    gain = CHAIN_GAIN if in_chains else GAIN
    entry: dict[str, Any] = {"op": op, **sizes, "choice": fastest(seconds, OPS[op].default, gain)}
    entry["us"] = {name: round(value / len(calls) * 1e6, 3) for name, value in seconds.items()}
    return entry | ({"failed": failed} if failed else {})


def _all(
    calls: Sequence[Call], choices: dict[str, str], at: dict[tuple[str, tuple[int, ...]], str]
) -> Callable[[], None]:
    def run() -> None:
        with choosing(at, **choices):
            for call in calls:
                call()

    return run


def fastest(seconds: dict[str, float], default: str, gain: float = GAIN) -> str:
    """The choice with the least time, but the default where it is nearly as fast, or where nothing ran."""
    if not seconds:
        return default
    best = min(seconds, key=lambda name: seconds[name])
    return default if default in seconds and seconds[best] > gain * seconds[default] else best


def tune(
    device: torch.device,
    shapes: Sequence[Shape] = SHAPES,
    *,
    prefill: Sequence[int] = PREFILL_ROWS,
    ops: Iterable[str] = tuple(OPS),
    dtype: torch.dtype = torch.bfloat16,
    rounds: int = 20,
    layers: Sequence[Layer] = LAYERS,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The table of this device, as select reads it from JSON."""
    entries = []
    ops = tuple(ops)
    arena = Arena(device, dtype, 1 << 31) if device.type == "cuda" and not {*IN_CHAINS}.isdisjoint(ops) else None
    for op in ops:
        for sizes in cases(op, shapes, prefill, layers):
            try:
                entry = measure(op, sizes, device, dtype, rounds=rounds, layers=layers, arena=arena)
            except torch.OutOfMemoryError:
                progress(f"{op} {sizes}: not enough memory, left out")
                continue
            if entry is None:
                continue
            entries.append(entry)
            progress(f"{op} {' '.join(f'{name}={size}' for name, size in sizes.items())}: {entry['us']}")
    return table_of(entries, device, dtype)


def table_of(entries: Sequence[dict[str, Any]], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Entries as the table of this device."""
    return {
        "format": f"prunekit-{_WHAT}",
        "schema": select.SCHEMA,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "none",
        "provenance": {
            "prunekit": installed("prunekit"),
            "torch": torch.__version__,
            "triton": installed("triton"),
            "driver": _driver() if device.type == "cuda" else None,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "dtype": str(dtype).removeprefix("torch."),
        },
        "entries": list(entries),
    }


def _driver() -> str | None:
    tool = find_program("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, env=environment(), check=False).stdout.split()
    return lines[0] if lines else None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m prunekit.kernels.tuning.tune",
        description="Measure the ways to compute each op on this GPU, and write the table that the kernels choose by.",
    )
    parser.add_argument("--ops", default=",".join(OPS), help="which ops, separated by commas (default: all)")
    parser.add_argument("--output", type=Path, help="write the table to this file instead of the user's cache folder")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier table of that name")
    parser.add_argument("--ship", action="store_true", help="write it into kernels/tables, to be shipped")
    parser.add_argument("--rounds", type=int, default=20, help="runs of each candidate (default: 20)")
    parser.add_argument("--device", default="cuda", help="which GPU (default: cuda)")
    parser.add_argument("--json", action="store_true", help="print the table instead of a summary")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU; its numbers mean nothing")
    options = parser.parse_args(arguments)
    try:
        with safe_children():
            table, path = _measured(options)
    except PrunekitError as error:
        if options.json:
            print(json.dumps({"error": sentence(str(error))}))
        print(f"prunekit: {sentence(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prunekit: stopped; no table was written.", file=sys.stderr)
        return 130
    text = json.dumps(table, indent=1)
    if options.json:
        print(text)
        return 0
    for op, counts in _counts(table).items():
        print(f"{op}: {', '.join(f'{choice} {count} times' for choice, count in counts.most_common())}")
    if options.rehearse:
        print("This was a rehearsal on the CPU with tiny sizes: the times mean nothing.")
    print(f"Written to {path}" if path else "No table was written.")
    return 0


def _counts(table: dict[str, Any]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for entry in table["entries"]:
        counts.setdefault(entry["op"], Counter())[entry["choice"]] += 1
    return counts


def _measured(options: argparse.Namespace) -> tuple[dict[str, Any], Path | None]:
    ops = options.ops.split(",")
    unknown = [op for op in ops if op not in OPS]
    if unknown:
        raise PrunekitError(f"There is no op {unknown[0]!r} to measure; there are {', '.join(OPS)}.")
    if options.rounds < 1:
        raise PrunekitError(f"--rounds {options.rounds} measures nothing; give 1 or more.")
    if options.rehearse:
        if options.ship:
            raise PrunekitError("A rehearsal measures nothing, so its table can't be shipped; leave --ship out.")
        device, path = torch.device("cpu"), options.output
        settings: dict[str, Any] = {"shapes": [Shape(64, 37)], "prefill": (17,), "rounds": 1}
        settings["layers"] = [Layer(64, 16, 6, 3, 37, 70, count=1)]
        settings["dtype"] = torch.float16
    else:
        if not torch.cuda.is_available():
            raise PrunekitError("No GPU was found to measure; --rehearse runs the same with tiny sizes on the CPU.")
        try:
            device = torch.device(options.device)
            gpu = torch.cuda.get_device_name(device)
        except (RuntimeError, ValueError, AssertionError):
            raise PrunekitError(f"There is no GPU {options.device!r}; give --device cuda or cuda:1.") from None
        path = options.output or (select.SHIPPED / select.file_name(gpu) if options.ship else select.user_file(gpu))
        dtype = torch.float16 if why_not_triton(device, torch.bfloat16) else torch.bfloat16
        settings = {"dtype": dtype, "rounds": options.rounds}
    if path is not None:
        if options.output is None:
            path.parent.mkdir(parents=True, exist_ok=True)
        if options.output is not None:  # before minutes of work
            check_output_file(path, options.overwrite, what=_WHAT)

    def show(line: str) -> None:
        print(line, file=sys.stderr)

    with _on(device):
        table = tune(device, ops=ops, progress=show, **settings)
    given = ["--ship"] * options.ship
    given += [f"--ops {options.ops}"] if len(ops) < len(OPS) else []
    table["provenance"]["command"] = " ".join(["python -m prunekit.kernels.tuning.tune", *given])
    if path is not None:
        text = json.dumps(table, indent=1) + "\n"
        if options.output is None:
            rewrite_text(path, text)
        else:
            write_text(path, text, options.overwrite, what=_WHAT)
        select.reload()
    return table, path


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), torch.inference_mode():
        yield


if __name__ == "__main__":
    raise SystemExit(main())
