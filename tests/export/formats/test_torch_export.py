from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.export.export import export
from prunekit.export.formats.pytorch import torch_export
from prunekit.export.registry import target
from prunekit.export.target import Job, Options
from prunekit.models.runner import TorchRunner
from prunekit.models.source import load_model
from tests.support.export_models import FAMILIES_TESTED
from tests.support.torch_programs import SIZES, damaged, expected_answer, largest_difference, run_alone

WINDOWS = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2}
# Windows, biases, norms of queries and keys, a tied table: something of its own in each family.
FIELDS = {
    "llama": {"attention_bias": True},
    "mistral": {"sliding_window": 8},
    "qwen2": WINDOWS,
    "qwen3": {"tied": True},
}
# What takes long per layer: two that differ, with a window.
TWO_LAYERS = {**FIELDS["mistral"], "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def exported(uneven, tmp_path_factory):
    """An fp32 export of a family, made once."""
    made = {}

    def make(model_type):
        if model_type not in made:
            folder = tmp_path_factory.mktemp("torch-export") / "a folder, größer"
            made[model_type] = export(uneven(model_type, **FIELDS[model_type]), "torch-export", folder)
        return made[model_type]

    return make


@pytest.fixture(scope="module")
def compiled(uneven, tmp_path_factory):
    """An AOTInductor package: half a minute of compiling."""
    if torch_export.compiler() is None:
        pytest.skip("there is no C++ compiler here")
    folder = tmp_path_factory.mktemp("aot") / "a folder, größer"
    return export(uneven("mistral", **TWO_LAYERS), "torch-export", folder, Options(aot=True))


@pytest.mark.parametrize("model_type", FAMILIES_TESTED)
def test_families_and_any_batch_length_past_and_padding(exported, uneven, model_type):
    made = exported(model_type)
    assert made.parity.ok and made.parity.greedy.equal == 72
    assert made.parity.logits.rms_relative < 1e-5
    with target("torch-export").open(made.path) as runner:
        assert largest_difference(runner, uneven(model_type, **FIELDS[model_type]), SIZES) < 1e-4


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision(uneven, tmp_path, dtype):
    source = uneven("qwen3", num_hidden_layers=2)
    made = export(source, "torch-export", tmp_path / "out", Options(dtype=dtype))
    assert made.parity.ok
    assert json.loads((tmp_path / "out" / "model.json").read_text())["dtype"] in ("float16", "bfloat16")
    assert made.file_bytes < 0.75 * 4 * source.shape.parameters


def test_runs_without_transformers(exported, uneven):
    assert run_alone(exported("qwen3").path) == expected_answer(uneven("qwen3", **FIELDS["qwen3"]))


def test_holds_no_path_of_this_machine(exported):
    content = (exported("llama").path / "model.pt2").read_bytes()
    for folder in (os.path.dirname(torch.__file__), os.path.dirname(os.path.abspath(torch_export.__file__))):
        assert folder.encode() not in content


def test_wrong_weight_is_caught(uneven, tmp_path, monkeypatch):
    monkeypatch.setattr(Job, "load", damaged)
    with pytest.raises(PrunekitError, match="does not compute what PyTorch computes"):
        export(uneven("llama", **FIELDS["llama"]), "torch-export", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_file_is_one_sentence(exported, tmp_path):
    for file in exported("llama").path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.pt2").write_bytes(b"PK" + bytes(100))
    with pytest.raises(PrunekitError, match=r"PyTorch could not load .*model\.pt2"):
        target("torch-export").open(tmp_path)


def test_compiled(compiled, uneven):
    source = uneven("mistral", **TWO_LAYERS)
    assert compiled.parity.ok and compiled.parity.greedy.equal == 72
    assert not (compiled.path / "model.pt2").exists()
    assert compiled.written.facts["compiled_for"]["system"] in (compiled.path / "README.md").read_text()
    before = torch.get_num_threads()
    with target("torch-export").open(compiled.path, threads=2) as runner:
        assert largest_difference(runner, source, SIZES) < 1e-4
        ids = np.random.default_rng(0).integers(0, source.shape.vocab_size, (3, 9))
        made = runner.greedy(ids, 12).tokens
    torch.set_num_threads(before)
    wanted = TorchRunner(load_model(source, dtype="float32", device="cpu")).greedy(ids, 12).tokens
    np.testing.assert_array_equal(made, wanted)


def test_compiled_runs_without_transformers(compiled, uneven):
    assert run_alone(compiled.path) == expected_answer(uneven("mistral", **TWO_LAYERS))


def test_no_compiler_is_said_before_anything_is_read(uneven, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("prunekit.export.target.load_model", pytest.fail)
    with pytest.raises(PrunekitError, match=r"needs a C\+\+ compiler.*install g\+\+.*leave --aot out"):
        export(uneven("llama"), "torch-export", tmp_path / "out", Options(aot=True))


def test_smollm2(shortened_smollm2, tmp_path):
    made = export(shortened_smollm2, "torch-export", tmp_path / "out")
    assert made.parity.ok and made.parity.greedy.equal == 72
    assert made.parity.logits.rms_relative < 2e-5
