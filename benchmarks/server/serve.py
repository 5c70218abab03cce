"""One model in vLLM's server under load, in a process of its own: python -m benchmarks.server.serve JOB.json"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.server.engine import engine_settings
from benchmarks.server.load import Load, drive


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def command(job: dict[str, Any], port: int) -> list[str]:
    """`vllm serve` with the settings of the offline engine, without its own command, which not every install has."""
    given = engine_settings(job)
    options = [job["folder"], "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "model"]
    for name, value in given.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            options.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            options += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *options]


@contextmanager
def server(job: dict[str, Any], log: Path) -> Iterator[str]:
    """The address of a server that answers, which ends with the block. Raises RuntimeError where it doesn't start."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as out:
        process = subprocess.Popen(command(job, port), stdout=out, stderr=subprocess.STDOUT)
        try:
            while not _answers(f"{url}/health"):
                if process.poll() is not None:
                    raise RuntimeError(f"vLLM's server ended: {log.read_text(errors='replace')[-3000:]}")
                time.sleep(0.5)
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def kv_tokens(metrics: str) -> int | None:
    """Tokens that the KV cache holds, of the text that a server gives at /metrics."""
    line = next((line for line in metrics.splitlines() if line.startswith("vllm:cache_config_info{")), "")
    found = {name: re.search(rf'\b{name}="(\d+)"', line) for name in ("num_gpu_blocks", "block_size")}
    values = [int(match[1]) for match in found.values() if match]
    return values[0] * values[1] if len(values) == 2 else None


def measure(job: dict[str, Any], write: Any, log: Path) -> None:
    """Start the server of ``job``, warm it up, and put on it one rate after the other."""
    begin = time.perf_counter()
    vocabulary = json.loads((Path(job["folder"]) / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    with server(job, log) as url:
        report: dict[str, Any] = {"startup_s": time.perf_counter() - begin, "rows": []}
        length, new = job["prompts"][0], job["new"]
        for run, requests in enumerate((1, min(8, job["requests"]))):
            asyncio.run(drive(url, Load(float("inf"), requests, length, new), vocabulary, run, job["limit_s"]))
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
            report["kv_tokens"] = kv_tokens(answer.read().decode("utf-8"))
        write(report)
        for run, rate in enumerate(job["rates"], 2):
            load = Load(float(rate), job["requests"], length, new)
            report["rows"].append(asyncio.run(drive(url, load, vocabulary, run, job["limit_s"])))
            write(report)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    out = Path(job["out"])
    # Where the one who started this ends its group, the server ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    log = Path(f"{out}.server.log")
    try:
        measure(job, lambda report: out.write_text(json.dumps(report), encoding="utf-8"), log)
    finally:
        sys.stdout.write(log.read_text(errors="replace") if log.exists() else "")
        if log.exists():
            os.unlink(log)


if __name__ == "__main__":
    main()
