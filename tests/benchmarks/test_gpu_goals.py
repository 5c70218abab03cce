"""What a GPU check concludes from its measurements, and the widths that it measures at."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.gpu_check.goals import Goal, evaluate
from benchmarks.models.shapes import MODELS, PLANS, allocated_shape, pruned_shape, rounded_shape
from prunekit.utils.timing import turns

SMALL, LARGE = "llama-3.2-1b", "llama-3.1-8b"


def record(model: str, variant: str, arms: dict[str, float], **fields: Any) -> dict[str, Any]:
    """``arms``: microseconds a token; a share of the roofline of 80 %, and a first token after 1000 times that."""
    return {
        "id": f"{model} {variant}",
        "model": model,
        "variant": variant,
        "batch": 1,
        "prompt": 128,
        "decode_bytes": 100,
        "arms": {
            name: {"tpot": {"median_us": us}, "ttft": {"median_us": 1000 * us}, "share_of_copy": 0.8}
            for name, us in arms.items()
        },
        **fields,
    }


def ours(model: str, variant: str, us: float, **fields: Any) -> dict[str, Any]:
    return record(model, variant, {"ours": us, "ours_waiting": us}, **fields)


def judged(**blocks: list[dict[str, Any]]) -> dict[str, Goal]:
    wrapped = {block: {"rehearsal": None, "records": records} for block, records in blocks.items()}
    return {goal.goal: goal for goal in evaluate(wrapped)}


def test_goals_that_were_not_measured() -> None:
    failed = record(SMALL, "dense", {}) | {"arms": {"ours": {"error": "x"}, "ours_waiting": {"error": "x"}}}
    broken = {"id": "gone", "model": SMALL, "variant": "dense", "error": "died"}
    for goals in (judged(), judged(headline=[failed, broken]), judged(exports=[{"id": "x", "not_there": "vllm"}])):
        assert len(goals) == 12 and all(goal.met is None and goal.value is None for goal in goals.values())
        assert all(goal.where == "not measured" for goal in goals.values())


def test_share_of_the_roofline_takes_the_worst() -> None:
    low = ours(SMALL, "dense", 1.0, prompt=2048)
    low["arms"]["ours"]["share_of_copy"] = 0.7
    goals = judged(headline=[ours(SMALL, "dense", 1.0), low, ours(SMALL, "irregular", 1.0), ours(LARGE, "dense", 1.0)])
    dense = goals[f"{SMALL}, dense: batch-1 decode, share of the roofline"]
    assert (dense.value, dense.met, dense.target) == (0.7, False, 0.78) and "worst of 2" in dense.where
    assert goals[f"{SMALL}, irregular: batch-1 decode, share of the roofline"].met is True
    assert goals[f"{LARGE}, dense: batch-1 decode, share of the roofline"].met is False
    assert goals[f"{LARGE}, irregular: batch-1 decode, share of the roofline"].met is None


def test_a_wrong_model_meets_no_goal() -> None:
    for wrong in ({"agrees": False}, {"overlap_same_tokens": False}):
        goals = judged(headline=[ours(SMALL, "dense", 1.0, **wrong)])
        assert goals[f"{SMALL}, dense: batch-1 decode, share of the roofline"].value is None


def test_speedup_over_torch_compile_by_batch() -> None:
    goals = judged(
        headline=[
            record(SMALL, "dense", {"compiled": 200.0, "ours": 100.0}),
            record(SMALL, "dense", {"compiled": 120.0, "ours": 100.0}, batch=8),
            record(LARGE, "dense", {"compiled": 100.0, "ours": 100.0}),
        ]
    )
    name = "decode, speed-up over transformers + torch.compile"
    assert goals[f"{SMALL}: batch-1 {name}"].value == pytest.approx(2.0)
    assert goals[f"{SMALL}: batch-1 {name}"].met is True
    assert goals[f"{SMALL}: batch-8 {name}"].met is False
    assert goals[f"{SMALL}: batch-64 {name}"].met is None


def test_pruned_over_dense_beside_the_bytes() -> None:
    goals = judged(
        headline=[
            ours(LARGE, "dense", 100.0),
            ours(LARGE, "irregular", 82.0, decode_bytes=80),
            ours(LARGE, "rounded", 50.0, decode_bytes=40),
            ours(LARGE, "rounded", 500.0, decode_bytes=40, batch=8),
            record(LARGE, "dense", {"eager": 1.0, "ours": 1.0}),
        ]
    )
    goal = goals[f"{LARGE}: batch-1 decode, pruned/dense speed-up over the ideal byte ratio"]
    assert goal.value == pytest.approx(0.8) and goal.met is False and "rounded" in goal.where


def test_first_token_of_a_long_prompt() -> None:
    short = record(SMALL, "dense", {"eager": 1.0, "ours": 9.0})
    long = record(SMALL, "dense", {"eager": 11.0, "ours": 10.0}, prompt=2048)
    goal = judged(headline=[short, long])["first token of a prompt of 2,048: speed-up over transformers"]
    assert goal.value == pytest.approx(1.1) and goal.met is True


def test_irregular_beside_rounded_for_the_same_bytes() -> None:
    records = [ours(LARGE, "irregular", 99.0, decode_bytes=90), ours(LARGE, "rounded", 100.0, decode_bytes=100)]
    goal = judged(headline=records)["whole model, irregular/rounded time a byte"]
    assert goal.value == pytest.approx(1.1) and goal.met is False


def test_exports_and_vllm() -> None:
    fields = {"speedup": 1.2, "ideal_speedup": 1.5}
    goals = judged(
        exports=[{"id": "onnx", **fields}], server=[{"id": "dense"}, {"id": "rounded", **fields, "speedup": 1.4}]
    )
    assert goals["each export: pruned/dense decode speed-up over the ideal"].value == pytest.approx(0.8)
    assert goals["vLLM: pruned/dense decode speed-up over the ideal"].met is True


def test_plans_are_irregular_and_meet_their_share() -> None:
    dense = MODELS["smollm2-135m"].shape
    for percent in (20, 60):
        shape = pruned_shape(dense, percent)
        unit = dense.ffn_channel_parameters
        assert 0 <= dense.block_parameters * (100 - percent) // 100 - shape.block_parameters < unit
        assert len(set(shape.layers)) > dense.num_hidden_layers // 2
        assert any(layer.intermediate_size % 16 for layer in shape.layers)
        assert any(layer.num_key_value_heads < dense.layers[0].num_key_value_heads for layer in shape.layers)
        assert allocated_shape(dense, percent) == shape, "plans.json is stale: python benchmarks/models/shapes.py"


def test_every_plan_of_the_check_is_kept() -> None:
    kept = json.loads(PLANS.read_text())
    assert {(name, share) for name, shares in kept.items() for share in shares} == {
        (name, share) for name in MODELS for share in ("20", "40", "60")
    }


def test_rounded_widths_are_near() -> None:
    irregular = pruned_shape(MODELS[LARGE].shape, 40)
    for before, after in zip(irregular.layers, rounded_shape(irregular).layers, strict=True):
        assert after.intermediate_size % 64 == 0 and abs(after.intermediate_size - before.intermediate_size) <= 32
        assert after.num_key_value_heads == before.num_key_value_heads


def test_arms_take_turns_forth_and_back() -> None:
    assert list(turns("abc", 3)) == list("abccbaabc")
