"""Methods that look at weights alone are planned without a model in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunekit.errors import PrunekitError
from prunekit.models import dense
from prunekit.models.source import load_model, resolve
from prunekit.plan.goals import parse_target
from prunekit.plan.methods import METHODS, method
from prunekit.plan.recipe import Recipe
from prunekit.pruning.allocation.stored_session import StoredSession, takes_weights_alone
from prunekit.pruning.importance import score
from prunekit.pruning.planner import PlanConfig, compute_plan
from tests.support.command import save_tiny, write_text
from tests.support.tiny import MODEL_TYPES
from tests.support.tiny_text import tiny_tokenizer


def test_which_methods_need_no_model() -> None:
    assert {name for name in METHODS if takes_weights_alone(method(name))} == {"magnitude", "random"}


@pytest.mark.parametrize("name", ["magnitude", "magnitude-l1", "random"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_scores_are_those_of_the_model_in_memory(model_type: str, name: str, tmp_path: Path) -> None:
    source = resolve(str(save_tiny(tmp_path / "m", model_type)))
    recipe = Recipe.of("magnitude", importance=name)
    session = StoredSession(source, recipe.method, seed=7, counted=source.shape, dtype=torch.float32)
    layers: list[int] = []
    session.on_layer = lambda: layers.append(1)
    made = session.score()
    model = load_model(source, dtype="float32", device="cpu")
    expected = score(model, source.family, source.shape, None, importance_name=name, layer_importance_name=None, seed=7)
    assert len(layers) == 4
    for ours, theirs in zip(made.layers, expected.layers, strict=True):
        for part in ("kv_heads", "query_heads", "ffn"):
            assert torch.equal(getattr(ours, part), getattr(theirs, part))


def test_no_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*given: Any, **named: Any) -> Any:
        raise AssertionError("loaded")

    source = resolve(str(save_tiny(tmp_path / "m", tokenizer=tiny_tokenizer())))
    text = write_text(tmp_path / "text.txt")
    monkeypatch.setattr(dense.sources, "load_model", forbidden)
    # The tiny model has no room for the length of text that real ones are given.
    given = {"calib": str(text), "length": 16, "sequences": 4}
    config = PlanConfig(parse_target(None, "0.6", None), Recipe.of("magnitude", **given))
    plan = compute_plan(source, config)
    assert plan.share_of_blocks == pytest.approx(0.6, abs=0.03)
    assert plan.provenance["computed_in"] == {"dtype": "float32", "device": "cpu"}


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"]
)
def test_what_nothing_looks_at_is_refused_too(name: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    state[name].view(-1)[-1] = float("inf")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    source = resolve(str(folder))
    with pytest.raises(PrunekitError, match=r"holds NaN or infinite weights"):
        StoredSession(source, method("random"), seed=0, counted=source.shape, dtype=torch.float32).score()
