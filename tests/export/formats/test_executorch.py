from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.export.export import export
from prunekit.export.formats.pytorch import executorch
from prunekit.export.formats.pytorch.static_cache import StaticForward
from prunekit.export.registry import target
from prunekit.export.target import Job, Options
from prunekit.models.runner import TorchRunner
from prunekit.models.source import load_model, resolve
from tests.support.export_models import FAMILIES_TESTED, save_uneven
from tests.support.torch_programs import expected_answer, run_alone, save_with_rope

WINDOWS = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2}
FIELDS = {
    "llama": {"attention_bias": True},
    "mistral": {"sliding_window": 8},
    "qwen2": WINDOWS,
    "qwen3": {"tied": True},
}


@pytest.mark.parametrize("model_type", [*FAMILIES_TESTED, "gemma2"])
def test_slots_hold_what_a_growing_cache_holds(uneven, model_type):
    source = uneven(model_type, **FIELDS.get(model_type, {"head_dim": 32, "sliding_window": 8}))
    model = load_model(source, dtype="float32", device="cpu")
    static = StaticForward(load_model(source, dtype="float32", device="cpu"), source.family, source.shape, 64)
    ids = torch.randint(0, source.shape.vocab_size, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for text in ids:  # the second finds what the first left
            made = [
                static(text[None, begin:end], torch.arange(begin, end))
                for begin, end in ((0, 20), (20, 21), (21, 22), (22, 49), (49, 50))
            ]
            torch.testing.assert_close(torch.cat(made, 1), model(text[None]).logits, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["short", "long"])
def test_rope_that_changes_needs_a_short_context(tmp_path, name):
    source = resolve(
        str(save_with_rope(tmp_path / "model", rope_type="dynamic", factor=2.0, original_max_position_embeddings=64))
    )
    context = 64 if name == "short" else 65
    job = Job(source, Options(context_length=context), "fp32")
    if name == "short":
        target("executorch").check(job)
        return
    with pytest.raises(PrunekitError, match=r"--context-length of at most 64"):
        target("executorch").check(job)


def test_context_too_short(uneven):
    with pytest.raises(PrunekitError, match="at least 16, got 4"):
        target("executorch").check(Job(uneven("llama"), Options(context_length=4), "fp32"))


@pytest.fixture(scope="module")
def runtime():
    pytest.importorskip("executorch")


# Lowering takes seconds a layer, so that few exports serve many checks. Other exports have a file, and so a process of
# `make test`, of their own: test_executorch_models.py.
@pytest.fixture(scope="module")
def qwen3(runtime, uneven, tmp_path_factory):
    folder = tmp_path_factory.mktemp("executorch") / "a folder, größer"
    source = uneven("qwen3", **FIELDS["qwen3"])
    return source, export(source, "executorch", folder, Options(context_length=200))


def test_equals_pytorch(qwen3):
    source, made = qwen3
    assert made.parity.ok and made.parity.greedy.equal == 72
    assert made.parity.logits.rms_relative < 2e-5
    assert any("stored twice" in note for note in made.written.notes)
    wanted = TorchRunner(load_model(source, dtype="float32", device="cpu"))
    ids = np.random.default_rng(0).integers(0, source.shape.vocab_size, 200)
    with target("executorch").open(made.path) as runner:
        for length in (1, 2, 127, 128, 129, 200):
            np.testing.assert_allclose(runner.logits(ids[:length]), wanted.logits(ids[:length]), rtol=0, atol=2e-4)
        # A new text does not see the old one.
        np.testing.assert_allclose(runner.start(ids[None, 3:6]), wanted.start(ids[None, 3:6]), rtol=0, atol=2e-4)


def test_limits_are_sentences(qwen3):
    with target("executorch").open(qwen3[1].path, threads=1) as runner:
        with pytest.raises(PrunekitError, match="one sequence at a time"):
            runner.start(np.zeros((2, 3), np.int64))
        with pytest.raises(PrunekitError, match="context of 200 tokens is full"):
            runner.logits(np.zeros(201, np.int64))
        runner.start(np.zeros((1, 199), np.int64))
        runner.step(np.zeros(1, np.int64))
        with pytest.raises(PrunekitError, match="context of 200 tokens is full"):
            runner.step(np.zeros(1, np.int64))
    with pytest.raises(PrunekitError, match="closed"):
        runner.step(np.zeros(1, np.int64))


def test_program_names_its_limits(qwen3):
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(qwen3[1].path / "model.pte")
    facts = {name: program.load_method(name).execute(())[0] for name in program.method_names if name != "forward"}
    assert facts["get_max_context_len"] == 200 and facts["get_max_seq_len"] == 128
    assert facts["get_vocab_size"] == qwen3[0].shape.vocab_size and facts["use_kv_cache"]


def test_runs_without_transformers(qwen3):
    assert run_alone(qwen3[1].path, dict(os.environ)) == expected_answer(qwen3[0])


def test_other_weights_are_caught(qwen3, tmp_path, monkeypatch):
    class Wrong:
        def write_to_file(self, file):
            file.write((qwen3[1].path / "model.pte").read_bytes())

    monkeypatch.setattr(executorch, "lowered", lambda job, dtype: Wrong())
    other = resolve(str(save_uneven(tmp_path / "other", "qwen3", seed=1, tie_word_embeddings=True)))
    with pytest.raises(PrunekitError, match="does not compute what PyTorch computes"):
        export(other, "executorch", tmp_path / "out", Options(context_length=200))
    assert not (tmp_path / "out").exists()


def test_damaged_file_is_one_sentence(qwen3, tmp_path):
    for file in qwen3[1].path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.pte").write_bytes(bytes(100))
    with pytest.raises(PrunekitError, match=r"ExecuTorch could not load .*model\.pte"):
        target("executorch").open(tmp_path)
