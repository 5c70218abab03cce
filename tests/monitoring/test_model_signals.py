"""Signals of a watch that need models: two halves of one log are alike, other prompts and broken weights are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.models.source import resolve
from prunekit.monitoring.log.request import Request
from prunekit.monitoring.scoring import mmd
from prunekit.monitoring.scoring.contexts import ScoringConfig
from prunekit.monitoring.scoring.dense import DenseAway
from prunekit.monitoring.scoring.features import features_file, read_features, write_features
from prunekit.monitoring.scoring.scorer import Scorer
from prunekit.monitoring.scoring.signals import model_signals
from tests.support.command import Command
from tests.support.noisy import noisy_weight, save_beside_tokenizer, save_noisy

pytestmark = pytest.mark.usefixtures("single_threaded")

CONFIG = ScoringConfig(prompts=12, least=8, prompt_tokens=24, answer_tokens=8, reference=32)


def log(count: int, letters: str = "abcdefgh", seed: int = 0) -> list[Request]:
    rng = np.random.default_rng(seed)

    def text(most: int) -> str:
        return "".join(letters[place] for place in rng.integers(0, len(letters), most))

    return [
        Request(
            f"{letters[0]}{seed}-{number}", ts=1.8e9 + 7200 * number, prompt=text(20), answer=text(6), n_in=20, n_out=6
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("signals")
    model = save_noisy(root, deployed=0.02, broken=0.5)
    with torch.no_grad():
        noisy_weight(model)[0, 0] = torch.nan
    save_beside_tokenizer(model, root / "nan")
    return root


def made(folder: Path, file: Path, deployed: str = "deployed", dense: str | None = "dense") -> dict[str, Any]:
    sources = [None if name is None else resolve(str(folder / name)) for name in (deployed, dense)]
    assert sources[0] is not None
    scorer = Scorer(sources[0], sources[1], CONFIG, device="cpu")
    return {each.name: each for each in model_signals(scorer, file, window=50)}


def test_distance_is_near_nothing_for_halves_and_far_for_others() -> None:
    rng = np.random.default_rng(0)
    all_features = rng.normal(size=(160, 6)) * np.array([1, 1, 1, 100, 1, 0])
    ids = tuple(f"r{number}" for number in range(160))
    kept = mmd.reference(all_features[:80], ids[:80])
    same = [kept.distance(rng.permutation(all_features[80:])[:32]) for _ in range(20)]
    assert abs(float(np.mean(same))) < 0.02
    assert kept.distance(all_features[80:112] + np.array([1, 1, 1, 0, 0, 0])) > 5 * max(map(abs, same))
    # A window of the reference's own requests is compared with the rest.
    assert abs(kept.distance(all_features[:32], ids[:32])) < 0.05


def test_distance_equals_its_definition() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(9, 3)), rng.normal(size=(5, 3))
    kept = mmd.reference(x, tuple("abcdefghi"))
    a, b = (x - x.mean(0)) / x.std(0), (y - x.mean(0)) / x.std(0)
    median = np.median([np.linalg.norm(a[i] - a[j]) for i in range(9) for j in range(i)])
    assert kept.width == pytest.approx(median)

    def k(p: Any, q: Any) -> float:
        return float(np.exp(-np.sum((p - q) ** 2) / 2 / median**2))

    within = np.mean([k(a[i], a[j]) for i in range(9) for j in range(9) if i != j])
    within += np.mean([k(b[i], b[j]) for i in range(5) for j in range(5) if i != j])
    expected = within - 2 * np.mean([[k(p, q) for q in b] for p in a])
    assert kept.distance(y) == pytest.approx(expected, rel=1e-4)


def test_prompts_that_are_all_alike_or_too_few_are_refused() -> None:
    with pytest.raises(PrunekitError, match="the same"):
        mmd.reference(np.ones((20, 3)), tuple(map(str, range(20))))
    with pytest.raises(PrunekitError, match="at least 8"):
        mmd.reference(np.eye(3), tuple("abc"))


def test_hidden_states_belong_to_their_baseline(tmp_path: Path) -> None:
    file = features_file(tmp_path / "base.json")
    assert file.name == "base.features.safetensors"
    kept = mmd.reference(np.random.default_rng(0).normal(size=(20, 4)), tuple(map(str, range(20))))
    said = json.loads(json.dumps(write_features(file, kept)))
    read = read_features(tmp_path, said)
    np.testing.assert_allclose(read.features, kept.features, atol=2e-3)
    assert (read.ids, read.width) == (kept.ids, kept.width)
    # Left by a run that failed: there is no baseline.
    write_features(file, kept)
    (tmp_path / "base.json").write_text("{}")
    with pytest.raises(PrunekitError, match="already exists"):
        write_features(file, kept)
    write_features(file, kept, overwrite=True)
    with pytest.raises(PrunekitError, match="not the one"):
        read_features(tmp_path, {**said, "sha256": "0" * 64})
    with pytest.raises(PrunekitError, match="is missing"):
        read_features(tmp_path, {**said, "file": "../base.features.safetensors"})
    file.write_bytes(b"mine")
    with pytest.raises(PrunekitError, match="already exists"):
        write_features(file, kept, overwrite=True)
    assert file.read_bytes() == b"mine"


def test_signals_see_what_they_are_for(folder: Path, tmp_path: Path) -> None:
    reference, same = log(64), log(50, seed=1)
    other = log(50, "STUVWXYZ", seed=2)
    before = made(folder, tmp_path / "base.features.safetensors")
    states = {name: each.reference(reference) for name, each in before.items()}
    json.dumps(states)
    assert not list(tmp_path.iterdir())
    waiting = before["prompt_mmd"].score(same, states["prompt_mmd"]).value
    before["prompt_mmd"].keep()
    assert before["prompt_mmd"].score(same, states["prompt_mmd"]).value == waiting
    assert [name for name, each in before.items() if each.kind == "quality"] == [
        "shadow_kl",
        "shadow_disagreement",
        "prompt_increase",
        "answer_surprise",
    ]
    calm = {name: each.score(same, states[name]) for name, each in before.items()}
    moved = {name: each.score(other, states[name]) for name, each in before.items()}
    assert calm["other_weights"].value == 0
    assert moved["prompt_mmd"].value > 10 * abs(calm["prompt_mmd"].value) > 0
    assert calm["logprob_gap"].value is None
    assert "logprob_mean" in (calm["logprob_gap"].reason or "")
    assert calm["shadow_kl"].details["requests"] == 8
    assert calm["prompt_nll"].details["requests"] == 12

    # The same again, whatever was scored before.
    again = made(folder, tmp_path / "base.features.safetensors")
    assert {name: each.score(same, states[name]).value for name, each in again.items()} == {
        name: each.value for name, each in calm.items()
    }

    broken = made(folder, tmp_path / "base.features.safetensors", "broken")
    seen = {name: each.score(same, states[name]) for name, each in broken.items()}
    assert seen["other_weights"].value == 1
    assert seen["shadow_kl"].value > 1.2 * calm["shadow_kl"].value
    for name in ("prompt_mmd", "prompt_nll", "answer_nll"):
        assert seen[name].value is None
        assert "weights are not those of the baseline" in seen[name].reason


def test_another_dense_model_is_not_compared(folder: Path, tmp_path: Path) -> None:
    before = made(folder, tmp_path / "base.features.safetensors")
    states = {name: each.reference(log(64)) for name, each in before.items()}
    after = made(folder, tmp_path / "base.features.safetensors", dense="broken")
    scored = after["shadow_kl"].score(log(50, seed=1), states["shadow_kl"])
    assert scored.value is None
    assert "dense model is not that of the baseline" in (scored.reason or "")


def test_a_window_that_can_t_be_read_says_why(folder: Path, tmp_path: Path) -> None:
    signals = made(folder, tmp_path / "base.features.safetensors", dense=None)
    states = {name: each.reference(log(64)) for name, each in signals.items()}
    assert "shadow_kl" not in signals
    blind = [Request(f"r{number}", n_in=5) for number in range(50)]
    for name in ("prompt_nll", "prompt_mmd", "answer_nll"):
        scored = signals[name].score(blind, states[name])
        assert scored.value is None
        assert "only 0 requests" in (scored.reason or "")
        assert "no prompt" in (scored.reason or "")
    silent = [Request(f"r{number}", prompt="abcdefg") for number in range(50)]
    assert "no answers" in (signals["answer_nll"].score(silent, states["answer_nll"]).reason or "")


def test_baselines_of_other_names_have_other_features(tmp_path: Path) -> None:
    names = {features_file(tmp_path / name).name for name in ("v.1", "v.2", "base.json")}
    assert names == {f"{name}.features.safetensors" for name in ("v.1", "v.2", "base")}
    features = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    kept = mmd.reference(features, tuple(map(str, range(16))))
    file = features_file(tmp_path / "v.1")
    write_features(file, kept)
    (tmp_path / "v.1").write_text("{}")
    with pytest.raises(PrunekitError, match="already exists"):
        write_features(file, kept)
    write_features(file, kept, overwrite=True)


def test_a_window_that_failed_is_not_tried_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signals = made(folder, tmp_path / "base.features.safetensors")
    states = {name: each.reference(log(64)) for name, each in signals.items()}
    tried: list[int] = []

    def fail(*given: Any) -> Any:
        tried.append(1)
        raise PrunekitError("No answer.")

    monkeypatch.setattr(signals["shadow_kl"].readings.scorer, "scores", fail)
    for seed in (1, 2):
        for name in ("shadow_kl", "prompt_increase", "prompt_nll"):
            with pytest.raises(PrunekitError, match=r"No answer\."):
                signals[name].score(log(50, seed=seed), states[name])
    assert len(tried) == 2


def test_a_dense_model_that_is_away_hides_nothing_of_the_deployed_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals = made(folder, tmp_path / "base.features.safetensors")
    states = {name: each.reference(log(64)) for name, each in signals.items()}
    signals["prompt_mmd"].keep()
    window = log(50, seed=1)
    before = {name: each.score(window, states[name]).value for name, each in signals.items()}
    again = made(folder, tmp_path / "base.features.safetensors")
    asked: list[int] = []

    def away(contexts: Any) -> Any:
        if contexts:
            asked.append(1)
            raise DenseAway("No answer.")
        return {}

    scorer = again["shadow_kl"].readings.scorer
    monkeypatch.setattr(scorer, "_dense_reads", away)
    for name in ("shadow_kl", "prompt_nll", "prompt_mmd", "answer_nll", "prompt_increase"):
        if name in ("shadow_kl", "prompt_increase"):
            with pytest.raises(DenseAway, match=r"No answer\."):
                again[name].score(window, states[name])
        else:
            assert again[name].score(window, states[name]).value == pytest.approx(before[name], rel=1e-6)
    assert len(asked) == 1
    monkeypatch.undo()
    other = log(50, seed=2)
    assert again["shadow_kl"].score(other, states["shadow_kl"]).value is not None


def test_what_is_kept_of_a_request_is_scored_as_the_whole(folder: Path, tmp_path: Path) -> None:
    signals = made(folder, tmp_path / "base.features.safetensors", dense=None)
    config = signals["prompt_nll"].readings.scorer.config
    rng = np.random.default_rng(3)

    def text(count: int) -> str:
        return " ".join("".join(rng.choice(list("abcdefgh"), 4)) for _ in range(count))

    long = [
        Request(f"t{number}", prompt=text(6000), answer=text(4000), messages=(("user", text(9)), ("user", text(6000))))
        for number in range(8)
    ]
    tokens = [tuple(map(int, rng.integers(3, 20, count))) for count in (9, 5000)]
    long += [Request(f"i{number}", prompt_ids=tokens[1], answer_ids=tokens[1]) for number in range(4)]
    long += [Request(f"s{number}", prompt_ids=tokens[0], answer_ids=tokens[0]) for number in range(4)]
    kept = [signals["prompt_nll"].shortened(each) for each in long]
    size = config.prompt_tokens + config.answer_tokens
    assert max(len(each.prompt_ids or ()) + len(each.answer_ids or ()) for each in kept) == size + 2
    assert max(len(each.prompt or "") + len(each.answer or "") for each in kept) <= 32 * size + 2
    scorer = signals["prompt_nll"].readings.scorer
    (whole, _), (short, _) = scorer.scores(long), scorer.scores(kept)
    for a, b in zip(whole, short, strict=True):
        assert (a.prompt_nll, a.answer_nll, a.logprob_gap) == (b.prompt_nll, b.answer_nll, b.logprob_gap)


def write_log(file: Path, requests: list[Request]) -> None:
    rows = [{key: getattr(each, key) for key in ("id", "ts", "prompt", "answer", "n_in", "n_out")} for each in requests]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_commands_watch_with_both_models(folder: Path, tmp_path: Path, command: Command) -> None:
    write_log(tmp_path / "reference.jsonl", log(1600))
    write_log(tmp_path / "same.jsonl", log(100, seed=1))
    base, logs = tmp_path / "base.json", str(tmp_path / "reference.jsonl")
    models = (str(folder / "deployed"), "--dense", str(folder / "dense"))
    done = command("watch", "init", "--reference", logs, *models, "--window", 50, "-o", base, "--device", "cpu")
    assert done.code == 0, done.err
    said = json.loads(base.read_text())
    assert said["models"] == {"model": "deployed", "dense": "dense"}
    status = {each["name"]: each["status"] for each in said["signals"]}
    assert status["shadow_kl"] == status["prompt_mmd"] == "calibrated"
    run = ("watch", "run", "--baseline", base, "--once", "--json", "--device", "cpu", "--dense", models[2])
    fine = command(*run, tmp_path / "same.jsonl", "-o", tmp_path / "a", "--model", models[0])
    assert fine.code == 0, fine.err
    assert json.loads(fine.out)["last_window"]["signals"]["shadow_kl"]["value"] > 0
    broken = command(*run, tmp_path / "same.jsonl", "-o", tmp_path / "b", "--model", folder / "broken")
    assert broken.code == 3, broken.err
    assert json.loads(broken.out)["verdict"] == "investigate"
    spoiled = command(*run, tmp_path / "same.jsonl", "-o", tmp_path / "c", "--model", folder / "nan")
    assert spoiled.code == 3, spoiled.err
    assert json.loads(spoiled.out)["verdict"] == "investigate"
    assert "could not be scored" in spoiled.err
    alone = command("watch", "init", "--reference", logs, "--dense", models[2], "-o", tmp_path / "x.json")
    assert alone.code == 2
