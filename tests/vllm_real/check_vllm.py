"""Pruned models in the real vLLM, in an environment that install.sh made: FOLDER/bin/python -m pytest -q check_vllm.py

Not named test_*, so that `make test` doesn't look here.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from prunekit.errors import PrunekitError
from prunekit.evaluation.acceptance.policy import Policy
from prunekit.evaluation.acceptance.run import accept
from prunekit.export.device import place
from prunekit.export.export import export
from prunekit.export.formats import hf
from prunekit.export.formats.vllm import plugin
from prunekit.export.formats.vllm.target import VllmRunner
from prunekit.export.parity import compare, sample
from prunekit.export.registry import target
from prunekit.export.target import Options, prepared
from prunekit.models.families import FAMILIES
from prunekit.models.runner import TorchRunner
from prunekit.models.source import Source, resolve
from prunekit.monitoring.scoring.contexts import Context
from prunekit.monitoring.scoring.endpoint import DenseServer
from prunekit.plan import LayerKeep, Plan
from prunekit.profiling.server.config import ServerConfig, Slo
from prunekit.profiling.server.run import bench_server
from prunekit.utils.endpoints.endpoint import Endpoint
from tests.support import export_models
from tests.support.tiny import rebuilt_model, tiny_model

pytest.importorskip("vllm")
PORT = 8765
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# What vLLM has to get right beside widths: windows, biases, tied heads, stretched positions, soft caps, wide norms.
ONE_DEVICE = {
    "llama": ("llama", {"attention_bias": True, "tie_word_embeddings": True, "rope_parameters": LLAMA_3_ROPE}),
    "mistral": ("mistral", {"sliding_window": 8}),
    "qwen2": ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2}),
    "qwen3": ("qwen3", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2}),
}
OTHER_FAMILIES = {
    "gemma2": ("gemma2", {"sliding_window": 8}),
    "gemma3": ("gemma3_text", {"sliding_window": 8, "sliding_window_pattern": 2}),
    "phi3": ("phi3", {"sliding_window": 8}),
    "phi3 partial": ("phi3", {"partial_rotary_factor": 0.5}),
    "olmo2": ("olmo2", {}),
    "smollm3": ("smollm3", {"use_sliding_window": True, "sliding_window": 8}),
}


# Every bias that a family has a switch for, beside those above.
BIASED = {
    "llama biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen3 biased": ("qwen3", {"attention_bias": True}),
    "gemma3 biased": ("gemma3_text", {"attention_bias": True, "sliding_window": 8}),
    "olmo2 biased": ("olmo2", {"attention_bias": True}),
    "smollm3 biased": ("smollm3", {"attention_bias": True, "mlp_bias": True}),
}
ALL = ONE_DEVICE | OTHER_FAMILIES | BIASED


@pytest.fixture(scope="session", autouse=True)
def plugin_is_installed() -> None:
    """Without it, vLLM finds transformers' classes in this process and tests something else."""
    (found,) = importlib.metadata.entry_points(group="vllm.general_plugins", name="prunekit")
    assert found.load() is plugin.register, f"Delete .compat/vllm: the prunekit in it announces {found.value}."


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process of its own for the engine, which takes most of a small test's time."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


@pytest.fixture(autouse=True)
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gigabyte of KV cache is plenty, and vLLM would take most of the memory."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")


def made(folder: Path, model_type: str, fields: dict[str, object]) -> Source:
    return resolve(str(export_models.save_uneven(folder / "pruned", model_type, **fields)))


def exported_equal(source: Source, folder: Path) -> None:
    exported = export(source, "vllm", folder, Options("fp32"))
    assert exported.unverified is None
    assert exported.parity is not None and exported.parity.ok
    assert exported.parity.greedy.equal == exported.parity.greedy.compared == 72


def engine(folder: Path, **settings: Any) -> Any:
    import vllm

    return vllm.LLM(
        str(folder),
        dtype="float32",
        max_model_len=256,
        kv_cache_memory_bytes=2**28,
        block_size=32,
        skip_tokenizer_init=True,
        **{"enforce_eager": True, **settings},
    )


def greedy(llm: Any, prompt: list[int], tokens: int = 24, **settings: Any) -> list[int]:
    import vllm

    params = vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    (made,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False, **settings)
    return list(made.outputs[0].token_ids)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("case", ALL)
def test_uneven_layers(tmp_path: Path, case: str) -> None:
    exported_equal(made(tmp_path, *ALL[case]), tmp_path / "out")


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("model_type", FAMILIES)
def test_removed_sublayers(tmp_path: Path, model_type: str) -> None:
    exported_equal(without_sublayers(tmp_path / "pruned", model_type), tmp_path / "out")


