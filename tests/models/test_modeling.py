"""Per-layer checkpoints as transformers models: configs, loading with and without remote code, guards."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModel, AutoModelForCausalLM

from prunekit.errors import PrunekitError
from prunekit.models.families import FAMILIES
from prunekit.models.modeling import pruned_class, pruned_config, register_pruned, stock_config
from prunekit.models.modeling.per_layer import AUTO_CLASSES
from prunekit.plan import Plan
from prunekit.plan.shape import LayerShape
from tests.support.tiny import (
    MODEL_TYPES,
    VOCAB,
    WINDOW,
    model_code,
    one_thread,
    random_plan,
    rebuilt_model,
    tiny_config,
    tiny_model,
)

families = pytest.mark.parametrize("model_type", MODEL_TYPES)
INPUT_IDS = torch.arange(2, 2 + 3 * 14).reshape(3, 14) % VOCAB


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    register_pruned()
    register_pruned()
    with one_thread():
        yield


def rebuilt(model_type: str, **fields: Any) -> tuple[Any, Plan]:
    model = tiny_model(model_type, **fields)
    plan = random_plan(FAMILIES[model_type].shape(model.config))
    return rebuilt_model(model, plan), plan


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(INPUT_IDS).logits


@families
def test_round_trip_through_auto_classes(model_type: str, tmp_path: Path) -> None:
    family = FAMILIES[model_type]
    model, plan = rebuilt(model_type, tied=True, bias=True)
    model.save_pretrained(tmp_path)

    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_type"] == family.pruned_model_type
    assert stored["architectures"] == [family.pruned_causal_lm_class]
    assert stored["head_dim"] == plan.source.head_dim
    assert set(stored["auto_map"]) == set(AUTO_CLASSES)
    for target in stored["auto_map"].values():
        file, name = target.split(".")
        assert f"class {name}(" in (tmp_path / f"{file}.py").read_text()
    assert {path.name for path in model_code(family)} <= {path.name for path in tmp_path.iterdir()}

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is pruned_class(family, "ForCausalLM")
    assert family.shape(loaded.config) == plan.shape
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(logits(loaded), logits(model))
    assert family.shape(AutoConfig.from_pretrained(tmp_path)) == plan.shape

    decoder = AutoModel.from_pretrained(tmp_path)
    assert type(decoder) is pruned_class(family, "Model")
    assert torch.equal(decoder.layers[1].mlp.down_proj.weight, model.model.layers[1].mlp.down_proj.weight)

    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map="cpu")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    # A second save, of a config that has been through JSON, is the same config.
    half.float().save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again | {"dtype": None} == stored | {"dtype": None}


@families
def test_stock_class_refuses_a_pruned_checkpoint(model_type: str, tmp_path: Path) -> None:
    """Never full-width layers with random weights where the checkpoint's don't fit."""
    family = FAMILIES[model_type]
    rebuilt(model_type)[0].save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="per-layer attribute"):
        family.stock(family.causal_lm_class).from_pretrained(tmp_path)


@families
def test_never_allocates_a_wide_layer(model_type: str) -> None:
    """Every parameter ever created is one of the model's, so building takes no more memory than the result."""
    plan = random_plan(FAMILIES[model_type].shape(tiny_config(model_type)))
    indices = [keep.index for keep in plan.layers]
    config = pruned_config(FAMILIES[model_type], tiny_config(model_type), plan.shape.layers, indices)
    created: list[int] = []
    hook = nn.modules.module.register_module_parameter_registration_hook(
        lambda module, name, parameter: created.append(0 if parameter is None else parameter.numel())
    )
    try:
        pruned_class(FAMILIES[model_type], "ForCausalLM")(config)
    finally:
        hook.remove()
    assert sum(created) == plan.shape.parameters


@families
def test_attention_implementation_reaches_every_layer(model_type: str) -> None:
    model, _ = rebuilt(model_type)
    seen = []

    def spy(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **_: Any) -> Any:
        seen.append((module.layer_idx, query.shape[1], key.shape[1]))
        return query.transpose(1, 2), None

    AttentionInterface.register("prunekit_spy", spy)
    model.set_attn_implementation("prunekit_spy")
    assert model.config._attn_implementation == "prunekit_spy"
    logits(model)
    layers = FAMILIES[model_type].shape(model.config).layers
    assert seen == [(i, layer.num_attention_heads, layer.num_key_value_heads) for i, layer in enumerate(layers)]


@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name != "gemma2"])
def test_eager_equals_sdpa(model_type: str) -> None:
    # Gemma 2 caps attention logits, which sdpa can't: the stock class is eager only.
    model, _ = rebuilt(model_type)
    model.set_attn_implementation("sdpa")
    want = logits(model)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(logits(model), want, rtol=0, atol=2e-5 * want.abs().max().item())


