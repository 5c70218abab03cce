"""Checkpoints, plans, exports and tables of the first version still load, and compute what they did.

tests/golden/write_fixtures.py wrote them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import prunekit  # noqa: F401  (registers the classes of per-layer checkpoints)
from prunekit.export.export import read_export
from prunekit.models.source import load_model, load_tokenizer, resolve
from tests.support.command import Command

pytestmark = pytest.mark.usefixtures("single_threaded")

WRITTEN = Path(__file__).parent / "written"
EXPECTED: dict[str, Any] = json.loads((WRITTEN / "expected.json").read_text())
CLOSE = 1e-4
# llama.cpp keeps keys and values in 16 bits.
RUNTIMES = 1e-2
CHECKPOINTS = ("per-layer", "uniform", "sublayers")
# Exports that are here whole, and those of which there is the manifest.
RUN, DESCRIBED = ("onnx", "gguf"), ("hf", "torchscript", "torch-export", "vllm")
READING = ("--set", "sequences=8", "--set", "length=32", "--set", "ffn_multiple=1", "--dtype", "float32")
ALONE = """
import json, sys, torch
from transformers import AutoModelForCausalLM
ids = torch.tensor([json.loads(sys.argv[1])])
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    with torch.no_grad():
        print(json.dumps(model(ids).logits[0, -1].tolist()))
assert not any(name.split(".")[0] == "prunekit" for name in sys.modules)
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))


def _error(name: str, found: list[float]) -> float:
    return (torch.tensor(found) - torch.tensor(EXPECTED["logits"][name])).abs().max().item()


def _logits(model: Any) -> list[float]:
    with torch.no_grad():
        return model(torch.tensor([EXPECTED["ids"]])).logits[0, -1].tolist()


def _widths(plan: Path) -> list[list[int]]:
    shapes = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    return [[layer[name] for name in shapes] for layer in json.loads(plan.read_text())["layers"]]


def _succeed(command: Command, *arguments: object) -> Any:
    done = command(*arguments, "--json")
    assert done.code == 0, done
    return done.json


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_loads_where_prunekit_is(name: str, command: Command) -> None:
    model = AutoModelForCausalLM.from_pretrained(WRITTEN / name, dtype=torch.float32)
    assert _error(name, _logits(model)) <= CLOSE
    source = resolve(str(WRITTEN / name))
    assert _error(name, _logits(load_model(source, dtype="float32", device="cpu"))) <= CLOSE
    assert load_tokenizer(source)("The lazy dog")["input_ids"]
    said = _succeed(command, "inspect", WRITTEN / name)
    assert said["verified_files"] > 5 and said["weights_changed"] is False
    assert said["source"]["fingerprint"] == resolve(str(WRITTEN / "base")).fingerprint


def test_checkpoints_load_by_the_code_that_they_carry(tmp_path: Path) -> None:
    """In a process that never imports prunekit."""
    variables = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    folders = [str(WRITTEN / name) for name in CHECKPOINTS]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, json.dumps(EXPECTED["ids"]), *folders],
        capture_output=True,
        text=True,
        env=variables,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for name, line in zip(CHECKPOINTS, done.stdout.splitlines(), strict=True):
        assert _error(name, json.loads(line)) <= CLOSE


def test_a_checkpoint_that_was_trained_since_is_known(command: Command, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(WRITTEN / "per-layer")
    model.save_pretrained(tmp_path / "same")
    assert _succeed(command, "inspect", tmp_path / "same")["weights_changed"] is False
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    model.save_pretrained(tmp_path / "trained")
    assert _succeed(command, "inspect", tmp_path / "trained")["weights_changed"] is True


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_plan_gives_the_checkpoint_that_it_gave(name: str, command: Command, tmp_path: Path) -> None:
    plan, layout = WRITTEN / name / "plan.json", "uniform" if name == "uniform" else "per-layer"
    _succeed(command, "prune", WRITTEN / "base", "--plan", plan, "--layout", layout, "-o", tmp_path / "out")
    assert _widths(tmp_path / "out" / "plan.json") == _widths(plan)
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", WRITTEN / name))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[each], expected[each]) for each in expected)


def test_a_plan_with_a_refit_is_carried_out(command: Command, tmp_path: Path) -> None:
    """It knows its text by the text's fingerprint."""
    plan = WRITTEN / "plan.json"
    told = ("--plan", plan, "--calib", WRITTEN / "text.txt", "--dtype", "float32", "--device", "cpu")
    _succeed(command, "prune", WRITTEN / "base", *told, "-o", tmp_path / "out")
    assert _widths(tmp_path / "out" / "plan.json") == _widths(plan) == EXPECTED["widths"]["plan.json"]
    dense, solved = (load_file(folder / "model.safetensors") for folder in (WRITTEN / "base", tmp_path / "out"))
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.isfinite(solved[name]).all() and not torch.isin(solved[name], dense[name]).all()


def test_a_latency_table_predicts_what_it_did(command: Command, tmp_path: Path) -> None:
    goal = (
        "--latency",
        "0.95",
        "--latency-table",
        WRITTEN / "latency.json",
        "--method",
        "prunekit",
        "--set",
        "refit=false",
    )
    told = ("--calib", WRITTEN / "text.txt", *READING, "--device", "cpu", "-o", tmp_path / "plan.json")
    _succeed(command, "plan", WRITTEN / "base", *goal, *told)
    assert _widths(tmp_path / "plan.json") == EXPECTED["widths"]["latency.json"]


@pytest.mark.parametrize("name", RUN)
def test_an_export_computes_what_it_computed(name: str) -> None:
    opened = read_export(WRITTEN / "exports" / name)
    missing = opened.target.missing(opened.target.runs_with)
    if missing:
        pytest.skip(f"needs {', '.join(each.package for each in missing)}")
    assert opened.verified
    expected = EXPECTED["tokens"][name]
    with opened.open() as runner:
        error = _error("per-layer", runner.logits(np.array(EXPECTED["ids"]))[-1].tolist())
        assert error <= RUNTIMES * max(map(abs, EXPECTED["logits"]["per-layer"]))
        assert runner.greedy(np.array([EXPECTED["ids"]]), len(expected)).tokens[0].tolist() == expected


@pytest.mark.parametrize("name", DESCRIBED)
def test_the_manifest_of_an_export_is_read(name: str) -> None:
    opened = read_export(WRITTEN / "exports" / name)
    assert (opened.target.name, opened.name) == (name, "per-layer")
    assert opened.shape == resolve(str(WRITTEN / "per-layer")).shape
    assert opened.verified == (name != "vllm") and opened.files


def test_what_was_written_before_is_replaced_where_asked(command: Command, tmp_path: Path) -> None:
    """It is known as prunekit's own, and what is not the same kind stays."""
    for name, replaced in (("per-layer", True), ("exports/onnx", False)):
        shutil.copytree(WRITTEN / name, tmp_path / "out")
        told = ("--plan", WRITTEN / "per-layer" / "plan.json", "-o", tmp_path / "out")
        assert command("prune", WRITTEN / "base", *told).code == 2
        assert (command("prune", WRITTEN / "base", *told, "--overwrite").code == 0) == replaced
        shutil.rmtree(tmp_path / "out")
