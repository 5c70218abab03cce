"""Benchmarks through lm-evaluation-harness: its prompts and metrics, our models, local data where wanted, resumable."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.evaluation.phases import answers
from prunekit.evaluation.tasks.task_data import TaskData
from prunekit.evaluation.tasks.task_types import PreparedTasks, TaskResult, TasksConfig
from prunekit.utils.files.cache import cache_place, read_kept, write_kept
from prunekit.utils.phases.telling import keeping, unneeded
from prunekit.utils.progress import progress
from prunekit.utils.provenance import installed

# Part of the key of kept results: a new number where their meaning changes.
_FORMAT = 1


def prepare_tasks(config: TasksConfig) -> PreparedTasks:
    """Find the tasks and read their data; no model is needed yet.

    Raises PrunekitError where lm-eval is not installed or knows no such task, or data can't be had or are broken.
    """
    from prunekit.evaluation.tasks import harness

    version = harness.check_installed()
    data = None if config.data is None else TaskData(config.data)
    left_out: dict[str, str] = {}
    roots: list[Any] = []
    with harness.silent():
        manager = harness.index(list(config.tasks), local=data is not None)
        for name in config.tasks:
            missing: dict[str, str] = {}
            found = harness.load(manager, name) if data is None else harness.load_local(manager, name, data, missing)
            if not found:
                why = next(iter(missing.values()))
                more = f", and so on for {len(missing)} tasks" if len(missing) > 1 else ""
                raise PrunekitError(f"The task {name} can't be made from the files in {config.data}: {why}{more}.")
            left_out |= missing
            roots += found
        tasks = {}
        for root in roots:
            for task in root.get_all_tasks() if hasattr(root, "get_all_tasks") else [root]:
                tasks[task.task_name] = task
        followed = []
        for task in tasks.values():
            harness.check_runnable(task)
            followed.append(harness.set_few_shot(task, config.few_shot))
    if not any(followed):
        raise PrunekitError(
            f"None of the tasks {', '.join(config.tasks)} has examples to put before a question; leave --few-shot out."
        )
    return PreparedTasks(config, version, tuple(roots), tasks, left_out)


def score_tasks(
    prepared: PreparedTasks,
    load: Callable[[], Any],
    tokenizer: Any,
    *,
    name: str = "model",
    identity: Mapping[str, str] | None = None,
) -> dict[str, TaskResult]:
    """What a model reaches in each task. ``load`` gives the model (transformers' causal LM), and is called only if a
    task is still to be done.

    ``identity`` is what a result depends on besides the task: the fingerprint of the weights, dtype, device. With it,
    each task's result is kept in the cache folder when it is done, and found there the next time; without it nothing is
    kept. A cache that can't be written costs time the next time, no more. Raises PrunekitError where logits are not
    numbers, or an answer is longer than the model's positions.
    """
    kept: dict[str, Path] = {}
    if identity is not None:
        kept = {task: _kept_file(prepared, task, identity, tokenizer) for task in prepared.tasks}
    results = {task: result for task, file in kept.items() if (result := _read(file)) is not None}
    todo = [task for task in prepared.tasks if task not in results]
    if todo:
        scored = _Scorer(prepared, load(), tokenizer, name, sum(map(prepared.questions, todo)))
        with scored:
            for task in todo:
                results[task] = scored.score(task)
                if task in kept:
                    write_kept(kept[task], asdict(results[task]))
                    keeping(f"the tasks of {name}", len(results), len(prepared.tasks))
    else:
        unneeded(answers(name), f"all {len(results)} tasks kept from an earlier run")
    return {task: results[task] for task in prepared.tasks}


class _Scorer:
    """Runs tasks one after another, with one progress bar for all."""

    def __init__(self, prepared: PreparedTasks, model: Any, tokenizer: Any, name: str, total: int):
        self.prepared = prepared
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self._bar = progress(answers(name), total)
        self._task: Any = None

    def __enter__(self) -> _Scorer:
        from prunekit.evaluation.tasks import harness

        self._training = self.model.training
        with harness.silent():
            self._harness = harness.harness_model(
                self.model, self.tokenizer, self.prepared.config.batch_size, self.name, self._answered
            )
        self._advance = self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)
        self.model.train(self._training)

    def _answered(self) -> None:
        # A question is as many requests as it has choices.
        self._advance(self.prepared.questions(self._task.task_name) / len(self._task.instances), self._task.task_name)

    def score(self, name: str) -> TaskResult:
        from lm_eval.defaults import DEFAULT_OTHER_SEED
        from lm_eval.evaluator import evaluate

        from prunekit.evaluation.tasks.harness import silent

        self._task = task = self.prepared.tasks[name]
        # The same examples for every model, and the ones lm-eval itself would draw.
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
        self._harness.truncated = 0
        try:
            with silent():
                done = evaluate(self._harness, {"tasks": {name: task}}, limit=self.prepared.config.limit)
        except AssertionError as error:
            raise PrunekitError(
                f"{self.name} can't answer {name}: {str(error) or 'an answer is longer than its positions'}; leave the "
                "task out."
            ) from None
        metrics = {key: _plain(value) for key, value in done["results"][name].items() if "," in key}
        samples = sorted(done["samples"][name], key=lambda sample: sample["doc_id"])
        values: dict[str, list[float]] = {}
        for key, score in metrics.items():
            metric, _, chain = key.partition(",")
            each = [_plain(sample.get(metric)) for sample in samples if sample["filter"] == chain]
            numbers = [value for value in each if value is not None]
            if (
                score is not None
                and len(numbers) == len(each) > 0
                and math.isclose(score, math.fsum(numbers) / len(numbers), rel_tol=1e-6, abs_tol=1e-9)
            ):
                values[key] = numbers
        return TaskResult(
            questions=int(done["results"][name]["sample_len"]),
            few_shot=int(task.get_config("num_fewshot")),
            metrics=metrics,
            chance=_chance(task, [sample["doc"] for sample in samples], metrics),
            values=values,
            truncated=self._harness.truncated,
        )


def _plain(value: Any) -> float | None:
    """A finite number as a float; lm-eval writes N/A where there is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _chance(task: Any, docs: list[Any], metrics: Mapping[str, Any]) -> dict[str, float]:
    """What picking one of the choices at random scores on average, by the task's own scoring: each choice in turn is
    made the likeliest by far. Accuracies of multiple choice only."""
    wanted = [key for key in metrics if key.startswith("acc") and "_stderr," not in key]
    if task.OUTPUT_TYPE != "multiple_choice" or any(key.startswith("acc_mutual_info") for key in wanted):
        return {}
    sums = dict.fromkeys(wanted, 0.0)
    for doc in docs:
        count = len(task.doc_to_choice(doc))
        for chosen in range(count):
            answers = [(0.0 if choice == chosen else -1e3, choice == chosen) for choice in range(count)]
            scored = task.process_results(doc, answers)
            for key in wanted:
                sums[key] += float(scored[key.partition(",")[0]]) / count
    return {key: total / len(docs) for key, total in sums.items()}


def _kept_file(prepared: PreparedTasks, task: str, identity: Mapping[str, str], tokenizer: Any) -> Path:
    """Where the result is kept: its name is a digest of all that it depends on."""
    config = prepared.config
    made = prepared.tasks[task]
    definition = {key: value for key, value in made.dump_config().items() if key not in ("custom_dataset", "metadata")}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = {
        "format": _FORMAT,
        "versions": {package: installed(package) for package in ("lm-eval", "torch", "transformers")},
        "model": dict(identity),
        "tokenizer": backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items()),
        "task": [task, made.VERSION, definition],
        "few_shot": made.get_config("num_fewshot"),
        "limit": config.limit,
        "questions": [made.eval_docs[position] for position in range(prepared.questions(task))],
        "examples": list(made.fewshot_docs()) if made.get_config("num_fewshot") else [],
    }
    # Functions of lm-eval's by name: their address changes from run to run.
    text = json.dumps(content, sort_keys=True, default=lambda each: getattr(each, "__qualname__", type(each).__name__))
    folder = cache_place("tasks", needed=False)
    return folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', task)[:80]}-{hashlib.sha256(text.encode()).hexdigest()}.json"


def _read(file: Path) -> TaskResult | None:
    """A kept result; None where there is none, or it is damaged."""
    data = read_kept(file)
    try:
        return None if data is None else TaskResult(**data)
    except TypeError:
        return None
