"""The core: scoring a small model, allocating widths for an 8B shape, rebuilding a small checkpoint. `make bench`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.models.shapes import MODELS, SyntheticSession
from prunekit.checkpoint.rebuild import rebuild
from prunekit.models.families import FAMILIES
from prunekit.models.source import resolve
from prunekit.plan.rounding import Rounding
from prunekit.pruning.allocation import ALLOCATION, Problem
from prunekit.pruning.importance import score
from tests.support.command import save_tiny
from tests.support.tiny import VOCAB, one_thread, random_plan, tiny_model

LLAMA = FAMILIES["llama"]
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
}


@pytest.fixture(autouse=True, scope="module")
def steady() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.benchmark(max_time=2.0, min_rounds=3)
@pytest.mark.parametrize("name", ("taylor", "taylor2", "fisher", "wanda", "flap", "magnitude"))
def test_scoring(benchmark: Any, name: str) -> None:
    model = tiny_model("llama", layers=4, **WIDE)
    shape = LLAMA.shape(model.config)
    ids = torch.randint(1, VOCAB, (8, 64), generator=torch.Generator().manual_seed(0))
    scores = benchmark(lambda: score(model, LLAMA, shape, ids, importance_name=name, batch_size=4))
    assert len(scores.layers) == 4


@pytest.mark.parametrize("name", ("adapt", "uniform", "global"))
def test_allocation(benchmark: Any, name: str) -> None:
    dense = MODELS["llama-3.1-8b"].shape
    problem = Problem(dense.embedding_parameters + dense.block_parameters * 4 // 5, Rounding(ffn_multiple=16))

    def run(session: SyntheticSession) -> Any:
        return ALLOCATION[name](session, problem, lambda *args, **kwargs: None)

    allocated = benchmark.pedantic(run, setup=lambda: ((SyntheticSession(dense),), {}), rounds=3)
    assert dense.with_layers(keep.shape for keep in allocated.keeps).parameters <= problem.budget


@pytest.mark.parametrize("layout", ("per-layer", "uniform"))
def test_rebuild(benchmark: Any, layout: Any, tmp_path: Path) -> None:
    source = resolve(str(save_tiny(tmp_path / "source", layers=8, **WIDE)))
    plan = random_plan(source.shape)
    names = itertools.count()

    def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (source, plan, tmp_path / f"out{next(names)}"), {"layout": layout}

    benchmark.pedantic(rebuild, setup=setup, rounds=10, warmup_rounds=1)
