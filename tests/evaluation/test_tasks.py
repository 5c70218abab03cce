from __future__ import annotations

import gzip
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import prunekit.evaluation.tasks.harness as harness
from prunekit.errors import PrunekitError
from prunekit.evaluation.tasks.run import prepare_tasks, score_tasks
from prunekit.evaluation.tasks.task_data import MissingData, TaskData
from prunekit.evaluation.tasks.task_report import make_report
from prunekit.evaluation.tasks.task_types import TasksConfig
from tests.support.command import Command, save_tiny
from tests.support.tiny import one_thread, tiny_model
from tests.support.tiny_text import tiny_tokenizer

SUBJECTS = ("anatomy", "virology")
IDENTITY = {"weights": "a", "dtype": "float32", "device": "cpu"}
# What a hub dataset of AGIEval holds for the rows below: query, choices, gold.
SAT = (
    "A shop sells {n} pens.Q: How many pens? Answer Choices: (A){n} (B)one (C)none at all\n"
    "A: Among A through C, the answer is"
)
PHYSICS = "问题：What falls {n} m? 选项：(A)a stone (B)a cloud (C)a leaf (D)rain\n答案：从A到D, 我们应选择"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def lines(file: Path, rows: list[Any]) -> Path:
    file.parent.mkdir(exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return file


def mmlu(subject: str, count: int) -> list[dict[str, Any]]:
    return [
        {
            "subject": subject,
            "question": f"What is {n} in {subject}? ",
            "choices": [f"{n}", "two", f"{subject} of {n}", "all"],
            "answer": n % 4,
        }
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of file, a few questions each."""
    folder = tmp_path_factory.mktemp("data")
    lines(folder / "mmlu_dev.jsonl", [row for subject in SUBJECTS for row in mmlu(subject, 5)])
    lines(folder / "mmlu_test.jsonl.gz", [row for subject in SUBJECTS for row in mmlu(subject, 9)])
    lines(
        folder / "truthfulqa_mc.jsonl",
        [
            {
                "question": f"What happens {n} days after?",
                "mc1_targets": {"You sleep.": 0, f"Nothing {n}.": 1, "You fly away.": 0},
                "mc2_targets": {"You sleep.": 0, f"Nothing {n}.": 1, "Very little.": 1, "You fly away.": 0},
            }
            for n in range(6)
        ],
    )
    lines(
        folder / "agieval" / "sat-math.jsonl",
        [
            {
                "passage": f"A shop sells {n} pens.",
                "question": "How many pens?",
                "options": [f"(A){n}", "(B)one", "(C)none at all"],
                "label": "ABC"[n % 3],
            }
            for n in range(7)
        ],
    )
    lines(
        folder / "agieval" / "gaokao-physics.jsonl",
        [
            {
                "passage": None,
                "question": f"What falls {n} m?",
                "options": ["(A)a stone", "(B)a cloud", "(C)a leaf", "(D)rain"],
                "label": ["A", "D"] if n % 2 else "C",
                "answer": None,
            }
            for n in range(6)
        ],
    )
    lines(
        folder / "agieval" / "math.jsonl",
        [
            {"passage": None, "question": f"What is {n} + 1?", "options": None, "label": None, "answer": f"{n + 1}"}
            for n in range(3)
        ],
    )
    return folder


def model(seed: int = 0) -> Any:
    return tiny_model("llama", layers=2, seed=seed, max_position_embeddings=4096)


@pytest.fixture(scope="module")
def pair():
    return model(), model(1)


@pytest.fixture(scope="module")
def published(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """lm-eval's own task definitions, with files in the hub's columns in place of the hub."""
    import lm_eval.tasks

    folder = tmp_path_factory.mktemp("published")
    root = Path(lm_eval.tasks.__file__).parent
    truthful = [json.loads(line) for line in (data / "truthfulqa_mc.jsonl").read_text().splitlines()]
    for row in truthful:
        for name in ("mc1_targets", "mc2_targets"):
            row[name] = {"choices": list(row[name]), "labels": list(row[name].values())}
        row["mc1_targets"] = {
            "choices": [row["mc1_targets"]["choices"][position] for position in (1, 0, 2)],
            "labels": [1, 0, 0],
        }
    sat = [
        {"query": SAT.format(n=n), "choices": [f"(A){n}", "(B)one", "(C)none at all"], "gold": [n % 3]}
        for n in range(7)
    ]
    physics = [
        {
            "query": PHYSICS.format(n=n),
            "choices": ["(A)a stone", "(B)a cloud", "(C)a leaf", "(D)rain"],
            "gold": [0, 3] if n % 2 else [2],
        }
        for n in range(6)
    ]
    maths = [{"query": f"Q: What is {n} + 1?\nA: The answer is", "answer": f"{n + 1}"} for n in range(3)]
    splits = {
        **{f"mmlu/default/mmlu_{name}": {"test": mmlu(name, 9), "dev": mmlu(name, 5)} for name in SUBJECTS},
        "truthfulqa/truthfulqa_mc1": {"validation": truthful},
        "truthfulqa/truthfulqa_mc2": {"validation": truthful},
        "agieval/sat-math": {"test": sat},
        "agieval/gaokao-physics": {"test": physics},
        "agieval/math": {"test": maths},
    }
    for path, rows in splits.items():
        name = path.rsplit("/", 1)[1]
        files = {split: str(lines(folder / f"{name}-{split}.jsonl", each)) for split, each in rows.items()}
        config = {
            "include": str(root / f"{path}.yaml"),
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return lm_eval.tasks.TaskManager(include_path=folder, include_defaults=False)


def directly(manager: Any, model: Any, names: list[str], **options: Any) -> dict[str, Any]:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    done = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=3), tasks=names, task_manager=manager, **options
    )
    return done["results"]


ALL = ("mmlu", "truthfulqa", "agieval")


def score(data: Path, model: Any, *tasks: str, identity: Any = None, **options: Any) -> Any:
    prepared = prepare_tasks(TasksConfig(tasks or ALL, data, **options))
    return prepared, score_tasks(prepared, lambda: model, tiny_tokenizer(), identity=identity)


@pytest.mark.parametrize("limit", [None, 4])
def test_numbers_are_those_of_lm_eval(data, pair, published, limit):
    _, results = score(data, pair[0], limit=limit)
    names = list(results)
    assert sorted(names) == sorted(published.all_subtasks)
    mmlu_names = [name for name in names if name.startswith("mmlu")]
    theirs = directly(published, pair[0], mmlu_names, num_fewshot=5, limit=limit)
    theirs |= directly(published, pair[0], [name for name in names if name not in mmlu_names], limit=limit)
    for name, result in results.items():
        expected = {key: value for key, value in theirs[name].items() if "," in key}
        assert set(result.metrics) == set(expected)
        for key, value in expected.items():
            assert result.metrics[key] == (None if value == "N/A" else pytest.approx(value, rel=1e-6)), (name, key)
        assert result.questions == theirs[name]["sample_len"]
    assert results["mmlu_anatomy"].questions == (limit or 9)
    assert len({result.metrics.get("acc,none") for result in results.values()}) > 3


def test_batches_that_would_not_fit_are_smaller(data, pair, monkeypatch):
    names = ("truthfulqa_mc2", "agieval_sat_math")
    _, expected = score(data, pair[0], *names, batch_size=8)
    # One row of the longest prompts, and several of the others.
    monkeypatch.setattr(harness, "_LOGIT_ELEMENTS", 700 * 128)
    _, results = score(data, pair[0], *names, batch_size=8)
    for name in names:
        assert results[name].metrics == pytest.approx(expected[name].metrics, rel=1e-5)


def test_prompts_are_the_published_ones(data):
    prepared = prepare_tasks(TasksConfig(("mmlu_anatomy", "agieval_gaokao_physics"), data, limit=1))
    task = prepared.tasks["mmlu_anatomy"]
    task.build_all_requests(limit=1)
    prompt, answer = task.instances[0].args
    assert prompt.startswith(
        "The following are multiple choice questions (with answers) about anatomy.\n\nWhat is 0 in"
    )
    assert prompt.count("Answer:") == 6 and prompt.endswith("D. all\nAnswer:") and answer == " A"
    physics = prepared.tasks["agieval_gaokao_physics"]
    physics.build_all_requests(limit=1)
    assert physics.instances[0].args == (PHYSICS.format(n=0), " (A)a stone")


def test_few_shot(data):
    shots = lambda **options: {  # noqa: E731
        name: task.get_config("num_fewshot")
        for name, task in prepare_tasks(TasksConfig(ALL, data, **options)).tasks.items()
    }
    published = shots()
    assert {published["mmlu_anatomy"], published["mmlu_virology"]} == {5}
    assert {shot for name, shot in published.items() if not name.startswith("mmlu")} == {0}
    asked = shots(few_shot=2)
    assert asked == {name: 2 if name.startswith("mmlu") else 0 for name in published}
    with pytest.raises(PrunekitError, match="mmlu_anatomy has 5 examples; ask for at most so many"):
        shots(few_shot=6)
    with pytest.raises(PrunekitError, match="None of the tasks agieval_math has examples"):
        prepare_tasks(TasksConfig(("agieval_math",), data, few_shot=1))


def test_chance(data, pair):
    _, results = score(data, pair[0])
    assert results["mmlu_anatomy"].chance == {"acc,none": pytest.approx(0.25)}
    assert results["truthfulqa_mc1"].chance == {"acc,none": pytest.approx(1 / 3)}
    assert results["truthfulqa_mc2"].chance == {"acc,none": pytest.approx(1 / 2)}
    assert results["agieval_sat_math"].chance == {key: pytest.approx(1 / 3) for key in ("acc,none", "acc_norm,none")}
    # Three questions have two right answers of four.
    assert results["agieval_gaokao_physics"].chance["acc,none"] == pytest.approx((0.25 + 0.5) / 2)
    assert results["agieval_math"].chance == {}


def test_report_adds_groups_up_and_compares(data, pair):
    prepared, ours = score(data, pair[0])
    theirs = score_tasks(prepared, lambda: pair[1], tiny_tokenizer())
    report = make_report(prepared, ours, theirs, name="small", baseline_name="large")
    rows = {(row.task, row.metric): row for row in report.scores}
    assert [row.task for row in report.scores if not row.level] == [
        "mmlu",
        "truthfulqa_mc1",
        "truthfulqa_mc2",
        "agieval",
    ]
    assert rows["mmlu_anatomy", "acc"].level == 2
    # Both subjects have nine questions, in two of the four groups.
    subjects = [rows[f"mmlu_{subject}", "acc"] for subject in SUBJECTS]
    assert rows["mmlu", "acc"].score == pytest.approx(sum(row.score for row in subjects) / 2)
    assert rows["mmlu", "acc"].questions == 18 and rows["mmlu", "acc"].few_shot == 5
    assert rows["mmlu", "acc"].chance == pytest.approx(0.25)
    exams = [rows[f"agieval_{exam}", "acc"] for exam in ("sat_math", "gaokao_physics", "math")]
    total = sum(row.score * row.questions for row in exams)
    assert rows["agieval", "acc"].score == pytest.approx(total / 16)
    assert rows["agieval", "acc"].chance == pytest.approx((7 / 3 + 6 * 0.375) / 16)
    row = subjects[0]
    steps = [
        a - b
        for a, b in zip(ours["mmlu_anatomy"].values["acc,none"], theirs["mmlu_anatomy"].values["acc,none"], strict=True)
    ]
    assert row.difference == pytest.approx(sum(steps) / 9) == pytest.approx(row.score - row.baseline)
    assert row.difference_standard_error == pytest.approx((torch.tensor(steps).std() / 3).item(), rel=1e-5)
    both = math.hypot(*(row.difference_standard_error for row in subjects)) / 2
    assert rows["mmlu", "acc"].difference_standard_error == pytest.approx(both)
    json.dumps(report.to_dict(), allow_nan=False)
    assert report.data == data.name
    assert "no agieval/lsat-ar.jsonl" in report.left_out["agieval_lsat_ar"]
    assert "reference answers" in report.left_out["truthfulqa_gen"]
    alone = make_report(prepared, ours)
    assert alone.scores[0].baseline is None and alone.scores[0].score == report.scores[0].score


def test_a_long_prompt_is_cut_and_counted(data):
    short = tiny_model("llama", layers=1, max_position_embeddings=128)
    prepared, results = score(data, short, "mmlu_anatomy", few_shot=1)
    assert results["mmlu_anatomy"].truncated == 36
    assert make_report(prepared, results).truncated == {"mmlu_anatomy": 36}


def never() -> Any:
    raise AssertionError("the model was loaded")


def test_what_is_done_is_kept(data, pair):
    prepared, results = score(data, pair[0], identity=IDENTITY)
    assert score_tasks(prepared, never, tiny_tokenizer(), identity=IDENTITY) == results
    again = prepare_tasks(TasksConfig(ALL, data))
    assert score_tasks(again, never, tiny_tokenizer(), identity=IDENTITY) == results
    for config, identity, tokenizer in (
        (TasksConfig(ALL, data, limit=3), IDENTITY, tiny_tokenizer()),
        (TasksConfig(("mmlu",), data, few_shot=1), IDENTITY, tiny_tokenizer()),
        (TasksConfig(ALL, data), {**IDENTITY, "weights": "b"}, tiny_tokenizer()),
        (TasksConfig(ALL, data), IDENTITY, tiny_tokenizer(bos=True)),
    ):
        with pytest.raises(AssertionError, match="the model was loaded"):
            score_tasks(prepare_tasks(config), never, tokenizer, identity=identity)
    with pytest.raises(AssertionError, match="the model was loaded"):
        score_tasks(prepared, never, tiny_tokenizer())


def test_other_answers_are_other_data(data, tmp_path, pair):
    for split, count in (("dev", 5), ("test", 9)):
        lines(tmp_path / f"mmlu_{split}.jsonl", mmlu("anatomy", count))
    score(tmp_path, pair[0], "mmlu_anatomy", identity=IDENTITY)
    lines(tmp_path / "mmlu_test.jsonl", [{**row, "answer": 0} for row in mmlu("anatomy", 9)])
    with pytest.raises(AssertionError, match="the model was loaded"):
        score_tasks(prepare_tasks(TasksConfig(("mmlu_anatomy",), tmp_path)), never, tiny_tokenizer(), identity=IDENTITY)


class Interrupting:
    """A model that Ctrl-C reaches in the middle of its third task."""

    def __init__(self, model: Any, calls: int):
        self.model, self.left = model, calls

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.model(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def test_an_interrupted_run_goes_on(data, pair):
    names = ("mmlu_anatomy", "mmlu_virology", "agieval_sat_math")
    prepared = prepare_tasks(TasksConfig(names, data, batch_size=64))
    with pytest.raises(KeyboardInterrupt):
        score_tasks(prepared, lambda: Interrupting(pair[0], 2), tiny_tokenizer(), identity=IDENTITY)
    counting = Interrupting(pair[0], 100)
    results = score_tasks(prepared, lambda: counting, tiny_tokenizer(), identity=IDENTITY)
    assert counting.left == 99
    assert results == score_tasks(prepared, lambda: pair[0], tiny_tokenizer())


def test_a_damaged_result_is_made_again(data, pair):
    prepared, results = score(data, pair[0], "mmlu_anatomy", identity=IDENTITY)
    (file,) = Path(os.environ["PRUNEKIT_CACHE"], "tasks").iterdir()
    file.write_text(file.read_text()[:50])
    assert score_tasks(prepared, lambda: pair[0], tiny_tokenizer(), identity=IDENTITY) == results


def test_broken_weights_name_the_model(data):
    broken = model()
    with torch.no_grad():
        broken.lm_head.weight[3, 3] = math.nan
    prepared = prepare_tasks(TasksConfig(("mmlu_anatomy",), data, limit=1))
    with pytest.raises(PrunekitError, match=r"^halved gave logits that are not numbers;"):
        score_tasks(prepared, lambda: broken, tiny_tokenizer(), name="halved")


def test_training_mode_and_libraries_are_left_as_they_were(data, capfd):
    import datasets
    import lm_eval.api.task as task_module

    before = (task_module.tqdm, datasets.are_progress_bars_disabled())
    trained = model().train()
    score(data, trained, "mmlu_anatomy", "agieval_math", limit=2)
    assert trained.training
    assert (task_module.tqdm, datasets.are_progress_bars_disabled()) == before
    assert capfd.readouterr() == ("", "")


GOOD = {"subject": "anatomy", "question": "What?", "choices": ["a", "b", "c", "d"], "answer": 1}


@dataclass(frozen=True)
class Broken:
    file: str
    text: str
    task: str
    parts: tuple[str, ...]


BROKEN = {
    "not JSON": Broken("mmlu_test", json.dumps(GOOD) + '\n{"subject": ', "mmlu", ("Line 2", "not valid JSON", "mend")),
    "a list": Broken("mmlu_test", "[1]", "mmlu", ("Line 1", "no JSON object")),
    "three choices": Broken("mmlu_test", json.dumps({**GOOD, "choices": ["a", "b", "c"]}), "mmlu", ("must be four",)),
    "answer 4": Broken("mmlu_test", json.dumps({**GOOD, "answer": 4}), "mmlu", ("answer must be", "0 to 3")),
    "no question": Broken("mmlu_test", json.dumps({**GOOD, "question": None}), "mmlu", ("question must be a text",)),
    "no truth": Broken(
        "truthfulqa_mc",
        json.dumps({"question": "What?", "mc1_targets": {"a": 0, "b": 0}, "mc2_targets": {"a": 1, "b": 0}}),
        "truthfulqa",
        ("Line 1", "mc1_targets"),
    ),
    "label F": Broken(
        "agieval/lsat-ar",
        json.dumps({"passage": None, "question": "What?", "options": ["(A)a", "(B)b"], "label": "F"}),
        "agieval_lsat_ar",
        ("Line 1", "letters from A to B"),
    ),
    "eight options": Broken(
        "agieval/lsat-ar",
        json.dumps({"passage": None, "question": "What?", "options": list("abcdefgh"), "label": "A"}),
        "agieval_lsat_ar",
        ("Line 1", "options must be at most 7"),
    ),
    "truth in a list": Broken(
        "truthfulqa_mc",
        json.dumps({"question": "What?", "mc1_targets": {"a": [1], "b": [0]}, "mc2_targets": {"a": 1, "b": 0}}),
        "truthfulqa",
        ("Line 1", "mc1_targets"),
    ),
    "half a character": Broken("mmlu_test", json.dumps({**GOOD, "question": "\ud800"}), "mmlu", ("half a character",)),
    "empty": Broken("mmlu_test", "", "mmlu", ("is empty",)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_lines_are_named(name, tmp_path):
    case = BROKEN[name]
    file = tmp_path / f"{case.file}.jsonl"
    file.parent.mkdir(exist_ok=True)
    file.write_text(case.text)
    if "mmlu" in case.file:
        lines(tmp_path / "mmlu_dev.jsonl", [GOOD] * 5)
    with pytest.raises(PrunekitError) as caught:
        prepare_tasks(TasksConfig((case.task,), tmp_path))
    for part in case.parts:
        assert part in str(caught.value)


def test_labels_of_several_letters(tmp_path):
    row = {"passage": "", "question": "q", "options": ["(A)a", "(B)b", "(C)c", "(D)d"]}
    labels = ["C", "AD", "A B D", ["B", "C"], ["A", "。"], []]
    lines(tmp_path / "agieval" / "gaokao-mathqa.jsonl", [{**row, "label": label} for label in labels])
    rows = TaskData(tmp_path).splits("hails/agieval-gaokao-mathqa", None)["test"]
    assert [each["gold"] for each in rows] == [[2], [0, 3], [0, 1, 3], [1, 2], []]
    with pytest.raises(MissingData, match="can't be made from local files"):
        TaskData(tmp_path).splits("Rowan/hellaswag", None)


def test_unknown_tasks_are_named(data, monkeypatch):
    import lm_eval.tasks

    with pytest.raises(PrunekitError, match="The task 'mmlux' can't be made from local files; mmlu, truthfulqa"):
        prepare_tasks(TasksConfig(("mmlux",), data))
    usual = harness.index(["mmlu"])
    # All of lm-eval's 14,000 files would take a while.
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **options: usual)
    with pytest.raises(PrunekitError, match=r"has no task 'mmlux'; it has mmlu.* and what else"):
        prepare_tasks(TasksConfig(("mmlux",)))


def test_without_a_network_the_hub_says_so():
    with pytest.raises(PrunekitError, match=r"mmlu_anatomy could not be loaded: .*Go online once, or give local files"):
        prepare_tasks(TasksConfig(("mmlu_anatomy",)))


def test_without_lm_eval(data, monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(PrunekitError, match=r"pip install '\.\[lm-eval\]' in the folder"):
        prepare_tasks(TasksConfig(("mmlu",), data))


def test_command(command: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pruned, dense = (
        save_tiny(tmp_path / str(seed), layers=2, seed=seed, max_position_embeddings=4096) for seed in (0, 1)
    )
    arguments = ["eval", pruned, "--baseline", dense, "--tasks", "mmlu, agieval", "--task-data", data, "--limit", 3]
    done = command(*arguments, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    assert done.json["results"] == [] and done.json["baseline"] == "1"
    scores = {(row["task"], row["metric"]): row for row in done.json["tasks"]["scores"]}
    assert scores["mmlu", "acc"]["questions"] == 6 and scores["mmlu", "acc"]["difference"] is not None
    monkeypatch.setenv("COLUMNS", "160")
    shown = command(*arguments, "--device", "cpu")
    words = " ".join(shown.out.split())
    assert "mmlu_anatomy" in words and "chance" in words and "agieval_lsat_ar (the folder has no" in words
    both = command(*arguments, "--text", "builtin", "--length", 32, "--max-tokens", 320, "--device", "cpu", "--json")
    assert both.json["tasks"] == done.json["tasks"] and both.json["results"][0]["kl"] > 0


def test_several_models_in_one_table(command: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, second, dense = (
        save_tiny(tmp_path / str(seed), layers=2, seed=seed, max_position_embeddings=4096) for seed in (0, 1, 2)
    )
    told = ["--baseline", dense, "--tasks", "mmlu", "--task-data", data, "--limit", 2, "--device", "cpu"]
    done = command("eval", first, second, *told, "--json")
    assert done.code == 0, done.err
    one, other = (each["tasks"] for each in done.json["models"])
    assert (one["model"], other["model"], one["baseline"], other["baseline"]) == ("0", "1", "2", "2")
    monkeypatch.setenv("COLUMNS", "200")
    shown = " ".join(command("eval", first, second, *told).out.split())
    (score,) = (row for row in other["scores"] if (row["task"], row["metric"]) == ("mmlu", "acc"))
    assert score["difference"] == pytest.approx(score["score"] - score["baseline"])
    assert f"{score['score']:.3f} ± {score['standard_error']:.3f} ({score['difference']:+.3f} ±" in shown
    assert shown.count("mmlu_anatomy") == 1
