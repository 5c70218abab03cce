"""Shapes count what models really hold and really do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import PrunekitError
from prunekit.models.families import FAMILIES
from prunekit.plan.shape import LayerShape, ModelShape
from tests.support.fake_session import SMOLLM2
from tests.support.tiny import MODEL_TYPES, one_thread, random_plan, rebuilt_model, tiny_model

LAYER_SHAPES = st.builds(
    lambda kv, group, ffn: LayerShape(kv * group, kv, ffn), st.integers(1, 4), st.integers(1, 4), st.integers(1, 90)
)
SHAPES = st.builds(
    ModelShape,
    hidden_size=st.integers(1, 64),
    head_dim=st.integers(1, 32),
    vocab_size=st.integers(1, 100),
    tie_word_embeddings=st.booleans(),
    layers=st.lists(LAYER_SHAPES, min_size=1, max_size=4).map(tuple),
    qkv_bias=st.booleans(),
    o_bias=st.booleans(),
    mlp_bias=st.booleans(),
    qk_norm=st.sampled_from(["none", "head", "all"]),
    norms_per_layer=st.integers(0, 4),
)


def count(model: torch.nn.Module) -> int:
    """Tied weights count once."""
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_parameters_of_every_family(model_type: str, tied: bool, bias: bool) -> None:
    with one_thread():
        model = tiny_model(model_type, tied=tied, bias=bias, layers=3)
        shape = FAMILIES[model_type].shape(model.config)
        assert shape.tie_word_embeddings == tied and shape.is_uniform
        assert shape.parameters == count(model)
        assert shape.block_parameters == count(model.model.layers)
        assert shape.embedding_parameters == count(model) - count(model.model.layers)
        for layer, module in zip(shape.layers, model.model.layers, strict=True):
            assert shape.layer_parameters(layer) == count(module)
            norms = 64 * len(FAMILIES[model_type].block_norms) // 2
            assert shape.ffn_parameters(layer) == count(module.mlp) + norms
            assert shape.attention_parameters(layer) == count(module.self_attn) + norms
        plan = random_plan(shape, drop=(1,))
        pruned = rebuilt_model(model, plan)
        assert plan.shape.parameters == count(pruned) < count(model)
        # What a per-layer config says is the same shape.
        assert FAMILIES[model_type].shape(pruned.config) == plan.shape
        assert not plan.shape.is_uniform


def test_smollm2() -> None:
    assert SMOLLM2.parameters == 134_515_008
    assert SMOLLM2.block_parameters == 106_202_880
    assert SMOLLM2.embedding_parameters == 49152 * 576 + 576
    assert SMOLLM2.weight_bytes(2) == 269_030_016
    # 30 layers, 3 KV heads of 64, keys and values, two bytes each.
    assert SMOLLM2.kv_bytes_per_token() == 30 * 3 * 64 * 2 * 2
    assert SMOLLM2.kv_bytes_per_token(4) == 46_080
    # Two FLOPs for every weight but the norms: the tied table is multiplied with once, as the head.
    norms = 30 * 2 * 576 + 576
    assert SMOLLM2.flops_per_token() == 2 * (134_515_008 - norms)
    # Scores and their use: 2 · 2 · head_dim for every query head and earlier token.
    assert SMOLLM2.flops_per_token(1000) - SMOLLM2.flops_per_token() == 30 * 9 * 64 * 4 * 1000
    assert SMOLLM2.decode_bytes(2, 100) == 269_030_016 + 100 * 23_040


def test_a_shape_by_hand() -> None:
    """Two layers that differ, every bias, a norm a head, untied: each term written out."""
    shape = ModelShape(8, 4, 10, False, (LayerShape(4, 2, 5), LayerShape(1, 1, 3)), True, True, True, "head", 3)
    first = (16 * 8 + 16) + 2 * (8 * 8 + 8) + (8 * 16 + 8) + (3 * 8 * 5 + 2 * 5 + 8) + 3 * 8 + 2 * 4
    second = (4 * 8 + 4) + 2 * (4 * 8 + 4) + (8 * 4 + 8) + (3 * 8 * 3 + 2 * 3 + 8) + 3 * 8 + 2 * 4
    assert [shape.layer_parameters(layer) for layer in shape.layers] == [first, second]
    assert shape.parameters == first + second + 2 * 80 + 8
    assert shape.kv_bytes_per_token(2) == 2 * 3 * 4 * 2
    products = (16 * 8 * 2 + 8 * 8 * 2 + 3 * 8 * 5) + (4 * 8 * 2 + 4 * 8 * 2 + 3 * 8 * 3) + 80
    assert shape.flops_per_token(7) == 2 * products + 4 * 5 * 4 * 7
    assert shape.decode_bytes(2) == 2 * (shape.parameters - 80)


@given(SHAPES)
def test_costs_are_what_widths_add(shape: ModelShape) -> None:
    """One more FFN channel, or KV group, costs exactly what the shape says one costs."""
    layer = shape.layers[0]
    wider = replace(layer, intermediate_size=layer.intermediate_size + 1)
    assert shape.with_layers((wider, *shape.layers[1:])).parameters == shape.parameters + shape.ffn_channel_parameters
    kv, group = layer.num_key_value_heads + 1, layer.group_size
    taller = LayerShape(kv * group, kv, layer.intermediate_size)
    cost = shape.kv_head_parameters + group * shape.query_head_parameters
    assert shape.with_layers((taller, *shape.layers[1:])).parameters == shape.parameters + cost
    assert shape.block_parameters + shape.embedding_parameters == shape.parameters


@given(SHAPES)
def test_round_trip(shape: ModelShape) -> None:
    assert ModelShape.from_dict(shape.to_dict()) == shape


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": 0},
        {"head_dim": 1.5},
        {"vocab_size": True},
        {"layers": []},
        {"layers": [{"num_attention_heads": 3, "num_key_value_heads": 2, "intermediate_size": 4}]},
        {"layers": [{"num_attention_heads": 2}]},
        {"layers": 7},
        {"norms_per_layer": None},
        {"qkv_bias": "no"},
        {"qk_norm": "some"},
        {"colour": "red"},
    ],
)
def test_no_shapes(fields: dict[str, Any]) -> None:
    with pytest.raises(PrunekitError):
        ModelShape.from_dict({**SMOLLM2.to_dict(), **fields})