@families
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients(model_type: str) -> None:
    model, _ = rebuilt(model_type)
    gradients = []
    calls = []
    model.model.layers[1].self_attn.register_forward_hook(lambda *_: calls.append(1))
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        calls.clear()
        model.train().zero_grad()
        model(INPUT_IDS, labels=INPUT_IDS, use_cache=False).loss.backward()
        assert len(calls) == (2 if checkpointing else 1)  # checkpointing runs each layer again in the backward pass
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert all(gradient.abs().max() > 0 for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0])


@families
def test_deepcopy_reads_its_own_config(model_type: str) -> None:
    model, _ = rebuilt(model_type)
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    assert twin.model.layers[0].self_attn.config._attn_implementation == "eager"
    twin.config._attn_implementation_internal = "other"
    assert twin.model.layers[0].self_attn.config._attn_implementation == "other"
    assert model.model.layers[0].self_attn.config._attn_implementation != "other"


@families
def test_dropping_layers_cuts_the_lists(model_type: str) -> None:
    family, source = FAMILIES[model_type], tiny_config(model_type)
    config = pruned_config(family, source, [LayerShape(4, 2, 37), LayerShape(6, 3, 61)], [0, 2])
    assert config.num_hidden_layers == 2
    for field in family.per_layer_fields:
        values = getattr(source, field)
        assert len(values) == 4 and getattr(config, field) == [values[0], values[2]]
        # Otherwise this could not tell the kept layers' entries from the first two.
        assert [values[0], values[2]] != values[:2]
    assert config.rope_parameters == source.rope_parameters
    assert [layer.intermediate_size for layer in family.shape(config).layers] == [37, 61]


def test_no_rope_layers_differ_so_that_cutting_them_matters() -> None:
    assert len(set(tiny_config("smollm3").no_rope_layers)) == 2
    assert all(len(set(tiny_config(name).layer_types)) == 2 for name in ("qwen2", "qwen3", "gemma2", "gemma3_text"))


ROPE = {
    "llama": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "qwen2": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64},
    "gemma3_text": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    },
    # longrope reads the head count eagerly, and Phi-3 checks its factors against it.
    "phi3": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 2.1, 2.2, 2.3],
        "original_max_position_embeddings": 10,
    },
}


@pytest.mark.parametrize("model_type", ROPE)
def test_rope_scaling_survives(model_type: str, tmp_path: Path) -> None:
    extra = {"original_max_position_embeddings": 10} if model_type == "phi3" else {}
    source = tiny_config(model_type, rope_parameters=copy.deepcopy(ROPE[model_type]), **extra)
    dense = tiny_model(model_type, config=source)
    plan = random_plan(FAMILIES[model_type].shape(source))
    model = rebuilt_model(dense, plan)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.rope_parameters == source.rope_parameters
    assert torch.equal(logits(loaded), logits(model))
    logits(dense)  # dynamic kinds settle their frequencies in a forward pass
    buffers = dict(dense.model.rotary_emb.named_buffers())
    for name, buffer in loaded.model.rotary_emb.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    # INPUT_IDS is longer than longrope's 10 original positions; scaling must have changed something.
    if model_type == "phi3":
        assert not torch.equal(loaded.model.rotary_emb.inv_freq, loaded.model.rotary_emb.original_inv_freq)


def test_source_traces_don_t_leak() -> None:
    family = FAMILIES["qwen3"]
    source = tiny_config("qwen3", quantization_config={"quant_method": "gptq", "bits": 4}, rms_norm_eps=3e-6)
    source.auto_map = {"AutoModel": "elsewhere--modeling.X"}
    source.name_or_path = "someone/model"
    config = pruned_config(family, source, [LayerShape(2, 1, 8)], [1])
    stored = config.to_dict()
    assert "quantization_config" not in stored
    assert stored["rms_norm_eps"] == 3e-6
    assert "elsewhere" not in json.dumps(stored) and "someone" not in json.dumps(stored)


def test_mistral_with_layer_types_drops_layers() -> None:
    """Mistral has no such field, but keeps one it is given, and transformers then checks its length."""
    source = tiny_config("mistral", layer_types=["sliding_attention"] * 4)
    config = pruned_config(FAMILIES["mistral"], source, [LayerShape(2, 1, 8)] * 3, [0, 2, 3])
    assert config.layer_types == ["sliding_attention"] * 3 and config.sliding_window == WINDOW


