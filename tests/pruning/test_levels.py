"""Level databases, and how far the models are that are put together from them."""

from __future__ import annotations

import copy
import gc
import tempfile

import pytest
import torch
from safetensors import SafetensorError

from prunekit.errors import PrunekitError
from prunekit.plan.shape import LayerShape
from prunekit.pruning.allocation import session as session_module
from prunekit.pruning.curves.level_store import read_levels
from prunekit.pruning.curves.scale import measured
from tests.support.tiny import VOCAB, tiny_model
from tests.support.tiny_session import nothing, tiny_session


def _ids(sequences=16, length=32, seed=0):
    return torch.randint(0, VOCAB, (sequences, length), generator=torch.Generator().manual_seed(seed))


def _kl(model, other, ids):
    with torch.no_grad():
        dense, pruned = (each(input_ids=ids).logits.log_softmax(-1) for each in (model, other))
    return (dense.exp() * (dense - pruned)).sum(-1).mean().item()


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "olmo2", "phi3"])
def test_stitched_candidates_are_measured_as_they_would_be_by_themselves(model_type):
    model = tiny_model(model_type)
    dense = copy.deepcopy(model)
    session = tiny_session(model, _ids())
    levels = session.levels(nothing)
    fitness = session.fitness(levels)
    whole = tuple(((4, 2), 96) for _ in range(4))
    assert fitness.measure(whole) == pytest.approx(0, abs=1e-5)
    first = (((4, 2), 96), ((3, 2), 48), ((4, 2), 96), ((4, 1), 96))
    second = (((4, 2), 96), ((3, 2), 48), ((4, 2), 72), ((4, 1), 96))
    alone = fitness.measure(second)
    # With other matrices in place before.
    assert fitness.measure(first) != alone
    assert fitness.measure(second) == alone
    stitched = copy.deepcopy(model)
    for index, (heads, width) in enumerate(second):
        layer = stitched.model.layers[index]
        for module, kind, what in (("self_attn.o_proj", "attention", heads), ("mlp.down_proj", "ffn", width)):
            if what not in ((4, 2), 96):
                layer.get_submodule(module).weight.data = levels.projection(index, kind, what)
    assert alone == pytest.approx(_kl(dense, stitched, _ids()), rel=1e-3)
    fitness.close()
    assert _kl(dense, model, _ids()) == 0


def test_candidates_are_measured_on_text_that_levels_were_not_solved_on(monkeypatch):
    """Where there is enough of it: otherwise on what they were solved on."""
    ids = _ids(20)
    monkeypatch.setattr(session_module, "_LEVEL_TOKENS", 8 * 32)
    for tokens, places in ((8 * 32, slice(8, 16)), (16 * 32, slice(0, 16))):
        monkeypatch.setattr(session_module, "_FITNESS_TOKENS", tokens)
        model = tiny_model("llama")
        dense = copy.deepcopy(model)
        session = tiny_session(model, ids)
        fitness = session.fitness(session.levels(nothing))
        narrow = (((3, 2), 96), *[((4, 2), 96)] * 3)
        found = fitness.measure(narrow)
        assert found == pytest.approx(_kl(dense, model, ids[places]), rel=1e-4)
        fitness.close()


def test_curves_are_brought_to_the_scale_that_is_measured():
    model = tiny_model("llama")
    session = tiny_session(model, _ids())
    levels = session.levels(nothing)
    fitness = session.fitness(levels)
    steps = []
    made = measured(session.source, levels, fitness, lambda *args, **kwargs: steps.append(1))
    assert len(steps) == 8
    whole = [((4, 2), 96)] * 4
    for index in range(4):
        width = min(levels.ffn[index], key=lambda each: abs(each - 0.6 * 96))
        for what, shape in ((((4, 2), width), LayerShape(8, 4, width)), (((3, 2), 96), LayerShape(6, 3, 96))):
            if what[0] == (3, 2) and not made.curves[index].heads[3, 2].loss:
                continue
            alone = tuple(what if place == index else each for place, each in enumerate(whole))
            found = made.curves[index].loss(shape)
            if what[0] == (4, 2):
                assert found == pytest.approx(fitness.measure(alone), rel=1e-3)
            else:
                assert 0.1 < found / fitness.measure(alone) < 10
        assert made.curves[index].ffn.order == levels.curves[index].ffn.order
    fitness.close()


def test_a_damaged_level_database_is_made_anew(tmp_path):
    model = tiny_model("llama")
    session = tiny_session(model, _ids(), store=tmp_path)
    levels = session.levels(nothing)
    assert levels.ffn[0] == (1, *range(6, 96, 6))
    file = tmp_path / "layer-2.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert read_levels(tmp_path, 4) is None
    with pytest.raises(PrunekitError, match="damaged"):
        levels.projection(2, "ffn", 48)
    assert session.levels(nothing).curves == levels.curves


def test_levels_that_are_not_kept_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    session = tiny_session(tiny_model("llama", layers=1), _ids())
    levels = session.levels(nothing)
    assert levels.folder.is_dir()
    del session
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_half_written_levels(tmp_path, monkeypatch):
    def full(held, path, **kwargs):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    session = tiny_session(tiny_model("llama"), _ids(), store=tmp_path)
    monkeypatch.setattr("prunekit.pruning.curves.level_store.save_file", full)
    with pytest.raises(PrunekitError, match=r"No space left.*Free some space"):
        session.levels(nothing)
    assert not list(tmp_path.iterdir())
