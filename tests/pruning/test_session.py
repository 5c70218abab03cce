"""A session: units are chosen, kept track of across steps, and cut in memory as the invariant asks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prunekit.models.families import FAMILIES
from prunekit.plan import LayerKeep, Plan
from prunekit.plan.shape import LayerShape
from prunekit.pruning.allocation.session import Session
from prunekit.pruning.allocation.units import best_units, relative, top
from prunekit.pruning.importance.scores import LayerScores, Scores
from tests.support.tiny import MODEL_TYPES, VOCAB, one_thread, random_plan, rebuilt_model, tiny_model, zeroed_model

families = pytest.mark.parametrize("model_type", MODEL_TYPES)
INPUT_IDS = torch.randint(2, VOCAB, (3, 14), generator=torch.Generator().manual_seed(11))
# Of the largest logit, as in test_invariant.py.
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _light() -> Iterator[None]:
    with one_thread():
        yield


def session(model: Any, importance: str = "taylor", **options: Any) -> Session:
    family = next(f for f in FAMILIES.values() if model.config.model_type in (f.model_type, f.pruned_model_type))
    return Session(
        model, family, lambda step: INPUT_IDS, importance=importance, layer_importance="cosine", batch_size=2, **options
    )


def draw_keep(rng: random.Random, index: int, layer: LayerShape) -> LayerKeep:
    """Any units that a layer of this shape may keep."""
    kv_heads = sorted(rng.sample(range(layer.num_key_value_heads), rng.randint(1, layer.num_key_value_heads)))
    size = layer.group_size
    kept = rng.randint(1, size)
    query = [kv * size + head for kv in kv_heads for head in sorted(rng.sample(range(size), kept))]
    ffn = sorted(rng.sample(range(layer.intermediate_size), rng.randint(1, layer.intermediate_size)))
    return LayerKeep(index, tuple(kv_heads), tuple(query), tuple(ffn))


def narrowed(current: Session, seed: int) -> tuple[LayerKeep, ...]:
    """Some of what a session still has of every layer, as indices into the source."""
    rng = random.Random(seed)
    return tuple(
        keep.compose(draw_keep(rng, index, layer))
        for index, (keep, layer) in enumerate(zip(current.keeps, current.shape.layers, strict=True))
    )


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(INPUT_IDS, use_cache=False).logits


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    assert torch.isfinite(got).all()
    return ((got - want).abs().max() / want.abs().max()).item()


def parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@families
@pytest.mark.parametrize("bias", [False, True])
def test_shrinking_equals_zeroing(model_type: str, bias: bool) -> None:
    dense = tiny_model(model_type, bias=bias)
    current = session(tiny_model(model_type, bias=bias))
    before = logits(dense)
    untouched = current.model.model.layers[3]
    for seed, steps in enumerate(("first", "again")):
        keeps = narrowed(current, seed)
        if steps == "first":
            keeps = (*keeps[:3], current.keeps[3])
        current.shrink(keeps)
        assert current.keeps == keeps
        want = logits(zeroed_model(dense, Plan(current.source, keeps)))
        assert difference(before, want) > 0.05
        assert difference(logits(current.model), want) <= TOLERANCE
        assert parameters(current.model) == current.shape.parameters
        # Whole layers are left alone, not copied.
        assert (current.model.model.layers[3] is untouched) == (steps == "first")
        assert not any(p.is_meta for p in current.model.parameters())
    scores = current.score()
    for layer, shape in zip(scores.layers, current.shape.layers, strict=True):
        assert layer.query_heads.shape == (shape.num_key_value_heads, shape.group_size)
        assert layer.ffn.shape == (shape.intermediate_size,)


@families
def test_a_pruned_model_is_shrunk_on(model_type: str) -> None:
    dense = tiny_model(model_type)
    plan = random_plan(FAMILIES[model_type].shape(dense.config), drop=(1,))
    current = session(rebuilt_model(dense, plan))
    assert current.source == plan.shape
    first = current.score()
    shapes = tuple(
        LayerShape(s.num_key_value_heads, s.num_key_value_heads, s.intermediate_size - 9) for s in plan.shape.layers
    )
    for target in (shapes, tuple(LayerShape(1, 1, 20) for _ in shapes)):
        current.shrink(current.select(current.score(), target))
        assert current.shape.layers == target
        composed = tuple(outer.compose(inner) for outer, inner in zip(plan.layers, current.keeps, strict=True))
        want = logits(zeroed_model(dense, Plan(plan.source, composed)))
        assert difference(logits(current.model), want) <= TOLERANCE
    assert current.score().loss != first.loss


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_scoring_and_checkpointing_go_on_after_a_cut(model_type: str) -> None:
    """New layers are as scorable as those they replace: same attention, same dtype, checkpointing included."""
    results = []
    for checkpoint in (False, True):
        current = session(tiny_model(model_type).bfloat16(), gradient_checkpointing=checkpoint)
        implementation = current.model.config._attn_implementation
        current.shrink(narrowed(current, 4))
        assert {p.dtype for p in current.model.parameters()} == {torch.bfloat16}
        assert {layer.self_attn.config._attn_implementation for layer in current.model.model.layers} == {implementation}
        assert not any(module.training for module in current.model.modules())
        results.append(current.score().layers)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a.ffn, b.ffn, rtol=1e-12, atol=0)


@families
def test_a_cut_model_scores_as_the_rebuilt_one(model_type: str) -> None:
    dense = tiny_model(model_type)
    current = session(tiny_model(model_type))
    plan = Plan(current.source, narrowed(current, 9))
    current.shrink(plan.layers)
    twin = session(rebuilt_model(dense, plan))
    for a, b in zip(current.score().layers, twin.score().layers, strict=True):
        torch.testing.assert_close(a.kv_heads, b.kv_heads, rtol=1e-4, atol=0)
        torch.testing.assert_close(a.ffn, b.ffn, rtol=1e-3, atol=1e-6)


def test_each_step_has_its_text_and_seed() -> None:
    asked: list[int] = []

    def draw(step: int) -> torch.Tensor:
        asked.append(step)
        return INPUT_IDS

    current = Session(tiny_model("llama"), FAMILIES["llama"], draw, importance="random", layer_importance=None, seed=3)
    first, second = current.score(0), current.score(1)
    assert asked == [0, 1]
    assert not torch.equal(first.layers[0].ffn, second.layers[0].ffn)
    assert torch.equal(current.score(0).layers[0].ffn, first.layers[0].ffn)


shapes = st.builds(
    lambda kv, group, ffn: LayerShape(kv * group, kv, ffn), st.integers(1, 5), st.integers(1, 4), st.integers(1, 24)
)


@given(shapes, st.randoms(use_true_random=False), st.integers(0, 9))
def test_compose_and_relative_are_inverse(dense: LayerShape, rng: random.Random, index: int) -> None:
    outer = draw_keep(rng, index, dense)
    inner = draw_keep(rng, index, outer.shape)
    both = outer.compose(inner)
    both.check(dense)
    assert both.shape == inner.shape
    assert set(both.ffn) <= set(outer.ffn) and set(both.query_heads) <= set(outer.query_heads)
    assert relative(outer, both) == inner
    assert outer.compose(relative(outer, both)) == both
    whole = LayerKeep.everything(index, dense)
    assert whole.compose(outer) == outer == relative(whole, outer)
    deeper = draw_keep(rng, index, inner.shape)
    assert outer.compose(inner).compose(deeper) == outer.compose(inner.compose(deeper))


# Few distinct values, so that ties are common.
@given(st.lists(st.integers(-2, 2), min_size=1, max_size=40), st.data())
def test_top_keeps_the_best_and_ties_go_low(values: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    want = sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:count])
    assert top(torch.tensor(values, dtype=torch.float64), count) == tuple(want)


def test_ties_go_to_the_lower_index_in_wide_layers() -> None:
    # An unstable sort starts to shuffle equal values only in long vectors.
    assert top(torch.zeros(20_000, dtype=torch.float64), 7000) == tuple(range(7000))


@settings(max_examples=60)
@given(shapes, st.randoms(use_true_random=False))
def test_best_units_against_a_search(dense: LayerShape, rng: random.Random) -> None:
    kv, group = dense.num_key_value_heads, dense.group_size
    assume(kv * group > 1)
    kv_scores = [float(rng.randint(0, 3)) for _ in range(kv)]
    query = [[float(rng.randint(0, 3)) for _ in range(group)] for _ in range(kv)]
    ffn = [float(rng.randint(0, 3)) for _ in range(dense.intermediate_size)]
    target = draw_keep(rng, 0, dense).shape
    scores = LayerScores(*(torch.tensor(values, dtype=torch.float64) for values in (kv_scores, query, ffn)))
    keep = best_units(2, dense, scores, target)
    keep.check(dense)
    assert keep.index == 2 and keep.shape == target

    def best(values: list[float], count: int) -> list[int]:
        return sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:count])

    kv_heads = best(kv_scores, target.num_key_value_heads)
    assert list(keep.kv_heads) == kv_heads
    assert list(keep.ffn) == best(ffn, target.intermediate_size)
    # Query heads compete inside their group only.
    assert list(keep.query_heads) == [k * group + head for k in kv_heads for head in best(query[k], target.group_size)]


def test_select_speaks_of_the_source() -> None:
    """Scores are of the model as it is; what is selected are indices into the source."""
    current = session(tiny_model("llama", layers=1))
    current.shrink((LayerKeep(0, (1, 3), (2, 3, 6, 7), (5, 10, 20, 40)),))
    scores = LayerScores(
        torch.tensor([1.0, 2.0]).double(),
        torch.tensor([[1.0, 2.0], [4.0, 3.0]]).double(),
        torch.tensor([0.0, 9.0, 9.0, 9.0]).double(),
    )
    keeps = current.select(Scores("taylor", (scores,)), (LayerShape(1, 1, 2),))
    assert keeps == (LayerKeep(0, (3,), (6,), (10, 20)),)
