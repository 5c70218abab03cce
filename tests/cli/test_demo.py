"""The demo's commands are such as a user would type, and the page stands where it says."""

from __future__ import annotations

import importlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from prunekit.cli import app
from prunekit.cli.demo import run, steps
from prunekit.errors import PrunekitError
from prunekit.utils.process.child import Ended

# Under that name the package has the command.
module = importlib.import_module("prunekit.cli.demo")


@pytest.mark.parametrize("runtimes", [(), ("onnx", "onnxruntime", "llama_cpp")])
def test_every_step_is_a_command_that_there_is(monkeypatch: pytest.MonkeyPatch, runtimes: tuple[str, ...]) -> None:
    monkeypatch.setattr(module, "_there", lambda package: package in runtimes)
    made = steps("0.8", None, "builtin")
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for step in made:
        name, *rest = shlex.split(step.command.removeprefix("prunekit "))
        # Raises where an option is unknown or one is missing.
        commands[name].make_context(name, rest, resilient_parsing=False)
    assert ("onnx" in [word for step in made for word in step.words]) == bool(runtimes)
    assert ("--no-verify" in made[-1].words) == (not runtimes)
    # Rounded weights are judged on the text as well, where they can be opened. Those of ONNX are the checkpoint's.
    quantized = made[-1].words
    assert ("--text" in quantized, "--baseline" in quantized) == (bool(runtimes),) * 2


def test_a_text_of_ones_own_is_named_in_every_step_that_reads_one(tmp_path: Path) -> None:
    made = steps("0.75", "my.jsonl:0.5,self:0.5", "held.jsonl")
    assert [step.words.count("my.jsonl:0.5,self:0.5") for step in made[:4]] == [1, 1, 1, 0]
    assert "prunekit prune smollm2-135m --plan sizes/plan-0.75.json" in made[1].command


@pytest.mark.parametrize("blocks", ["1.5", "0", "all", "80M"])
def test_a_size_that_is_no_share_is_refused(tmp_path: Path, blocks: str) -> None:
    with pytest.raises(PrunekitError, match=r"such as --blocks 0\.8"):
        run(tmp_path / "out", blocks, None, "builtin", False)
    assert not (tmp_path / "out").exists()


def test_a_step_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "run_python", lambda **given: Ended(2, "", "prunekit: There is no room."))
    with pytest.raises(PrunekitError, match=r"A step of the demo failed: There is no room\."):
        run(tmp_path / "out", "0.8", None, "builtin", False)
    assert [*tmp_path.iterdir()] == []


def test_what_the_steps_leave_becomes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.report_files import bench, evaluation

    seen: list[list[str]] = []

    def pretended(**given: Any) -> Ended:
        words = given["arguments"]
        seen.append(words)
        if given.get("code"):
            return Ended(0, "a warning\n" + json.dumps({"prunekit_loaded": False}), "")
        said: Any = {}
        if words[0] in ("eval", "bench"):
            said = evaluation() if words[0] == "eval" else bench()
            Path(words[words.index("-o") + 1]).write_text(json.dumps(said))
        return Ended(0, json.dumps({"checkpoint": "x"}), "")

    monkeypatch.setattr(module, "run_python", pretended)
    monkeypatch.setattr(module, "_files", lambda folder: [folder / "eval.json", folder / "bench.json"])
    made = run(tmp_path / "out", "0.8", None, "builtin", False)
    assert made.report.page == tmp_path / "out" / "report.html" and made.report.page.is_file()
    assert made.report.kpis.is_file() and made.data["loaded"] == {"prunekit_loaded": False}
    data = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert [step["command"].split()[1] for step in data["steps"]][:4] == ["candidates", "prune", "prune", "eval"]
    # Every file of a step lies in the demo's folder, wherever that is while it is made.
    assert all(Path(words[words.index("-o") + 1]).parent.parent == tmp_path for words in seen[:-1])
    assert str(tmp_path) not in made.report.page.read_text()
