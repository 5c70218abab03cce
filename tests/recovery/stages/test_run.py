"""`prunekit prune --recover`: pruning and training in turns, from folder to folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prunekit.checkpoint.manifest import verify
from prunekit.errors import PrunekitError
from prunekit.models.source import load_model, load_tokenizer, resolve
from prunekit.pipeline import Pruned, Recovery, make_plan, prune, recover
from prunekit.pipeline.stages import GoalCutter
from prunekit.plan import Plan
from prunekit.plan.recipe import Recipe
from prunekit.plan.training import LOOPS, TextConfig, recovery_of
from prunekit.recovery.lessons import Lessons
from prunekit.recovery.training.loop import Training
from prunekit.recovery.training.progress import Listener
from prunekit.utils.process import ranks
from tests.support.ranks import run_ranks
from tests.support.recovering import SETTINGS

pytestmark = pytest.mark.usefixtures("single_threaded")
BRIEF = {"sequences": 4, "length": 16, "ffn_multiple": 1}
STEP = 64


def _turns(places: Path, out: Path, *, method: str = "adapt-pruner", recipe: Any = None, **given: Any) -> Pruned:
    """Prune and train in two stages of eight steps in all, but for what is ``given``."""
    told = {name: given.pop(name) for name in ("tokens", "minutes", "stages", "listener") if name in given}
    settings = {**SETTINGS, **given.pop("settings", {})}
    checkpoint_minutes = given.pop("checkpoint_minutes", 10.0)
    told = {"tokens": None if "minutes" in told else STEP * 8, "stages": 2, **told}
    text = str(places / "text.txt")
    asked = {"blocks": 0.6, "device": "cpu", "dtype": "float32", **given}
    return prune(
        str(places / "dense"),
        out,
        **({"method": method} if recipe is None and method == "adapt-accel" else {}),
        recipe=recipe or Recipe.of("adapt-pruner" if method == "adapt-accel" else method, calib=text, **BRIEF),
        recover=Recovery(text=text, settings=settings, checkpoint_minutes=checkpoint_minutes, **told),
        **asked,
    )


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def _same(one: Path, other: Path) -> bool:
    first, second = _weights(one), _weights(other)
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def _logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(resolve(str(folder)), device="cpu")(input_ids=torch.arange(3, 40)[None]).logits


def test_the_result_is_a_pruned_model_of_the_dense_one_as_any_other(places: Path, tmp_path: Path) -> None:
    rows: list[dict] = []
    made = _turns(places, tmp_path / "out", stages=3, tokens=STEP * 12, listener=Listener(row=rows.append))
    dense = resolve(str(places / "dense"))
    plan, report = Plan.load(tmp_path / "out" / "plan.json"), verify(tmp_path / "out")
    assert not report.damaged and report.facts["source"]["fingerprint"] == dense.fingerprint
    assert plan == made.plan and plan.source == dense.shape
    assert plan.shape.layers == resolve(str(tmp_path / "out")).shape.layers
    # The target is met as in one cut: not one more channel would fit.
    assert 0.6 - dense.shape.ffn_channel_parameters / dense.shape.block_parameters < plan.share_of_blocks <= 0.6
    said = plan.provenance
    assert said["model"]["fingerprint"] == dense.fingerprint and said["target"]["asked"] == "--blocks 0.6"
    assert [row["stage"] for row in said["history"]] == sorted(row["stage"] for row in said["history"])
    told = said["recovery"]
    assert [each["stage"]["number"] for each in told] == [1, 2, 3] and [each["steps"] for each in told] == [2, 4, 6]
    assert [each["stage"]["first_step"] for each in told] == [0, 2, 6]
    parameters = [each["stage"]["parameters"] for each in told]
    goal = dense.shape.embedding_parameters + 0.6 * dense.shape.block_parameters
    for number, count in enumerate(parameters, start=1):
        limit = dense.shape.parameters - number / 3 * (dense.shape.parameters - goal)
        assert limit - 2 * dense.shape.ffn_channel_parameters < count <= limit + 1
    assert parameters[-1] == plan.shape.parameters == made.written.parameters
    assert made.recovered is not None and made.recovered.after == told[-1]["held_out_kl"]["after"]
    assert made.recovered.after < made.recovered.before
    phases = [(row["stage"], row["phase"]) for row in rows if "phase" in row]
    assert phases == [(number, phase) for number in (1, 2, 3) for phase in ("pruning", "training")]
    assert [row["tokens"] for row in rows[0]["stages"]] == [STEP * 2, STEP * 4, STEP * 6]
    assert [row["step"] for row in made.recovered.standing.steps] == list(range(12))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out"]
    assert str(places) not in (tmp_path / "out" / "plan.json").read_text(encoding="utf-8")


def test_one_stage_is_pruning_and_then_recovering(places: Path, tmp_path: Path) -> None:
    made = _turns(places, tmp_path / "turns", stages=1, blocks=0.7)
    text = str(places / "text.txt")
    recipe = Recipe.of("adapt-pruner", calib=text, **BRIEF)
    asked: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
    prune(str(places / "dense"), tmp_path / "pruned", blocks=0.7, recipe=recipe, **asked)
    options = {"text": text, "tokens": STEP * 8, "settings": SETTINGS, **asked}
    after = recover(str(tmp_path / "pruned"), str(places / "dense"), tmp_path / "two", **options)
    assert _same(tmp_path / "turns", tmp_path / "two")
    assert made.recovered is not None and made.recovered.standing.steps == after.standing.steps
    plans = [Plan.load(tmp_path / name / "plan.json") for name in ("turns", "two")]
    assert plans[0].layers == plans[1].layers
    assert plans[0].provenance["recovery"][0]["held_out_kl"] == plans[1].provenance["recovery"][0]["held_out_kl"]
    curves = [(tmp_path / name / "recovery.jsonl").read_text("utf-8") for name in ("turns", "two")]
    assert curves[0] == curves[1]


@pytest.mark.parametrize("store_dtype", ["auto", "float32"])
def test_one_stage_of_a_bfloat16_model_begins_with_what_prune_would_have_stored(
    places: Path, tmp_path: Path, store_dtype: str
) -> None:
    """Refitted projections among it, which are solved in float32."""
    dense, text = tmp_path / "dense", str(places / "text.txt")
    load_model(resolve(str(places / "dense")), dtype="bfloat16", device="cpu").save_pretrained(dense)
    load_tokenizer(resolve(str(places / "dense"))).save_pretrained(dense)
    asked: dict[str, Any] = {"device": "cpu", "dtype": "float32", "store_dtype": store_dtype}
    given: dict[str, Any] = {"blocks": 0.7, "recipe": Recipe.of("adapt-pruner", calib=text, refit=True, **BRIEF)}
    training: dict[str, Any] = {"text": text, "tokens": STEP * 2, "settings": SETTINGS}
    turns = prune(str(dense), tmp_path / "turns", recover=Recovery(stages=1, **training), **given, **asked)
    prune(str(dense), tmp_path / "pruned", **given, **asked)
    refitted = _weights(tmp_path / "pruned")["model.layers.1.mlp.down_proj.weight"]
    assert refitted.dtype == (torch.float32 if store_dtype == "float32" else torch.bfloat16)
    after = recover(str(tmp_path / "pruned"), str(dense), tmp_path / "two", **training, **asked)
    assert turns.recovered is not None and turns.recovered.before == after.before
    assert after.used and _same(tmp_path / "turns", tmp_path / "two")


def test_a_plan_that_was_made_is_applied_and_trained(places: Path, tmp_path: Path) -> None:
    recipe = Recipe.of("magnitude", calib=str(places / "text.txt"), **BRIEF)
    plan = make_plan(str(places / "dense"), recipe=recipe, device="cpu", blocks=0.7)
    recovery = Recovery(tokens=STEP * 2, text=str(places / "text.txt"), settings=SETTINGS)
    given: dict[str, Any] = {"device": "cpu", "dtype": "float32", "plan": plan}
    made = prune(str(places / "dense"), tmp_path / "out", recover=recovery, **given)
    assert made.plan.layers == plan.layers and len(made.plan.provenance["recovery"]) == 1
    with pytest.raises(PrunekitError, match="leave out --stages"):
        prune(str(places / "dense"), tmp_path / "no", recover=Recovery(tokens=STEP, stages=2), **given)


def test_nothing_cut_between_two_stages_changes_nothing_bit_for_bit(places: Path, tmp_path: Path, monkeypatch) -> None:
    """Neither does a refit, nor what is read from folders in between."""
    recipe = Recipe.of("adapt-pruner", calib=str(places / "text.txt"), refit=True, **BRIEF)
    given: dict[str, Any] = {"recipe": recipe, "blocks": 0.8}
    given["settings"] = {"rewarm": 0.0, "shares": "equal", "learning_rate": 1e-4}
    whole = _turns(places, tmp_path / "one", stages=1, **given)
    monkeypatch.setattr(GoalCutter, "targets", lambda self, stages: [1.0] * stages)
    made = _turns(places, tmp_path / "two", stages=2, **given)
    assert [each["used_step"] for each in made.plan.provenance["recovery"]] == [4, 4]
    assert _same(tmp_path / "one", tmp_path / "two")
    assert made.recovered is not None and whole.recovered is not None
    bare = [{name: value for name, value in row.items() if name != "stage"} for row in made.recovered.standing.steps]
    assert bare == whole.recovered.standing.steps


class _Killed(BaseException):
    pass


def _stop(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Let the ``call``-th call of that method, from 1, end the run."""
    original, calls = getattr(owner, name), []

    def stopping(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise _Killed
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, stopping)


