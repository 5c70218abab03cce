"""What a GPU check concludes from its measurements, and the widths that it measures at."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.gpu_check.goals import Goal, evaluate
from benchmarks.models.shapes import MODELS, PLANS, allocated_shape, pruned_shape
from benchmarks.ops.bench import aligned_ratio
from benchmarks.ops.cases import MULTIPLE, neighbours, sampled, width
from prunekit.plan.shape import LayerShape
from prunekit.utils.timing import turns


def op_record(op: str, ratio: float | None, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"{op} {ratio}",
        "op": op,
        "case": op,
        "prunable": True,
        "rows": 1,
        "layer_bytes": [40_000_000],
        "arms": {},
        "irregular_over_aligned": None if ratio is None else {"median": ratio},
        **fields,
    }


def model_record(model: str, percent: int, arms: dict[str, float], decode_bytes: int = 100, **fields: Any) -> Any:
    """``arms``: microseconds a token; a share of the roofline of 80 % for all."""
    return {
        "id": f"{model} {percent}",
        "model": model,
        "pruned_percent": percent,
        "batch": 1,
        "prompt": 128,
        "decode_bytes": decode_bytes,
        "arms": {name: {"tpot": {"median_us": us}, "share_of_copy": 0.8} for name, us in arms.items()},
        **fields,
    }


def judged(**parts: list[dict[str, Any]]) -> dict[str, Goal]:
    wrapped = {part: {"rehearsal": None, "records": records} for part, records in parts.items()}
    return {goal.goal: goal for goal in evaluate(wrapped)}


def test_goals_take_the_worst() -> None:
    goals = judged(
        ops=[op_record("mlp", 1.0), op_record("mlp", 1.05), op_record("mlp", 1.02), op_record("qkv_rope", 1.03)]
    )
    worst = goals["mlp: irregular/aligned time"]
    assert (worst.value, worst.met) == (1.05, False) and "mlp 1.05" in worst.where
    assert goals["qkv_rope: irregular/aligned time"].met is True


def test_a_wrong_op_meets_no_goal() -> None:
    wrong = op_record("mlp", 0.5, agrees=False)
    right = op_record("mlp", 1.02, agrees=True)
    assert judged(ops=[wrong, right])["mlp: irregular/aligned time"].value == 1.02


def test_goals_that_were_not_measured() -> None:
    failed = op_record("mlp", None, arms={"ours": {"error": "RuntimeError"}})
    broken = {"id": "gone", "op": "mlp", "case": "mlp", "error": "died"}
    for goals in (judged(), judged(ops=[failed, broken]), judged(models=[])):
        assert goals and all(goal.met is None and goal.value is None for goal in goals.values())
        assert all(goal.where == "not measured" for goal in goals.values())
    assert "mlp: irregular/aligned time" in judged(ops=[failed])


def test_goals_of_the_decode_mlp() -> None:
    arms = {
        "irregular_cublas": {"median_us": 30.0},
        "padded_cublas": {"median_us": 24.0},
        "ours": {"median_us": 20.0, "share_of_copy": 0.9},
    }
    small = op_record("mlp_decode", 1.0, arms=arms | {"ours": {"median_us": 90.0, "share_of_copy": 0.1}})
    small["layer_bytes"] = [1000, 40_000_000]
    goals = judged(ops=[op_record("mlp_decode", 1.0, arms=arms), small])
    share, gain = (goal for name, goal in goals.items() if name.startswith("decode MLP"))
    assert (share.value, share.met) == (0.9, True)
    assert gain.value == pytest.approx(1.2) and gain.met is True


def test_goals_of_whole_models() -> None:
    small, large = "llama-3.2-1b", "llama-3.1-8b"
    goals = judged(
        models=[
            model_record(small, 0, {"compiled": 130.0, "ours": 100.0}),
            model_record(small, 40, {"compiled": 110.0, "ours": 100.0}),
            model_record(large, 0, {"ours": 100.0}, decode_bytes=100),
            model_record(large, 20, {"ours": 82.0}, decode_bytes=80),
            model_record(large, 60, {"ours": 50.0}, decode_bytes=40),
            model_record(large, 60, {"ours": 500.0}, decode_bytes=40, batch=8),
        ]
    )
    assert goals[f"{small}, dense: batch-1 decode, share of the roofline"].met is True
    assert goals[f"{large}, pruned: batch-1 decode, share of the roofline"].met is False
    dense, pruned = (
        goals[f"{small}, {kind}: batch-1 decode, speed-up over transformers + torch.compile"]
        for kind in ("dense", "pruned")
    )
    assert (dense.value, dense.met) == (1.3, True)
    assert pruned.value == pytest.approx(1.1) and pruned.met is False
    speedup = goals[f"{large}: batch-1 decode, pruned/dense speed-up over the ideal byte ratio"]
    assert speedup.value == pytest.approx(0.8) and speedup.met is False and "60" in speedup.where


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


def test_neighbours_enclose_the_irregular_width() -> None:
    layers = pruned_shape(MODELS["smollm2-135m"].shape, 40).layers
    for kind in ("ffn", "heads"):
        for layer in sampled(layers, kind, 3):
            pair = neighbours(layer, kind)
            assert pair is not None
            below, above = (width(one, kind) for one in pair)
            assert below < width(layer, kind) < above and above - below == MULTIPLE[kind]
            assert not below % MULTIPLE[kind]
    assert neighbours(LayerShape(32, 8, 8192), "ffn") is None
    assert neighbours(LayerShape(32, 8, 8192), "heads") is None
    assert neighbours(LayerShape(4, 1, 37), "ffn") is None


def test_the_aligned_time_is_that_of_the_same_work() -> None:
    work = {"ours": 25.0, "ours_below": 20.0, "ours_above": 40.0}
    times = {"ours": [3.0, 6.0], "ours_below": [2.0, 4.0], "ours_above": [6.0, 12.0]}
    ratio = aligned_ratio(times, work)
    assert ratio is not None and ratio["median"] == pytest.approx(1.0) and ratio["count"] == 2
    del times["ours_above"]
    assert aligned_ratio(times, work) is None


def test_arms_take_turns_forth_and_back() -> None:
    assert list(turns("abc", 3)) == list("abccbaabc")
