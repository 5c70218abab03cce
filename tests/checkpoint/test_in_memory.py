"""A pruned model put together in memory computes what its checkpoint computes, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunekit.checkpoint.in_memory import pruned_in_memory
from prunekit.checkpoint.rebuild import rebuild
from prunekit.models.source import load_model, resolve
from prunekit.plan import whole_plan
from prunekit.utils.numerics.finite import NotFinite
from tests.support.command import save_tiny
from tests.support.tiny import MODEL_TYPES, VOCAB, random_plan

pytestmark = pytest.mark.usefixtures("single_threaded")
IDS = torch.randint(1, VOCAB, (2, 24), generator=torch.Generator().manual_seed(0))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        made: torch.Tensor = model(IDS, use_cache=False).logits
    return made


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_it_is_the_checkpoint(model_type: str, tmp_path: Path) -> None:
    source = resolve(str(save_tiny(tmp_path / "model", model_type)))
    plan = random_plan(source.shape, drop=(2,))
    scaled = {"model.layers.1.mlp.down_proj.weight": torch.full((64, plan.shape.layers[1].intermediate_size), 0.01)}
    for number, options in enumerate(({}, {"weights": scaled}, {"ffn_multiple": 32})):
        out = tmp_path / str(number)
        rebuild(source, plan, out, **options)  # type: ignore[arg-type]
        made, loaded = pruned_in_memory(source, plan, device="cpu", **options), load_model(resolve(str(out)))  # type: ignore[arg-type]
        assert type(made) is type(loaded) and not made.training
        assert torch.equal(logits(made), logits(loaded)), options
    whole = pruned_in_memory(source, whole_plan(source.shape), device="cpu")
    assert torch.equal(logits(whole), logits(load_model(source)))


def test_weights_are_rounded_to_what_is_stored(tmp_path: Path) -> None:
    """Solved in float32, stored in bfloat16, computed in float32: what a checkpoint holds and not more."""
    source = resolve(str(save_tiny(tmp_path / "model", dtype=torch.bfloat16)))
    if source.dtype != torch.bfloat16:
        folder = tmp_path / "half"
        rebuild(source, whole_plan(source.shape), folder, dtype="bfloat16")
        source = resolve(str(folder))
    plan = random_plan(source.shape)
    weights = {"model.layers.0.mlp.down_proj.weight": torch.full((64, plan.shape.layers[0].intermediate_size), 1 / 3)}
    made = pruned_in_memory(source, plan, weights, dtype="float32", device="cpu")
    held = made.get_parameter("model.layers.0.mlp.down_proj.weight")
    assert held.dtype == torch.float32 and held.unique().tolist() == [torch.tensor(1 / 3).bfloat16().item()]
    rebuild(source, plan, tmp_path / "out", weights=weights)
    assert torch.equal(logits(made), logits(load_model(resolve(str(tmp_path / "out")), dtype="float32")))


def test_what_is_not_finite_is_named(tmp_path: Path) -> None:
    source = resolve(str(save_tiny(tmp_path / "model")))
    plan = random_plan(source.shape)
    weights = {
        "model.layers.0.mlp.down_proj.weight": torch.full((64, plan.shape.layers[0].intermediate_size), torch.nan)
    }
    with pytest.raises(NotFinite, match="Layer 0"):
        pruned_in_memory(source, plan, weights, device="cpu")
