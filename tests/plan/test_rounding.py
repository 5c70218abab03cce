"""Rounding: which widths are allowed, up, down and at the floor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import PrunekitError
from prunekit.plan.rounding import Rounding, rounding_preset
from prunekit.plan.shape import LayerShape, ModelShape
from tests.support.fake_session import SMOLLM2

ROUNDINGS = st.builds(Rounding, ffn_multiple=st.integers(1, 300), min_ffn=st.integers(1, 400))


def allowed(rounding: Rounding, dense: int) -> list[int]:
    """The definition: multiples at or above the floor, and the dense width."""
    return [
        width
        for width in range(1, dense + 1)
        if width == dense or (width % rounding.ffn_multiple == 0 and width >= rounding.min_ffn)
    ]


@given(ROUNDINGS, st.integers(1, 500), st.floats(0, 600))
def test_up_and_down_are_the_nearest_allowed_widths(rounding: Rounding, dense: int, width: float) -> None:
    widths = allowed(rounding, dense)
    assert rounding.ffn_floor(dense) == widths[0]
    assert rounding.ffn_down(width, dense) == max((w for w in widths if w <= width), default=widths[0])
    assert rounding.ffn_up(width, dense) == min((w for w in widths if w >= width), default=dense)


@given(
    st.builds(Rounding, head_multiple=st.integers(1, 4), kv_multiple=st.integers(1, 3), min_kv_heads=st.integers(1, 4)),
    st.integers(1, 8),
    st.integers(1, 4),
    st.sets(st.sampled_from(["ffn", "kv", "query"])),
)
def test_attention_choices(rounding: Rounding, kv: int, group: int, units: set[str]) -> None:
    choices = rounding.attention_choices(LayerShape(kv * group, kv, 8), tuple(units))
    assert choices[0] == (kv, group) and len(set(choices)) == len(choices)
    for heads, size in choices[1:]:
        assert heads == kv or "kv" in units
        assert size == group or "query" in units
        assert heads % rounding.kv_multiple == 0 and heads * size % rounding.head_multiple == 0
        assert rounding.min_kv_heads <= heads


def test_floor_of_a_model() -> None:
    smallest = Rounding(ffn_multiple=64).floor(SMOLLM2, ("ffn", "kv"), frozenset({0}))
    assert smallest.layers[0] == SMOLLM2.layers[0]
    assert set(smallest.layers[1:]) == {LayerShape(3, 1, 64)}
    assert Rounding().floor(SMOLLM2, ("query",), frozenset()).layers[0] == LayerShape(3, 3, 1536)


def test_presets() -> None:
    assert rounding_preset("gpu", 64) == Rounding(ffn_multiple=128)
    assert rounding_preset("gguf", 64) == Rounding(ffn_multiple=256, head_multiple=4)
    assert rounding_preset("gguf", 96) == Rounding(ffn_multiple=256, head_multiple=8)
    assert rounding_preset("gguf", 256) == Rounding(ffn_multiple=256)
    assert rounding_preset("tp=2", 64) == Rounding(128, head_multiple=2, kv_multiple=2, tensor_parallel=2)


@pytest.mark.parametrize(
    "name", ["", "GPU", "tp", "tp=", "tp=0", "tp=-2", "tp=1025", "tp=²", "tp=1.5", "tp=" + "9" * 5000]
)
def test_presets_that_are_none(name: str) -> None:
    with pytest.raises(PrunekitError, match="choose gpu, gguf or tp=N"):
        rounding_preset(name, 64)


@pytest.mark.parametrize("field", ["ffn_multiple", "min_ffn", "head_multiple", "kv_multiple", "min_kv_heads"])
def test_nothing_below_one(field: str) -> None:
    with pytest.raises(PrunekitError, match=f"{field} must be at least 1, got 0"):
        Rounding(**{field: 0})


def test_a_layer_that_cannot_be_split_is_refused() -> None:
    """9 query and 3 KV heads split three ways, not two: a preset must not promise what whole layers break."""
    shape = ModelShape(576, 64, 100, True, (LayerShape(9, 3, 1536),) * 2)
    rounding_preset("tp=3", 64).check(shape)
    with pytest.raises(PrunekitError, match="9 query heads, which can't be split 2 ways"):
        rounding_preset("tp=2", 64).check(shape)


def test_a_floor_above_every_ffn_is_refused() -> None:
    shape = ModelShape(576, 64, 100, True, (LayerShape(9, 3, 1024), LayerShape(9, 3, 1536)))
    Rounding(min_ffn=1536).check(shape)
    with pytest.raises(PrunekitError, match="min_ffn 1537 is more than any FFN of the model has"):
        Rounding(min_ffn=1537).check(shape)
