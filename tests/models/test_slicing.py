"""The promise pruning rests on: a rebuilt model computes what the dense one computes with the removed units at zero."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.errors import PrunekitError
from prunekit.models.families import FAMILIES, Coupling
from prunekit.models.slicing import PAD, LayerSlicer, unit_slots
from prunekit.plan import LayerKeep, Plan
from prunekit.plan.shape import LayerShape, ModelShape
from tests.support.tiny import (
    MODEL_TYPES,
    VOCAB,
    one_thread,
    padded_model,
    random_plan,
    rebuilt_model,
    tiny_model,
    widest,
    zeroed_model,
)
from tests.support.zeroing import LayerZeroer

# Of the largest logit. The two models add the same non-zero terms in another order, nothing more.
FP32_TOLERANCE = 1e-5
# Times the dense model's own rounding error in bfloat16. Measured worst: 1.02; OLMo-2 1.18, since the factor that keeps
# its norm's mean is rounded into its weights once more.
BF16_SHARE = {"olmo2": 1.5}
BF16_SHARE_ELSE = 1.1
PROMPT, STEPS = 14, 6  # longer than the sliding window of 8, so that it matters in prefill and in decode

SWITCHED = {
    name
    for name, family in FAMILIES.items()
    if any(isinstance(flag, str) for flag in (family.qkv_bias, family.mlp_bias))
}
CASES = [
    pytest.param(model_type, tied, bias, id=f"{model_type}-{'tied' if tied else 'untied'}{'-bias' if bias else ''}")
    for model_type in MODEL_TYPES
    for tied in (False, True)
    for bias in ((False, True) if model_type in SWITCHED else (False,))
]
families = pytest.mark.parametrize("model_type", MODEL_TYPES)


@pytest.fixture(autouse=True)
def _forward_only() -> Iterator[None]:
    with torch.no_grad(), one_thread():
        yield


def tokens(rows: int = 2, length: int = PROMPT, seed: int = 7) -> torch.Tensor:
    return torch.randint(2, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest absolute difference, as a share of the largest wanted value."""
    assert torch.isfinite(got).all() and torch.isfinite(want).all()
    return ((got.float() - want.float()).abs().max() / want.float().abs().max()).item()


def rms(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.float() - want.float()).pow(2).mean().sqrt() / want.float().pow(2).mean().sqrt()).item()


