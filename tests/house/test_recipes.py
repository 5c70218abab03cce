"""What docs/architecture.md says of adding a method, a family or a target is enough: one of each is written here (and
an op in tests/support/added_op.py)."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch

from prunekit.export import registry
from prunekit.export.export import export
from prunekit.export.target import Job, Target, Written
from prunekit.models import modeling
from prunekit.models.families import FAMILIES, _family
from prunekit.models.runner import Runner, TorchRunner
from prunekit.models.source import load_model, resolve
from prunekit.pipeline import make_plan
from prunekit.plan.allocations import ALLOCATIONS, AllocationConfig
from prunekit.plan.methods import METHODS, Method
from prunekit.plan.recipe import Recipe
from prunekit.plan.shape import LayerShape
from prunekit.pruning.allocation import ALLOCATION, Allocated, Problem
from prunekit.pruning.allocation.session import Session
from prunekit.pruning.importance import IMPORTANCE
from prunekit.pruning.importance.base import Importance
from prunekit.pruning.importance.scores import LayerScores
from prunekit.utils.advance import Advance
from tests.support.command import ROOT, save_tiny
from tests.support.pages import Page
from tests.support.tiny import one_thread, random_plan, rebuilt_model, tiny_model, zeroed_model

IDS = torch.arange(2, 30).reshape(2, 14)


class LastUnits(Importance):
    """The later a unit, the more it matters."""

    def result(self) -> tuple[LayerScores, ...]:
        return tuple(
            LayerScores(
                torch.arange(layer.num_key_value_heads).double(),
                torch.arange(layer.num_attention_heads).double().view(layer.num_key_value_heads, -1),
                torch.arange(layer.intermediate_size).double(),
            )
            for layer in self.watched.shape.layers
        )


def first_layers(session: Session, problem: Problem, advance: Advance, config: AllocationConfig) -> Allocated:
    """Takes FFN channels from one layer after the other, until the budget is met."""
    scores = session.score()
    advance()
    shapes = list(session.shape.layers)
    for index, layer in enumerate(shapes):
        over = session.source.with_layers(shapes).parameters - problem.budget
        goes = min(layer.intermediate_size - 1, -(-max(0, over) // session.source.ffn_channel_parameters))
        shapes[index] = LayerShape(layer.num_attention_heads, layer.num_key_value_heads, layer.intermediate_size - goes)
    return Allocated(session.select(scores, tuple(shapes)))


class FirstConfig(AllocationConfig):
    """The first layers go first."""

    name = "first-layers"
    scores_units = True


def test_a_method(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(IMPORTANCE, "last-units", LastUnits)
    monkeypatch.setitem(ALLOCATION, "first-layers", first_layers)
    monkeypatch.setitem(ALLOCATIONS, "first-layers", FirstConfig)
    monkeypatch.setitem(METHODS, "mine", Method("mine", "for this test", "last-units", FirstConfig(), units=("ffn",)))
    recipe = Recipe.of("mine", ffn_multiple=1, sequences=2, length=8)
    with one_thread():
        plan = make_plan(str(save_tiny(tmp_path / "model")), recipe=recipe, blocks=0.9)
    widths = [layer.intermediate_size for layer in plan.shape.layers]
    assert widths[0] < widths[1] == widths[2] == widths[3] == 96
    assert plan.layers[0].ffn == tuple(range(96 - widths[0], 96))
    assert plan.provenance["method"]["allocation"] == "first-layers"


def test_a_family(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entry = _family("Seed-OSS", "seed_oss", "SeedOss", qkv_bias="attention_bias", o_bias="attention_out_bias")
    monkeypatch.setitem(FAMILIES, "seed_oss", entry)
    folder = ROOT / "prunekit" / "models" / "modeling"
    file = tmp_path / "modeling_pruned_seed_oss.py"
    file.write_text(
        (folder / "modeling_pruned_qwen3.py").read_text().replace("Qwen3", "SeedOss").replace("qwen3", "seed_oss")
    )
    name = f"{modeling.__name__}.{entry.pruned_module}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)

    with one_thread(), torch.no_grad():
        model = tiny_model("seed_oss", head_dim=16)
        plan = random_plan(entry.shape(model.config))
        pruned = rebuilt_model(model, plan)
        assert entry.shape(pruned.config) == plan.shape
        torch.testing.assert_close(pruned(IDS).logits, zeroed_model(model, plan)(IDS).logits, atol=1e-4, rtol=1e-4)


class Copy(Target):
    name = "copy"
    summary = "A copy of the checkpoint."
    dtypes = ("fp32",)

    def write(self, job: Job, folder: Path) -> Written:
        shutil.copytree(job.source.path, folder, dirs_exist_ok=True)
        return Written()

    def open(self, folder: Path, threads: int | None = None, device: str = "cpu") -> Runner:
        return TorchRunner(load_model(resolve(str(folder)), device="cpu"))

    def usage(self, job: Job) -> str:
        return "Open it."


def test_a_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(registry._TARGETS, "copy", "copy:Copy")
    monkeypatch.setitem(sys.modules, "prunekit.export.copy", sys.modules[__name__])
    registry.target.cache_clear()
    source = resolve(str(save_tiny(tmp_path / "model", max_position_embeddings=1024)))
    with one_thread():
        made = export(source, "copy", tmp_path / "out")
    registry.target.cache_clear()
    assert made.parity is not None and made.parity.ok
    assert (tmp_path / "out" / "parity.json").is_file()


def test_files_that_the_page_names_exist() -> None:
    page = Page(ROOT / "docs" / "architecture.md")
    named = {
        code for code in page.inline() if code.startswith(("prunekit/", "kernels/", "export/", "tests/", "benchmarks/"))
    }
    assert len(named) > 15
    assert {name for name in named if "<" not in name and not (ROOT / name).exists()} == set()
