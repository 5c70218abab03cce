"""`prunekit prune --recover` as it is typed."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunekit import pipeline
from prunekit.pipeline import Recovery
from prunekit.plan import Plan
from prunekit.plan.recipe import Recipe
from prunekit.plan.settings import CalibrationConfig
from prunekit.plan.training import LOOPS, recovery_knobs
from prunekit.recovery.training.loop import Training
from tests.support.command import QUICK, Command, set_options
from tests.support.recovering import SETTINGS, make_places

pytestmark = pytest.mark.usefixtures("single_threaded")
TRAINED = (*set_options(**SETTINGS), "--dtype", "float32")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_places(tmp_path_factory.mktemp("prune-recover"))


def _told(places: Path, out: Path, *more: object) -> tuple[object, ...]:
    text = places / "text.txt"
    base = ("prune", places / "dense", "-o", out, "--calib", text, *QUICK, *TRAINED)
    return (*base, "--recover", "--text", text, "--tokens", 64 * 6, *more)


def test_stages_are_told_while_they_go_on_and_at_the_end(command: Command, places: Path, tmp_path: Path) -> None:
    done = command(*_told(places, tmp_path / "out", "--blocks", 0.6, "--stages", 2))
    assert done.code == 0, done
    said = done.err
    assert "Stage 1: " in said and " removed in all, then 128 tokens in 2 steps" in said
    assert (
        said.index("Stage 1 of 2: pruning") < said.index("Stage 1 of 2: training") < said.index("Stage 2 of 2: pruning")
    )
    assert "stage 2, step 4: KL" in said and "Training on 256 tokens" in said
    shown = " ".join(done.out.split())
    assert "Stages" in shown and "Checkpoint written to" in shown
    done = command(*_told(places, tmp_path / "json", "--blocks", 0.6, "--stages", 2, "--json"))
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [each["stage"] for each in lines[0]["stages"]] == [1, 2]
    assert [(each["stage"], each["phase"]) for each in lines if "phase" in each] == [
        (1, "pruning"),
        (1, "training"),
        (2, "pruning"),
        (2, "training"),
    ]
    steps = [each for each in lines if "kl" in each]
    assert [(each["stage"], each["step"]) for each in steps] == [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (2, 3)]
    assert sum("estimate" in each for each in lines) == 2
    last = lines[-1]
    assert len(last["recovery"]) == 2 and last["share_of_blocks"] <= 0.6
    assert Plan.load(tmp_path / "json" / "plan.json").provenance["recovery"] == last["recovery"]


def test_one_stage_is_told_as_a_training_is(command: Command, places: Path, tmp_path: Path) -> None:
    done = command(*_told(places, tmp_path / "out", "--params", 0.8))
    assert done.code == 0, done
    assert "Stage" not in done.err and "step 6: KL" in done.err and "Held-out text" in done.out


def test_settings_of_both_kinds_arrive(
    command: Command, places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    more = ("--blocks", 0.6, "--stages", 2, *set_options(steps=20, moments="fresh", schedule="cosine", seed=3))
    given: list[Recovery] = []
    real = pipeline.prune

    def seen(*args: Any, recover: Recovery, **options: Any) -> Any:
        given.append(recover)
        return real(*args, recover=recover, **options)

    monkeypatch.setattr(pipeline, "prune", seen)
    curves = ("--checkpoint-minutes", 3, "--tensorboard", tmp_path / "runs")
    done = command(*_told(places, tmp_path / "out", *more, *curves))
    assert done.code == 0, done
    assert given[0].checkpoint_minutes == 3 and any(tmp_path.glob("runs/events.out.tfevents.*"))
    plan = Plan.load(tmp_path / "out" / "plan.json")
    assert plan.recipe is not None and plan.recipe.to_dict()["steps"] == 20 and plan.recipe.seed == 3
    told = plan.provenance["recovery"][1]
    assert told["stage"]["moments"] == "fresh" and told["settings"]["schedule"] == "cosine"
    assert told["text"]["seed"] == 3


def test_the_loop_of_the_paper_is_a_method(command: Command, places: Path, tmp_path: Path) -> None:
    done = command(*_told(places, tmp_path / "out", "--blocks", 0.8, "--stages", 2, "--method", "adapt-accel"))
    assert done.code == 0, done
    plan = Plan.load(tmp_path / "out" / "plan.json")
    assert plan.recipe is not None
    assert replace(plan.recipe.method, calibration=CalibrationConfig()) == Recipe.of("adapt-pruner").method
    assert plan.provenance["recovery"][0]["settings"]["ce_share"] == 1.0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--tokens", "1M"), "--tokens says how what is left is trained; add --recover"),
        (("--minutes", "3"), "--minutes says how"),
        (("--stages", "2"), "--stages says how"),
        (("--text", "builtin"), "--text says how"),
        (("--checkpoint-minutes", "1"), "--checkpoint-minutes says how"),
        (("--tensorboard", "runs"), "--tensorboard says how"),
        (("--set", "learning_rate=1e-4"), "--set learning_rate says how"),
        (("--recover",), "Say how long to train: --tokens 10M or --minutes 60"),
        (("--recover", "--tokens", "1M", "--stages", "0"), "--stages must lie between 1 and 1000, got 0"),
        (("--recover", "--tokens", "1M", "--set", "moments=old"), "moments is one of sliced, fresh"),
        (("--recover", "--tokens", "1M", "--set", "learning_rate=fast"), "learning_rate takes a number"),
        (("--recover", "--tokens", "1M", "--dtype", "float16"), "float32 or bfloat16"),
        (("--recover", "--tokens", "1M", "--method", "slicegpt"), "slicegpt removes no units"),
        (("--method", "adapt-accel"), "adapt-accel prunes and trains in turns"),
        (("--learning-rate", "1e-4"), "say --set learning_rate=VALUE"),
        (("--recover", "--tokens", "1M", "--momentz", "x"), "No such option"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(
    more: tuple[str, ...], said: str, command: Command, tmp_path: Path
) -> None:
    done = command("prune", "no/such-model", "-o", tmp_path / "out", "--blocks", "0.8", *more)
    assert done.code == 2 and said in done.err and done.err.count("\n") == 1, done
    assert not list(tmp_path.iterdir())


def test_beside_a_plan_training_has_its_options_and_others_none(command: Command, places: Path, tmp_path: Path) -> None:
    text = places / "text.txt"
    asked = ("--blocks", 0.7, "--calib", text, *QUICK)
    assert command("plan", places / "dense", "-o", tmp_path / "plan.json", *asked).code == 0
    base = ("prune", places / "dense", "-o", tmp_path / "out", "--plan", tmp_path / "plan.json")
    trained = ("--recover", "--tokens", 128, "--text", text, *TRAINED)
    for more, said in ((("--stages", 2), "leave out --stages"), (("--set", "steps=3"), "would have no effect")):
        done = command(*base, *trained, *more)
        assert done.code == 2 and said in done.err, done
    done = command(*base, *trained)
    assert done.code == 0 and Plan.load(tmp_path / "out" / "plan.json").provenance["recovery"], done


def test_methods_list_loops_and_settings_of_training(command: Command) -> None:
    data: dict[str, Any] = command("methods", "--json").json
    assert [each["name"] for each in data["loops"]] == [*LOOPS]
    assert [each["name"] for each in data["training"]] == [*recovery_knobs()]
    shown = command("methods").out
    assert all(name in shown for name in (*LOOPS, *recovery_knobs()))
    assert "adapt-accel" in command("plan", "x", "--blocks", "0.5", "--method", "adapt-accel").err


def test_inspect_of_what_is_not_finished_says_how_to_go_on(
    command: Command, places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dense", "text.txt"):
        (tmp_path / name).symlink_to(places / name)
    more = ("--blocks", 0.6, "--stages", 2, "--method", "adapt-accel", *set_options(steps=20, ce_share=0.5))
    more += ("--layout", "uniform", "--store-dtype", "bfloat16")
    original, calls = Training._step, []

    def stopping(self: Training) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", stopping)
        assert command(*_told(tmp_path, tmp_path / "out", *more)).code == 130
    data = command("inspect", tmp_path / "out.training", "--json").json
    assert data["stage"] == {"number": 2, "of": 2} and data["model"] == data["teacher"] == "dense"
    assert data["steps"] == 6 and data["step"] == 3 and data["checkpoints"][-1]["step"] == 3
    shown = " ".join(command("inspect", tmp_path / "out.training").out.split())
    assert "stage 2 of 2, step 3 of 6" in shown
    named = shlex.split(data["command"])
    assert named[:3] == ["prunekit", "prune", "dense"] and "ce_share=0.5" in named and "steps=20" in named
    assert not [each for each in named if each.startswith(("learning_rate=2e-05", "schedule="))]
    assert shlex.join(("--store-dtype", "bfloat16", "--layout", "uniform")) in data["command"]
    monkeypatch.chdir(tmp_path)
    done = command(*named[1:], "--device", "cpu")
    assert done.code == 0 and "begun with" not in done.err, done
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "per_layer_config" not in config
    assert not (tmp_path / "out.training").exists()
