"""`prunekit accept` on tiny models: answers, verdicts, exit codes, going on after a kill, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.evaluation.acceptance.asked.answers import Answer, answer_file
from prunekit.evaluation.acceptance.checks.kinds import read_check
from prunekit.evaluation.acceptance.compared import Figure, Outcome, compare
from prunekit.evaluation.acceptance.other_files import conditions_of
from prunekit.evaluation.acceptance.policy import Limits, Policy
from prunekit.evaluation.acceptance.records import Record
from prunekit.evaluation.acceptance.run import _most_failed, accept
from prunekit.evaluation.acceptance.statistics import noninferiority
from prunekit.evaluation.acceptance.verdict import ACCEPTED, NO_VERDICT, REFUSED, TOO_FEW, decide
from prunekit.models.source import load_model, load_tokenizer, resolve
from tests.support.command import Command, save_tiny, start

pytestmark = pytest.mark.usefixtures("single_threaded")
NEW = 6
PROMPTS = [f"{number}. The quick {'brown ' * (number % 4)}fox" for number in range(12)]
WIDE = Policy(margin=0.3)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("dense") / "dense")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("other") / "other", seed=5)


@pytest.fixture(scope="module")
def said(dense: Path) -> list[str]:
    """What transformers' own generate makes of each prompt."""
    source = resolve(str(dense))
    tokenizer, model = load_tokenizer(source), load_model(source, device="cpu")
    made = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            out: Any = model.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        made.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return made


