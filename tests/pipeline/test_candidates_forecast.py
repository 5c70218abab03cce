"""What candidates say of how long they take: before the first step, while they run, and when much is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import prunekit
from prunekit.errors import PrunekitError
from prunekit.models.source import Source, resolve
from prunekit.pipeline.forecast import room as rooms
from prunekit.pipeline.forecast import tell, trial
from prunekit.pipeline.forecast.sizes import Comparing, Comparison
from prunekit.plan.recipe import Recipe
from prunekit.utils.phases import titles
from prunekit.utils.phases.event import ProgressEvent
from prunekit.utils.phases.run import Run
from tests.pipeline.test_candidates import READ, SETTINGS
from tests.pipeline.test_forecast import LLAMA_8B, QUICK, RATES, SMOLLM2
from tests.support.command import write_text
from tests.support.export_models import byte_tokenizer, dense_config
from tests.support.tiny import one_thread, tiny_model

SIZES = {"quality of 0.9": 0.9, "quality of 0.6": 0.6}
ASKED = Comparison(SIZES, "plans", "quality of dense", tokens=16_384, stored=4, exports=False)
AGAIN = ["refit, round 2", "Fisher information, round 2", "loss curves, round 2"]
DRAWN = ["reading text", "Fisher information", "loss curves", *AGAIN, "widths", "plans", "quality of dense"]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    tiny_model("llama", config=dense_config("llama")).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    with one_thread():
        yield resolve(str(tmp_path / "model"))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every model is large enough for a trial, which gives rates that are made up. Holds what was asked of it."""
    asked: list[dict[str, Any]] = []

    def measure(source: Source, **options: Any) -> trial.Rates:
        asked.append(options)
        return replace(RATES, scoring=1e-4, scoring_head=1e-8)

    monkeypatch.setattr(tell, "_SOON", 0.0)
    monkeypatch.setattr(tell, "_WORTH", 0.0)
    monkeypatch.setattr(trial, "measure", measure)
    return asked


def compared(source: Source, out: Path, sizes: str = "0.9,0.7", method: str = "prunekit") -> list[ProgressEvent]:
    file = out.parent / "own.txt"
    if not file.exists():
        write_text(file, 20_000)
    events: list[ProgressEvent] = []
    recipe = Recipe.of(method, calib=str(file), **SETTINGS)
    with prunekit.progress(events.append):
        prunekit.candidates(source, out, params=sizes, recipe=recipe, config=READ, device="cpu")
    return events


def counted(events: list[ProgressEvent]) -> list[str]:
    """The phases that came, in their order."""
    return [each.title for each in events if each.what == "begun" and each.phase]


def test_each_step_is_foreseen_before_any_is_made(source: Source, tmp_path: Path, measured: list[Any]) -> None:
    events = compared(source, tmp_path / "sizes")
    assert counted(events) == [*DRAWN, "quality of 0.9", "quality of 0.7"]
    assert len(measured) == 1
    after = events[next(place for place, each in enumerate(events) if each.title == titles.FISHER) :]
    # From the first step to the last one there is a word on how much is left, in all.
    assert all(each.left_in_all is not None for each in after if each.what in ("begun", "step") and each.phase)
    assert {each.phases for each in events if each.phase and each.what != "unneeded"} == {11}


def test_what_is_kept_takes_no_time_and_no_trial(source: Source, tmp_path: Path, measured: list[Any]) -> None:
    compared(source, tmp_path / "sizes")
    events = compared(source, tmp_path / "again")
    assert len(measured) == 1
    assert counted(events) == ["reading text", "plans", "quality of dense", "quality of 0.9", "quality of 0.7"]
    last = [each for each in events if each.what == "begun" and each.title == "quality of 0.9"]
    assert last[0].left_in_all == 0
    # A size that is added is foreseen by itself.
    events = compared(source, tmp_path / "more", "0.9,0.8,0.7")
    assert len(measured) == 2 and "loss curves" in counted(events)
    begun = {each.title: each for each in events if each.what == "begun"}
    assert begun["quality of 0.9"].left == 0 and begun["quality of 0.8"].left
    assert begun["quality of 0.8"].left_in_all == pytest.approx(begun["quality of 0.8"].left)


def test_a_method_that_scores_anew_for_each_size(source: Source, tmp_path: Path, measured: list[Any]) -> None:
    events = compared(source, tmp_path / "sizes", method="flap")
    assert counted(events)[:4] == ["reading text", "scoring", "plans", "quality of dense"]
    begun = [each for each in events if each.what == "begun" and each.title == "plans"]
    assert begun[0].left and begun[0].left_in_all


def test_too_little_memory_is_said_before_the_model_is_loaded(
    source: Source, tmp_path: Path, measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*args: Any, **options: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("prunekit.models.source.load_model", none)
    monkeypatch.setattr(rooms, "whole_memory", lambda device: 1e6)
    with pytest.raises(PrunekitError, match="so this can't be done there"):
        compared(source, tmp_path / "sizes")
    assert not (tmp_path / "sizes").exists() and not measured


def test_seconds_by_hand() -> None:
    recipe = Recipe.of("prunekit", effort="quick")
    made = Comparing(SMOLLM2, recipe, QUICK, ASKED)
    found = made.seconds(RATES)
    once = made.plans.seconds(RATES)
    # Text and curves are there once, and a second plan takes as long as its widths.
    for title in (titles.OWN_TEXT, titles.FISHER, titles.CURVES, titles.WIDTHS):
        assert found[title] == once[title]
    assert found["plans"] == found[titles.WIDTHS]
    layers, head = 30 * RATES.forward, 49152 * RATES.head
    assert found["quality of dense"] == pytest.approx(16_384 * (layers + head))
    # The dense model has read once for all, and both heads make probabilities.
    assert found["quality of 0.6"] == pytest.approx(once[titles.REFIT] + 16_384 * (0.6 * layers + 2 * head))
    more = Comparing(SMOLLM2, recipe, QUICK, Comparison(dict(reversed(SIZES.items())), "plans", "", 16_384, 4, False))
    assert more.seconds(RATES)["quality of 0.6"] == pytest.approx(found["quality of 0.6"] + 16_384 * layers)
    assert titles.WRITING not in found and titles.REFIT not in found


def test_memory_of_large_models_with_and_without_an_export() -> None:
    recipe = Recipe.of("prunekit", effort="quick")
    made = Comparing(LLAMA_8B, recipe, QUICK, ASKED).room(2, fast=False)
    assert 16e9 < made.least < made.memory < 60e9 and made.disk < 10e9
    exported = Comparison(SIZES, "plans", "quality of dense", 16_384, 2, exports=True)
    shipped = Comparing(LLAMA_8B, recipe, QUICK, exported).room(2, fast=False)
    # Two models in float32 beside each other, and a checkpoint with its export on the disk.
    assert shipped.memory > 2 * 4 * 7e9 and shipped.disk > 2 * 2 * 7e9


def test_the_first_size_tells_how_long_the_others_take() -> None:
    """More than what was foreseen, which counts until then."""
    now = [0.0]
    run = Run(clock=lambda: now[0], memory=lambda: 0, ticking=False)
    run.expect(["a", "b", "c"], None)
    run.foresee({"a": 10.0, "b": 10.0, "c": 10.0})
    run.weigh({"a": 1.0, "b": 1.0, "c": 1.0}, ["test", "sizes"])
    assert run.foreseen() == pytest.approx(30)
    with run.phase("a", 1) as advance:
        now[0] += 60
        advance()
    assert run.foreseen() == pytest.approx(120)
