"""What prunekit's model for vLLM is built from and filled with, which needs no vLLM to be told."""

from __future__ import annotations

import types

import pytest
import torch

from prunekit.export.formats.vllm import head_counts
from prunekit.export.formats.vllm.blueprint import describe
from prunekit.export.formats.vllm.weights import FFN_MULTIPLE, padded_width, pieces
from prunekit.models.families import FAMILIES
from prunekit.models.modeling import pruned_class
from tests.support.export_models import FFN, HEADS, KV_HEADS, dense_config, uneven_plan
from tests.support.tiny import rebuilt_model, tiny_config, tiny_model


def _model(model_type, **fields):
    dense = tiny_model(model_type, config=dense_config(model_type, num_hidden_layers=len(HEADS), **fields))
    return rebuilt_model(dense, uneven_plan(FAMILIES[model_type].shape(dense.config)))


@pytest.mark.parametrize(
    ("width", "ways", "expected"), [(501, 1, 512), (512, 1, 512), (0, 1, 0), (502, 2, 512), (514, 2, 640)]
)
def test_padded_width(width, ways, expected):
    assert padded_width(width, ways) == expected
    assert expected % (FFN_MULTIPLE * ways) == 0


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_tensor_finds_its_place_and_the_rest_is_zero(model_type):
    """Put together as vLLM's layers are, the pieces give the checkpoint's tensors, padded with zeros."""
    bias = {
        name: True
        for name in ("attention_bias", "mlp_bias")
        if name in (FAMILIES[model_type].qkv_bias, FAMILIES[model_type].mlp_bias)
    }
    model = _model(model_type, **bias)
    stored = model.state_dict()
    blueprint = describe(model.config)
    ffn = tuple(padded_width(layer.shape.intermediate_size, 1) for layer in blueprint.layers)
    made = {}
    for piece in pieces(stored.items(), blueprint, ffn):
        made.setdefault(piece.name, {})[piece.part] = piece.tensor
    kinds = ["weight", *(["bias"] if blueprint.qkv_bias else [])]
    fused = "model.layers.0.self_attn.qkv_proj.weight" in stored
    for index in range(len(HEADS)):
        attention, mlp = (f"model.layers.{index}.{name}." for name in ("self_attn", "mlp"))
        for kind in kinds:
            parts = made[f"{attention}qkv_proj.{kind}"]
            assert [len(parts[name]) // blueprint.head_dim for name in "qkv"] == [HEADS[index], *[KV_HEADS[index]] * 2]
            whole = torch.cat([parts[name] for name in "qkv"])
            names = ["qkv_proj"] if fused else ["q_proj", "k_proj", "v_proj"]
            assert torch.equal(whole, torch.cat([stored[f"{attention}{name}.{kind}"] for name in names]))
        for kind in ["weight", *(["bias"] if blueprint.mlp_bias else [])]:
            names = (
                [stored[f"{mlp}gate_up_proj.{kind}"]]
                if fused
                else [stored[f"{mlp}{name}_proj.{kind}"] for name in ("gate", "up")]
            )
            wanted = torch.cat(names).chunk(2)
            for part in (0, 1):
                got = made[f"{mlp}gate_up_proj.{kind}"][part]
                assert len(got) == ffn[index] and torch.equal(got[: FFN[index]], wanted[part])
                assert not got[FFN[index] :].any()
        down = made[f"{mlp}down_proj.weight"][None]
        assert down.shape == (256, ffn[index]) and not down[:, FFN[index] :].any()
        assert torch.equal(down[:, : FFN[index]], stored[f"{mlp}down_proj.weight"])
    passed = {name: parts[None] for name, parts in made.items() if None in parts and "down_proj.weight" not in name}
    assert all(torch.equal(tensor, stored[name]) for name, tensor in passed.items())
    shards = {
        name
        for name in stored
        if not any(part in name for part in ("q_proj", "k_proj", "v_proj", "qkv_proj", "gate", "up_proj"))
    }
    assert set(passed) == {name for name in shards if "down_proj.weight" not in name}


def test_a_tied_head_and_buffers_are_left_out():
    model = _model("llama", tie_word_embeddings=True)
    stored = {**model.state_dict(), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    names = {piece.name for piece in pieces(stored.items(), describe(model.config), FFN)}
    assert "lm_head.weight" in stored and "lm_head.weight" not in names
    assert not any("inv_freq" in name for name in names)


def test_what_families_differ_in():
    def layers(model_type, **fields):
        return describe(tiny_config(model_type, **fields))

    gemma2, gemma3 = layers("gemma2"), layers("gemma3_text")
    assert [layer.window for layer in gemma2.layers] == [8, None, 8, None]
    assert gemma2.attention_softcap == 50.0 and gemma2.logit_softcap == 30.0 and gemma2.embedding_scale == 8.0
    assert gemma2.activation == "gelu_pytorch_tanh" and gemma2.attention_scale == 0.25
    assert [layer.rope["rope_theta"] for layer in gemma3.layers] == [10_000.0, 1_000_000.0] * 2
    assert gemma3.attention_softcap is None and gemma3.family.qk_norm == "head"
    smollm3 = layers("smollm3")
    assert [layer.rope is None for layer in smollm3.layers] == [False, True, False, True]
    assert [layer.window for layer in layers("mistral").layers] == [8] * 4
    assert [layer.window for layer in layers("qwen2").layers] == [None, None, 8, 8]
    assert [layer.window for layer in layers("qwen2", use_sliding_window=False).layers] == [None] * 4
    llama = layers("llama")
    assert llama.embedding_scale is None and llama.activation == "silu" and llama.attention_scale == 0.25
    biased = layers("llama", bias=True)
    assert (biased.qkv_bias, biased.o_bias, biased.mlp_bias) == (True, True, True)


def test_a_removed_sublayer_has_no_units():
    from prunekit.plan import LayerKeep, Plan

    dense = tiny_model("llama", config=dense_config("llama"))
    whole = uneven_plan(FAMILIES["llama"].shape(dense.config))
    bare = (
        LayerKeep(0, (), (), whole.layers[0].ffn),
        LayerKeep(1, whole.layers[1].kv_heads, whole.layers[1].query_heads, ()),
    )
    model = rebuilt_model(dense, Plan(whole.source, (*bare, *whole.layers[2:])))
    layers = describe(model.config).layers
    assert [layer.has_attention for layer in layers] == [False, True, True, True]
    assert [layer.has_ffn for layer in layers] == [True, False, True, True]


def test_an_older_vllm_is_told_the_heads_of_a_group():
    class Builder:
        def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
            self.num_heads_q, self.num_heads_kv = 32, 8

    for _ in range(2):
        head_counts.plan_by_layer(Builder, lambda config, names: {"a": 12}.get(names[0]))
        told = getattr(Builder, "told", Builder.__init__)
        Builder.told = told
    assert Builder.__init__ is told, "wrapped once"
    spec = types.SimpleNamespace(num_kv_heads=3)
    made = Builder(spec, ["a"], None, None)
    assert (made.num_heads_q, made.num_heads_kv) == (12, 3)
    assert Builder(spec, ["b"], None, None).num_heads_q == 32


def test_an_older_vllm_may_read_one_head_count(monkeypatch):
    import sys

    config = types.ModuleType("vllm.config")
    config.model_arch = types.SimpleNamespace(ModelArchitectureConfig=type("Old", (), {}))
    platforms = types.ModuleType("vllm.platforms")
    platforms.current_platform = types.SimpleNamespace(is_cuda=lambda: False)
    for name, module in (("vllm", types.ModuleType("vllm")), ("vllm.config", config), ("vllm.platforms", platforms)):
        monkeypatch.setitem(sys.modules, name, module)
    for family in FAMILIES.values():
        own = pruned_class(family, "Config")
        monkeypatch.setattr(own, "allow_global_per_layer_attribute_access", False, raising=False)
    made = _model("llama").config
    with pytest.raises(Exception, match="per-layer attribute"):
        made.num_attention_heads  # noqa: B018
    head_counts.teach_head_counts()
    assert _model("llama").config.num_attention_heads == 8