def without_sublayers(folder: Path, model_type: str) -> Source:
    """Layers 0 and 2 have no attention, layer 1 no FFN, layer 3 is cut."""
    windowed = {} if model_type in ("llama", "olmo2") else {"sliding_window": 8}
    dense = tiny_model(model_type, config=export_models.dense_config(model_type, **windowed))
    whole = export_models.uneven_plan(FAMILIES[model_type].shape(dense.config))
    layers = [
        LayerKeep(0, (), (), whole.layers[0].ffn),
        LayerKeep(1, whole.layers[1].kv_heads, whole.layers[1].query_heads, ()),
        LayerKeep(2, (), (), whole.layers[2].ffn),
        whole.layers[3],
    ]
    rebuilt_model(dense, Plan(whole.source, tuple(layers))).save_pretrained(folder)
    export_models.byte_tokenizer().save_pretrained(folder)
    return resolve(str(folder))


@pytest.mark.usefixtures("in_process")
def test_compiled(tmp_path: Path) -> None:
    """As vLLM runs by default, with a graph for torch.compile."""
    source = without_sublayers(tmp_path / "pruned", "gemma3_text")
    job = prepared(target("vllm"), source, Options("fp32"))
    prompt = sample(job).windows[0][:24]
    wanted = TorchRunner(job.model).greedy(prompt[None], 24).tokens[0].tolist()
    assert greedy(engine(source.path, enforce_eager=False), prompt.tolist()) == wanted


@pytest.mark.usefixtures("in_process")
def test_adapter(tmp_path: Path) -> None:
    """A LoRA adapter for widths that are not padded then: the tokens of the model with it merged in."""
    from vllm.lora.request import LoRARequest

    source = made(tmp_path, "llama", {})
    job = prepared(target("vllm"), source, Options("fp32"))
    prompt = sample(job).windows[0][:24]
    plain = TorchRunner(job.model).greedy(prompt[None], 24).tokens[0].tolist()
    adapted = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, module in job.model.named_modules():
        if name.rpartition(".")[2] in adapted:
            rows, columns = module.weight.shape
            a, b = (torch.randn(size, generator=generator) * 0.1 for size in ((8, columns), (rows, 8)))
            tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
            module.weight.data += b @ a
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 8, "target_modules": adapted}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    wanted = TorchRunner(job.model).greedy(prompt[None], 24).tokens[0].tolist()
    llm = engine(source.path, enable_lora=True, max_lora_rank=8)
    assert plain != wanted
    assert greedy(llm, prompt.tolist()) == plain
    assert greedy(llm, prompt.tolist(), lora_request=LoRARequest("adapter", 1, str(folder))) == wanted


def test_transformers_backend(tmp_path: Path) -> None:
    """What vLLM runs without the plug-in, or where it is asked to. In a process of its own, since that backend rewrites
    transformers' classes, and later tests compare with them."""
    source = made(tmp_path, *ONE_DEVICE["qwen3"])
    job = prepared(target("vllm"), source, Options("fp32"))
    prompt = sample(job).windows[0][:24]
    wanted = TorchRunner(job.model).greedy(prompt[None], 24).tokens[0].tolist()
    llm = engine(source.path, model_impl="transformers")
    assert llm.llm_engine.vllm_config.model_config.architecture == "TransformersForCausalLM"
    assert greedy(llm, prompt.tolist()) == wanted


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_16_bits(tmp_path: Path, dtype: str) -> None:
    exported = export(made(tmp_path, "llama", {}), "vllm", tmp_path / "out", Options(dtype))
    assert exported.parity is not None and exported.parity.ok


def test_the_device_is_vllms_own() -> None:
    assert target("vllm").own_device() == "cpu" == place(target("vllm"), "auto")
    with pytest.raises(PrunekitError, match="The installed vLLM runs on cpu and not on cuda; leave --device out"):
        target("vllm").check_device("cuda")


