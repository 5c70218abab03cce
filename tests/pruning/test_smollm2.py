"""The real model: targets met exactly, a rebuilt checkpoint equal to the dense model with removed units zeroed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunekit.checkpoint.rebuild import rebuild
from prunekit.data.calibration import CalibrationConfig, load_calibration
from prunekit.models.source import Source, load_model, load_tokenizer, resolve
from prunekit.plan import Plan
from prunekit.plan.allocations import AdaptConfig
from prunekit.plan.goals import parse_target
from prunekit.plan.recipe import Recipe
from prunekit.pruning.planner import PlanConfig, compute_plan
from tests.support.zeroing import LayerZeroer


def make(source: Source, multiple: int, method: str = "magnitude") -> Plan:
    config = PlanConfig(
        target=parse_target(None, "0.79", None),
        recipe=Recipe.of(method, ffn_multiple=multiple, sequences=8, length=32),
    )
    return compute_plan(source, config)


@pytest.mark.parametrize("multiple", [1, 16, 64])
def test_target_within_one_rounding_unit(smollm2: Source, multiple: int) -> None:
    plan = make(smollm2, multiple)
    short = 0.79 * plan.source.block_parameters - plan.shape.block_parameters
    assert 0 <= short < multiple * plan.source.ffn_channel_parameters
    assert plan.provenance["target"]["parameters"] - plan.shape.parameters == int(short)


def test_rebuilt_equals_zeroed(smollm2: Source, tmp_path: Path) -> None:
    plan = make(smollm2, 1, "fisher-global")
    assert len({layer.intermediate_size for layer in plan.shape.layers}) > 5
    rebuild(smollm2, plan, tmp_path / "pruned")
    pruned = load_model(resolve(str(tmp_path / "pruned")), device="cpu")
    assert sum(p.numel() for p in pruned.parameters()) == plan.shape.parameters
    dense = load_model(smollm2, device="cpu")
    with torch.no_grad():
        for keep in plan.layers:
            zero = LayerZeroer(smollm2.family, smollm2.shape, keep)
            for name, weight in dense.model.layers[keep.index].named_parameters():
                weight.copy_(zero(name, weight))
        text = CalibrationConfig(sequences=2, length=48, seed=5)
        ids = load_calibration(text, load_tokenizer(smollm2)).input_ids
        expected, got = dense(ids).logits, pruned(ids).logits
    assert (expected - got).abs().max() <= 1e-5 * expected.abs().max()
    # And pruning did something at all.
    assert (load_model(smollm2, device="cpu")(ids).logits - got).abs().max() > 0.1


def test_defaults_are_the_papers() -> None:
    config = AdaptConfig()
    assert (config.steps, config.amplitude, config.attention_ratio) == (50, 0.02, 1.0)