@families
def test_repruning_keeps_the_global_widths(model_type: str) -> None:
    family = FAMILIES[model_type]
    first = pruned_config(family, tiny_config(model_type), [LayerShape(4, 2, 37), LayerShape(6, 3, 61)], [0, 3])
    second = pruned_config(family, first, [LayerShape(2, 1, 20)], [1])
    second.allow_global_per_layer_attribute_access = True
    assert (second.num_attention_heads, second.num_key_value_heads, second.intermediate_size) == (8, 4, 96)
    assert family.shape(second).layers == (LayerShape(2, 1, 20),)
    assert stock_config(family, first, LayerShape(4, 2, 24), [0]).intermediate_size == 24


@families
def test_unchanged_widths_are_still_a_pruned_config(model_type: str, tmp_path: Path) -> None:
    family, source = FAMILIES[model_type], tiny_config(model_type)
    dense = LayerShape(8, 4, 96)
    config = pruned_config(family, source, [dense] * 3, [0, 1, 3])
    config.save_pretrained(tmp_path)
    assert family.shape(AutoConfig.from_pretrained(tmp_path)).layers == (dense,) * 3


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gemma3_text"])
def test_stock_config_says_why_it_refuses(model_type: str) -> None:
    with pytest.raises(PrunekitError, match=r"6 query heads.*hidden size \(64\) is not a multiple.*per-layer layout"):
        stock_config(FAMILIES[model_type], tiny_config(model_type), LayerShape(6, 3, 40), [0, 1])


def test_config_mistakes_are_named() -> None:
    family, source = FAMILIES["llama"], tiny_config("llama")
    shape = LayerShape(2, 1, 8)
    with pytest.raises(PrunekitError, match="2 layer shapes were given for 1 kept layers"):
        pruned_config(family, source, [shape] * 2, [0])
    for kept in ([], [4], [1, 0], [-1], [2, 2]):
        with pytest.raises(PrunekitError, match="rising indices below 4"):
            pruned_config(family, source, [shape] * len(kept), kept)
    with pytest.raises(PrunekitError, match="A Qwen2 config was expected, got one of type 'llama'"):
        pruned_config(FAMILIES["qwen2"], source, [shape], [0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "Layer 1 has 3 query heads"),
        ({"skip": ["attention", "mlp"]}, "Layer 1 skips"),
        ({"skip": ["norm"]}, "Layer 1 skips"),
    ],
)
def test_damaged_config_is_refused(overrides: dict[str, Any], message: str) -> None:
    config_class = pruned_class(FAMILIES["qwen2"], "Config")
    with pytest.raises(Exception, match=message):
        config_class(hidden_size=64, head_dim=8, num_hidden_layers=2, per_layer_config={1: overrides})
    with pytest.raises(Exception, match="must state head_dim"):
        config_class(hidden_size=64, num_hidden_layers=2, per_layer_config={1: {"intermediate_size": 8}})


_FRESH = """
import json, os, sys, torch
from transformers import AutoModel, AutoModelForCausalLM
root, input_ids = sys.argv[1], torch.tensor(json.loads(sys.argv[2]))
for name in sorted(os.listdir(root)):
    path = os.path.join(root, name)
    try:
        AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
    else:
        sys.exit(f"{name} loaded without remote code")
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
    with torch.no_grad():
        got = model(input_ids).logits
    assert torch.equal(got, torch.load(os.path.join(path, "want.pt"))), name
    assert type(AutoModel.from_pretrained(path, trust_remote_code=True)).__name__ == type(model.model).__name__
    model.save_pretrained(os.path.join(path, "again"))
    AutoModelForCausalLM.from_pretrained(os.path.join(path, "again"), trust_remote_code=True)
    # No code beside the weights and none registered: loud, too.
    os.remove(os.path.join(path, "per_layer.py"))
assert not [name for name in sys.modules if name.startswith("prunekit")]
print("loaded", len(os.listdir(root)))
"""


def test_remote_code_needs_no_prunekit(tmp_path: Path) -> None:
    """In a process that never imports prunekit: refused without trust_remote_code, exact with it."""
    root = tmp_path / "checkpoints"
    for model_type in MODEL_TYPES:
        model, _ = rebuilt(model_type)
        model.save_pretrained(root / model_type)
        torch.save(logits(model), root / model_type / "want.pt")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", _FRESH, str(root), json.dumps(INPUT_IDS.tolist())],
        cwd=tmp_path,
        env=environment
        | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-2:] == ["loaded", str(len(MODEL_TYPES))]


def test_carried_code_imports_nothing_of_prunekit() -> None:
    allowed = {"torch", "transformers", "huggingface_hub", *sys.stdlib_module_names}
    for family in FAMILIES.values():
        for path in model_code(family):
            for line in path.read_text().splitlines():
                words = line.split()
                if words[:1] in (["from"], ["import"]):
                    assert words[1].split(".")[0] in allowed or words[1] == ".per_layer", f"{path.name}: {line}"