@pytest.mark.usefixtures("in_process")
def test_wrong_weight_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = hf.HuggingFace.write

    def corrupted(self: hf.HuggingFace, job: object, folder: Path) -> object:
        written = write(self, job, folder)  # type: ignore[arg-type]
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.self_attn.k_proj.weight"][:32] *= -1
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return written

    monkeypatch.setattr(hf.HuggingFace, "write", corrupted)
    with pytest.raises(PrunekitError, match="does not compute what PyTorch computes"):
        export(made(tmp_path, "llama", {}), "vllm", tmp_path / "out", Options("fp32"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", ALL)
def test_two_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    # The last layer has one KV head, of which each device gets a copy.
    monkeypatch.setattr(export_models, "HEADS", (8, 4, 4, 2))
    monkeypatch.setattr(export_models, "KV_HEADS", (4, 2, 2, 1))
    monkeypatch.setattr(export_models, "FFN", (502, 334, 78, 512))
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    job = prepared(target("vllm"), made(tmp_path, *ALL[case]), Options("fp32", tensor_parallel=2))
    target("vllm").write(job, tmp_path / "out")
    with VllmRunner(tmp_path / "out", tensor_parallel=2) as runner:
        parity = compare(job, runner, sample(job))
    assert parity.ok, parity.failures
    assert parity.greedy.equal == parity.greedy.compared == 72


def test_smollm2(pruned_smollm2: Source, tmp_path: Path) -> None:
    exported = export(pruned_smollm2, "vllm", tmp_path / "out", Options("fp32"))
    assert exported.parity is not None and exported.parity.ok
    assert exported.parity.greedy.equal == exported.parity.greedy.compared == 72


@contextmanager
def served(command: list[str], log: Path) -> Iterator[None]:
    """A vLLM server on PORT while the block runs."""
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            for _ in range(600):
                assert server.poll() is None, log.read_text()[-4000:]
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5):
                        break
                except (urllib.error.URLError, OSError):
                    time.sleep(1)
            else:
                raise AssertionError(log.read_text()[-4000:])
            yield
        finally:
            server.terminate()
            server.wait(60)


def test_http_server(pruned_smollm2: Source, tmp_path: Path) -> None:
    folder = tmp_path / "pruned modèle"
    export(pruned_smollm2, "vllm", folder, Options("fp32", context_length=1024), verify=False)
    # Nothing left in the folder that could be run.
    config = json.loads((folder / "config.json").read_text())
    config.pop("auto_map")
    (folder / "config.json").write_text(json.dumps(config))
    for code in folder.glob("*.py"):
        code.unlink()
    script = (folder / "serve.sh").read_text()
    assert "trust" not in script and "--dtype float32" in script
    job = prepared(target("vllm"), pruned_smollm2, Options("fp32"))
    prompt = sample(job).windows[0][:24]
    wanted = TorchRunner(job.model).greedy(prompt[None], 24).tokens[0].tolist()
    shell = shutil.which("sh")
    assert shell
    with served([shell, str(folder / "serve.sh"), "--port", str(PORT), "--enforce-eager"], tmp_path / "log"):
        request = {
            "model": "pruned_smollm2",
            "prompt": prompt.tolist(),
            "max_tokens": 24,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        asked = urllib.request.Request(
            f"http://127.0.0.1:{PORT}/v1/completions",
            data=json.dumps(request).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=300) as answer:
            choice = json.load(answer)["choices"][0]
    assert "Transformers modeling backend" not in (tmp_path / "log").read_text()
    assert choice["token_ids"] == wanted
    assert choice["text"] == job.tokenizer.decode(np.array(wanted))


def test_what_asks_servers(pruned_smollm2: Source, tmp_path: Path) -> None:
    """A load test, an acceptance test and the log-probabilities of a prompt, at one server."""
    folder = tmp_path / "pruned"
    export(pruned_smollm2, "vllm", folder, Options("fp32", context_length=1024), verify=False)
    job = prepared(target("vllm"), pruned_smollm2, Options("fp32"))
    ids = tuple(int(each) for each in sample(job).windows[0][:24])
    with torch.no_grad():
        log_probs = job.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    records = tmp_path / "records.jsonl"
    rows = [{"prompt": f"{at} + 1 =", "reference": at + 1, "check": "numeric"} for at in range(10)]
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shell = shutil.which("sh")
    assert shell
    with served([shell, str(folder / "serve.sh"), "--port", str(PORT), "--enforce-eager"], tmp_path / "log"):
        # Without a name: the first that it lists.
        endpoint = Endpoint(f"http://127.0.0.1:{PORT}")
        config = ServerConfig(requests=4, blocks=2, tokens=8, natural_tokens=8, slo=Slo(e2e=20_000), max_minutes=1)
        load = bench_server(endpoint, config=config)
        found = accept(
            endpoint,
            baseline=pruned_smollm2,
            records=records,
            out=tmp_path / "out",
            policy=Policy(margin=0.5),
            max_new_tokens=8,
            dtype="float32",
        )
        told = DenseServer(endpoint).read([Context("a", ids, 12, True)], "dense")["a"]
    assert load.stopped == "" and load.served[0].exact and load.served[0].cache_queries
    for result in (each for one in load.loads for each in one.results):
        assert (result.requests, result.failed) == (4, 0) and result.tokens is not None
    assert load.loads[0].results[0].tokens == 8
    # The server's greedy answers are those of the checkpoint.
    assert (found.everything.failed, found.everything.baseline_failed) == (0, 0)
    assert (found.everything.worse, found.everything.better) == (0, 0)
    wanted = log_probs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    assert torch.allclose(told.own, wanted, atol=1e-3)
    assert torch.equal(told.first, log_probs[:-1].argmax(-1))
