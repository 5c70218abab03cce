"""Loss curves brought to scale: what is measured, on which text, and what is kept of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit.plan.allocations import OptimalConfig
from prunekit.plan.goals import parse_target
from prunekit.plan.recipe import Recipe
from prunekit.plan.rounding import Rounding
from prunekit.plan.shape import LayerShape
from prunekit.pruning.allocation import Problem
from prunekit.pruning.allocation import session as session_module
from prunekit.pruning.allocation.optimal import optimal
from prunekit.pruning.curves import scale
from prunekit.pruning.curves.divergence import Divergence
from prunekit.pruning.curves.loss_curves import FfnCurve, HeadChoice, LayerCurves, cut_heads, cut_width
from prunekit.pruning.planner import planning_phases
from prunekit.utils.phases.event import ProgressEvent
from prunekit.utils.phases.telling import phases
from prunekit.utils.phases.telling import progress as listened
from tests.support.tiny import VOCAB, tiny_model
from tests.support.tiny_session import logits, nothing, tiny_session

PROJECTIONS = {"attention": "self_attn.o_proj", "ffn": "mlp.down_proj"}


def _ids(sequences: int = 16, length: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB, (sequences, length), generator=torch.Generator().manual_seed(seed))


def _kl(model: Any, other: Any, ids: torch.Tensor) -> float:
    dense, changed = (logits(each, ids).log_softmax(-1) for each in (model, other))
    return (dense.exp() * (dense - changed)).sum(-1).mean().item()


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "olmo2", "phi3"])
def test_a_changed_sublayer_is_measured_as_the_whole_model_would_be(model_type: str) -> None:
    model = tiny_model(model_type, bias=True)
    dense = copy.deepcopy(model)
    found = tiny_session(model, _ids()).divergence()
    for index, kind in ((0, "ffn"), (2, "attention"), (3, "ffn")):
        projection = dense.model.layers[index].get_submodule(PROJECTIONS[kind])
        assert found.of(index, kind, projection.weight) == pytest.approx(0, abs=1e-5)  # type: ignore[arg-type]
        other = copy.deepcopy(dense)
        changed = other.model.layers[index].get_submodule(PROJECTIONS[kind])
        for weight in (projection.weight * (torch.arange(projection.in_features) % 3 > 0), None):
            changed.weight.data = torch.zeros_like(projection.weight) if weight is None else weight.data
            if weight is None and changed.bias is not None:
                changed.bias.data.zero_()
            assert found.of(index, kind, weight) == pytest.approx(_kl(dense, other, _ids()), rel=1e-3)  # type: ignore[arg-type]
        # And everything is as it was.
        assert torch.equal(logits(model, _ids()), logits(dense, _ids()))


def test_what_is_measured_is_text_that_curves_were_not_drawn_on() -> None:
    """Where there is enough of it: otherwise that text too."""
    ids = _ids(20)
    for tokens, places in ((8 * 32, slice(8, 16)), (16 * 32, slice(0, 16)), (1, slice(8, 10))):
        drawing = OptimalConfig(curve_tokens=8 * 32, scale_tokens=tokens)
        model = tiny_model("llama")
        changed = copy.deepcopy(model)
        changed.model.layers[0].self_attn.o_proj.weight.data *= 0.5
        projection = changed.model.layers[0].self_attn.o_proj.weight
        found = tiny_session(model, ids, drawing=drawing).divergence().of(0, "attention", projection)
        assert found == pytest.approx(_kl(model, changed, ids[places]), rel=1e-4)


def test_curves_say_what_was_measured_where_they_were_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[tuple[int, Any], torch.Tensor] = {}
    of_each = Divergence.of_each

    def remembered(self: Divergence, index: int, kind: Any, projection: Any) -> torch.Tensor:
        # The first rows of a projection with units gone are zero where these were.
        assert projection is not None and not projection.abs().sum(0).all()
        return found.setdefault((index, kind), of_each(self, index, kind, projection))

    monkeypatch.setattr(Divergence, "of_each", remembered)
    monkeypatch.setattr(scale, "_MOST", 1e9)
    session = tiny_session(tiny_model("llama"), _ids())
    steps: list[int] = []
    curves = session.curves(lambda count=1: steps.append(count))
    assert sum(steps) == session.curve_steps() and len(found) == 8
    for index, curve in enumerate(curves):
        assert curve.loss(LayerShape(8, 4, 60)) == pytest.approx(found[index, "ffn"].mean().item(), rel=1e-6)
        assert curve.loss(LayerShape(4, 4, 96)) == pytest.approx(found[index, "attention"].mean().item(), rel=1e-6)
        # A number for each sequence that was read, kept with the curve.
        assert curve.alone == {kind: tuple(found[index, kind].tolist()) for kind in ("attention", "ffn")}
        assert len(curve.alone["ffn"]) == 16


def test_a_curve_is_not_trusted_to_be_wrong_by_any_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tiny_session(tiny_model("llama"), _ids())
    monkeypatch.setattr(Divergence, "of_each", lambda *given: torch.tensor([1e-12]))
    low = plain.curves(nothing)
    monkeypatch.setattr(Divergence, "of_each", lambda *given: torch.tensor([1e12]))
    high = plain.curves(nothing)
    for one, other in zip(low, high, strict=True):
        assert other.ffn.loss[60] == pytest.approx(400 * one.ffn.loss[60])
        assert other.heads[1, 1].loss == pytest.approx(400 * one.heads[1, 1].loss)


@pytest.mark.parametrize(
    ("layer", "width", "heads"),
    [
        (LayerShape(9, 3, 1536), 960, (3, 2)),
        (LayerShape(32, 8, 14336), 8960, (5, 4)),
        (LayerShape(14, 2, 4864), 3040, (2, 4)),
        (LayerShape(1, 1, 1), 1, (1, 1)),
        (LayerShape(2, 1, 2), 1, (1, 1)),
    ],
)
def test_where_curves_are_measured(layer: LayerShape, width: int, heads: tuple[int, int]) -> None:
    assert (cut_width(layer), cut_heads(layer)) == (width, heads)


def test_a_layer_with_nothing_to_cut_has_curves() -> None:
    model = tiny_model("llama", num_attention_heads=1, num_key_value_heads=1, intermediate_size=1)
    (curves, *_) = tiny_session(model, _ids()).curves(nothing)
    assert len(curves.ffn.loss) == 2 and set(curves.heads) == {(1, 1)}


def test_curves_are_kept_for_another_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves alone: no weights, and of a whole sub-layer only once it is asked for."""
    ids = _ids()
    session = tiny_session(tiny_model("llama"), ids, store=tmp_path)
    curves = session.curves(nothing)
    assert {file.name for file in tmp_path.iterdir()} == {f"layer-{index}.json" for index in range(4)}
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 60_000

    def forbidden(*given: Any, **named: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr(session_module, "layer_curves", forbidden)
    steps: list[int] = []
    assert session.curves(lambda count=1: steps.append(count)) == curves
    assert sum(steps) == session.curve_steps()
    whole = session.curves(nothing, ("ffn-layer",))
    assert whole[0].ffn.loss[:-1] == curves[0].ffn.loss[:-1] and whole[0].ffn.loss[-1] != curves[0].ffn.loss[-1]
    monkeypatch.setattr(Divergence, "of", forbidden)
    assert session.curves(nothing, ("ffn-layer",)) == whole
    with pytest.raises(AssertionError, match="again"):
        session.curves(nothing, ("attention-layer",))


def test_damaged_curves_are_drawn_anew(tmp_path: Path) -> None:
    session = tiny_session(tiny_model("llama"), _ids(), store=tmp_path)
    curves = session.curves(nothing)
    file = tmp_path / "layer-2.json"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"0.", b"1.", 1))
    assert session.curves(nothing) == curves
    assert file.read_bytes() == whole


