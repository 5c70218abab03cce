"""Refit, loss curves and mixed texts from the command line, on tiny models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit.data import self_generated as self_text
from prunekit.models.source import load_model, resolve
from prunekit.plan import Plan
from prunekit.recovery.rescale import RescaleConfig
from tests.support.command import DEFAULT, Command, save_tiny, set_options, write_text
from tests.support.tiny import one_thread

SHORT = (*set_options(sequences=24, length=16, batch_size=8, ffn_multiple=1), "--device", "cpu")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 12_000)


def _succeed(command: Command, *arguments: object) -> Any:
    done = command(*arguments, "--json")
    assert done.code == 0, done
    assert done.err == ""
    return done.json


def _fail(command: Command, *arguments: object) -> str:
    done = command(*arguments)
    assert done.code == 2 and "Traceback" not in done.err, done
    return " ".join(done.err.split())


def _kl(dense: Path, pruned: Path, text: Path) -> float:
    ids = torch.tensor([[3 + (7 * i + 3 * j) % 90 for i in range(24)] for j in range(8)])
    with torch.no_grad():
        first, second = (
            load_model(resolve(str(each)), dtype="float32", device="cpu")(ids).logits.log_softmax(-1)
            for each in (dense, pruned)
        )
    return (first.exp() * (first - second)).sum(-1).mean().item()


def test_a_plan_with_a_refit_is_applied_later_as_it_would_have_been_at_once(
    command: Command, model: Path, text: Path, tmp_path: Path
) -> None:
    arguments = (model, "--blocks", "0.6", "--method", "fisher-global", "--set", "refit=true", "--calib", text, *SHORT)
    _succeed(command, "prune", *arguments, "-o", tmp_path / "once")
    _succeed(command, "plan", *arguments, "-o", tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.provenance["refit"]["towards"] == 0.5
    assert str(text.parent) not in (tmp_path / "plan.json").read_text()
    apply = ("prune", model, "--plan", tmp_path / "plan.json")
    _succeed(command, *apply, "--calib", text, "--set", "batch_size=8", "-o", tmp_path / "later")
    once, later = (tmp_path / name / "model.safetensors" for name in ("once", "later"))
    assert once.read_bytes() == later.read_bytes()
    bare = ("--set", "refit=false")
    _succeed(command, "prune", *arguments, *bare, "-o", tmp_path / "bare")
    assert "refit" not in Plan.load(tmp_path / "bare" / "plan.json").provenance
    assert _kl(model, tmp_path / "once", text) < _kl(model, tmp_path / "bare", text)
    # Without its text, or with another one, the plan can't be applied.
    assert "give that text with --calib" in _fail(command, *apply, "-o", tmp_path / "no")
    other = write_text(tmp_path / "other.txt", 12_000)
    other.write_text(other.read_text()[::-1])
    said = _fail(command, *apply, "--calib", other, "-o", tmp_path / "no")
    assert "another one" in said and "text.txt" in said
    assert not (tmp_path / "no").exists()


def test_a_plan_is_applied_where_the_model_writes_other_text(
    command: Command, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another kind of machine: no text that is given there could be the plan's."""
    mix, plan = f"{text}:0.5,self:0.5", tmp_path / "plan.json"
    arguments = (model, "--blocks", "0.6", "--method", "fisher-global", "--set", "refit=true", "--calib", mix, *SHORT)
    _succeed(command, "plan", *arguments, "-o", plan)
    apply = ("prune", model, "--plan", plan, "--calib", mix, "--set", "batch_size=8", "--device", "cpu")
    assert "computed_on" not in _succeed(command, *apply, "-o", tmp_path / "here")
    monkeypatch.setattr(self_text, "_folder", lambda *args: tmp_path / "written elsewhere")
    monkeypatch.setattr(self_text, "_digest", lambda seed, chunk: b"another")
    said = _succeed(command, *apply, "-o", tmp_path / "there")["computed_on"]
    here, there = (Plan.load(tmp_path / name / "plan.json") for name in ("here", "there"))
    assert there.provenance["computed_on"] == said and there.layers == here.layers
    made_on = here.provenance["calibration"]
    assert there.provenance["calibration"] == made_on and "computed_on" not in here.provenance
    read, written = zip(said["mix"], made_on["mix"], strict=True)
    assert read[0]["fingerprint"] == read[1]["fingerprint"] and written[0]["fingerprint"] != written[1]["fingerprint"]
    shown = command(*apply, "-o", tmp_path / "shown")
    assert shown.code == 0 and "another kind of machine" in " ".join(shown.out.split())
    # FLAP's means are taken over that text, too.
    _succeed(
        command, "plan", model, "--blocks", "0.6", "--method", "flap", "--calib", mix, *SHORT, "-o", plan, "--overwrite"
    )
    monkeypatch.setattr(self_text, "_digest", lambda seed, chunk: b"a third")
    monkeypatch.setattr(self_text, "_folder", lambda *args: tmp_path / "written somewhere else")
    assert _succeed(command, *apply, "-o", tmp_path / "flap")["computed_on"] != said
    # What was read must still be the same.
    other = write_text(tmp_path / "text.txt", 12_000)
    other.write_text(other.read_text()[::-1])
    apply = (*apply[:4], "--calib", f"{other}:0.5,self:0.5")
    assert "another one" in _fail(command, *apply, "-o", tmp_path / "no")


