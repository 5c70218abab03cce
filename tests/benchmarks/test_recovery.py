"""python -m benchmarks.recovery on a tiny model: what it runs, what it keeps, what it leaves out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.spent import Spent
from benchmarks.recovery import __main__ as recovery
from benchmarks.recovery import trial
from benchmarks.recovery.processes import Ended, objects, run
from benchmarks.recovery.variants import ALL, ARMS, GROUPS, Arm, chosen, configured, mix
from prunekit.errors import PrunekitError
from tests.support.command import make_command, write_text
from tests.support.recovering import make_places

# The value of a setting with which prunekit fails.
FAILS = "777"
FACTS = {"tokens": 30, "steps": 3, "used_step": 3, "teacher": {}, "held_out_kl": {"before": 2.0, "after": 1.0}}
# A tiny model's text has no windows of 512 tokens.
TINY = "text_length=16+text_held_out=4+batch_tokens=64"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_places(tmp_path_factory.mktemp("recovery"), max_position_embeddings=512)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, places: Path) -> Any:
    """``bench("kd", …)`` measures variants with tiny settings in this process. Returns the report, and what prunekit
    was told."""
    command = make_command(monkeypatch, capsys)
    told: list[list[str]] = []

    def in_process(arguments: Any, log: Path) -> Ended:
        told.append([*arguments])
        if f"clip={FAILS}" in arguments:
            return Ended(1, [], Spent(1.0, 1.0, 1, 1.0), "It failed.")
        ended = command(*arguments)
        return Ended(ended.code, [*objects(ended.out)], Spent(2.0, 3.0, 2**20, 1.0), ended.err.strip()[-500:])

    monkeypatch.setattr(trial, "run", in_process)
    held_out = write_text(tmp_path / "held_out.txt", 3000)
    output = tmp_path / "recovery.json"

    def go(*variants: str, budget: tuple[str, ...] = ("--steps", "3"), more: tuple[str, ...] = ()) -> Any:
        told.clear()
        given = ["--dense", str(places / "dense"), "--pruned", str(places / "small"), "--max-tokens", "256"]
        given += ["--text", str(places / "text.txt"), "--held-out", str(held_out), "--output", str(output)]
        words = [f"{name}+{TINY}" if TINY not in name and name not in ARMS else name for name in variants]
        recovery.main([*given, *budget, "--variants", ",".join(words), *more])
        return json.loads(output.read_text()), [*told]

    return go


def test_variants_differ_from_the_first_in_one_thing() -> None:
    assert list(ALL["kd"].settings) == [] and ALL["kd"].text == "half"
    for name, variant in ALL.items():
        changed = len(variant.settings) + (variant.text != "half") + (variant.arm != "given")
        several = ("lora", "rate", "sampled", "adapt-accel", "without-refit", "fresh-moments")
        assert changed == 1 or name == "kd" or name.startswith(several)
    assert len({(*variant.settings.items(), variant.text, variant.arm) for variant in ALL.values()}) == len(ALL)


def test_all_settings_are_known_to_a_training() -> None:
    for variant in ALL.values():
        # Those are settings of `prunekit prune`.
        if variant.arm == "given" or not ARMS[variant.arm].trains:
            configured(variant)


def test_words_name_variants_groups_and_further_settings() -> None:
    assert [each.name for each in chosen(["kd", "loss"])] == ["kd", "ce", "mix-0.2"]
    (made,) = chosen(["ce+learning_rate=2e-4+clip=2"])
    assert made.name == "ce+learning_rate=2e-4+clip=2"
    assert made.settings == {"ce_share": "1", "learning_rate": "2e-4", "clip": "2"}
    assert len(chosen(GROUPS)) == len(ALL)
    with pytest.raises(PrunekitError, match="no variant 'kdd'"):
        chosen(["kdd"])


def test_texts_are_taken_alike() -> None:
    assert mix("self", ["a.txt"]) == "self"
    assert mix("own", ["a.txt"]) == "a.txt:1"
    assert mix("half", ["a.txt"]) == "a.txt:0.5,self:0.5"
    assert mix("half", ["a.txt", "b.txt"]) == "a.txt:0.25,b.txt:0.25,self:0.5"


def test_each_variant_is_trained_and_judged(bench: Any, tmp_path: Path) -> None:
    report, told = bench("text-own", "ce")
    assert report["runs"][0]["variant"] == "start" and len(report["runs"]) == 3
    for each in report["runs"]:
        assert each["texts"][0]["kl"] > 0 and each["texts"][0]["nll_increase"] is not None
    for each, words in zip(report["runs"][1:], told, strict=True):
        assert words[0] == "recover" and words[words.index("--tokens") + 1] == "192"
        assert (each["tokens"], each["steps"]) == (192, 3) and each["tokens_per_second"] > 0
        assert each["own_held_out_kl"][0]["before"] > 0 and each["cpu_seconds"] == 3.0
        assert [row["step"] for row in each["held_out_curve"]][-1] == 3
    assert report["runs"][1]["text"] == "text.txt:1" and "ce_share=1" in told[1]
    assert "rehearsal" in report and str(tmp_path) not in (tmp_path / "recovery.json").read_text()
    written = (tmp_path / "recovery.md").read_text()
    assert "| start |" in written and "shows that it runs" in written


def test_what_is_done_is_not_done_again_and_failures_are(bench: Any) -> None:
    first, _ = bench("text-own")
    second, told = bench("text-own", f"text-own+clip={FAILS}")
    assert len(told) == 1 and second["runs"][:2] == first["runs"]
    assert second["runs"][2]["error"] == "It failed." and "failed: It failed." in recovery.table(second)
    _, told = bench("text-own", f"text-own+clip={FAILS}")
    assert len(told) == 1
    with pytest.raises(SystemExit, match="other settings"):
        bench("text-own", budget=("--steps", "4"))


def test_settings_that_make_no_sense_are_refused_at_once(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for words, sentence in (("kd+decay=2", "decay must be"), ("kd+decai=1", "no setting 'decai'"), ("kd+decay", "=")):
        with pytest.raises(SystemExit):
            bench(words)
        assert sentence in capsys.readouterr().err


def test_no_variant_begins_that_would_end_too_late(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    report, told = bench("text-own", "ce", budget=("--tokens", "64"), more=("--stop-after", "0"))
    assert not told or len(told) == 1
    assert "left for another run" in capsys.readouterr().err
    assert report["runs"][0]["variant"] == "start" and "rehearsal" not in report


def test_another_pruned_model_is_made_once(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    brief = ("--set", "ffn_multiple=1", "--set", "sequences=4", "--set", "length=16")
    arm = Arm(("--method", "adapt-pruner", *brief))
    monkeypatch.setitem(recovery.ARMS, "adapt-pruner", arm)
    monkeypatch.setattr(
        recovery, "chosen", lambda words: chosen([f"adapt-pruner+{TINY}", f"adapt-pruner+{TINY}+clip=2"])
    )
    report, told = bench("kd", more=("--folder", str(tmp_path / "models")))
    assert [words[0] for words in told] == ["prune", "recover", "recover"]
    first, second = report["runs"][1:]
    assert "prune_seconds" in first and "prune_seconds" not in second
    assert [each.name for each in (tmp_path / "models").iterdir() if each.is_dir()] == ["adapt-pruner-pruned"]


def test_what_this_version_cannot_do_is_skipped_with_a_sentence(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recovery.ARMS, "interleaved", Arm((), trains=True, needs=("--of-another-version",)))
    report, told = bench("interleaved")
    assert not told and len(report["runs"]) == 1
    assert report["skipped"] == {"interleaved": "`prunekit prune` has no --of-another-version in this version."}
    assert "skipped: interleaved" in recovery.table(report)


def test_a_process_is_run_and_its_log_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "seconds": 2.0}\n{"step": 2, "sec', encoding="utf-8")
    ended = run(["methods", "--json"], log)
    assert ended.code == 0 and ended.told[0] == {"step": 1, "seconds": 2.0}
    assert ended.spent.cpu_seconds > 0 and ended.spent.peak_bytes > 2**20
    failed = run(["no-such-command"], tmp_path / "other.jsonl")
    assert failed.code == 2 and "no-such-command" in failed.error


def test_steps_that_were_done_twice_count_once() -> None:
    told = [
        {"estimate": {"memory": 5}},
        *({"step": step, "seconds": 1.0} for step in range(4)),
        {"estimate": {"memory": 7}},
        *({"step": step, "seconds": 2.0} for step in range(2, 6)),
        {"checkpoint": "out", "recovery": {**FACTS, "tokens": 80, "steps": 6}},
    ]
    made = trial.summary(Ended(0, told, Spent(9.0, 8.0, 100, 1.0), ""))
    assert (made["training_seconds"], made["tokens_per_second"], made["processes"]) == (10.0, 8.0, 2)


def test_stages_add_up() -> None:
    told: list[dict[str, Any]] = []
    for stage in (1, 2):
        told += [{"stage": stage, "of": 2, "phase": "training"}, {"estimate": {"memory": stage}}]
        told += [{"step": step, "seconds": 1.0} for step in range(3)]
    told.append({"checkpoint": "out", "recovery": [FACTS, FACTS]})
    made = trial.summary(Ended(0, told, Spent(9.0, 8.0, 100, 1.0), ""))
    assert (made["training_seconds"], made["tokens"], made["steps"], made["used_step"]) == (6.0, 60, 6, 3)
    assert made["own_held_out_kl"] == [FACTS["held_out_kl"]] * 2 and "processes" not in made


@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if arm.trains])
def test_pruning_and_training_in_turns_is_told_as_one_training(bench: Any, name: str) -> None:
    if recovery.missing(ALL[name]):
        pytest.skip("prune has no --recover yet")
    small = "+".join((TINY, "ffn_multiple=1", "sequences=4", "length=16"))
    report, told = bench(f"{name}+{small}", budget=("--tokens", "640"))
    (words,) = told
    made = report["runs"][1]
    assert words[0] == "prune" and "error" not in made, made
    assert made["tokens"] == 640 and made["steps"] == 10 and made["tokens_per_second"] > 0
    assert len(made["own_held_out_kl"]) >= 1 + (name != "one-cut") and made["texts"][0]["kl"] > 0
