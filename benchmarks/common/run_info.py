"""What a run ran on, and of which state of the code."""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.record import REHEARSAL
from prunekit.utils.machine import cpu_name
from prunekit.utils.provenance import installed

ROOT = Path(__file__).resolve().parents[2]


def describe_run(device: torch.device, arguments: argparse.Namespace) -> dict[str, Any]:
    """The head of every file."""
    return {
        "rehearsal": None if device.type == "cuda" else REHEARSAL,
        "date": arguments.date,
        "command": arguments.command,
        "device": _device(device),
        "versions": {
            "prunekit": _prunekit(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": installed("triton"),
            "transformers": installed("transformers"),
            "python": platform.python_version(),
        },
        "commit": commit(),
        "os": platform.platform(),
    }


def commit() -> str | None:
    """The commit of the tree, with ``+changes`` where files of the code differ from it; None where git can't tell."""
    head = _run("git", "-C", str(ROOT), "rev-parse", "HEAD")
    if not head:
        return None
    changed = _run("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return head + ("+changes" if changed else "")


def _device(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"name": cpu_name()}
    facts = torch.cuda.get_device_properties(device)
    found = {
        "name": facts.name,
        "capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "memory_bytes": facts.total_memory,
        "l2_bytes": facts.L2_cache_size,
    }
    fields = {"driver": "driver_version", "power_limit": "power.limit", "sm_clock_max": "clocks.max.sm"}
    query = f"--query-gpu={','.join(fields.values())}"
    line = _run("nvidia-smi", query, "--format=csv,noheader", f"--id={torch.cuda.current_device()}")
    values = [value.strip() for value in line.split(",")] if line else []
    return found | (dict(zip(fields, values, strict=True)) if len(values) == len(fields) else {"driver": None})


def _prunekit() -> str | None:
    """The version of the tree, whatever may be installed."""
    match = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else None


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
