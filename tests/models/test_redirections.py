"""Fields in a stranger's files that would make a library read something else than prunekit does: refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from prunekit.errors import PrunekitError
from prunekit.models.source import load_model, load_tokenizer, resolve
from tests.support.command import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "m", layers=1)


def _edit(file: Path, **fields: Any) -> None:
    data = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**data, **fields}))


def _config(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: _edit(folder / "config.json", **fields)


def _generation(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: _edit(folder / "generation_config.json", **fields)


def _other_weights(folder: Path) -> None:
    tensors = {name: tensor * 0 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "other.safetensors", metadata={"format": "pt"})
    _edit(folder / "config.json", transformers_weights="other.safetensors")


@pytest.mark.parametrize("given", [[1], [1, 1, 1], "11", {"0": 1}])
def test_lists_with_an_entry_a_layer(given: Any, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", "smollm3", layers=2)
    _edit(folder / "config.json", no_rope_layers=given)
    with pytest.raises(PrunekitError, match="no_rope_layers"):
        resolve(str(folder))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_other_weights, "transformers_weights"),
        (_config(configuration_files=["config.4.0.0.json"]), "configuration_files"),
        (_config(attn_implementation="evil/kernel"), "evil/kernel"),
        (_config(_attn_implementation={"": "evil/kernel@main:run"}), "_attn_implementation"),
        (_config(text_config={"model_type": "llama"}), "text_config"),
        (_config(dtype="load"), "dtype"),
        (_config(to_dict="x"), "to_dict"),
        (_config(save_pretrained=1), "save_pretrained"),
        (_config(sub_configs={"\x1b[2J": 1}), "sub_configs"),
        (_config(__class__="x"), "__class__"),
        (_config(num_labels=10**18), "num_labels"),
        (_config(max_position_embeddings=10**18), "max_position_embeddings"),
        (_config(max_position_embeddings=True), "max_position_embeddings"),
        (_config(sliding_window=-4), "sliding_window"),
        (_config(layer_types=["sliding_attention"]), "has no sliding_window"),
        (_config(architectures=0.02), "architectures"),
        (_config(architectures=[1]), "architectures"),
        (_config(layer_types=["chunked_attention"]), "chunked_attention"),
        (_config(rope_parameters={"rope_type": {"0": "default"}}), "rope_parameters.rope_type"),
        (_config(rope_parameters={"rope_type": "mistral"}), "rope_parameters.rope_type .* expected one of default, "),
        (_config(rope_parameters={"rope_type": None, "rope_theta": 1e4}), "rope_parameters.rope_type"),
        (_config(partial_rotary_factor=3), "partial_rotary_factor 3 turns no even part of 16 channels"),
        (_config(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.07}), "partial_rotary_factor"),
        (_config(rope_parameters={"rope_type": "default", "partial_rotary_factor": "1"}), "partial_rotary_factor"),
        (_config(rope_scaling={"type": "lonrgope", "factor": 2.0}), "rope_scaling.type"),
        (_config(rope_scaling=[8.0]), "rope_scaling"),
        (_generation(validate="x"), "validate"),
        (lambda folder: (folder / "generation_config.json").write_text("[1]"), "generation_config.json"),
        (lambda folder: (folder / "generation_config.json").write_text('{"top_k": NaN}'), "NaN"),
        (lambda folder: _edit(folder / "adapter_config.json", base_model_name_or_path="/elsewhere"), "adapter_config"),
    ],
)
def test_models(change: Callable[[Path], Any], part: str, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(model, folder)
    change(folder)
    with pytest.raises(PrunekitError, match=part):
        resolve(str(folder))


def test_a_tensor_in_two_files(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    names = sorted(tensors)
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    parts = {"a.safetensors": names[:5], "b.safetensors": names[4:]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, tmp_path / "m" / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(PrunekitError, match=f"{names[4]} twice"):
        resolve(str(tmp_path / "m"))


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"fast_tokenizer_files": ["../tokenizer.1.0.json"]}, "fast_tokenizer_files"),
        ({"init_inputs": ["/etc/hosts"]}, "init_inputs"),
        ({"word_shape_file": "../elsewhere.json"}, "word_shape_file"),
        ({"model_max_length": [2]}, "model_max_length"),
        ({"padding_side": 3}, "padding_side"),
        ({"mecab_kwargs": {"mecab_option": "-d ../elsewhere.json"}}, "mecab_option"),
    ],
)
def test_tokenizers(fields: dict[str, Any], part: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.json").touch()
    shutil.copytree(model, tmp_path / "m")
    _edit(tmp_path / "m" / "tokenizer_config.json", **fields)
    with pytest.raises(PrunekitError, match=part):
        load_tokenizer(resolve(str(tmp_path / "m")))


def test_what_ordinary_models_say_is_taken(model: Path, tmp_path: Path) -> None:
    """Paths of the machine that a tokenizer was saved on, a config's old names, an unused remote class."""
    folder = tmp_path / "m"
    shutil.copytree(model, folder)
    _edit(
        folder / "tokenizer_config.json",
        special_tokens_map_file="/home/someone/.cache/huggingface/gone/special_tokens_map.json",
        tokenizer_file=None,
        name_or_path="/some/where/else",
        model_max_length=10**30,
    )
    auto = {"AutoConfig": "evil/repo--configuration.X", "AutoModelForCausalLM": "evil/repo--modeling.X"}
    _edit(folder / "config.json", auto_map=auto, torch_dtype="float32", _name_or_path="org/name", num_labels=2)
    _edit(folder / "generation_config.json", custom_generate="evil/repo", cache_implementation="static")
    source = resolve(str(folder))
    assert load_tokenizer(source)("ab")["input_ids"] == load_tokenizer(resolve(str(model)))("ab")["input_ids"]
    assert load_model(source).num_parameters() == source.shape.parameters
