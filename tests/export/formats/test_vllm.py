"""vLLM itself is run by tests/vllm_real; here is what can be told without it, and prunekit's side with a stand-in."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.export.export import export
from prunekit.export.formats import hf
from prunekit.export.formats.vllm import plugin as vllm_plugin
from prunekit.export.formats.vllm import target as vllm
from prunekit.export.parity import compare, sample
from prunekit.export.registry import target
from prunekit.export.target import Options, prepared
from prunekit.models.families import FAMILIES
from prunekit.models.runner import TorchRunner
from prunekit.models.source import load_model, resolve
from prunekit.plan.shape import LayerShape

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def without_vllm(monkeypatch):
    """As on a machine that has no vLLM, whatever this one has."""
    monkeypatch.setattr(vllm.Vllm, "missing", lambda self, requirements: requirements)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_copy_is_checked_in_transformers_and_said_to_be_unverified(uneven, tmp_path, dtype):
    made = export(uneven("llama"), "vllm", tmp_path / "out", Options(dtype))
    assert made.parity is None and "vLLM is not installed" in made.unverified
    assert made.written.facts["transformers"]["ok"] is True
    manifest = json.loads((tmp_path / "out" / "prunekit-export.json").read_text())
    assert manifest["verified"] is False and "not run in it" in manifest["unverified"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["PrunedLlamaForCausalLM"] and config["per_layer_config"]
    assert config["dtype"] == {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[dtype]


def test_serve_script_gives_vllm_the_exact_command(uneven, tmp_path):
    source = uneven("qwen3")
    out = tmp_path / "modèle élagué"
    export(source, "vllm", out, Options(context_length=200))
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "vllm").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (bin_folder / "vllm").chmod(0o755)
    shown = subprocess.run(
        ["sh", str(out / "serve.sh"), "--port", "8001"],
        env={**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    expected = ["serve", str(out), "--served-model-name", "pruned", "--dtype", "bfloat16"]
    expected += ["--tensor-parallel-size", "1", "--max-model-len", "200", "--port", "8001"]
    assert shown == expected
    script = (out / "serve.sh").read_text()
    assert str(tmp_path) not in script and "trust-remote-code" not in script
    readme = (out / "README.md").read_text()
    assert "pip install vllm\npip install .  #" in readme
    assert '"model": "pruned"' in readme and str(tmp_path) not in readme


def test_corrupted_copy_is_refused(uneven, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    write = hf.HuggingFace.write

    def corrupted(self, job, folder):
        written = write(self, job, folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.2.mlp.down_proj.weight"] *= 1.05
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return written

    monkeypatch.setattr(hf.HuggingFace, "write", corrupted)
    with pytest.raises(PrunekitError, match="does not compute what PyTorch computes"):
        export(uneven("llama"), "vllm", tmp_path / "out", Options("fp32"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("layer", "ways", "misfit"),
    [
        ((8, 4, 512), 4, None),
        ((8, 2, 512), 4, None),  # two devices share each KV head
        ((4, 1, 512), 4, None),
        ((6, 3, 512), 2, "3 KV heads"),
        ((12, 3, 512), 4, "3 KV heads"),
        ((6, 6, 512), 4, "6 query heads"),
        ((8, 4, 501), 2, "501 FFN channels"),
        ((7, 7, 501), 1, None),
    ],
)
def test_divisibility(layer, ways, misfit):
    assert vllm._misfit(LayerShape(*layer), ways) == misfit


def test_first_layer_that_does_not_divide_is_named(uneven, tmp_path):
    with pytest.raises(PrunekitError, match=r"Layer 0 has 501 FFN channels.* 2 ways.*--round-for tp=2.*--pad-ffn 2"):
        export(uneven("llama"), "vllm", tmp_path / "out", Options(tensor_parallel=2))
    # Padding helps FFNs, not heads.
    with pytest.raises(PrunekitError, match=r"Layer 1 has 3 KV heads.*--round-for tp=2, or"):
        export(uneven("llama"), "vllm", tmp_path / "out", Options(tensor_parallel=2, pad_ffn=2))
    assert not (tmp_path / "out").exists()


def test_dense_and_rounded_models_divide(uneven, tmp_path, monkeypatch):
    from tests.support import export_models

    for name, widths in (("HEADS", (8, 4, 2)), ("KV_HEADS", (4, 2, 1)), ("FFN", (501, 77, 512))):
        monkeypatch.setattr(export_models, name, widths)
    source = resolve(str(export_models.save_uneven(tmp_path / "even", "llama")))
    made = export(source, "vllm", tmp_path / "out", Options("fp32", tensor_parallel=2, pad_ffn=2))
    assert "--tensor-parallel-size 2" in made.written.facts["serve"]
    assert "--tensor-parallel-size 2" in (tmp_path / "out" / "serve.sh").read_text()


def test_fused_projections_are_split(tmp_path, monkeypatch):
    from tests.support import export_models

    for name, widths in (("HEADS", (8, 4, 2)), ("KV_HEADS", (4, 2, 1)), ("FFN", (502, 78, 512))):
        monkeypatch.setattr(export_models, name, widths)
    source = resolve(str(export_models.save_uneven(tmp_path / "phi", "phi3")))
    prepared(target("vllm"), source, Options(tensor_parallel=2))


class Registry:
    """Stands in for vllm.ModelRegistry."""

    known: dict[str, str]

    @classmethod
    def get_supported_archs(cls):
        return cls.known.keys()

    @classmethod
    def register_model(cls, arch, model):
        assert arch not in cls.known
        cls.known[arch] = model


class Flat:
    """vLLM's flat logprobs: at each place all tokens, in no order, the asked one first and so twice."""

    def __init__(self):
        self.start_indices, self.end_indices, self.token_ids, self.logprobs = [], [], [], []

    def add(self, row, first):
        self.start_indices.append(len(self.token_ids))
        if row is not None:
            order = [first, *np.argsort(-row).tolist()]
            self.token_ids += order
            self.logprobs += row[order].tolist()
        self.end_indices.append(len(self.token_ids))
        return self


