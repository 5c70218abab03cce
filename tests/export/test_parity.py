"""The parity gate catches what goes wrong in exports: a damaged weight, a wrong RoPE base, heads in another order."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from prunekit.errors import PrunekitError
from prunekit.export.export import export
from prunekit.export.formats.hf import HuggingFace
from prunekit.export.parity import WINDOW, Greedy, _together, compare, sample
from prunekit.export.target import Job, Options
from prunekit.models.runner import TorchRunner
from prunekit.models.source import load_model

HEAD_DIM = 32


def _one_weight(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    weight = state["model.layers.2.mlp.down_proj.weight"]
    weight[5, 7] += 50 * weight.std()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _rope_base(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_parameters"]["rope_theta"] == 10000.0
    config["rope_parameters"]["rope_theta"] = 20000.0
    (folder / "config.json").write_text(json.dumps(config))


def _swapped_heads(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    weight = state["model.layers.1.self_attn.k_proj.weight"]
    state["model.layers.1.self_attn.k_proj.weight"] = torch.cat(
        [weight[HEAD_DIM : 2 * HEAD_DIM], weight[:HEAD_DIM], weight[2 * HEAD_DIM :]]
    )
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("damage", [_one_weight, _rope_base, _swapped_heads])
def test_a_wrong_export_is_removed(uneven, tmp_path, monkeypatch, damage, dtype):
    write = HuggingFace.write

    def wrong(self, job, folder):
        written = write(self, job, folder)
        damage(folder)
        return written

    monkeypatch.setattr(HuggingFace, "write", wrong)
    # A model of random weights guesses, and that is told too.
    said = "does not compute what PyTorch computes, so it was removed.* about what guessing gives"
    with pytest.raises(PrunekitError, match=said):
        export(uneven("llama"), "hf", tmp_path / "out", Options(dtype))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def job(uneven):
    return Job(uneven("llama"), Options(), "int4")


def _rounded(job: Job, levels: int) -> dict[str, torch.Tensor]:
    """Each row of every projection on ``levels`` steps, as a quantised format stores it."""
    made = {}
    for name, weight in job.model.state_dict().items():
        if name.endswith("_proj.weight"):
            step = weight.abs().amax(1, keepdim=True) / (levels / 2)
            made[name] = (weight / step).round() * step
    return made


def _runtime(job: Job, weights: dict[str, torch.Tensor]) -> TorchRunner:
    model = load_model(job.source, dtype="float32", device="cpu")
    model.load_state_dict(weights, strict=False)
    return TorchRunner(model)


def test_rounded_weights_are_judged_by_themselves(job):
    """Four bits move logits by more than any tolerance of a runtime; that is no fault of the runtime's."""
    stored = _rounded(job, 16)
    before = {name: tensor.clone() for name, tensor in job.model.state_dict().items()}
    made = compare(job, _runtime(job, stored), sample(job), stored)
    assert made.ok, made.failures
    assert made.greedy.equal == 72
    assert made.logits.largest == 0
    assert made.weights is not None and 0.05 < made.weights[0] < 0.25
    assert made.kl > 1e-3
    assert made.perplexity_stored == pytest.approx(made.perplexity_runtime)
    assert made.perplexity_reference != pytest.approx(made.perplexity_runtime, rel=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in job.model.state_dict().items())
    # Without the stored weights the same export would fail, as float32 weights would.
    assert not compare(job, _runtime(job, stored), sample(job)).ok


def test_a_rounded_weight_that_was_damaged_fails(job):
    stored = _rounded(job, 16)
    name = "model.layers.1.mlp.up_proj.weight"
    stored[name][3] = stored[name][4]
    made = compare(job, _runtime(job, stored), sample(job), stored)
    assert made.weights is not None and made.weights[1] == name
    assert len(made.failures) == 1 and "up_proj.weight is off by" in made.failures[0]


def _added_in_half(linear: torch.nn.Linear):
    """A forward of ``linear`` that rounds to float16 after every product added, as XNNPACK does on AVX512-FP16."""

    def forward(x):
        given, weight = x.half().float(), linear.weight.half().float().T.contiguous()
        total = torch.zeros(*x.shape[:-1], weight.shape[1])
        if linear.bias is not None:
            total += linear.bias.half().float()
        for place in range(len(weight)):
            total = torch.addcmul(total, given[..., place, None], weight[place]).half().float()
        return total

    return forward


