"""`make gpu-check`: rehearsed as a whole, and what it does about wrong ops, failures, hangs and deaths."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.common.record import SCHEMA, Recorder, running_path
from benchmarks.common.tensors import Data
from benchmarks.common.timer import one_pass
from benchmarks.gpu_check.blocks import BLOCKS
from benchmarks.gpu_check.supervisor import begin_again, run_workers, summarise
from benchmarks.ops import correctness, registry
from benchmarks.ops.attention_checks import attention_checks
from benchmarks.ops.checks import TINY, Check, ffn_checks
from benchmarks.ops.correctness import run_check
from prunekit.kernels.ops.utils import dispatch
from tests.benchmarks.test_gpu_cache import noted

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
Rehearsal = tuple[Path, subprocess.CompletedProcess[str]]


def gpu_check(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, without any GPU that there may be."""
    return subprocess.run(
        [sys.executable, "benchmarks/gpu_check", *map(str, arguments), "--rehearse"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=1000,
    )


def read(folder: Path, block: str) -> Any:
    (file,) = folder.glob(f"*_{block}.json")
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    folder = tmp_path_factory.mktemp("rehearsal")
    return folder, gpu_check("--out", folder, "--no-compile", "--block-seconds", 3000)


def test_rehearsal_says_so_and_passes(rehearsal: Rehearsal) -> None:
    folder, done = rehearsal
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.startswith("No GPU: this is a rehearsal on the CPU")
    assert "FAILED" not in done.stdout
    assert not list((ROOT / "benchmarks" / "results").glob("*rehearsal*"))
    for block in BLOCKS:
        data = read(folder, block)
        assert (data["block"], data["status"], data["not_reached"]) == (block, "complete", [])
        assert "rehearsal" in data["rehearsal"] and data["versions"]["torch"] == torch.__version__
        assert data["date"].endswith("Z") and "gpu_check" in data["command"] and data["device"]["name"]
        assert data["records"] and data["spent_s"] > 0
        assert all("error" not in record and record["took_s"] >= 0 for record in data["records"])
    assert not list(folder.glob("*.running"))
    order = [done.stdout.index(f"\n{block}:") for block in BLOCKS]
    assert order == sorted(order)


def test_kernels_are_noted_as_they_are_started(rehearsal: Rehearsal) -> None:
    """What is compiled beforehand is what a run starts: here a run in the interpreter."""
    blocks = [name for name, block in BLOCKS.items() if block.kernels]
    for name, launches in noted(*blocks).items():
        assert launches == read(rehearsal[0], name)["launches"], name


def test_every_op_is_checked(rehearsal: Rehearsal) -> None:
    checked = read(rehearsal[0], "correctness")["records"]
    assert {record["op"] for record in checked} == {*registry.OPS, "runtime"}
    for record in checked:
        assert record["ok"] and record["relative_error"] <= record["tolerance"], record


def test_whole_models_are_timed(rehearsal: Rehearsal) -> None:
    data = read(rehearsal[0], "headline")
    assert {"copy_gbps", "read_gbps", "matmul_tflops"} <= set(data["ceilings"])
    records = data["records"]
    assert {record["variant"] for record in records} == {"dense", "irregular", "rounded"}
    assert [record["variant"] for record in records[:2]] == ["dense", "irregular"], "the answer comes first"
    kinds = {tuple(record["arms"]) for record in records}
    assert kinds == {("ours", "ours_waiting"), ("eager", "ours")}
    for record in records:
        for arm in record["arms"].values():
            assert {"ttft", "tpot", "tokens_per_s", "gbps", "share_of_copy", "peak_bytes"} == set(arm)
        assert record["agrees"] and record["relative_difference"] < 0.01
        assert record["decode_bytes"] > 0 and record["roofline_tpot_us"] > 0
        assert record.get("overlap_same_tokens", True) is True


def test_what_is_chosen_is_a_table_that_the_kernels_take(rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = rehearsal[0].glob("*_table.json")
    table = dispatch.read(file)
    assert {"qkv_rope_tile", "linear_decode_tile", "mlp_decode_tile", "attention_splits"} <= set(table.choices)
    (buckets,) = (entry for entry in table.choices["attention_splits"].items())
    monkeypatch.setenv(dispatch.VARIABLE, str(file))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: table.gpu)
    dispatch.reload()
    programs, tokens, head_dim = buckets[0]
    asked = {"programs": programs, "tokens": tokens, "head_dim": head_dim}
    assert dispatch.choose("attention_splits", torch.device("cuda", 0), **asked) == buckets[1]
    dispatch.reload()


def test_steps_of_pruning_are_summed(rehearsal: Rehearsal) -> None:
    *runs, total = read(rehearsal[0], "scale")["records"]
    assert {(run["layers"], run["tokens"]) for run in runs} == {(1, 64), (2, 64), (1, 128)}
    steps = {"adapt-pruner score", "curves", "solver", "refit", "rescale", "rebuild", "export gguf"}
    for run in runs:
        assert steps == set(run["seconds"]) == set(run["peak_bytes"])
        assert {"curves", "checkpoint", "gguf"} == set(run["file_bytes"])
    assert set(total["seconds"]) == steps and "further layer" in total["how"]


def test_exports_are_compared_or_said_to_be_missing(rehearsal: Rehearsal) -> None:
    records = read(rehearsal[0], "exports")["records"]
    assert {record["variant"] for record in records} == {"rounded", "irregular"}
    for record in records:
        assert record["speedup"] > 0 and record["ideal_speedup"] > 1 and record["device"] == "cpu"
    servers = read(rehearsal[0], "server")["records"]
    assert {record["variant"] for record in servers} == {"dense", "rounded", "irregular", "homogeneous"}


def test_rehearsal_judges_no_goal(rehearsal: Rehearsal) -> None:
    folder, done = rehearsal
    goals = read(folder, "goals")["goals"]
    assert goals and all(goal["met"] is None for goal in goals)
    assert (next(folder.glob("*.md"))).read_text().strip() in done.stdout


def test_a_run_goes_on_with_what_it_did_not_reach(tmp_path: Path) -> None:
    """Its time begins anew; what was measured is left alone."""
    first = gpu_check("tiles", "--out", tmp_path, "--block-seconds", 0.01)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    (file,) = tmp_path.glob("*_tiles.json")
    before = json.loads(file.read_text())
    assert before["status"] == "out of time" and before["not_reached"] and not before["records"]
    assert "--resume" in first.stdout
    *done, one, other = before["not_reached"]
    kept = [{"id": name, "took_s": 0, "entry": None, "mine": 7.0} for name in done]
    file.write_text(json.dumps(before | {"records": kept}))
    stem = file.name.removesuffix("_tiles.json")
    again = gpu_check("tiles", "--out", tmp_path, "--resume", stem)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    after = json.loads(file.read_text())
    assert kept and after["records"][: len(kept)] == kept and after["date"] == before["date"]
    rest = after["records"][len(kept) :]
    assert [record["id"] for record in rest] == [one, other] and after["status"] == "complete"
    assert all(record["other_entry"] for record in rest)


def test_runs_of_another_gpu_or_version_are_not_gone_on_with(tmp_path: Path) -> None:
    head = {"schema": SCHEMA, "rehearsal": None, "device": {"name": "NVIDIA H100"}, "spent_s": 5.0}
    (tmp_path / "s_tiles.json").write_text(json.dumps(head))
    assert begin_again(tmp_path, "s", "NVIDIA H200") == (
        "The files s_*.json were measured on NVIDIA H100, and this is NVIDIA H200."
    )
    assert begin_again(tmp_path, "s", "NVIDIA H100") is None
    assert json.loads((tmp_path / "s_tiles.json").read_text())["spent_s"] == 0.0
    (tmp_path / "s_tiles.json").write_text(json.dumps(head | {"schema": 1}))
    assert "earlier version" in str(begin_again(tmp_path, "s", "NVIDIA H100"))


def test_without_transformers_and_without_time(tmp_path: Path) -> None:
    """A bare GPU machine has torch and Triton, and prunekit is not installed; a budget that is too short begins
    nothing."""
    missing = ("transformers", "huggingface_hub", "safetensors", "psutil", "typer", "rich", "datasets", "gguf")
    lines = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in missing)
    # What an editable install finds prunekit by.
    lines += "sys.meta_path[:] = [each for each in sys.meta_path if 'Editable' not in getattr(each, '__name__', '')]\n"
    (tmp_path / "sitecustomize.py").write_text(lines)
    done = gpu_check("--out", tmp_path / "out", "--budget-seconds", 3, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Whole models are not measured: that needs transformers 5.16" in done.stdout
    tiles = read(tmp_path / "out", "tiles")
    assert tiles["status"] == "out of time" and tiles["not_reached"] and not tiles["records"]
    assert read(tmp_path / "out", "headline")["records"] == []


def test_bad_arguments() -> None:
    bad = (("--models", "gpt-2"), ("--block-seconds", "0"), ("--capability", "x"), ("--resume", "none"))
    for arguments in (*bad, ("", "ops")):
        done = gpu_check(*filter(None, arguments))
        assert done.returncode == 2 and "usage:" in done.stderr and arguments[1] in done.stderr


def checks_of(op: str) -> list[Check]:
    data = Data(CPU, torch.float32)
    return [check for make in (ffn_checks, attention_checks) for check in make(data, TINY) if check.op == op]


@pytest.mark.parametrize("op", ("linear_decode", "qkv_rope", "add_rms_norm"))
def test_a_right_op_passes(op: str) -> None:
    for check in checks_of(op):
        assert run_check(check, CPU)["ok"], check.label


def spoiled(kind: str, right: Any) -> Any:
    """The op ``linear_decode`` with something wrong."""
    calls: list[int] = []

    def wrong(x: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = right(x, weight, *args, **kwargs)
        calls.append(1)
        if kind == "off":
            return out * 1.01
        if kind == "drifts":
            return out + 1e-7 * len(calls)
        unwritten = torch.empty_like(out)
        unwritten[:, :-1] = out[:, :-1]
        return unwritten

    return wrong


@pytest.mark.parametrize(
    ("kind", "why"),
    (("off", "relative error 1.00e-02"), ("drifts", "not the same bits"), ("unwritten", "relative error nan")),
)
def test_a_wrong_op_is_found(kind: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = spoiled(kind, registry.op("linear_decode"))
    monkeypatch.setattr(correctness, "op", lambda name: wrong)
    record = run_check(checks_of("linear_decode")[0], CPU)
    assert not record["ok"] and why in record["why"]
    json.dumps(record, allow_nan=False)


def test_a_cache_place_that_was_not_to_be_written_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = registry.op("rope_cache")

    def wrong(**arguments: Any) -> torch.Tensor:
        out = right(**arguments)
        arguments["v_cache"][1, 0, 0] = 1.0
        return out

    monkeypatch.setattr(correctness, "op", lambda name: wrong)
    assert not run_check(checks_of("rope_cache")[0], CPU)["ok"]


def test_a_failing_measurement_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.json", "tiles", {"rehearsal": None})
    assert recorder.measure("bad", {"op": "x"}, lambda: 1 / 0, limit_s=1)["error"].startswith("ZeroDivisionError")  # type: ignore[index, arg-type, return-value]
    nan = recorder.measure("nan", {}, lambda: {"value_us": float("nan")}, limit_s=1)
    assert nan is not None and "not JSON compliant" in nan["error"]
    assert recorder.measure("good", {}, lambda: {"value_us": 1.0}, limit_s=1) is not None
    recorder.finish()
    data = json.loads((tmp_path / "a.json").read_text())
    assert [record["id"] for record in data["records"]] == ["bad", "nan", "good"] and data["status"] == "complete"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


def test_a_new_process_goes_on_after_the_measurement_that_killed_the_last(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    first = Recorder(path, "tiles", {"rehearsal": None})
    first.measure("done", {}, dict, limit_s=1)
    first._write()
    running_path(path).write_text(json.dumps({"id": "deadly", "fields": {"op": "x"}, "since": 0, "limit_s": 1}))
    second = Recorder(path, "tiles", {"rehearsal": None})
    for name in ("done", "deadly"):
        assert second.measure(name, {}, dict, limit_s=1) is None
    assert second.measure("next", {}, dict, limit_s=1) is not None
    second.finish()
    records = json.loads(path.read_text())["records"]
    assert [record["id"] for record in records] == ["done", "deadly", "next"]
    assert records[1]["op"] == "x" and "died or hung" in records[1]["error"]


# Without transformers, of which `import prunekit` would load nine families (five seconds in each process).
WORKER = """
import os, sys, time
sys.modules["transformers"] = None
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from benchmarks.common.record import Recorder
recorder = Recorder(Path(sys.argv[1]) / "s_tiles.json", "tiles", {"rehearsal": None})
acts = {"hangs": lambda: time.sleep(60), "dies": lambda: os._exit(9), "works": lambda: {"value_us": 1}}
for name, act in acts.items():
    recorder.measure(name, {"op": "x"}, act, limit_s=0.2)
recorder.finish()
"""


def test_the_supervisor_survives_hangs_and_deaths(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    assert run_workers(command, environment, tmp_path, "s", None)
    records = json.loads((tmp_path / "s_tiles.json").read_text())["records"]
    assert [(record["id"], "error" in record) for record in records] == [
        ("hangs", True),
        ("dies", True),
        ("works", False),
    ]
    assert not run_workers([sys.executable, "-c", "raise SystemExit(3)"], environment, tmp_path, "s", None)


def test_exit_code_tells_failed_checks(tmp_path: Path) -> None:
    head = {name: None for name in ("rehearsal", "commit", "command")}
    head |= {
        "schema": SCHEMA,
        "spent_s": 1.0,
        "date": "2026-11-24",
        "device": {"name": "g"},
        "versions": {"torch": "2"},
        "status": "complete",
        "not_reached": [],
    }
    record = {"id": "x", "op": "mlp", "dtype": "float16", "relative_error": 0.5, "ok": False, "why": "too far off"}
    file = tmp_path / "s_correctness.json"
    file.write_text(json.dumps({**head, "records": [record]}))
    assert summarise(tmp_path, "s") == 1
    assert "FAILED x: too far off" in (tmp_path / "s.md").read_text()
    file.write_text(json.dumps({**head, "records": [{**record, "ok": True}]}))
    assert summarise(tmp_path, "s") == 0
    assert summarise(tmp_path, "nothing") == 2


def test_a_block_has_its_time_whatever_process_does_it(tmp_path: Path) -> None:
    """What an earlier process spent counts; what needs more than is left is not begun."""
    path = tmp_path / "a.json"
    Recorder(path, "tiles", {"rehearsal": None})
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"spent_s": 80.0}))
    recorder = Recorder(path, "tiles", {}, seconds=90.0)
    assert 9 < recorder.left_s <= 10
    assert recorder.measure("long", {}, dict, limit_s=60, needs_s=15.0) is None
    assert recorder.measure("short", {}, dict, limit_s=60, needs_s=5.0) is not None
    recorder.finish()
    data = json.loads(path.read_text())
    assert data["not_reached"] == ["long"] and data["status"] == "out of time"


def test_a_graph_keeps_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorded pass outlives the workloads that it was made from."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)

    def make() -> tuple[Any, weakref.ref[torch.Tensor]]:
        weight = torch.ones(3)
        return one_pass([lambda: weight.sum()], torch.device("cuda")), weakref.ref(weight)

    replay, weight = make()
    replay()
    assert weight() is not None


def test_what_was_cut_off_is_measured_anew_and_what_was_measured_stays(tmp_path: Path) -> None:
    file = tmp_path / "s_launch.json"
    header = {"rehearsal": None, "device": {"name": "GPU"}}
    recorder = Recorder(file, "launch", header)
    recorder.measure("good", {}, lambda: {"us": 1.0}, limit_s=9)
    recorder.finish()
    for name, expected in (("good", [("good", None)]), ("other", [("good", None), ("other", "died")])):
        running_path(file).write_text(json.dumps({"id": name, "fields": {}, "since": 0.0, "limit_s": 9.0}))
        again = Recorder(file, "launch", header)
        found = [(record["id"], record.get("error")) for record in again.data["records"]]
        assert [(each, error and "died") for each, error in found] == expected
        again.finish()
    running_path(file).write_text("{}")
    assert begin_again(tmp_path, "s", "GPU") is None and not running_path(file).exists()


def test_a_rate_without_end_is_told() -> None:
    record = {"rows": [{"rate": "inf", "tpot_s": 0.002}, {"batch": 8, "tpot_s": 0.004}]}
    assert BLOCKS["server"].load().brief(record) == "inf a second 2.000 ms a token; batch 8 4.000 ms a token"


def test_a_whole_step_that_is_known_is_not_measured_twice() -> None:
    known = BLOCKS["launch"].load()._is_known
    record = {"model": "m", "variant": "dense", "batch": 1, "prompt": 128, "arms": {"ours_waiting": {"tpot": {}}}}
    for arms, expected in ((record["arms"], True), ({}, False), ({"ours_waiting": {"error": "x"}}, False)):
        context: Any = SimpleNamespace(records=lambda name, arms=arms: [record | {"arms": arms}])
        assert known(context, "m", 1, 128) is expected and not known(context, "m", 8, 128)