def decode(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Logits of STEPS cached steps over given tokens after a prefill of the rest."""
    split = input_ids.shape[1] - STEPS
    cache, logits = None, []
    for start, stop in [(0, split)] + [(i, i + 1) for i in range(split, input_ids.shape[1])]:
        mask = None if attention_mask is None else attention_mask[:, :stop]
        position_ids = None
        if mask is not None:
            position_ids = (mask.cumsum(-1) - 1).clamp(min=0)[:, start:stop]
        out = model(
            input_ids[:, start:stop],
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        logits.append(out.logits)
    return torch.cat(logits, dim=1)


def pair(model_type: str, *, seed: int = 0, drop: tuple[int, ...] = (), **fields: Any) -> tuple[Any, Any, Any, Plan]:
    """A dense model, the same with removed units at zero, the rebuilt one, and the plan."""
    model = tiny_model(model_type, seed=seed, **fields)
    plan = random_plan(FAMILIES[model_type].shape(model.config), seed=seed, drop=drop)
    return model, zeroed_model(model, plan), rebuilt_model(model, plan), plan


@pytest.mark.parametrize(("model_type", "tied", "bias"), CASES)
def test_rebuilt_equals_zeroed(model_type: str, tied: bool, bias: bool) -> None:
    dense, zeroed, rebuilt, plan = pair(model_type, tied=tied, bias=bias)
    assert len(set(plan.shape.layers)) == len(plan.layers)
    assert sum(p.numel() for p in rebuilt.parameters()) == plan.shape.parameters
    assert sum(p.numel() for p in dense.parameters()) == plan.source.parameters
    input_ids = tokens()
    want = zeroed(input_ids).logits
    # A test that can't fail proves nothing: the plan must really change what the model says.
    assert difference(dense(input_ids).logits, want) > 0.1
    assert difference(rebuilt(input_ids).logits, want) <= FP32_TOLERANCE
    assert difference(decode(rebuilt, input_ids), want) <= FP32_TOLERANCE

    mask = torch.ones_like(input_ids)
    mask[0, :5] = 0
    padded_want = decode(zeroed, input_ids, mask)[mask.bool()]
    assert difference(decode(rebuilt, input_ids, mask)[mask.bool()], padded_want) <= FP32_TOLERANCE
    # Padding is invisible: the padded row alone, without its padding, gives the same.
    assert difference(rebuilt(input_ids[:1, 5:]).logits[0], padded_want[: PROMPT - 5]) <= FP32_TOLERANCE


@pytest.mark.parametrize(("model_type", "tied", "bias"), CASES)
def test_rebuilt_equals_zeroed_bf16(model_type: str, tied: bool, bias: bool) -> None:
    """bfloat16 rounds each sum to 8 bits, and the two models' sums differ in order, so they agree only as far as
    bfloat16 agrees with float32. The bound is therefore the dense model's own rounding error."""
    half = tiny_model(model_type, tied=tied, bias=bias).to(torch.bfloat16)
    plan = random_plan(FAMILIES[model_type].shape(half.config))
    zeroed, rebuilt = zeroed_model(half, plan), rebuilt_model(half, plan)
    assert rebuilt.dtype == zeroed.dtype == torch.bfloat16
    input_ids = tokens(rows=4)
    # In float32 from here on: the same bfloat16 weights, computed exactly.
    reference = copy.deepcopy(zeroed).float()(input_ids).logits
    bound = BF16_SHARE.get(model_type, BF16_SHARE_ELSE) * rms(zeroed(input_ids).logits, reference)
    assert rms(rebuilt(input_ids).logits, reference) <= bound
    assert rms(decode(rebuilt, input_ids), reference) <= bound


@families
def test_generate_gives_the_same_tokens(model_type: str) -> None:
    _, zeroed, rebuilt, _ = pair(model_type)
    input_ids = tokens()
    mask = torch.ones_like(input_ids)
    mask[0, :5] = 0
    options = {"attention_mask": mask, "max_new_tokens": STEPS, "do_sample": False}
    want = zeroed.generate(input_ids, **options)
    assert want.shape[1] == PROMPT + STEPS
    assert torch.equal(rebuilt.generate(input_ids, **options), want)
    assert torch.equal(rebuilt.generate(input_ids, cache_implementation="static", **options), want)
    assert torch.equal(rebuilt.generate(input_ids, use_cache=False, **options), want)


@families
def test_dropped_layers(model_type: str) -> None:
    """Layers 1 and 3 go: what stays of layer types, NoPE layers and windows must follow the kept layers."""
    _, zeroed, rebuilt, _ = pair(model_type, drop=(1, 3), bias=model_type in SWITCHED)
    assert rebuilt.config.num_hidden_layers == 2
    input_ids = tokens()
    want = zeroed(input_ids).logits
    assert difference(rebuilt(input_ids).logits, want) <= FP32_TOLERANCE
    assert difference(decode(rebuilt, input_ids), want) <= FP32_TOLERANCE


@families
def test_dropped_layers_skip_the_dense_ones(model_type: str) -> None:
    """The reference of the test above is itself right: running the dense model's kept layers alone gives the same."""
    model = tiny_model(model_type)
    shape = FAMILIES[model_type].shape(model.config)
    kept = (0, 2)  # in every family with a pattern, not the types of layers 0 and 1
    plan = Plan(shape, tuple(LayerKeep.everything(i, shape.layers[i]) for i in kept))
    input_ids = tokens()
    got = rebuilt_model(model, plan)(input_ids).logits
    for index in (1, 3):
        # Replaced, not removed: every other layer keeps its place, and with it its type and mask.
        model.model.layers[index].forward = lambda hidden_states, **_: hidden_states
    assert difference(got, model(input_ids).logits) <= FP32_TOLERANCE


@families
def test_padded_twin(model_type: str) -> None:
    """Zero-padded to the widest layer, the plan runs in the stock class. Layers 0 and 1 are dropped so that the twin
    is narrower than the source too: 2 groups of 2 query heads."""
    model, zeroed, rebuilt, plan = pair(model_type, drop=(0, 1), bias=model_type in SWITCHED)
    padded = padded_model(model, plan)
    target = widest(plan)
    assert target.num_attention_heads < 8 and type(padded).__module__.startswith("transformers.")
    assert FAMILIES[model_type].shape(padded.config).layers == (target,) * 2
    input_ids = tokens()
    assert difference(padded(input_ids).logits, zeroed(input_ids).logits) <= FP32_TOLERANCE
    assert difference(padded(input_ids).logits, rebuilt(input_ids).logits) <= FP32_TOLERANCE


@families
def test_pruning_twice_equals_pruning_once(model_type: str) -> None:
    """The Adapt-Accel loop prunes what it already pruned."""
    family = FAMILIES[model_type]
    model, _, rebuilt, first = pair(model_type)
    shape = family.shape(rebuilt.config)
    assert shape == first.shape
    second = Plan(shape, tuple(_narrower(index, layer) for index, layer in enumerate(shape.layers) if index != 1))
    twice = rebuilt_model(rebuilt, second)
    composed = Plan(first.source, tuple(_compose(first.layers[keep.index], keep) for keep in second.layers))
    assert family.shape(twice.config) == composed.shape
    input_ids = tokens()
    assert difference(twice(input_ids).logits, zeroed_model(model, composed)(input_ids).logits) <= FP32_TOLERANCE


def _narrower(index: int, layer: LayerShape) -> LayerKeep:
    """Everything but the first KV group (where there is another) and every fifth FFN channel."""
    groups = range(1 if layer.num_key_value_heads > 1 else 0, layer.num_key_value_heads)
    query = [kv * layer.group_size + i for kv in groups for i in range(layer.group_size)]
    return LayerKeep(index, tuple(groups), tuple(query), tuple(i for i in range(layer.intermediate_size) if i % 5))


def _compose(first: LayerKeep, second: LayerKeep) -> LayerKeep:
    return LayerKeep(
        first.index,
        tuple(first.kv_heads[i] for i in second.kv_heads),
        tuple(first.query_heads[i] for i in second.query_heads),
        tuple(first.ffn[i] for i in second.ffn),
    )


@st.composite
def plans(draw: st.DrawFn, head_dim: int = 4, hidden: int = 8) -> tuple[str, Plan]:
    model_type = draw(st.sampled_from(MODEL_TYPES))
    dense = []
    for _ in range(draw(st.integers(1, 3))):
        kv, group = draw(st.integers(1, 5)), draw(st.integers(1, 4))
        dense.append(LayerShape(kv * group, kv, draw(st.integers(1, 23))))
    family = FAMILIES[model_type]
    shape = ModelShape(hidden, head_dim, 16, False, tuple(dense), True, True, True, family.qk_norm)
    kept = draw(st.sets(st.integers(0, len(dense) - 1), min_size=1))
    layers = []
    for index in sorted(kept):
        layer = dense[index]
        kv_heads = sorted(draw(st.sets(st.integers(0, layer.num_key_value_heads - 1), min_size=1)))
        group = draw(st.integers(1, layer.group_size))
        heads = st.sets(st.integers(0, layer.group_size - 1), min_size=group, max_size=group)
        query = [kv * layer.group_size + head for kv in kv_heads for head in sorted(draw(heads))]
        ffn = sorted(draw(st.sets(st.integers(0, layer.intermediate_size - 1), min_size=1)))
        layers.append(LayerKeep(index, tuple(kv_heads), tuple(query), tuple(ffn)))
    return model_type, Plan(shape, tuple(layers))


def _rows(layer: LayerShape, coupling: Coupling, head_dim: int) -> int:
    count = {
        "query": layer.num_attention_heads * head_dim,
        "kv": layer.num_key_value_heads * head_dim,
        "ffn": layer.intermediate_size,
    }
    return sum(count[part] for part in coupling.parts)


@settings(max_examples=60, deadline=None)
@given(plans(), st.integers(0, 3), st.integers(0, 2), st.integers(0, 9))
def test_slicer_keeps_the_plan(case: tuple[str, Plan], extra_kv: int, extra_group: int, extra_ffn: int) -> None:
    """For any plan: JSON gives it back, tensors get the shapes it states, and cutting the zeroed tensor, or cutting the
    padded one once more, is the same as cutting the dense one."""
    model_type, plan = case
    family, shape = FAMILIES[model_type], plan.source
    assert Plan.from_dict(_json(plan)) == plan
    for keep in plan.layers:
        dense, new = shape.layers[keep.index], keep.shape
        kv, group = new.num_key_value_heads + extra_kv, new.group_size + extra_group
        wide = LayerShape(kv * group, kv, new.intermediate_size + extra_ffn)
        slicer, padder = LayerSlicer(family, shape, keep), LayerSlicer(family, shape, keep, wide)
        zeroer = LayerZeroer(family, shape, keep)
        slots = unit_slots(keep, dense, wide)
        inner = LayerKeep(
            0, *(tuple(i for i, unit in enumerate(slots[part]) if unit != PAD) for part in ("kv", "query", "ffn"))
        )
        inner_slicer = LayerSlicer(family, shape.with_layers([wide]), inner)
        for coupling in family.couplings:
            name = f"{coupling.module}.weight"
            size = (_rows(dense, coupling, shape.head_dim), shape.hidden_size)
            tensor = torch.randn(size if coupling.axis == 0 else size[::-1], dtype=torch.float64)
            cut = slicer(name, tensor)
            assert cut.shape[coupling.axis] == _rows(new, coupling, shape.head_dim) and cut.is_contiguous()
            torch.testing.assert_close(slicer(name, zeroer(name, tensor)), cut, rtol=0, atol=0)
            padded = padder(name, tensor)
            assert padded.shape[coupling.axis] == _rows(wide, coupling, shape.head_dim)
            torch.testing.assert_close(inner_slicer(name, padded), cut)


def _json(plan: Plan) -> Any:
    return json.loads(plan.to_json())


def test_plan_refuses_unequal_groups() -> None:
    dense = LayerShape(4, 2, 8)
    with pytest.raises(PrunekitError, match="unequal numbers"):
        LayerKeep(0, (0, 1), (0, 1, 2), (0,)).check(dense)
