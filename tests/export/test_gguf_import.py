"""What a GGUF file holds comes back as the same model: logits, tokens, and no key or tensor is left out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_models import byte_tokenizer
from tiny import tiny_config, tiny_model

from prunekit.errors import PrunekitError
from prunekit.export.base import Options
from prunekit.export.run import export
from prunekit.gguf_rope import as_llama3
from prunekit.source import Source, load_model, load_tokenizer, resolve

gguf = pytest.importorskip("gguf")

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
SPREAD = [1.0, 1.5, 2.0, 3.0]
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": SPREAD,
    "short_factor": SPREAD,
    "original_max_position_embeddings": 256,
    "attention_factor": 1.25,
}
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tied": True, "bias": True}),
    ("llama", {"rope_parameters": LLAMA3}),
    ("llama", {"rope_parameters": YARN}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {"use_sliding_window": False}),
    ("qwen3", {"use_sliding_window": False, "tied": True}),
    ("qwen3", {"use_sliding_window": False, "rope_parameters": YARN}),
    ("phi3", {"sliding_window": None}),
    ("phi3", {"sliding_window": None, "partial_rotary_factor": 0.5}),
    ("phi3", {"sliding_window": None, "rope_parameters": LONG, "original_max_position_embeddings": 256}),
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer(300)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))


def written(folder: Path, model_type: str, tokenizer: Any, **fields: Any) -> tuple[Source, Path]:
    """A tiny model, and the GGUF file that it is exported to."""
    config = tiny_config(model_type, layers=2, vocab_size=300, bos_token_id=0, eos_token_id=0, **fields)
    tiny_model(model_type, config=config).save_pretrained(folder / "dense")
    tokenizer.save_pretrained(folder / "dense")
    source = resolve(str(folder / "dense"))
    export(source, "gguf", folder / "out", Options(dtype="f32", pad_ffn=1, context_length=256), verify=False)
    return source, next((folder / "out").glob("*.gguf"))


@pytest.mark.parametrize(("model_type", "fields"), MODELS)
def test_a_model_comes_back(model_type: str, fields: dict[str, Any], tokenizer: Any, tmp_path: Path) -> None:
    source, file = written(tmp_path, model_type, tokenizer, **fields)
    found = resolve(str(file))
    ids = torch.arange(1, 81).reshape(2, 40) * 3 % 300
    with torch.no_grad():
        mine, theirs = (load_model(each, dtype="float32", device="cpu")(ids).logits for each in (source, found))
    assert (mine - theirs).abs().max() <= 2e-5 * mine.abs().max()
    old, new = load_tokenizer(source), load_tokenizer(found)
    for text in ("In 123123 it's\n\n1234", "  def f(x):\n    return x", "naïve 中文 🙂", "<|endoftext|>the end"):
        assert old(text)["input_ids"] == new(text)["input_ids"]
    assert (new.bos_token, new.eos_token) == (old.bos_token, old.eos_token)


def test_factors_by_llama3s_rule_come_back_as_that_rule(tokenizer: Any, tmp_path: Path) -> None:
    _, file = written(tmp_path, "llama", tokenizer, rope_parameters=LLAMA3)
    assert resolve(str(file)).config.rope_parameters["rope_type"] in ("llama3", "longrope")
    dimensions = 128
    waves = 2 * np.pi * 500000.0 ** (np.arange(64) / 64)
    share = np.clip((8192 / waves - 1) / 3, 0, 1)
    lists = (1 / ((1 - share) / 32 + share)).tolist()
    made = as_llama3(
        {
            "rope_type": "longrope",
            "rope_theta": 500000.0,
            "long_factor": lists,
            "short_factor": lists,
            "attention_factor": 1.0,
        },
        dimensions,
    )
    assert made == {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def rewritten(file: Path, place: Path, *, key: tuple[str, Any] | None = None, tensor: str | None = None) -> Path:
    """A copy of ``file`` with one key or one tensor more."""
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(place, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind, value = field.types[0], field.contents()
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, kind, sub_type=sub)
    if key is not None:
        writer.add_float32(*key)
    for entry in reader.tensors:
        writer.add_tensor(entry.name, entry.data)
    if tensor is not None:
        writer.add_tensor(tensor, np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return place


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"key": ("llama.logit_scale", 0.5)}, "llama.logit_scale"),
        ({"key": ("llama.attention.scale", 0.5)}, "llama.attention.scale"),
        ({"key": ("llama.attn_logit_softcapping", 30.0)}, "caps logits"),
        ({"key": ("llama.rope.scaling.yarn_ext_factor", 0.5)}, "yarn_ext_factor"),
        ({"key": ("llama.something_new", 1.0)}, "llama.something_new"),
        ({"tensor": "blk.0.attn_q_norm.weight"}, "blk.0.attn_q_norm.weight"),
        ({"tensor": "blk.0.attn_sinks.weight"}, "blk.0.attn_sinks.weight"),
        ({"tensor": "rope_factors_long.weight"}, "rope_factors_long.weight"),
    ],
)
def test_what_is_not_known_is_refused_by_name(
    change: dict[str, Any], part: str, tokenizer: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    _, file = written(tmp_path, "llama", tokenizer)
    with pytest.raises(PrunekitError, match=part):
        resolve(str(rewritten(file, tmp_path / "changed.gguf", **change)))
    assert resolve(str(rewritten(file, tmp_path / "same.gguf"))).shape.num_hidden_layers == 2


def test_a_file_is_read_alone(tokenizer: Any, tmp_path: Path) -> None:
    source, file = written(tmp_path, "llama", tokenizer)
    beside = tmp_path / "beside"
    beside.mkdir()
    shutil.copy(file, beside / "a.gguf")
    byte_tokenizer(280).save_pretrained(beside)
    (beside / "config.json").write_text('{"model_type": "qwen2", "hidden_size": 8}')
    (beside / "chat_template.jinja").write_text("{{ 'stranger' }}")
    (beside / "generation_config.json").write_text('{"eos_token_id": 77}')
    found = resolve(str(beside / "a.gguf"))
    assert found.family.name == "Llama" and found.config.vocab_size == 300
    new = load_tokenizer(found)
    assert new.get_vocab() == load_tokenizer(source).get_vocab() and new.chat_template is None
    generation = found.path / "generation_config.json"
    assert not generation.is_file() or "77" not in generation.read_text()
