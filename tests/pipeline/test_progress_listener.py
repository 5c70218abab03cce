"""Progress from Python: events for a function of the caller's, and lines where there is no terminal."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

import prunekit
from prunekit.evaluation.windows import EvalConfig
from prunekit.plan.recipe import Recipe
from prunekit.profiling.compare import BenchConfig
from prunekit.utils.phases import lines
from prunekit.utils.phases.event import ProgressEvent
from tests.support.command import save_tiny, write_text
from tests.support.tiny import one_thread


class OutStream(io.StringIO):
    """As a notebook's, by the name of the module that ipykernel's is in: no terminal, though rich thinks otherwise."""

    __module__ = "ipykernel.iostream"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "model")
    write_text(tmp_path / "text.txt", 12_000)
    return tmp_path


def numbers(events: list[ProgressEvent]) -> list[tuple[int, int]]:
    """Of phases that have ended, or were not needed."""
    return [(each.phase, each.phases) for each in events if each.what in ("ended", "unneeded") and each.phase]


def all_of(count: int) -> list[tuple[int, int]]:
    return [(number, count) for number in range(1, count + 1)]


def test_a_models_whole_way_is_told_of(here: Path) -> None:
    model, text = str(here / "model"), str(here / "text.txt")
    recipe = Recipe.of("prunekit", calib=f"{text}:0.5,self:0.5", sequences=8, length=32, ffn_multiple=1)
    events: list[ProgressEvent] = []

    def told() -> list[ProgressEvent]:
        made = [*events]
        events.clear()
        return made

    with one_thread(), prunekit.progress(events.append):
        plan = prunekit.make_plan(model, recipe=recipe, device="cpu", blocks=0.8)
        seen = told()
        assert numbers(seen) == all_of(5)
        assert [each.title for each in seen if each.what == "begun" and each.phase] == [
            "reading text",
            "own text",
            "Fisher information",
            "loss curves",
            "widths",
        ]
        curves = [each for each in seen if each.title == "loss curves"]
        assert (curves[0].done, curves[-1].done, curves[-1].total) == (0, 4, 4)
        assert all(each.memory and each.memory > 1e7 for each in seen)
        assert any(each.left is not None and each.left > 0 for each in curves)
        prunekit.prune(model, here / "smaller", plan=plan, device="cpu")
        assert numbers(told()) == all_of(3)
        smaller, windows = str(here / "smaller"), EvalConfig(length=64)
        prunekit.evaluate(smaller, baseline=model, text=text, config=windows, device="cpu")
        assert numbers(told()) == all_of(2)
        timed = BenchConfig(prompt=8, tokens=2, repeats=2, warmup=1, max_minutes=0)
        prunekit.bench(smaller, baseline=model, config=timed, device="cpu")
        # Warm-up, then turns.
        assert numbers(told()) == all_of(2)
        prunekit.export_model(smaller, "hf", here / "exported", layout="uniform")
        assert numbers(told()) == all_of(2)
        few = {"text_length": 64, "text_held_out": 2}
        prunekit.recover(smaller, model, here / "recovered", text=text, tokens=1024, settings=few, device="cpu")
        seen = told()
        assert numbers(seen) == all_of(4)
        assert [each.title for each in seen if each.what == "begun" and each.phase] == [
            "reading text.txt",
            "trial steps",
            "training",
            "cutting and writing",
        ]
    # Outside, nobody is told.
    prunekit.make_plan(model, method="magnitude", calib=text, device="cpu", params=0.8)
    assert not events


def test_a_listener_can_end_the_work(here: Path) -> None:
    class Enough(Exception):
        pass

    def stop(event: ProgressEvent) -> None:
        if event.title == "cutting and writing" and event.done:
            raise Enough

    with pytest.raises(Enough), prunekit.progress(stop):
        prunekit.prune(str(here / "model"), here / "out", method="magnitude", calib=str(here / "text.txt"), params=0.8)
    assert not (here / "out").exists() and not list(here.glob(".out*"))


@pytest.mark.parametrize("asked", [False, True])
def test_in_a_notebook(asked: bool, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = OutStream()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(lines, "_SILENT", 0.0)
    plan = {"method": "magnitude", "calib": str(here / "text.txt"), "device": "cpu", "params": 0.8}
    if asked:
        with prunekit.progress():
            prunekit.make_plan(str(here / "model"), **plan)
    else:
        prunekit.make_plan(str(here / "model"), **plan)
    shown = stream.getvalue()
    assert not {"\r", "\x1b"} & set(shown)
    assert [line.split(":")[1] for line in shown.splitlines()] == [" [1/2] reading text", " [2/2] scoring"]


def test_a_script_is_told_of_nothing_unless_it_asks(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_SILENT", 0.0)
    plan = {"method": "magnitude", "calib": str(here / "text.txt"), "device": "cpu", "params": 0.8}
    prunekit.make_plan(str(here / "model"), **plan)
    assert capsys.readouterr().err == ""
    with prunekit.progress():
        prunekit.make_plan(str(here / "model"), **plan)
    assert len(capsys.readouterr().err.splitlines()) == 2
