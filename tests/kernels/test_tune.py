"""Making the table: what is measured, what is chosen, and how the command refuses. Times themselves need a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from prunekit.kernels.ops.utils import dispatch as select
from prunekit.kernels.ops.utils.backend import why_not_triton
from prunekit.kernels.ops.utils.dispatch import OPS, choose
from prunekit.kernels.tuning import cases as tune_cases
from prunekit.kernels.tuning import tune
from prunekit.kernels.tuning.cases import IN_CHAINS, PREFILL_ROWS, SHAPES, cases
from prunekit.kernels.tuning.measure import copies, in_turns
from prunekit.kernels.tuning.tune import Shape, fastest, main, measure

CPU = torch.device("cpu")


def test_the_default_stays_unless_clearly_beaten() -> None:
    assert fastest({"torch": 1.0, "triton": 0.99}, "torch") == "torch"
    assert fastest({"torch": 1.0, "triton": 0.9}, "torch") == "triton"
    assert fastest({"small": 0.9, "medium": 0.8}, "auto") == "medium"
    assert fastest({"small": 2.0, "large": 1.0}, "auto") == "large"
    assert fastest({}, "auto") == "auto"


@pytest.mark.parametrize("op", OPS)
def test_every_bucket_is_measured_once_and_serves_its_neighbours(op: str, tmp_path: Path) -> None:
    sizes = list(cases(op, SHAPES, PREFILL_ROWS))
    buckets = [select.bucket(op, tuple(size.values())) for size in sizes]
    assert len(buckets) == len(set(buckets))
    entries = [{"op": op, **size, "choice": OPS[op].choices[-1]} for size in sizes]
    file = tmp_path / "t.json"
    file.write_text(json.dumps({"schema": select.SCHEMA, "gpu": "x", "provenance": {}, "entries": entries}))
    table = select.read(file)
    if op in IN_CHAINS:
        assert all(select.nearest(table, op, tuple(size.values())) is not None for size in sizes)
        return
    for rows in (17, 300, 5000):
        for shape in (Shape(2048, 3333), Shape(4096, 8192), Shape(576, 1013)):
            size = {"rows": rows, "width": shape.width, "hidden": shape.hidden}
            assert select.nearest(table, op, tuple(size[name] for name in OPS[op].sizes)) is not None


def test_a_wrong_candidate_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one that fails: the entry says why."""

    def workload(op: str, data: object, **sizes: int) -> object:
        def call() -> torch.Tensor:
            asked_for_torch = why_not_triton(CPU, torch.float32) == "PyTorch was asked for"
            choice = "torch" if asked_for_torch else choose(op, CPU, **sizes)
            if choice == "broken":
                raise RuntimeError("no GPU")
            return torch.full((2,), 2.0 if choice == "triton" else 1.0)

        return call

    monkeypatch.setattr(tune, "workload", workload)
    monkeypatch.setattr(tune, "candidates", lambda *arguments: ["triton", "torch", "broken"])
    entry = measure("rms_norm", {"rows": 2, "hidden": 16}, CPU, torch.float32, rounds=1)
    assert entry is not None and entry["choice"] == "torch" and list(entry["us"]) == ["torch"]
    assert entry["failed"] == {
        "triton": "ArithmeticError: off by 1 from PyTorch",
        "broken": "RuntimeError: no GPU",
    }


def test_runs_are_taken_in_turns() -> None:
    order: list[str] = []
    medians = in_turns({name: lambda name=name: order.append(name) for name in "ab"}, CPU, rounds=3)  # type: ignore[misc]
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert medians.keys() == {"a", "b"}


def test_data_outgrows_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=50 << 20))
    gpu = torch.device("cuda")
    assert copies(10 << 20, gpu) == 11
    assert copies(1 << 30, gpu) == 2
    assert copies(100, gpu) == 64


def test_candidates_without_triton_are_pytorch_alone() -> None:
    assert list(tune_cases.candidates("gated_act", torch.device("meta"), torch.float16, {})) == ["torch"]


def test_rehearsal_runs_and_writes_only_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    before = sorted(select.SHIPPED.iterdir())
    assert main(["--rehearse"]) == 0
    assert "rehearsal on the CPU" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists() and sorted(select.SHIPPED.iterdir()) == before
    file = tmp_path / "table.json"
    assert main(["--rehearse", "--output", str(file), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads(file.read_text()) == printed
    table = select.read(file)
    assert table.gpu == "none" and "gated_act" in table.choices
    assert table.provenance["command"] == "python -m prunekit.kernels.tuning.tune"


@pytest.mark.parametrize(
    "arguments, says",
    (
        ([], "No GPU was found to measure; --rehearse runs the same"),
        (["--ops", "rms_norm,conv", "--rehearse"], "There is no op 'conv' to measure"),
        (["--rehearse", "--ship"], "can't be shipped"),
        (["--rehearse", "--rounds", "0"], "--rounds 0 measures nothing"),
        (["--rehearse", "--output", "/nowhere/at/all.json"], "The folder /nowhere/at does not exist"),
    ),
)
def test_refusals_are_one_sentence_and_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if not arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main([*arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    assert says in json.loads(out)["error"] and err.startswith("prunekit: ") and err.count("\n") == 1


def test_a_broken_table_does_not_keep_a_new_one_from_being_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    monkeypatch.setenv(select.VARIABLE, str(broken))
    assert measure("gated_act", {"rows": 17, "width": 37}, CPU, torch.float16, rounds=1) is not None