@pytest.mark.parametrize("recipe", ["adapt-pruner", "refit"])
def test_a_run_that_was_killed_anywhere_ends_bit_for_bit_as_one_that_was_not(
    places: Path, tmp_path: Path, monkeypatch, recipe: str
) -> None:
    text = str(places / "text.txt")
    asked = Recipe.of("adapt-pruner", calib=text, **BRIEF, **({"refit": True} if recipe == "refit" else {}))
    whole = _turns(places, tmp_path / "whole", recipe=asked)
    folder = tmp_path / "out.training"

    def killed(owner: Any, name: str, call: int) -> list[str]:
        with monkeypatch.context() as patch:
            _stop(patch, owner, name, call)
            with pytest.raises(_Killed):
                _turns(places, tmp_path / "out", recipe=asked, checkpoint_minutes=0)
        return sorted(each.name for each in folder.glob("stage-*"))

    # In the first training, between both stages, while the second model is made, and in its training.
    assert killed(Training, "_step", 2) == ["stage-01", "stage-01-pruned"]
    assert killed(GoalCutter, "cut", 1) == ["stage-01", "stage-01-pruned", "stage-01.json"]
    assert killed(Lessons, "train", 1) == ["stage-01.json", "stage-02-pruned"]
    for name in ("stage-01.json", "run.json"):
        assert str(places) not in (folder / name).read_text(encoding="utf-8")
    assert killed(Training, "_step", 3) == ["stage-01.json", "stage-02", "stage-02-pruned"]
    (last,) = sorted((folder / "stage-02").iterdir())[-1:]
    for model in (folder / "stage-02-pruned", last):
        report = verify(model)
        assert not report.damaged and report.facts["source"]["name"] == "dense"
        assert resolve(str(model)).shape.layers == report.plan.shape.layers
        assert report.plan.source == resolve(str(places / "dense")).shape
        load_model(resolve(str(model)), device="cpu")
    made = _turns(places, tmp_path / "out", recipe=asked, checkpoint_minutes=0)
    assert _same(tmp_path / "whole", tmp_path / "out") and not folder.exists()
    assert made.plan.layers == whole.plan.layers
    curves = [(tmp_path / name / "recovery.jsonl").read_text("utf-8") for name in ("whole", "out")]
    assert curves[0] == curves[1]
    assert made.recovered is not None and whole.recovered is not None
    assert made.recovered.standing.held_out == whole.recovered.standing.held_out