def test_sums_in_half_precision_are_judged_as_such(uneven):
    job = Job(uneven("mistral"), Options(), "fp16")
    model = load_model(job.source, dtype="float32", device="cpu")
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.forward = _added_in_half(module)
    made = compare(job, TorchRunner(model), sample(job), half_sums=True)
    assert made.ok, made.failures
    assert not compare(job, TorchRunner(model), sample(job)).ok
    # What is wrong is further off than that.
    model.model.rotary_emb.inv_freq *= 0.9
    assert not compare(job, TorchRunner(model), sample(job), half_sums=True).ok


@pytest.mark.parametrize("levels", [16, 256])
def test_a_wrong_rope_base_fails_with_rounded_weights(job, levels):
    stored = _rounded(job, levels)
    runner = _runtime(job, stored)
    runner.model.model.rotary_emb.inv_freq *= 0.9
    made = compare(job, runner, sample(job), stored)
    assert any("logits differ" in failure for failure in made.failures)


def test_a_cache_that_loses_a_token_fails(job):
    class Forgetful(TorchRunner):
        def step(self, tokens):
            for layer in self._cache.layers:
                layer.keys, layer.values = layer.keys[:, :, :-1], layer.values[:, :, :-1]
            return super().step(tokens)

    made = compare(job, Forgetful(job.model), sample(job))
    assert made.logits.largest == 0
    assert any("through the KV cache" in failure for failure in made.failures)


def test_not_a_number_fails(job):
    class Broken(TorchRunner):
        def logits(self, ids):
            made = super().logits(ids)
            made[-1, 0] = np.nan
            return made

    made = compare(job, Broken(job.model), sample(job))
    assert not made.ok
    assert json.dumps(made.to_dict(), allow_nan=False)


def test_another_vocabulary_is_one_sentence(job):
    class Other(TorchRunner):
        def logits(self, ids):
            return super().logits(ids)[:, :-1]

    with pytest.raises(PrunekitError, match="does not hold this model"):
        compare(job, Other(job.model), sample(job))


@pytest.mark.parametrize(
    "seed, name, value, says",
    [
        (3, "model.layers.0.mlp.up_proj.weight", math.nan, r"Layer 0: mlp\.up_proj\.weight holds NaN"),
        (4, "model.layers.1.mlp.up_proj.weight", 3e38, "Layer 1: its outputs are not finite"),
        (5, "model.norm.weight", 3e38, "not finite numbers in PyTorch already"),
    ],
)
def test_a_broken_model_is_not_exported(seed, name, value, says, uneven, tmp_path):
    source = uneven("llama", seed=seed)
    weights = source.path / "model.safetensors"
    state = load_file(weights)
    state[name][...] = value
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(PrunekitError, match=says):
        export(source, "hf", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_text_is_real(job):
    given = sample(job)
    assert given.text == "builtin"
    assert [len(window) for window in given.windows] == [WINDOW] * 4
    assert len({tuple(window) for window in given.windows}) == 4
    assert [prompt.shape for prompt in given.prompts] == [(1, 5), (1, 24), (1, 61)]


def test_what_a_batch_says_is_judged():
    """Wrong is who says nothing in a batch, or names a token that there is not; who ends early is not."""
    logits = [np.eye(6, dtype=np.float32)[[1, 2, 3, 4]]]
    alone = [np.array([1, 2, 3, 4])]
    assert _together(logits, alone, np.array([[1, 2, 3, 4]]), 0.1) == Greedy(4, 4, 0, 0)
    assert _together(logits, alone, np.array([[1, 2, -1, -1]]), 0.1) == Greedy(2, 2, 0, 0)
    assert _together(logits, alone, np.array([[-1, -1, -1, -1]]), 0.1) == Greedy(1, 0, 0, 1)
    assert _together(logits, alone, np.array([[6, 2, 3, 4]]), 0.1) == Greedy(1, 0, 0, 1)
    assert _together(logits, alone, np.array([[1, 5, 3, 4]]), 0.1) == Greedy(2, 1, 0, 1)
    assert _together(logits, alone, None, 0.1) is None


def test_weights_are_let_go_where_writing_fails(uneven, tmp_path, monkeypatch):
    loaded = []

    def broken(self, job, folder):
        loaded.append(job.load("float32").model.layers[0].mlp.up_proj.weight)
        raise PrunekitError("no")

    monkeypatch.setattr(HuggingFace, "write", broken)
    with pytest.raises(PrunekitError, match="no"):
        export(uneven("llama"), "hf", tmp_path / "out")
    assert loaded[0].numel() == 0