def test_the_default_method_refits(command: Command, model: Path, text: Path, tmp_path: Path) -> None:
    arguments = (model, "--blocks", "0.6", DEFAULT, "--calib", text, *SHORT)
    data = _succeed(command, "prune", *arguments, "--set", "ridge=0.2", "-o", tmp_path / "pruned")
    assert data["method"]["name"] == "prunekit" and data["method"]["allocation"] == "optimal"
    assert Plan.load(tmp_path / "pruned" / "plan.json").provenance["refit"] == {"towards": 0.5, "ridge": 0.2}
    assert Plan.load(tmp_path / "pruned" / "plan.json").provenance["rescale"] == asdict(RescaleConfig())


def test_rescaling_follows_the_refit(command: Command, model: Path, text: Path, tmp_path: Path) -> None:
    arguments = (model, "--blocks", "0.6", "--method", "fisher-global", "--set", "refit=true", "--calib", text, *SHORT)
    _succeed(command, "prune", *arguments, "-o", tmp_path / "refitted")
    _succeed(command, "plan", *arguments, "--set", "rescale=true", "-o", tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.provenance["rescale"] == asdict(RescaleConfig())
    apply = ("prune", model, "--plan", tmp_path / "plan.json", "--calib", text, "--set", "batch_size=8")
    for name in ("first", "again"):
        _succeed(command, *apply, "-o", tmp_path / name)
    first, again, refitted = (tmp_path / name / "model.safetensors" for name in ("first", "again", "refitted"))
    assert first.read_bytes() == again.read_bytes() != refitted.read_bytes()
    # Nothing is rescaled where nothing is refitted, or where it was said not to.
    bare = (model, "--blocks", "0.6", "--calib", text, *SHORT, "-o", tmp_path / "no.json", "--overwrite")
    for told, expected in (
        (("--method", "prunekit", "--set", "rescale=false"), {"refit"}),
        (("--method", "prunekit", "--set", "refit=false"), set()),
        (("--method", "prunekit"), {"refit", "rescale"}),
        (("--method", "flap", "--set", "refit=true", "--set", "rescale=true"), {"refit", "rescale"}),
    ):
        _succeed(command, "plan", *bare, *told)
        assert {"refit", "rescale"} & {*Plan.load(tmp_path / "no.json").provenance} == expected
    assert "refit=true" in _fail(command, "plan", *bare, "--method", "flap", "--set", "rescale=true")
    few = (
        "--set",
        "sequences=2",
        "--set",
        "length=16",
        "--method",
        "fisher-global",
        "--set",
        "refit=true",
        "--set",
        "rescale=true",
    )
    said = _fail(command, "prune", model, "--blocks", "0.6", "--calib", text, *few, "-o", tmp_path / "few")
    assert "--set", "rescale=false" in said and not (tmp_path / "few").exists()
    damaged = json.loads((tmp_path / "plan.json").read_text())
    del damaged["recipe"]
    damaged["provenance"]["rescale"] = {"share": 0.5, "speed": 3}
    (tmp_path / "damaged.json").write_text(json.dumps(damaged))
    said = _fail(command, "prune", model, "--plan", tmp_path / "damaged.json", "--calib", text, "-o", tmp_path / "few")
    assert "make the plan again" in said


def test_settings_of_refits_that_earlier_versions_could_do(
    command: Command, model: Path, text: Path, tmp_path: Path
) -> None:
    """What they wrote of today's refit is read, and anything else refused before the model is looked for."""
    arguments = (model, "--blocks", "0.6", "--method", "fisher-global", "--set", "refit=true", "--calib", text, *SHORT)
    _succeed(command, "plan", *arguments, "-o", tmp_path / "new.json")
    plan = json.loads((tmp_path / "new.json").read_text())
    del plan["recipe"]
    apply = ("--calib", text, "--set", "batch_size=8", "--device", "cpu")
    _succeed(command, "prune", model, "--plan", tmp_path / "new.json", *apply, "-o", tmp_path / "new")

    def old(**told: object) -> Path:
        plan["provenance"]["refit"] = {"towards": 0.5, "inputs": 0.0, "ridge": 0.1, "held_out": 0.125, **told}
        (tmp_path / "old.json").write_text(json.dumps(plan))
        return tmp_path / "old.json"

    _succeed(command, "prune", model, "--plan", old(), *apply, "-o", tmp_path / "old")
    new, same = (tmp_path / name / "model.safetensors" for name in ("new", "old"))
    assert new.read_bytes() == same.read_bytes()
    for told, said in (({"ridge": None}, "--ridge auto"), ({"inputs": 1.0}, "--refit-inputs 1.0")):
        refused = _fail(command, "prune", tmp_path / "nowhere", "--plan", old(**told), *apply, "-o", tmp_path / "no")
        assert said in refused and "make the plan again" in refused
    assert not (tmp_path / "no").exists()


def test_measured_allocation(command: Command, model: Path, text: Path, tmp_path: Path) -> None:
    arguments = (
        "--method",
        "fisher-global",
        "--set",
        "allocation=optimal",
        "--set",
        "refit=true",
        "--calib",
        text,
        *SHORT,
    )
    data = _succeed(command, "prune", model, "--blocks", "0.6", *arguments, "-o", tmp_path / "pruned")
    assert data["share_of_blocks"] <= 0.6 and data["method"]["allocation"] == "optimal"
    plan = Plan.load(tmp_path / "pruned" / "plan.json")
    assert plan.provenance["history"][0]["expected_loss"] > 0
    assert _kl(model, tmp_path / "pruned", text) < 2


def test_text_that_the_model_writes(command: Command, model: Path, text: Path, tmp_path: Path) -> None:
    arguments = ("plan", model, "--blocks", "0.7", "--method", "wanda-sp", *SHORT)
    _succeed(command, *arguments, "--calib", f"{text}:0.25,self:0.75", "-o", tmp_path / "plan.json")
    said = json.loads((tmp_path / "plan.json").read_text())["provenance"]["calibration"]
    assert said["source"] == "text.txt:0.25,self:0.75"
    assert [(part["source"], part["sequences"]) for part in said["mix"]] == [("text.txt", 6), ("self", 18)]
    assert "split" not in said["mix"][1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "ridge=0.1"), "refit=true"),
        (("--set", "refit=true", "--set", "ridge=0"), "ridge must lie above 0"),
        (("--set", "refit=true", "--set", "ridge=auto"), "ridge takes a number"),
        (("--method", "slicegpt", "--set", "refit=true"), "leave refit out"),
        (("--refit-towards", "0.5"), "no option but a setting"),
        (("--set", "allocation=search"), "no allocation 'search'; choose one of"),
        (("--set", "units=ffn,kv-merge"), "units takes ffn, kv, query, attention-layer, ffn-layer"),
        (("--calib", "self:0.5"), "add up to 1"),
    ],
)
def test_bad_settings(arguments: tuple[str, ...], said: str, command: Command, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert said in _fail(command, "prune", model, "--blocks", "0.6", *arguments, *SHORT, "-o", out)
    assert not out.exists()
