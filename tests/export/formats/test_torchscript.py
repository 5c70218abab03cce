from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.export.export import export
from prunekit.export.registry import target
from prunekit.export.target import Job, Options
from prunekit.models.runner import TorchRunner
from prunekit.models.source import load_model, resolve
from tests.support.export_models import FAMILIES_TESTED
from tests.support.torch_programs import SIZES, damaged, expected_answer, largest_difference, run_alone, save_with_rope

WINDOWS = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2}


@pytest.fixture(scope="module")
def exported(uneven, tmp_path_factory):
    """An fp32 export of a family, made once."""
    made = {}

    def make(model_type, **fields):
        key = (model_type, *sorted(fields))
        if key not in made:
            folder = tmp_path_factory.mktemp("torchscript") / "a folder, größer"
            made[key] = export(uneven(model_type, **fields), "torchscript", folder)
        return made[key]

    return make


@pytest.mark.parametrize("model_type", FAMILIES_TESTED)
def test_families(exported, model_type):
    made = exported(model_type)
    assert made.parity.ok and made.parity.greedy.equal == 72
    assert made.parity.logits.rms_relative < 1e-5
    assert made.written.decode_bytes < made.file_bytes


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [("llama", {}), ("mistral", {"sliding_window": 8}), ("qwen2", WINDOWS), ("qwen3", {"tied": True})],
)
def test_any_batch_length_past_and_padding(exported, uneven, model_type, fields):
    made = exported(model_type, **fields)
    with target("torchscript").open(made.path) as runner:
        assert largest_difference(runner, uneven(model_type, **fields), SIZES) < 1e-4


def test_batches_decode_alike(exported, uneven):
    source = uneven("qwen3")
    ids = np.random.default_rng(0).integers(0, source.shape.vocab_size, (3, 9))
    with target("torchscript").open(exported("qwen3").path) as runner:
        made = runner.greedy(ids, 12).tokens
        again = runner.greedy(ids, 12).tokens
    wanted = TorchRunner(load_model(source, dtype="float32", device="cpu")).greedy(ids, 12).tokens
    np.testing.assert_array_equal(made, wanted)
    np.testing.assert_array_equal(again, wanted)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision(uneven, tmp_path, dtype):
    made = export(uneven("qwen2"), "torchscript", tmp_path / "out", Options(dtype=dtype))
    assert made.parity.ok
    assert made.file_bytes < 0.6 * 4 * uneven("qwen2").shape.parameters


def test_runs_without_transformers(exported, uneven):
    assert run_alone(exported("qwen3").path) == expected_answer(uneven("qwen3"))


def test_no_tokenizer(uneven, tmp_path):
    from prunekit.export.target import prepared

    folder = tmp_path / "model"
    folder.mkdir()
    for file in uneven("llama").path.iterdir():
        if "token" not in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    job = prepared(target("torchscript"), resolve(str(folder)), Options())
    assert "tokenizer.json" not in target("torchscript").usage(job)


def test_scaled_rope(tmp_path):
    source = resolve(
        str(
            save_with_rope(
                tmp_path / "model",
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            )
        )
    )
    made = export(source, "torchscript", tmp_path / "out")
    with target("torchscript").open(made.path) as runner:
        assert largest_difference(runner, source, ((1, 150, 0), (1, 1, 150))) < 1e-4


@pytest.mark.parametrize("name", ["torchscript", "torch-export"])
def test_rope_that_changes_is_refused(tmp_path, name):
    source = resolve(str(save_with_rope(tmp_path / "model", rope_type="dynamic", factor=2.0)))
    with pytest.raises(PrunekitError, match=r"RoPE of .* \(dynamic\) changes with the length .* hf or vllm"):
        export(source, name, tmp_path / "out")


def test_wrong_weight_is_caught(uneven, tmp_path, monkeypatch):
    monkeypatch.setattr(Job, "load", damaged)
    with pytest.raises(PrunekitError, match="does not compute what PyTorch computes"):
        export(uneven("llama"), "torchscript", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_file_is_one_sentence(exported, tmp_path):
    for file in exported("llama").path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.pt").write_bytes(b"PK" + bytes(100))
    with pytest.raises(PrunekitError, match=r"TorchScript could not load .*model\.pt"):
        target("torchscript").open(tmp_path)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(PrunekitError, match=r"model\.json is damaged"):
        target("torchscript").open(tmp_path)


def test_quiet_and_threads(uneven, tmp_path, capfd):
    before = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = export(uneven("mistral"), "torchscript", tmp_path / "out", verify=False)
        with target("torchscript").open(made.path, threads=1) as runner:
            assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
    assert "Warning" not in capfd.readouterr().err
    with pytest.raises(PrunekitError, match="closed"):
        runner.start(np.zeros((1, 3), np.int64))


def test_smollm2(shortened_smollm2, tmp_path):
    made = export(shortened_smollm2, "torchscript", tmp_path / "out")
    assert made.parity.ok and made.parity.greedy.equal == 72
    assert made.parity.logits.rms_relative < 2e-5
