"""The look at a model that was just made: what it sees of good, spoilt and unreadable ones, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunekit.cli import checking
from prunekit.evaluation import check as checked
from prunekit.evaluation.check import check
from prunekit.evaluation.verdict import BROKEN, FINE
from tests.support.command import BRIEF, Command, make_command, save_tiny, set_options, write_text


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("dense") / "model")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return make_command(monkeypatch, capsys)


def spoilt(dense: Path, folder: Path, factor: float) -> Path:
    """The dense model with every weight of its layers multiplied."""
    folder.mkdir()
    for file in dense.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(dense / "model.safetensors")
    scaled = {name: each * factor if "layers" in name else each for name, each in weights.items()}
    save_file(scaled, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_dense_model_itself_is_fine(dense: Path) -> None:
    found = check(str(dense), str(dense), device="cpu")
    assert found.verdict is not None and found.verdict.word == FINE and not found.is_broken
    assert found.verdict.loss_added == 0 and found.verdict.agreement == 1 and found.tokens > 0
    first, second = found.examples
    assert first.model == first.baseline and first.prompt != second.prompt and first.prompt
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(("factor", "said"), [(float("nan"), "holds NaN"), (1e30, "not finite")])
def test_numbers_that_are_none_are_broken_and_said(factor: float, said: str, dense: Path, tmp_path: Path) -> None:
    found = check(str(spoilt(dense, tmp_path / "bad", factor)), str(dense), device="cpu")
    assert found.is_broken and found.verdict is None and said in str(found.why)
    assert found.to_dict()["verdict"] == BROKEN


def test_what_cannot_be_looked_at_is_told_and_not_raised(dense: Path, tmp_path: Path) -> None:
    bare = spoilt(dense, tmp_path / "bare", 1.0)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (bare / file).unlink()
    found = check(str(bare), str(bare), device="cpu")
    assert not found.is_broken and found.verdict is None and found.why
    assert found.to_dict()["verdict"] is None


@pytest.mark.parametrize(("parameters", "windows"), [(10**7, 16), (5 * 10**8, 4), (10**11, 2)])
def test_larger_models_read_less(parameters: int, windows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    class Shape:
        pass

    source: Any = Shape()
    source.shape = Shape()
    source.shape.parameters = parameters
    assert checked._windows(source, "cpu", 256) == min(max(int(4e10 * 30 / (4 * parameters * 256)), 2), 16)
    assert checked._windows(source, "cpu", 256) == pytest.approx(windows, abs=2)


def test_prune_ends_in_a_verdict(dense: Path, tmp_path: Path, command: Command) -> None:
    told = (*BRIEF, *set_options(ffn_multiple=1), "--blocks", "0.7", "--check", "builtin")
    ended = command("prune", dense, "-o", tmp_path / "out", *told)
    assert ended.code == 0, ended.err
    words = " ".join(ended.out.split())
    assert "Checkpoint written" in words and "Scale of the loss added" in words and "continued by" in words
    ended = command("prune", dense, "-o", tmp_path / "again", *told, "--json")
    assert ended.code == 0 and ended.json["check"]["verdict"] in ("fine", "costs quality", "broken")
    assert len(ended.json["check"]["examples"]) == 2


def test_a_limit_sets_the_exit_code(dense: Path, tmp_path: Path, command: Command) -> None:
    told = (*BRIEF, *set_options(ffn_multiple=1), "--blocks", "0.5")
    ended = command("prune", dense, "-o", tmp_path / "out", *told, "--max-loss-added", "100", "--json")
    assert ended.code == 0
    added = ended.json["check"]["loss_added"]
    most = added - 0.001 if added > 0.001 else 0
    ended = command("prune", dense, "-o", tmp_path / "more", *told, "--max-loss-added", most)
    assert ended.code == (checking.TOO_MUCH if added > most else 0) and (tmp_path / "more" / "config.json").is_file()
    told = ("--baseline", dense, "--max-tokens", "512", "--length", "64")
    bad = spoilt(dense, tmp_path / "bad", 30.0)
    assert command("eval", bad, *told, "--max-loss-added", "50").code == 0
    ended = command("eval", dense, bad, *told, "--max-loss-added", "0.01")
    assert ended.code == checking.TOO_MUCH and "bad adds" in ended.err and "exit code 3" in ended.err


@pytest.mark.parametrize(
    ("loss", "most", "code"), [(0.2, None, 0), (0.2, 0.3, 0), (0.3, 0.3, 0), (0.31, 0.3, 3), (None, 0.3, 3)]
)
def test_exit_codes(loss: float | None, most: float | None, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert checking.exit_code([("a", 0.0), ("b", loss)], most) == code
    assert ("allows 0.3: exit code 3" in capsys.readouterr().err) == (code == 3)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (("--check", "nowhere.txt"), "no file nowhere.txt"),
        (("--max-loss-added", "-1"), "0 or more"),
        (("--max-loss-added", "nan"), "0 or more"),
        (("--check", "none", "--max-loss-added", "0.3"), "needs a check"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_work(
    told: tuple[str, ...], said: str, dense: Path, tmp_path: Path, command: Command
) -> None:
    ended = command("prune", dense, "-o", tmp_path / "out", "--blocks", "0.7", *told)
    assert ended.code == 2 and said in " ".join(ended.err.split()) and not (tmp_path / "out").exists()


def test_eval_refuses_a_limit_without_what_it_is_measured_on(dense: Path, command: Command) -> None:
    ended = command("eval", dense, "--max-loss-added", "0.3")
    assert ended.code == 2 and "--baseline" in ended.err
    ended = command("eval", dense, "--baseline", dense, "--tasks", "mmlu", "--max-loss-added", "0.3")
    assert ended.code == 2 and "--text" in ended.err


def test_eval_shows_both_texts_side_by_side(dense: Path, tmp_path: Path, command: Command) -> None:
    text = write_text(tmp_path / "text.txt")
    told = ("--text", text, "--baseline", dense, "--generate", "--prompts", "3", "--max-tokens", "1024")
    brief = ("--length", "64", "--prompt-tokens", "8", "--new-tokens", "8")
    ended = command("eval", dense, *told, *brief)
    words = " ".join(ended.out.split())
    assert ended.code == 0 and "continued by" in words and "Fine: on text.txt the loss is +0.00" in words
    ended = command("eval", dense, *told, *brief, "--json")
    assert ended.json["verdict"]["verdict"] == FINE and len(ended.json["examples"]) == 2
    ended = command("eval", dense, dense, *told, *brief)
    assert " ".join(ended.out.split()).count("Fine: on text.txt") == 2
