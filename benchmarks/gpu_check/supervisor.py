"""Watches the process that does the work, and sums up what it left. Needs no torch."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.common.record import SCHEMA, read_json, running_path, write_json
from benchmarks.gpu_check.blocks import BLOCKS
from benchmarks.gpu_check.goals import evaluate
from benchmarks.gpu_check.tables import render
from prunekit.utils.process.child import kill

# Seconds after the deadline in which what is running may end.
GRACE_S = 20.0
MOST_WORKERS = 20


def slug(name: str) -> str:
    """A GPU's name as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def begin_again(folder: Path, stem: str, gpu: str | None) -> str | None:
    """Give every block of a run its time anew. Returns a sentence where that can't be gone on with: times of different
    GPUs don't belong in one table."""
    blocks = load(folder, stem)
    for block in blocks.values():
        if block["schema"] != SCHEMA:
            return f"The files {stem}_*.json are of an earlier version; begin a new run."
        before = None if block["rehearsal"] else block["device"]["name"]
        if before != gpu:
            return f"The files {stem}_*.json were measured on {before or 'a CPU'}, and this is {gpu or 'a CPU'}."
    for name, block in blocks.items():
        write_json(folder / f"{stem}_{name}.json", block | {"spent_s": 0.0})
        # What was cut off with the run was not at fault, and is measured anew.
        running_path(folder / f"{stem}_{name}.json").unlink(missing_ok=True)
    return None


def run_workers(
    command: list[str], environment: dict[str, str], folder: Path, stem: str, deadline: float | None
) -> bool:
    """Run ``command`` again and again until one ends by itself or the time is up; True where all was tried.

    A worker is killed where one measurement takes longer than its record allows. The next one leaves it out.
    """
    before = None
    for _ in range(MOST_WORKERS):
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            late = _watch(process, folder, stem, deadline)
        finally:
            # Whatever ends this process must not leave the GPU busy.
            if process.poll() is None:
                kill(process)
            process.wait()
        if process.returncode == 0:
            return True
        if late:
            print("The time is up.", flush=True)
            return True
        got_to = [file.read_text(encoding="utf-8") for file in _running(folder, stem)]
        if not got_to or got_to == before:
            print(f"The process ended with exit code {process.returncode} and can't go on.", flush=True)
            return False
        before = got_to
        print(f"The process ended with exit code {process.returncode}; another one goes on.", flush=True)
    return False


def _watch(process: subprocess.Popen[bytes], folder: Path, stem: str, deadline: float | None) -> bool:
    """Wait for the worker, or kill it where it hangs or is late; True where it was late."""
    began = time.time()
    while process.poll() is None:
        time.sleep(0.5)
        now = time.time()
        if deadline is not None and now > deadline + GRACE_S:
            kill(process)
            return True
        for file in _running(folder, stem):
            try:
                running = json.loads(file.read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue
            # What is from before is the worker's that died: this one may still be importing, and takes it up then.
            if running["since"] >= began and now > running["since"] + running["limit_s"]:
                print(f"  {running['id']}: no end after {running['limit_s']:.0f} s", flush=True)
                kill(process)
    return False


def _running(folder: Path, stem: str) -> list[Path]:
    return [file for block in BLOCKS if (file := running_path(folder / f"{stem}_{block}.json")).is_file()]


def load(folder: Path, stem: str) -> dict[str, Any]:
    """The files of a run by block."""
    files = {block: folder / f"{stem}_{block}.json" for block in BLOCKS}
    return {block: read_json(file) for block, file in files.items() if file.is_file()}


def summarise(folder: Path, stem: str) -> int:
    """Write the goals and the table of a run next to its files and print the table.

    Returns 1 where a correctness check failed, 2 where there is nothing to sum up.
    """
    blocks = load(folder, stem)
    if not blocks:
        print(f"There are no files {stem}_*.json in {folder}.")
        return 2
    if any(block["schema"] != SCHEMA for block in blocks.values()):
        print(f"The files {stem}_*.json are of an earlier version; {folder}/{stem}.md says what they hold.")
        return 2
    for name, block in blocks.items():
        if block["status"] == "running":
            block["status"] = "cut off"
            write_json(folder / f"{stem}_{name}.json", block)
    goals = evaluate(blocks)
    first = next(iter(blocks.values()))
    head = {name: first[name] for name in ("rehearsal", "date", "command", "device", "versions", "commit")}
    write_json(folder / f"{stem}_goals.json", {"schema": SCHEMA, **head, "goals": [goal.to_dict() for goal in goals]})
    text = render(blocks, goals)
    (folder / f"{stem}.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\nWritten to {folder}/{stem}*", flush=True)
    table = folder / f"{stem}_table.json"
    if table.is_file() and not first["rehearsal"]:
        print(f"To ship what was chosen: cp {table} kernels/tables/{slug(first['device']['name'])}.json")
    if any(block["not_reached"] for block in blocks.values()):
        print(f"Not all was reached. To go on: --resume {stem}")
    failed = [record for record in blocks.get("correctness", {}).get("records", []) if not record.get("ok")]
    return 1 if failed else 0