@pytest.fixture
def records(tmp_path: Path, said: list[str]) -> Path:
    file = tmp_path / "records.jsonl"
    rows = [
        {"id": f"r{at}", "prompt": prompt, "reference": text, "check": "contains", "group": "ab"[at % 2]}
        for at, (prompt, text) in enumerate(zip(PROMPTS, said, strict=True))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(smaller: Path, dense: Path, records: Path, out: Path, **options: Any) -> Any:
    return accept(
        str(smaller), baseline=str(dense), records=records, out=out, max_new_tokens=NEW, device="cpu", **options
    )


def test_answers_are_those_of_transformers_generate(
    dense: Path, other: Path, records: Path, said: list[str], tmp_path: Path
) -> None:
    found = run(dense, dense, records, tmp_path / "out", batch_size=5, policy=WIDE)
    lines = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert lines[0]["format"] == "prunekit-answers" and lines[-1] == {"finished": True}
    assert sorted(line["text"] for line in lines[1:-1]) == sorted(said)
    # Both sides ask the same of the same model, so the second one finds the answers there.
    assert found.run["asked"] == {"smaller": len(PROMPTS), "baseline": 0}
    assert (tmp_path / "out" / "answers.jsonl").stat().st_mode & 0o077 == 0
    everything = found.everything
    assert (everything.error_rate.value, everything.baseline_error_rate.value) == (0, 0)
    assert everything.length_ratio.value == 1 and everything.truncated.value == 1
    assert found.accepted and found.verdict.word == ACCEPTED
    refused = run(other, dense, records, tmp_path / "refused", policy=WIDE)
    assert not refused.accepted and refused.verdict.word == REFUSED
    assert refused.everything.worse > 8 and refused.everything.baseline_error_rate.value == 0
    assert {each.id for each in refused.worst} <= {f"r{at}" for at in range(len(PROMPTS))}


def test_the_command(command: Command, dense: Path, other: Path, records: Path, tmp_path: Path) -> None:
    told = ("--baseline", dense, "--records", records, "--max-new-tokens", NEW, "--device", "cpu")
    policy = tmp_path / "policy.toml"
    policy.write_text("margin = 0.3\n[groups.a]\nmax_error_rate = 0.5\n")
    same = command("accept", dense, *told, "--policy", policy, "-o", tmp_path / "same")
    assert same.code == 0 and "Accepted." in same.out and "margin = 0.3" in same.out
    made = command("accept", other, *told, "--policy", policy, "-o", tmp_path / "other", "--json")
    assert made.code == 3 and made.json == json.loads((tmp_path / "other" / "accept.json").read_text())
    data = made.json
    assert (data["format"], data["version"], data["verdict"], data["exit_code"]) == ("prunekit-accept", 1, "refused", 3)
    assert {*data["groups"]} == {"a", "b"} and data["policy"]["given"]
    figure = data["all"]["error_rate"]
    assert figure["low"] < figure["value"] <= figure["high"] and figure["status"] == "measured" and figure["how"]
    assert any(each["group"] == "a" and each["name"] == "max_error_rate" for each in data["conditions"])
    # Texts are nowhere, until they are asked for.
    for text in (made.out, made.err):
        assert "quick" not in text
    shown = command("accept", other, *told, "-o", tmp_path / "other", "--overwrite", "--show-texts")
    assert shown.code == 3 and "quick" in " ".join(shown.out.split())
    # The default policy is shown, and both models' answers were there.
    assert "default: give your own" in " ".join(shown.out.split())
    assert json.loads((tmp_path / "other" / "accept.json").read_text())["run"]["asked"] == {"smaller": 0, "baseline": 0}


def test_too_few(command: Command, dense: Path, records: Path, tmp_path: Path) -> None:
    told = ("accept", dense, "--baseline", dense, "--records", records, "--max-new-tokens", NEW, "--device", "cpu")
    made = command(*told, "-o", tmp_path / "out")
    assert made.code == 3 and "Too few to tell." in made.out and "needs about 149." in " ".join(made.out.split())
    policy = tmp_path / "policy.toml"
    policy.write_text('too_few = "accept"\n')
    made = command(*told, "-o", tmp_path / "out", "--policy", policy, "--overwrite", "--json")
    assert made.code == 0 and made.json["verdict"] == "too few to tell"


def test_a_killed_run_goes_on(dense: Path, other: Path, records: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    slow = (
        "import time\nfrom prunekit.evaluation.acceptance.asked.answers import AnswerFile\nadd = AnswerFile.add\n"
        "AnswerFile.add = lambda *a: (add(*a), time.sleep(0.2))"
    )
    told = ("accept", other, "--baseline", dense, "--records", records, "--max-new-tokens", NEW, "--batch-size", 2)
    process = start(*told, "--device", "cpu", "-o", out, code=slow)
    file = out / "answers.jsonl"
    for _ in range(600):
        if file.exists() and len(file.read_text().splitlines()) > 4:
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    there = len(file.read_text().splitlines()) - 1
    assert 4 <= there < 2 * len(PROMPTS) and not (out / "accept.json").exists()
    # A line that the kill cut off.
    with file.open("a") as handle:
        handle.write('{"key": "ab')
    found = run(other, dense, records, out, batch_size=2)
    assert sum(found.run["kept"].values()) == there
    assert sum(found.run["asked"].values()) == 2 * len(PROMPTS) - there
    whole = run(other, dense, records, tmp_path / "whole", batch_size=2)
    without_run = ({**each.to_dict(), "run": None} for each in (found, whole))
    assert next(without_run) == next(without_run)


def test_only_what_changed_is_asked_again(dense: Path, other: Path, records: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(other, dense, records, out)
    lines = records.read_text().splitlines()
    judged = {**json.loads(lines[0]), "reference": "something else"}
    asked = {**json.loads(lines[1]), "prompt": "Another prompt"}
    records.write_text("\n".join([json.dumps(judged), json.dumps(asked), *lines[2:]]))
    found = run(other, dense, records, out, overwrite=True)
    assert found.run["asked"] == {"smaller": 1, "baseline": 1}
    assert found.everything.baseline_error_rate.value == pytest.approx(2 / len(lines))
    found = run(dense, other, records, out, overwrite=True)
    assert found.run["asked"] == {"smaller": 0, "baseline": 0}


def test_chats_need_a_template(dense: Path, tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    row = {"messages": [{"role": "user", "content": "Hi"}], "reference": "Hi", "check": "contains"}
    file.write_text(json.dumps(row))
    with pytest.raises(PrunekitError, match=r"Line 1 of .* has messages, and dense has no chat template"):
        run(dense, dense, file, tmp_path / "out")
    source = resolve(str(dense))
    tokenizer = load_tokenizer(source)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    chatty = save_tiny(tmp_path / "chatty", tokenizer=tokenizer)
    plain = {"prompt": "user: Hi\nassistant:", "reference": "Hi", "check": "contains"}
    file.write_text(json.dumps(row) + "\n" + json.dumps({**plain, "id": "plain"}))
    found = run(chatty, chatty, file, tmp_path / "chat")
    # The template makes the same tokens of the first as the second has.
    assert sum(found.run["asked"].values()) == 1


def test_bad_input_leaves_nothing_behind(command: Command, dense: Path, records: Path, tmp_path: Path) -> None:
    def tried(*more: object, words: str, file: Path = records) -> None:
        before = sorted(tmp_path.rglob("*"))
        ended = command("accept", dense, "--baseline", dense, "--records", file, "--device", "cpu", *more)
        assert ended.code == 2 and words in ended.err and "Traceback" not in ended.err
        assert sorted(tmp_path.rglob("*")) == before

    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a"}\n')
    policy = tmp_path / "policy.toml"
    policy.write_text("[groups.none]\nmax_flips = 0.1\n")
    out = tmp_path / "out"
    tried("-o", out, words="Line 1 of", file=broken)
    tried("-o", out, words="does not exist", file=tmp_path / "missing.jsonl")
    tried("-o", out, "--policy", policy, words="and no record is in it; there are: a, b")
    tried("-o", out, "--max-new-tokens", 0, words="--max-new-tokens must be")
    tried("-o", records, words="is a file; give the name of a folder")
    tried("-o", out, "--max-new-tokens", 300, words="was made for 256")
    tried("-o", out, "--dtype", "int3", words="no dtype")
    mine = tmp_path / "mine"
    mine.mkdir()
    for text in (
        "my own\n",
        "my own",
        '\n{"key": "a"}\n',
        "\n",
        " ",
        '{"format": "prunekit-answers"}\n',
        '{"format"\n',
    ):
        (mine / "answers.jsonl").write_text(text)
        tried("-o", mine, words="holds no answers that prunekit wrote")
        assert (mine / "answers.jsonl").read_text() == text
    (mine / "accept.json").write_text("{}")
    tried("-o", mine, words="already exists")
    tried("-o", mine, "--overwrite", words="is no accept that prunekit wrote")


def test_a_file_of_answers_that_was_cut_off_is_used(tmp_path: Path) -> None:
    head = '{"format": "prunekit-answers", "version": 1}'
    line = '{"key": "k", "text": "t", "tokens": 1, "finish": "stop"}\n'
    file = tmp_path / "answers.jsonl"
    for text in ("", "{", head[:-1], head):
        file.write_text(text)
        with answer_file(tmp_path) as made:
            assert not made.kept
            made.add("k", Answer("t", 1))
        assert file.read_text() == f"{head}\n{line}"
    file.write_text(f"{head}\n{line[:-5]}")
    with answer_file(tmp_path) as made:
        assert not made.kept
    file.write_text(f"{head}\nbroken\n{line}")
    with answer_file(tmp_path) as made:
        assert made.kept == {"k": Answer("t", 1)} and made.fresh == {"k"}


def test_two_runs_do_not_write_to_one_folder(dense: Path, records: Path, tmp_path: Path) -> None:
    with answer_file(tmp_path / "out"), pytest.raises(PrunekitError, match="Another process writes answers"):
        run(dense, dense, records, tmp_path / "out")


def outcome(at: int, right: bool | None, baseline: bool | None, weight: float = 1.0, tokens: int = 5) -> Outcome:
    check = read_check("exact", "x", {}, "here")
    record = Record(f"{at}", "p", (), check, None, weight, None, "here")
    made = Answer("text", tokens) if right is not None else Answer(error="reset")
    return Outcome(record, made, Answer("text", 5) if baseline is not None else Answer(error="reset"), right, baseline)


def several(*parts: tuple[int, bool | None, bool | None], **options: Any) -> Any:
    outcomes = [outcome(at, *pair) for at, pair in enumerate(pair for number, *pair in parts for _ in range(number))]
    return compare(outcomes, **{"margin": 0.05, "alpha": 0.05, "power": 0.8, "unit": "tokens", **options})


def test_verdicts() -> None:
    policy = Policy(margin=0.05)
    good = several((390, True, True), (5, False, True), (5, True, False))
    assert decide(policy, good, {}).word == ACCEPTED
    worse = several((300, True, True), (60, False, True), (40, True, False))
    assert decide(policy, worse, {}).word == REFUSED
    # A rise below the margin that is not shown: with few records it can't be told, with many it is refused.
    few = several((38, True, True), (2, False, True), (1, True, False))
    found = decide(policy, few, {})
    assert found.word == TOO_FEW and found.exit_code == 3
    assert decide(Policy(margin=0.05, too_few="accept"), few, {}).exit_code == 0
    many = several((860, True, True), (120, False, True), (80, True, False))
    assert many.noninferiority is not None and many.noninferiority.enough
    assert decide(policy, many, {}).word == REFUSED
    strict = Policy(margin=0.05, groups={"g": Limits(max_flips=0.0)})
    assert decide(strict, good, {"g": good}).word == REFUSED
    failing = several((395, True, True), (5, None, True))
    assert decide(policy, failing, {}).word == NO_VERDICT and decide(policy, failing, {}).exit_code == 3


@pytest.mark.parametrize(("share", "count", "most"), ((0.29, 100, 29), (0.07, 100, 7), (0.01, 99, 0), (1.0, 3, 3)))
def test_how_many_may_fail(share: float, count: int, most: int) -> None:
    assert _most_failed(Policy(max_failed=share), count) == most


def test_failures_never_speak_for_the_smaller_model() -> None:
    seen = several((90, True, True), (4, True, None), (3, None, True), (3, False, None))
    assert (seen.worse, seen.better, seen.failed, seen.baseline_failed) == (6, 0, 3, 7)
    assert seen.error_rate.value == pytest.approx(0.06) and seen.baseline_error_rate.value == pytest.approx(0.07)


def test_weights() -> None:
    outcomes = [outcome(0, False, True, weight=8), *(outcome(at, True, True) for at in range(1, 93))]
    seen = compare(outcomes, margin=0.05, alpha=0.05, power=0.8, unit="tokens")
    assert seen.error_rate.value == pytest.approx(0.08) and seen.worse == 1
    assert seen.effective == pytest.approx(100**2 / (64 + 92))
    assert seen.noninferiority is not None
    test, share = seen.noninferiority, 0.08
    assert "exact" in test.how and "64 records" in test.how
    assert test.p == pytest.approx(noninferiority(64 * share, 0, 64, 0.05)[0])


def test_other_files(dense: Path, records: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(
        'margin = 0.3\n[eval]\nfile = "eval.json"\nmax_loss_added = 0.1\n'
        '[serve]\nfile = "serve.json"\nmin_load_ratio = 1\n'
    )
    told = {"policy": policy, "overwrite": True}
    with pytest.raises(PrunekitError, match=r"names .*eval\.json, which does not exist"):
        run(dense, dense, records, tmp_path / "out", **told)
    (tmp_path / "eval.json").write_text(json.dumps({"model": "dense", "verdict": {"loss_added": 0.05}}))
    serve: dict[str, Any] = {"format": "prunekit-server-bench", "capacity": {"ratio": {"value": 1.2}}}
    (tmp_path / "serve.json").write_text(json.dumps(serve))
    assert run(dense, dense, records, tmp_path / "out", **told).accepted
    for doubt, words in (
        ({"believed": False}, "not to be believed"),
        ({"stopped": "the server was gone."}, "ended early: the server was gone; it shows nothing."),
    ):
        (tmp_path / "serve.json").write_text(json.dumps({**serve, **doubt}))
        found = run(dense, dense, records, tmp_path / "out", **told)
        assert not found.accepted and words in found.verdict.reasons[0]
    (tmp_path / "serve.json").write_text(json.dumps({**serve, "believed": True, "stopped": None}))
    measured = {"model": "dense", "verdict": {"loss_added": 0.05}}
    own = {"fingerprint": resolve(str(dense)).fingerprint}
    (tmp_path / "eval.json").write_text(json.dumps({**measured, "origin": own}))
    assert run(dense, dense, records, tmp_path / "out", **told).accepted
    (tmp_path / "eval.json").write_text(json.dumps({**measured, "origin": {"fingerprint": "0" * 64}}))
    with pytest.raises(PrunekitError, match="was measured of another model than dense: their weights differ"):
        run(dense, dense, records, tmp_path / "out", **told)
    (tmp_path / "eval.json").write_text(json.dumps(measured))
    # What eval tells of a model whose outputs are no numbers.
    nothing = {"verdict": "broken", "why": "Layer 0 holds NaN.", "loss_added": None}
    (tmp_path / "eval.json").write_text(json.dumps({"model": "dense", "verdict": nothing}))
    found = run(dense, dense, records, tmp_path / "out", **told)
    assert not found.accepted and "dense is broken: its outputs are no numbers" in found.verdict.reasons[0]
    (tmp_path / "eval.json").write_text(json.dumps(measured))
    serve["capacity"]["ratio"] = {"value": 0.9, "low": 0.8, "high": 1.02}
    (tmp_path / "serve.json").write_text(json.dumps(serve))
    found = run(dense, dense, records, tmp_path / "out", **told)
    assert "is 0.90 times the baseline's (95 %: 0.80 to 1.02); the policy" in found.verdict.reasons[0]
    serve["capacity"]["ratio"]["value"] = None
    (tmp_path / "serve.json").write_text(json.dumps(serve))
    found = run(dense, dense, records, tmp_path / "out", **told)
    assert not found.accepted and "has no ratio" in found.verdict.reasons[0]
    (tmp_path / "serve.json").write_text("{}")
    with pytest.raises(PrunekitError, match="holds no highest loads"):
        run(dense, dense, records, tmp_path / "out", **told)


def test_figures_are_json() -> None:
    assert Figure(1.0, 0.0, float("inf"), "measured", "how").to_dict()["high"] is None


def test_a_load_test_of_another_file_is_refused(tmp_path: Path) -> None:
    """Where prunekit served the model both times, the hashes tell."""
    served = {"endpoint": {"model": "small", "identity": {"model_sha256": "1" * 64}}}
    found = {"format": "prunekit-server-bench", "capacity": {"ratio": {"value": 1.2}}, "served": served}
    (tmp_path / "serve.json").write_text(json.dumps(found))
    policy = Policy(margin=0.3, serve={"file": str(tmp_path / "serve.json"), "min_load_ratio": 1.0})
    model = {"model": "small", "fingerprint": None}
    for known in ({}, {"model_sha256": "1" * 64}):
        assert [each.holds for each in conditions_of(policy, {**model, **known})] == [True]
    with pytest.raises(PrunekitError, match="was measured of another model than small: the files that were served"):
        conditions_of(policy, {**model, "model_sha256": "2" * 64})