def test_where_nothing_can_be_kept_a_plan_is_made_all_the_same(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").touch()
    session = tiny_session(tiny_model("llama"), _ids(), store=tmp_path / "file")
    assert session.curves(nothing) == tiny_session(tiny_model("llama"), _ids()).curves(nothing)
    assert capsys.readouterr().err.count("not kept") == 1


def test_curves_without_a_whole_sublayer() -> None:
    curves = LayerCurves(FfnCurve((1, 0), (0.0, 1.0, 2.0)), {(1, 1): HeadChoice((0,), (0,), 0.5)})
    assert curves.without("ffn", 7.0).ffn.loss == (0.0, 1.0, 7.0)
    assert curves.without("attention", 7.0).loss(LayerShape(0, 0, 1)) == 8.0


@pytest.mark.parametrize("units", [("ffn", "kv", "query"), ("ffn", "kv", "attention-layer", "ffn-layer")])
def test_progress_ends_at_its_end(units: tuple[str, ...]) -> None:
    session = tiny_session(tiny_model("llama"), _ids())
    shape = session.source
    budgets = parse_target(None, "0.8", None).budgets(shape, 4, shape)
    assert budgets.parameters is not None
    problem = Problem(budgets.parameters, Rounding(1), units, budgets=budgets)
    events: list[ProgressEvent] = []
    with listened(events.append), phases(*planning_phases(Recipe.of("prunekit", units=units))) as run:
        optimal(session, problem, nothing)
    assert run is not None and run.undeclared == []
    ended = [each for each in events if each.what == "ended"]
    assert [each.phase for each in ended] == [*range(1, ended[0].phases + 1)]
    assert all(each.done == pytest.approx(each.total) for each in ended)
    # The last step of each leaves nothing to do.
    last = {each.title: each.left for each in events if each.what == "step"}
    assert all(left == pytest.approx(0, abs=1e-6) for left in last.values())
