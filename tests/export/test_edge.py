"""bench.py of every export: it runs without prunekit, alone with its runtime, and says what `prunekit bench` says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from prunekit.errors import PrunekitError
from prunekit.export.bench import bench_exports
from prunekit.export.edge import core
from prunekit.export.edge.script import SCRIPT, bench_script
from prunekit.export.export import export, read_export
from prunekit.export.registry import TARGET_NAMES
from prunekit.export.target import Options
from prunekit.models.source import Source
from prunekit.profiling.bench_report import BenchConfig
from prunekit.profiling.edge import read_edge
from tests.support.command import ROOT
from tests.support.export_models import save_chatty

RUNTIMES = {
    "hf": "transformers",
    "onnx": "onnxruntime",
    "onnx-genai": "onnxruntime_genai",
    "openvino": "openvino",
    "gguf": "llama_cpp",
    "torchscript": "torch",
    "torch-export": "torch",
    "executorch": "executorch",
}
NEEDS = {"onnx": "onnxscript", "openvino": "onnxscript", "onnx-genai": "onnx_ir"}
# Tiny models take less than a millisecond a token, most of which is the runtime's own overhead.
FEW = ("--prompt-tokens", "32", "--new-tokens", "8", "--repeats", "6", "--max-minutes", "0")
EXECUTORCH = ROOT / ".compat" / "executorch"

# What is run in place of bench.py, with its folder known: prunekit can't be imported.
BLOCKED = """
import runpy, sys
sys.path[:0] = {paths!r}
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "prunekit":
            raise ImportError("prunekit is blocked")
