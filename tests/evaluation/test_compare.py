"""Several models in one report: the same figures as one by one, the baseline computed once, one model at a time."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import prunekit
from prunekit.checkpoint.trained import with_recovery, write_trained
from prunekit.errors import PrunekitError
from prunekit.evaluation import turns
from prunekit.evaluation.baseline import keep
from prunekit.evaluation.continuations import ContinuationConfig
from prunekit.evaluation.measured import Measured
from prunekit.evaluation.perplexity import evaluate
from prunekit.evaluation.run import compare, measure
from prunekit.evaluation.windows import EvalConfig
from prunekit.models.source import load_model, resolve
from prunekit.plan import Plan
from prunekit.plan.recipe import Recipe
from tests.support.command import Command, save_tiny, write_text
from tests.support.tiny import VOCAB, tiny_model
from tests.support.tiny_text import tiny_tokenizer

pytestmark = pytest.mark.usefixtures("single_threaded")

CONFIG = EvalConfig(length=32, stride=16, batch_size=3)
TOLD = {
    "tokens": 512,
    "teacher": {"name": "dense"},
    "text": {"source": "text.txt"},
    "held_out_kl": {"before": 0.25, "after": 0.125},
    "used_step": 8,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model, a pruned one, the same after a training, and text."""
    root = tmp_path_factory.mktemp("compare")
    save_tiny(root / "dense", tied=True)
    recipe = Recipe.of("adapt-pruner", ffn_multiple=1, sequences=4, length=16)
    prunekit.prune(str(root / "dense"), root / "small", blocks=0.7, recipe=recipe)
    source = resolve(str(root / "small"))
    weights = {name: tensor * 1.01 for name, tensor in load_model(source, device="cpu").state_dict().items()}
    plan = with_recovery(Plan.load(root / "small" / "plan.json"), TOLD)
    write_trained(source, plan, weights, root / "recovered")
    write_text(root / "text.txt", 3000)
    write_text(root / "other.txt", 2000)
    return root


def asked(places: Path, **given: object) -> dict:
    texts = [str(places / "text.txt"), str(places / "other.txt")]
    return {"baseline": str(places / "dense"), "texts": texts, "config": CONFIG, "device": "cpu", **given}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_states_are_those_that_are_computed_beside(dtype: torch.dtype) -> None:
    pruned, dense = (tiny_model("llama", layers=2, seed=seed).to(dtype) for seed in (0, 1))
    ids = {name: torch.randint(3, VOCAB, (count,)) for name, count in (("a", 200), ("b", 90))}
    beside = evaluate(pruned, None, ids, CONFIG, dense)
    assert evaluate(pruned, None, ids, CONFIG, keep(dense, ids, CONFIG, None, "baseline")) == beside


def test_what_was_kept_goes_with_what_kept_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dense, ids = tiny_model("llama", layers=1), {"a": torch.randint(3, VOCAB, (90,))}
    kept = keep(dense, ids, CONFIG, None, "dense")
    assert len(list(tmp_path.rglob("0"))) == 1
    del kept
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit.evaluation import baseline

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(baseline, "_written", full)
    with pytest.raises(PrunekitError, match=r"What dense says of a could not be kept: No space left.*TMPDIR"):
        keep(tiny_model("llama", layers=1), {"a": torch.arange(3, 90)}, CONFIG, None, "dense")


def test_several_models_have_the_figures_that_each_has_alone(places: Path) -> None:
    continuations = ContinuationConfig(prompts=3, prompt_length=16, new_tokens=8)
    names = [str(places / name) for name in ("recovered", "small")]
    both = compare(names, **asked(places, continuations=continuations))
    alone = [measure(name, **asked(places, continuations=continuations)) for name in names]
    assert list(both.models) == alone and [each.model for each in alone] == ["recovered", "small"]
    share = resolve(names[0]).shape.block_parameters / resolve(str(places / "dense")).shape.block_parameters
    assert alone[0].share_of_blocks == share < 0.71
    assert both.baseline_parameters == resolve(str(places / "dense")).shape.parameters
    assert [bool(each.trainings) for each in both.models] == [True, False]