def test_only_the_same_run_goes_on(places: Path, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        _stop(patch, Training, "_step", 2)
        with pytest.raises(_Killed):
            _turns(places, tmp_path / "out")
    for given, said in (
        ({"blocks": 0.5}, "another goals"),
        ({"stages": 3}, "another stages"),
        ({"settings": {"moments": "fresh"}}, "another turns"),
        ({"recipe": Recipe.of("magnitude", calib=str(places / "text.txt"), **BRIEF)}, "another recipe"),
    ):
        with pytest.raises(PrunekitError, match=said):
            _turns(places, tmp_path / "out", **given)
    assert _turns(places, tmp_path / "out", blocks=0.5, overwrite=True).plan.share_of_blocks <= 0.5


@pytest.mark.parametrize("moments", ["sliced", "fresh"])
def test_moments_go_on_or_begin_anew(places: Path, tmp_path: Path, monkeypatch, moments: str) -> None:
    begun: list[int] = []
    original = Training.run

    def run(self: Training) -> None:
        begun.append(self.optimizer.updates)
        original(self)

    monkeypatch.setattr(Training, "run", run)
    made = _turns(places, tmp_path / "out", settings={"moments": moments})
    used = made.plan.provenance["recovery"][0]["used_step"]
    assert used and begun == [0, used if moments == "sliced" else 0]
    assert made.plan.provenance["recovery"][1]["stage"]["moments"] == moments


def test_the_papers_loop_trains_as_its_code_does(places: Path, tmp_path: Path) -> None:
    made = _turns(places, tmp_path / "out", method="adapt-accel", stages=3, tokens=STEP * 12)
    told = made.plan.provenance["recovery"]
    wanted = {"schedule": "wsd", "ce_share": 1.0, "train": "all", "beta2": 0.999, "weight_decay": 0.0}
    assert wanted.items() <= told[0]["settings"].items()
    assert [each["stage"]["moments"] for each in told] == ["fresh"] * 3
    assert made.plan.provenance["method"]["name"] == "adapt-pruner"
    # As many tokens a step as the code's 128 texts have at most, in shorter windows, which docs/adapt-accel.md tells.
    assert LOOPS["adapt-accel"].training.batch_tokens == 128 * 1024 == 256 * TextConfig().length
    assert made.recovered is not None
    rates = [row["rate"] for row in made.recovered.standing.steps]
    # Up over 5 % of all steps, down over the last 10 %, and no ups and downs at a stage's end.
    assert rates[0] == 0.5e-3 and rates[1:11] == [1e-3] * 10 and rates[11] == 0.5e-3
    # The embeddings move too.
    own, given = (_weights(folder)["model.embed_tokens.weight"] for folder in (tmp_path / "out", places / "dense"))
    assert not torch.equal(own, given)


def test_next_tokens_are_what_a_training_on_them_is_judged_by(places: Path, tmp_path: Path) -> None:
    """With nothing else in the loss, the divergence may well rise."""
    made = _turns(places, tmp_path / "out", stages=1, settings={"ce_share": 1.0, "learning_rate": 5e-3})
    assert made.recovered is not None
    held = made.recovered.standing.held_out
    best = min(held, key=lambda row: row["loss"])
    assert made.recovered.used == best["step"] > 0 and best["loss"] < held[0]["loss"]


def test_both_layouts_are_the_same_model(places: Path, tmp_path: Path) -> None:
    for layout in ("per-layer", "uniform"):
        _turns(places, tmp_path / layout, layout=layout, tokens=STEP * 4)
    assert verify(tmp_path / "uniform").facts["architecture"] == "LlamaForCausalLM"
    logits = [_logits(tmp_path / layout) for layout in ("per-layer", "uniform")]
    assert (logits[0] - logits[1]).abs().max() <= 1e-5 * logits[0].abs().max()
    plans = [Plan.load(tmp_path / layout / "plan.json") for layout in ("per-layer", "uniform")]
    assert plans[0] == plans[1]


def test_adapters_take_turns_too(places: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    made = _turns(places, tmp_path / "out", settings={"lora": 4, "learning_rate": 3e-3})
    told = made.plan.provenance["recovery"]
    assert [each["settings"]["lora"] for each in told] == [4, 4] and all(each["used_step"] for each in told)
    assert all(each["held_out_kl"]["after"] < each["held_out_kl"]["before"] for each in told)
    # Those of both stages are in the weights, and nothing of them beside.
    assert not any("lora" in name for name in _weights(tmp_path / "out"))
    assert _logits(tmp_path / "out").isfinite().all()


def test_layers_go_and_numbers_stay_those_of_the_dense_model(places: Path, tmp_path: Path) -> None:
    recipe = Recipe.of("shortgpt", calib=str(places / "text.txt"), sequences=4, length=16, protect_layers="3")
    made = _turns(places, tmp_path / "out", recipe=recipe, blocks=0.5)
    kept = [keep.index for keep in made.plan.layers]
    assert len(kept) == 2 and 3 in kept and len(made.plan.dropped_layers) == 2
    assert made.plan.provenance["protected_layers"] == [3]
    assert resolve(str(tmp_path / "out")).shape.num_hidden_layers == 2
    assert all(each["stage"]["moments"] == "sliced" for each in made.plan.provenance["recovery"])


def test_biases_that_make_good_for_what_goes_are_trained_on(places: Path, tmp_path: Path) -> None:
    made = _turns(places, tmp_path / "out", method="flap")
    assert made.plan.changes == {"qkv_bias": True, "o_bias": True, "mlp_bias": True}
    assert verify(tmp_path / "out").plan.share_of_blocks <= 0.6
    assert "model.layers.0.mlp.down_proj.bias" in _weights(tmp_path / "out")


def test_whole_sublayers_go_in_the_last_stage(places: Path, tmp_path: Path) -> None:
    units = "ffn,kv,query,attention-layer"
    recipe = Recipe.of(calib=str(places / "text.txt"), units=units, rescale=False, **BRIEF)
    rows: list[dict] = []
    made = _turns(places, tmp_path / "out", recipe=recipe, blocks=0.3, listener=Listener(row=rows.append))
    assert made.plan.share_of_blocks <= 0.3
    history = made.plan.provenance["history"]
    # The first one goes so far that its curves are drawn again; the last one's are new anyway.
    assert [row["stage"] for row in history] == [1, 1, 1, 2] and all(row["expected_loss"] > 0 for row in history)
    removed = [row["removed"] for row in rows[0]["stages"]]
    # By predicted loss, and not by parameters: the first half of the loss is more than half of the way.
    assert removed[0] > removed[1] / 2
    with pytest.raises(PrunekitError, match="say --stages 1"):
        _turns(places, tmp_path / "no", recipe=Recipe.of(calib=str(places / "text.txt"), units="ffn-layer", **BRIEF))
    assert not (tmp_path / "no").exists() and not (tmp_path / "no.training").exists()


def test_minutes_are_tokens_by_a_trial(places: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Lessons, "speed", lambda self, source, listener: 640.0)
    made = _turns(places, tmp_path / "out", minutes=2 / 60, stages=2)
    removed = 1 - (0.6 * 172_544 + 8_256) / 180_800
    # A quarter of the work is the dense model's.
    work = sum(share * (1 - 0.75 * target * removed) for share, target in ((1 / 3, 0.5), (2 / 3, 1.0)))
    assert made.recovered is not None and made.recovered.standing.step == -(-int(1280 / work) // STEP)


def test_so_many_stages_as_suit_the_goal_where_nobody_says(places: Path, tmp_path: Path, monkeypatch) -> None:
    def with_few_tokens(*told: Any) -> tuple[Any, Any, Any]:
        config, text, turns = recovery_of(*told)
        return config, text, replace(turns, many_tokens=STEP * 6)

    monkeypatch.setattr("prunekit.pipeline.stages.recovery_of", with_few_tokens)
    for place, (blocks, tokens, stages) in enumerate(((0.6, STEP * 4, 3), (0.6, STEP * 8, 6), (0.8, STEP * 8, 1))):
        made = _turns(places, tmp_path / str(place), stages=None, tokens=tokens, blocks=blocks)
        assert len(made.plan.provenance["recovery"]) == stages


def test_what_can_not_take_turns_is_refused_before_a_model_is_looked_for(tmp_path: Path) -> None:
    for given, recovery, said in (
        ({"method": "slicegpt"}, Recovery(tokens="1M"), "slicegpt removes no units"),
        ({}, Recovery(), "--tokens 10M or --minutes 60"),
        ({}, Recovery(tokens="1M", minutes=3), "one of the two"),
        ({}, Recovery(tokens="1M", stages=0), "--stages must lie between"),
        ({}, Recovery(tokens="1M", settings={"learning_rat": 1.0}), "did you mean 'learning_rate'"),
        ({"dtype": "float16"}, Recovery(tokens="1M"), "float32 or bfloat16"),
        ({"method": "adapt-accel"}, None, "prunes and trains in turns"),
        ({"method": "adapt-accel", "recipe": Recipe.of("flap")}, Recovery(tokens="1M"), "cuts by adapt-pruner"),
    ):
        with pytest.raises(PrunekitError, match=said):
            prune("no/such-model", tmp_path / "out", blocks=0.8, recover=recovery, **given)
    assert not list(tmp_path.iterdir())


def test_two_processes_take_turns_as_one_does(places: Path, tmp_path: Path) -> None:
    def on(size: int) -> None:
        _turns(places, tmp_path / str(size), tokens=STEP * 4, recipe=Recipe.of("magnitude", **BRIEF))

    on(1)

    def work() -> None:
        with ranks.joined("cpu"):
            on(2)

    ended = run_ranks(2, work)
    assert [each.code for each in ended] == [0, 0], ended
    first, second = (_weights(tmp_path / size) for size in "12")
    for name, expected in first.items():
        assert (second[name] - expected).abs().max() <= 2e-5 * max(1.0, expected.abs().max().item()), name
    plans = [Plan.load(tmp_path / size / "plan.json") for size in "12"]
    assert plans[0].layers == plans[1].layers and not (tmp_path / "2.training").exists()