sys.meta_path.insert(0, Blocked())
sys.argv = [{script!r}, *{words!r}]
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.fixture(scope="module")
def exported(uneven: Callable[..., Source], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(target: str) -> Path:
        if target not in made:
            folder = tmp_path_factory.mktemp("edge") / target
            export(uneven("llama"), target, folder, Options(context_length=128), verify=False)
            made[target] = folder
        return made[target]

    return make


def run_bench(folder: Path, *words: str, paths: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """bench.py of ``folder`` in a process of its own on one thread, isolated, where prunekit can't be imported."""
    code = BLOCKED.format(paths=list(paths), script=str(folder / SCRIPT), words=list(words))
    return subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def skip_unless_there(target: str) -> None:
    if target == "executorch":
        pytest.skip("its own test runs it beside the packages of .compat")
    for name in (RUNTIMES[target], NEEDS.get(target, RUNTIMES[target])):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


@pytest.mark.parametrize("target", [each for each in RUNTIMES if each != "executorch"])
def test_it_times_what_prunekit_times(target: str, exported: Callable[[str], Path], tmp_path: Path) -> None:
    skip_unless_there(target)
    folder, out = exported(target), tmp_path / "bench.json"
    done = run_bench(folder, *FEW, "--output", str(out))
    assert done.returncode == 0, done.stderr
    assert "each further token" in done.stdout and "median ms" in done.stdout
    found = read_edge(out)
    manifest = json.loads((folder / "prunekit-export.json").read_text())
    assert found.export["target"] == target and found.export["fingerprint"] == manifest["source"]["fingerprint"]
    assert found.ttft.count == found.tpot.count == 6
    # Nobody said --threads: what was used is recorded for every runtime.
    assert found.config["threads"] == 1 and " 1 thread, 6 runs" in done.stdout
    assert found.packages and "numpy" in found.packages
    assert found.peak_bytes is not None and found.peak_bytes > 10 << 20
    config = BenchConfig(prompt=32, tokens=8, repeats=6, warmup=2, threads=1, max_minutes=0)
    both = (str(folder), str(folder))
    report = bench_exports(both, target, config, memory=False, trust_remote_code=True)
    # Milliseconds on a shared machine: the same within a factor of 3, where a wrong unit or a prompt that is read
    # token by token is off by 10.
    for name in ("ttft", "tpot"):
        here, there = getattr(report.results[0], name).pruned.median, getattr(found, name).median
        assert 1 / 3 < there / here < 3, (name, there, here)


def test_its_peak_is_not_that_of_the_program_that_started_it() -> None:
    held = np.ones(128 << 20)  # 1 GiB
    done = subprocess.run(
        [sys.executable, "-c", "from prunekit.export.edge.core import peak_bytes; print(peak_bytes())"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert 1 << 20 < int(done.stdout) < held.nbytes


class Still:
    """A model that keeps how it was asked for, and answers with the same token."""

    vocab_size = 8
    asked: ClassVar[list[int]] = []

    def __init__(self, folder: Path, threads: int, device: str, room: int):
        self.asked.append(threads)

    def start(self, ids: list[int]) -> int:
        return 1

    def step(self, token: int) -> int:
        return token


@pytest.mark.parametrize(
    ("bound", "words", "said", "threads"),
    [
        ({0, 3, 5}, (), None, 3),
        ({0}, (), None, 1),
        ({0, 1}, (), "16", 16),
        ({0, 1}, (), "many", 2),
        ({0, 1}, (), "0", 2),
        ({0, 1}, ("--threads", "7"), "1", 7),
    ],
)
def test_as_many_threads_as_cpus_where_nobody_says(
    exported: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bound: set[int],
    words: tuple[str, ...],
    said: str | None,
    threads: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: bound)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    out = tmp_path / "bench.json"
    assert core.main(lambda: (Still, ()), exported("hf"), [*FEW, *words, "--output", str(out)]) == 0
    assert Still.asked[-1] == threads == read_edge(out).config["threads"]


def test_llama_cpp_computes_on_the_threads_that_are_recorded(exported: Callable[[str], Path]) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    from prunekit.export.edge.runtimes.gguf import Model

    model = Model(exported("gguf"), 2, "cpu", 64)
    assert llama_cpp.llama_n_threads(model._context) == llama_cpp.llama_n_threads_batch(model._context) == 2


@pytest.mark.skipif(not EXECUTORCH.is_dir(), reason="there is no .compat/executorch")
def test_executorch(tmp_path: Path) -> None:
    model = save_chatty(tmp_path / "two layers")
    code = (
        "from prunekit.export.export import export_model\n"
        f"export_model({str(model)!r}, 'executorch', {str(tmp_path / 'made')!r}, context_length=64, verify=False)"
    )
    env = {**os.environ, "PYTHONPATH": f"{EXECUTORCH}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=300, capture_output=True)
    out = tmp_path / "bench.json"
    done = run_bench(tmp_path / "made", *FEW, "--output", str(out), paths=(str(EXECUTORCH),))
    assert done.returncode == 0, done.stderr
    found = read_edge(out)
    assert found.export["target"] == "executorch" and 0 < found.tpot.median < found.ttft.median < 10


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_every_target_but_tensorrt_has_one_that_compiles(target: str) -> None:
    script = bench_script(target)
    assert (script is None) == (target == "tensorrt")
    if script is not None:
        compile(script, SCRIPT, "exec")
        assert "import prunekit" not in script and "from prunekit" not in script
        assert script == bench_script(target)


def test_help_needs_no_runtime(exported: Callable[[str], Path]) -> None:
    code = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        f"sys.argv = ['bench.py', *{{words}}]; runpy.run_path({str(exported('hf') / SCRIPT)!r}, run_name='__main__')"
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-I", "-c", code.format(words=list(words))],
            capture_output=True, text=True, timeout=60, cwd=exported("hf").parent,
        )  # fmt: skip

    helped = run("--help")
    assert (
        helped.returncode == 0 and "--prompt-tokens" in helped.stdout and "needs that runtime" in helped.stdout.lower()
    )
    missing = run("--prompt-tokens", "8")
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1
    assert "The runtime of this export, hf, is not here" in missing.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--repeats", "1"), "--repeats must be a whole number of at least 2, got 1."),
        (("--prompt-tokens", "127"), "160 tokens are more than the 128 that this export was made for"),
        (("--max-minutes", "nan"), "--max-minutes must be from 0"),
        (("--output", "no/such/bench.json"), "The folder no/such does not exist"),
        (("--output", "README.md", "--overwrite"), "README.md is no result of bench.py, so it is not replaced"),
        (("--output", "README.md"), "README.md already exists"),
    ],
)
def test_what_is_wrong_is_one_sentence(exported: Callable[[str], Path], words: tuple[str, ...], said: str) -> None:
    folder = exported("hf")
    before = (folder / "README.md").read_bytes()
    done = run_bench(folder, *words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert (folder / "README.md").read_bytes() == before and not (folder / "bench.json").exists()


def test_the_export_is_still_one_with_its_bench_json(exported: Callable[[str], Path]) -> None:
    folder = exported("hf")
    done = run_bench(folder, *FEW[:4], "--repeats", "2", "--warmup", "0", "--max-minutes", "0", "--json")
    assert done.returncode == 0, done.stderr
    try:
        assert json.loads(done.stdout) == json.loads((folder / "bench.json").read_text())
        assert SCRIPT in read_export(folder).files
        read_export(folder).checked()
        again = run_bench(folder, "--repeats", "2")
        assert again.returncode == 2 and "say --overwrite" in again.stderr
    finally:
        (folder / "bench.json").unlink()


def test_a_damaged_manifest_is_told(exported: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / SCRIPT).write_text((exported("hf") / SCRIPT).read_text())
    for text in (None, "{", "[]", '{"target": "hf"}'):
        if text is not None:
            (tmp_path / "prunekit-export.json").write_text(text)
        done = run_bench(tmp_path)
        assert done.returncode == 2 and "is missing or damaged; export the model again" in done.stderr


GOOD: dict[str, Any] = {
    "format": "prunekit-bench-edge",
    "version": 1,
    "export": {
        "target": "onnx",
        "dtype": "fp32",
        "name": "a/b",
        "fingerprint": "ab" * 32,
        "manifest_sha256": "cd" * 32,
        "device": "cpu",
    },
    "machine": {"cpu": "x", "logical_cpus": 2, "os": "Linux", "python": "3.11"},
    "packages": {"numpy": "2"},
    "device": "cpu",
    "config": {"prompt_tokens": 128, "new_tokens": 32, "repeats": 10, "max_minutes": 2.0, "warmup": 2, "threads": None,
               "seed": 0},
    "ttft": {"median": 0.1, "p20": 0.09, "p80": 0.11, "count": 10, "interval": [0.09, 0.11], "believed": True,
             "flags": [], "why": []},
    "tpot": {"median": 0.01, "p20": 0.01, "p80": 0.01, "count": 10, "interval": None, "believed": False,
             "flags": ["load"], "why": ["Others."]},
    "peak_bytes": 1000,
    "peak_how": "how",
    "before_bytes": 10,
    "load_before": {},
    "load": {},
    "believed": False,
}  # fmt: skip


def changed(path: str, value: Any) -> dict[str, Any]:
    made = json.loads(json.dumps(GOOD))
    *way, last = path.split(".")
    inner = made
    for each in way:
        inner = inner[each]
    if value is KeyError:
        del inner[last]
    else:
        inner[last] = value
    return made


def test_a_good_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps(GOOD))
    found = read_edge(tmp_path / "bench.json")
    assert found.ttft.median == 0.1 and found.ttft.interval == (0.09, 0.11) and not found.believed
    assert found.tpot.why == ("Others.",) and found.config["threads"] is None


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("format", "prunekit-report", "no result of bench.py"),
        ("version", 2, "version 2"),
        ("ttft.median", -1.0, "ttft.median"),
        ("ttft.median", 1e300, "ttft.median"),
        ("ttft.median", "1", "ttft.median"),
        ("ttft.median", True, "ttft.median"),
        ("ttft", [], "ttft is no object"),
        ("ttft.count", 0, "ttft.count"),
        ("ttft.p20", 0.2, "ttft.p20 is above its median"),
        ("ttft.interval", [1.0], "ttft.interval"),
        ("tpot.why", ["x" * 5000], "tpot.why"),
        ("tpot.flags", "load", "tpot.flags"),
        ("tpot.believed", True, "tpot is believed and says why not"),
        ("believed", True, "believed"),
        ("export.fingerprint", "ab", "export.fingerprint"),
        ("export.name", 5, "export.name"),
        ("export", KeyError, "export is no object"),
        ("peak_bytes", 1.5, "peak_bytes"),
        ("config.prompt_tokens", 0, "config.prompt_tokens"),
        ("config.threads", "all", "config.threads"),
        ("machine.cpu", None, "machine.cpu"),
    ],
)
def test_a_strangers_file_is_refused_in_a_sentence(tmp_path: Path, path: str, value: Any, said: str) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(changed(path, value)))
    with pytest.raises(PrunekitError, match=said.replace(".", r"\.")) as error:
        read_edge(file)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": NaN}', "[" * 200, "\x00"])
def test_what_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(PrunekitError, match=r"bench\.json"):
        read_edge(tmp_path / "bench.json")
