"""Two processes train as one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prunekit.errors import PrunekitError
from prunekit.pipeline import recover
from prunekit.plan import Plan
from prunekit.recovery.lessons import Trained
from prunekit.utils.process import ranks
from tests.support.ranks import command_on_ranks, run_ranks
from tests.support.recovering import SETTINGS


def _on(size: int, places: Path, out: Path, **given) -> None:
    settings = {**SETTINGS, **given.pop("settings", {})}
    options = {
        "text": f"{places / 'text.txt'}:0.5,self:0.5",
        "tokens": 64 * 6,
        "device": "cpu",
        "dtype": "float32",
        **given,
    }

    def work() -> None:
        if size == 1:
            recover(str(places / "small"), str(places / "dense"), out, settings=settings, **options)
            return
        with ranks.joined("cpu"):
            recover(str(places / "small"), str(places / "dense"), out, settings=settings, **options)

    if size == 1:
        work()
        return
    ended = run_ranks(size, work)
    assert [each.code for each in ended] == [0] * size, ended


def _close(one: Path, other: Path) -> None:
    first, second = (load_file(path / "model.safetensors") for path in (one, other))
    for name, expected in first.items():
        assert (second[name] - expected).abs().max() <= 2e-5 * max(1.0, expected.abs().max().item()), name


@pytest.mark.parametrize("settings", [{}, {"train": "all", "ce_share": 0.3}, {"recompute": True, "micro_batch": 1}])
def test_two_processes_train_as_one_does(places: Path, tmp_path: Path, settings: dict) -> None:
    for size in (1, 2):
        _on(size, places, tmp_path / str(size), settings=settings)
    _close(tmp_path / "1", tmp_path / "2")
    one, two = (Plan.load(tmp_path / name / "plan.json").provenance["recovery"][0] for name in "12")
    assert one["text"] == two["text"] and one["steps"] == two["steps"] == 6
    assert two["held_out_kl"]["after"] == pytest.approx(one["held_out_kl"]["after"], rel=1e-4)
    assert two["held_out_kl"]["after"] < two["held_out_kl"]["before"]
    assert not (tmp_path / "2.training").exists()


def test_two_processes_go_on_where_they_stopped(places: Path, tmp_path: Path, monkeypatch) -> None:
    _on(2, places, tmp_path / "whole")
    with monkeypatch.context() as patch:

        def stop(*args):
            raise PrunekitError("enough")

        patch.setattr(Trained, "finish", stop)

        def work() -> None:
            with ranks.joined("cpu"), pytest.raises(PrunekitError, match="enough"):
                recover(
                    str(places / "small"),
                    str(places / "dense"),
                    tmp_path / "out",
                    settings=SETTINGS,
                    text=f"{places / 'text.txt'}:0.5,self:0.5",
                    tokens=64 * 6,
                    device="cpu",
                    dtype="float32",
                    checkpoint_minutes=0,
                )

        assert [each.code for each in run_ranks(2, work)] == [0, 0]
    assert sorted(each.name for each in (tmp_path / "out.training").glob("step-*"))[-1] == "step-00000005"
    _on(2, places, tmp_path / "out", checkpoint_minutes=0)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_command_on_two_processes_writes_and_speaks_once(places: Path, tmp_path: Path) -> None:
    options = [f"{part}" for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    ended = command_on_ranks(
        2,
        "recover",
        places / "small",
        "--teacher",
        places / "dense",
        "--text",
        places / "text.txt",
        "--tokens",
        64 * 4,
        "--device",
        "cpu",
        "-o",
        tmp_path / "out",
        *options,
    )
    assert [each.code for each in ended] == [0, 0], ended
    assert "Checkpoint written" in ended[0].out and ended[1].out + ended[1].err == ""
    assert Plan.load(tmp_path / "out" / "plan.json").provenance["recovery"][0]["steps"] == 4
