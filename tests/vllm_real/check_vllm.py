"""Pruned models in the real vLLM, in an environment that install.sh made: FOLDER/bin/python -m pytest -q check_vllm.py

Not named test_*, so that `make test` doesn't look here.
"""

from __future__ import annotations

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

import numpy as np
import pytest

from prunekit.errors import PrunekitError
from prunekit.export.device import place
from prunekit.export.export import export
from prunekit.export.formats import hf
from prunekit.export.formats.vllm.target import VllmRunner
from prunekit.export.parity import compare, sample
from prunekit.export.registry import target
from prunekit.export.target import Options, prepared
from prunekit.models.runner import TorchRunner
from prunekit.models.source import Source, resolve
from tests.support import export_models

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
    "olmo2": ("olmo2", {}),
    "smollm3": ("smollm3", {"use_sliding_window": True, "sliding_window": 8}),
}


@pytest.fixture(autouse=True)
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gigabyte of KV cache is plenty, and vLLM would take most of the memory."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")


def made(folder: Path, model_type: str, fields: dict[str, object]) -> Source:
    return resolve(str(export_models.save_uneven(folder / "pruned", model_type, **fields)))


@pytest.mark.parametrize("case", [*ONE_DEVICE, *OTHER_FAMILIES])
def test_uneven_layers(tmp_path: Path, case: str) -> None:
    source = made(tmp_path, *(ONE_DEVICE | OTHER_FAMILIES)[case])
    exported = export(source, "vllm", tmp_path / "out", Options("fp32"))
    assert exported.unverified is None
    assert exported.parity is not None and exported.parity.ok
    assert exported.parity.greedy.equal == exported.parity.greedy.compared == 72


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_16_bits(tmp_path: Path, dtype: str) -> None:
    exported = export(made(tmp_path, "llama", {}), "vllm", tmp_path / "out", Options(dtype))
    assert exported.parity is not None and exported.parity.ok


def test_the_device_is_vllms_own() -> None:
    assert target("vllm").own_device() == "cpu" == place(target("vllm"), "auto")
    with pytest.raises(PrunekitError, match="The installed vLLM runs on cpu and not on cuda; leave --device out"):
        target("vllm").check_device("cuda")


def test_wrong_weight_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file, save_file

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


@pytest.mark.parametrize("case", sorted({*ONE_DEVICE, *OTHER_FAMILIES} - {"phi3"}))
def test_two_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    # The last layer has one KV head, of which each device gets a copy.
    monkeypatch.setattr(export_models, "HEADS", (8, 4, 4, 2))
    monkeypatch.setattr(export_models, "KV_HEADS", (4, 2, 2, 1))
    monkeypatch.setattr(export_models, "FFN", (502, 334, 78, 512))
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    job = prepared(
        target("vllm"), made(tmp_path, *(ONE_DEVICE | OTHER_FAMILIES)[case]), Options("fp32", tensor_parallel=2)
    )
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
    assert choice["token_ids"] == wanted
    assert choice["text"] == job.tokenizer.decode(np.array(wanted))