def test_the_baseline_is_computed_once_and_models_come_one_after_the_other(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    alive: list[weakref.ref] = []

    def load(source, **options):
        gc.collect()
        assert not [each for each in alive if each() is not None], "two models at a time"
        model = load_model(source, **options)
        loaded.append(source.path.name)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(turns, "load_model", load)
    names = [str(places / name) for name in ("small", "recovered", "small")]
    continuations = ContinuationConfig(prompts=2, prompt_length=16, new_tokens=8)
    made = compare(names, **asked(places, continuations=continuations))
    # The last time to go on where the others are farthest from it, which is not known before.
    assert loaded == ["dense", "small", "recovered", "small", "dense"]
    assert [each.model for each in made.models] == ["small", "recovered", "small (2)"]
    assert replace(made.models[0].texts, model="") == replace(made.models[2].texts, model="")


def test_from_python(places: Path) -> None:
    names = [str(places / name) for name in ("small", "recovered")]
    options = {"baseline": str(places / "dense"), "text": str(places / "text.txt"), "config": CONFIG, "device": "cpu"}
    one, other = prunekit.evaluate(names, **options)
    assert (one.model, other.model, other.baseline) == ("small", "recovered", "dense")
    (alone,) = prunekit.evaluate(names[:1], **{**options, "baseline": None})
    assert alone.baseline is None and alone.perplexity == one.perplexity


def test_the_command_shows_one_table_a_text(command: Command, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    models = [places / name for name in ("recovered", "small")]
    told = ["--baseline", places / "dense", "--text", places / "text.txt", "--text", places / "other.txt"]
    told += ["--length", 32, "--device", "cpu", "--generate", "--prompts", 2, "--prompt-tokens", 16, "--new-tokens", 4]
    done = command("eval", *models, *told, "--json")
    assert done.code == 0, done.err
    assert done.json["baseline"] == "dense" and [each["model"] for each in done.json["models"]] == [
        "recovered",
        "small",
    ]
    for each, model in zip(done.json["models"], models, strict=True):
        assert [row["text"] for row in each["results"]] == ["text.txt", "other.txt"] and len(each["generation"]) == 2
        assert each["parameters"] == resolve(str(model)).shape.parameters and 0.6 < each["share_of_blocks"] < 0.71
    (training,) = done.json["models"][0]["recovery"]
    assert training["tokens"] == 512 and training["held_out_kl"] == {"before": 0.25, "after": 0.125}
    assert "recovery" not in done.json["models"][1]
    shown = command("eval", *models, *told).out
    for title in ("text.txt (", "other.txt (", "2 prompts of 16 tokens"):
        assert shown.count(title) == 1
    rows = [line.split("│")[1].strip() for line in shown.splitlines() if line.count("│") > 6]
    assert rows[:6] == ["dense", "recovered", "small"] * 2
    said = (
        "recovered was trained on 512 tokens of text.txt toward dense; KL on held-out text 0.2500 before, 0.1250 after."
    )
    assert said in " ".join(shown.split()) and shown.count("was trained") == 1


def test_the_table_of_one_model_tells_of_its_training_too(command: Command, places: Path) -> None:
    shown = command("eval", places / "recovered", "--text", places / "text.txt", "--length", 32, "--device", "cpu").out
    assert "recovered was trained on 512 tokens of text.txt toward dense;" in " ".join(shown.split())


def test_what_can_not_stand_in_one_table_is_refused(command: Command, places: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", tokenizer=tiny_tokenizer(merges=[("t", "h")]))
    done = command("eval", places / "small", other, "--length", 32, "--max-tokens", 64, "--device", "cpu")
    assert done.code == 2 and "one table can't compare them; evaluate one model at a time" in done.err
    assert command("eval", places / "small", tmp_path / "none").code == 2


def test_one_model_has_the_keys_it_always_had(places: Path) -> None:
    data = measure(str(places / "small"), **asked(places)).to_dict()
    assert [*data] == ["model", "baseline", "dtype", "device", "results", "verdict", "origin"]
    assert [*Measured("m", None, "float32", "cpu", 1, None).to_dict()] == [*data][:-2]
    json.dumps(data, allow_nan=False)


def test_a_result_tells_of_what_it_is(places: Path) -> None:
    asks = asked(places)
    first, again = (measure(str(places / "small"), **asks).to_dict()["origin"] for _ in range(2))
    other = measure(str(places / "recovered"), **asks).to_dict()["origin"]
    assert first == again and first["fingerprint"] != first["baseline_fingerprint"]
    assert other["fingerprint"] != first["fingerprint"] and other["token_ids_sha256"] == first["token_ids_sha256"]
    assert all(len(digest) == 64 for digest in first["token_ids_sha256"].values())
    assert first["machine"]["device"] == "cpu"


def spoil(source: Path, out: Path, factor: float) -> Path:
    """A checkpoint whose layers are multiplied."""
    shutil.copytree(source, out)
    weights = load_file(out / "model.safetensors")
    scaled = {name: each * factor if "layers" in name else each for name, each in weights.items()}
    save_file(scaled, out / "model.safetensors", {"format": "pt"})
    return out


@pytest.mark.parametrize(("factor", "why"), [(float("nan"), "holds NaN"), (1e30, "not finite")])
def test_a_broken_model_takes_nothing_from_the_others(
    factor: float, why: str, command: Command, places: Path, tmp_path: Path
) -> None:
    bad = spoil(places / "small", tmp_path / "bad", factor)
    continuations = ContinuationConfig(prompts=2, prompt_length=16, new_tokens=4)
    both = compare([str(bad), str(places / "small")], **asked(places, continuations=continuations))
    broken, whole = both.models
    assert whole == measure(str(places / "small"), **asked(places, continuations=continuations))
    assert why in str(broken.broken) and broken.texts is None and str(tmp_path) not in str(broken.broken)
    assert broken.share_of_blocks == whole.share_of_blocks and broken.origin["fingerprint"]

    told = ["--baseline", places / "dense", "--text", places / "text.txt", "--length", 32, "--device", "cpu"]
    report = tmp_path / "eval.json"
    ended = command("eval", bad, *told, "--max-loss-added", "0.3", "--json", "-o", report)
    assert ended.code == 3 and "bad adds an unknown loss" in ended.err and "bad is broken." in ended.err
    verdict = json.loads(report.read_text())["verdict"]
    assert verdict["verdict"] == "broken" and why in verdict["why"] and ended.json["results"] == []
    shown = command("eval", places / "small", bad, *told)
    assert shown.code == 0 and "bad: Broken: " in shown.out and "small: " in shown.out
    assert "text.txt (" in shown.out


def test_two_texts_are_shown_side_by_side_without_being_asked_for(
    command: Command, places: Path, tmp_path: Path
) -> None:
    told = ["--baseline", places / "dense", "--text", places / "text.txt", "--text", places / "other.txt"]
    told += ["--length", 32, "--device", "cpu"]
    shown = command("eval", places / "small", *told)
    assert "The same beginning, continued by each model" in shown.out and "Repeated" not in shown.out
    data = command("eval", places / "small", *told, "--json").json
    first, second = data["examples"]
    assert first["prompt"] != second["prompt"] and first["baseline"] and {first["text"], second["text"]} == {"text.txt"}
    # Figures take more prompts than two.
    assert "generation" not in data and "worst" not in data
    both = command("eval", places / "small", places / "recovered", *told, "--json").json["models"]
    assert [each["examples"][0]["prompt"] for each in both] == [first["prompt"]] * 2
    (tmp_path / "few.txt").write_text("a few words")
    short = ["--text", tmp_path / "few.txt", "--length", 32, "--device", "cpu", "--json"]
    few = command("eval", places / "small", "--baseline", places / "dense", *short)
    assert few.code == 0 and "examples" not in few.json


def test_a_broken_baseline_or_a_model_alone_is_refused(places: Path, tmp_path: Path) -> None:
    bad = spoil(places / "dense", tmp_path / "bad", float("nan"))
    with pytest.raises(PrunekitError, match="holds NaN"):
        compare([str(places / "small")], **asked(places, baseline=str(bad)))
    with pytest.raises(PrunekitError, match=r"NaN|not finite"):
        compare([str(bad)], **asked(places, baseline=None))
    with pytest.raises(PrunekitError, match="holds NaN"):
        prunekit.evaluate([str(bad), str(places / "small")], text=str(places / "text.txt"), config=CONFIG)


def test_texts_of_one_name_are_told_apart(places: Path, tmp_path: Path) -> None:
    same = write_text(tmp_path / "text.txt", 2500)
    texts = [str(places / "text.txt"), str(same), str(places / "text.txt")]
    data = measure(str(places / "small"), **asked(places, texts=texts)).to_dict()
    assert [each["text"] for each in data["results"]] == ["text.txt", "text.txt (2)"]
    digests = data["origin"]["token_ids_sha256"]
    assert [*digests] == ["text.txt", "text.txt (2)"] and len({*digests.values()}) == 2
