"""Kills at every change of a file or folder: the output's name always bears nothing, the old or the new, complete.

`make test` kills the write path that all commands share; `make kill-test` (PRUNEKIT_KILLS=all) every command.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ALL = os.environ.get("PRUNEKIT_KILLS") == "all"
# What a job needs beside torch.
NEEDS = {
    "plan": None,
    "prune": None,
    "candidates": None,
    "recover": None,
    "stages": None,
    "hf": None,
    "vllm": None,
    "gguf": "gguf",
    "torchscript": None,
    "torch-export": None,
    "onnx": "onnxscript",
    "tensorrt": "onnxscript",
    "openvino": "openvino",
    "onnx-genai": "onnxruntime_genai",
    "executorch": "executorch",
}


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that kills."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("kills are injected by a library that needs Linux and a C compiler to make")
    made = tmp_path_factory.mktemp("killer") / "killer.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", made, HERE / "killer.c", "-ldl"], check=True)
    return made


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """In memory where that can be had, for nothing here should wait for a disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="prunekit-kills-") as made:
        yield Path(made)


def survives(killer: Path, work: Path, jobs: str, seconds: int) -> None:
    done = subprocess.run(
        [sys.executable, HERE / "server.py", work, jobs, str(seconds)],
        env={
            **os.environ,
            "LD_PRELOAD": str(killer),
            "OMP_NUM_THREADS": "1",
            "PRUNEKIT_CACHE": str(work / "cache"),
            # The run that is counted would write it alone.
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == 2 * len(jobs.split(","))
    for name, result in results.items():
        print(f"{name}: {result['kills']} kills at {result['points']} points in {result['seconds']} s")
        assert result["wrong"] == [] and result["kills"] > 0, (name, result)


def test_the_write_path_survives_kills(killer: Path, work: Path) -> None:
    survives(killer, work, "rebuild,table", 6)


@pytest.mark.skipif(not ALL, reason="make kill-test kills every command")
@pytest.mark.parametrize("job", NEEDS)
def test_commands_survive_kills(job: str, killer: Path, work: Path) -> None:
    needs = NEEDS[job]
    if needs is not None and find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    survives(killer, work, job, 120)