class StandIn:
    """What vllm.LLM does with the arguments that VllmRunner gives, on a transformers model."""

    def __init__(self, folder, **settings):
        assert settings["logprobs_mode"] == "raw_logits" and settings["dtype"] == "float32"
        self.runner = TorchRunner(load_model(resolve(folder), device="cpu"))
        self.llm_engine = types.SimpleNamespace(engine_core=types.SimpleNamespace(shutdown=lambda: None))

    def reset_prefix_cache(self):
        pass

    def generate(self, prompts, params, use_tqdm):
        answers = []
        for prompt in prompts:
            ids = np.array(prompt["prompt_token_ids"])
            tokens = self.runner.greedy(ids[None], params.max_tokens).tokens[0]
            logits = self.runner.logits(np.concatenate([ids, tokens[:-1]]))
            flat = Flat().add(None, None)
            for place in range(1, len(ids)):
                flat.add(logits[place - 1], int(ids[place]))
            answer = Flat()
            for place, token in enumerate(tokens):
                answer.add(logits[len(ids) - 1 + place], int(token))
            output = types.SimpleNamespace(token_ids=tokens.tolist(), logprobs=answer)
            answers.append(types.SimpleNamespace(prompt_logprobs=flat, outputs=[output]))
        return answers


@pytest.fixture
def stand_in(monkeypatch):
    module = types.ModuleType("vllm")
    config = types.ModuleType("vllm.config")
    config.model_arch = types.SimpleNamespace(ModelArchitectureConfig=types.SimpleNamespace(per_layer_overrides=None))
    monkeypatch.setitem(sys.modules, "vllm.config", config)
    module.ModelRegistry = Registry
    module.LLM = StandIn
    module.SamplingParams = lambda **fields: types.SimpleNamespace(**fields)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(Registry, "known", {"LlamaForCausalLM": "vllm's own"}, raising=False)
    return module


def test_plugin_registers_every_family_once(stand_in):
    vllm_plugin.register()
    vllm_plugin.register()
    assert set(Registry.known) == {"LlamaForCausalLM"} | {each.pruned_causal_lm_class for each in FAMILIES.values()}
    assert Registry.known["PrunedLlamaForCausalLM"] == vllm_plugin.MODEL
    assert Registry.known["LlamaForCausalLM"] == "vllm's own"


def test_entry_point_names_the_plugin():
    tomllib = pytest.importorskip("tomllib")
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    module, _, name = groups["vllm.general_plugins"]["prunekit"].partition(":")
    assert getattr(importlib.import_module(module), name) is vllm_plugin.register


def test_plugin_is_imported_without_vllm():
    code = "import prunekit.export.formats.vllm.plugin, prunekit.export.formats.vllm.target, sys\n"
    code += "assert 'vllm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_runner_reads_vllms_logits(uneven, tmp_path, stand_in):
    job = prepared(target("vllm"), uneven("mistral"), Options("fp32"))
    target("vllm").write(job, tmp_path)
    with vllm.VllmRunner(tmp_path) as runner:
        parity = compare(job, runner, sample(job))
        batch = np.stack([window[:9] for window in sample(job).windows[:2]])
        assert runner.start(batch).shape == (2, job.source.shape.vocab_size)
        assert runner.step(np.array([3, 4])).shape == (2, job.source.shape.vocab_size)
        assert runner.greedy(batch, 5).tokens.shape == (2, 5)
    assert parity.ok and parity.greedy.equal == 72
    torch.testing.assert_close(parity.logits.largest, 0.0, atol=1e-4, rtol=0)


def test_threads_reach_vllm(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "auto")
    vllm._set_threads(None)
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "auto"
    vllm._set_threads(1)
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"].isdecimal()
