"""Results of single tasks put together: groups by lm-eval's own rule, and a model beside the one it came from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from prunekit.evaluation.tasks.task_types import PreparedTasks, Results, TaskReport, TaskScore


def make_report(
    prepared: PreparedTasks,
    results: Results,
    baseline: Results | None = None,
    *,
    name: str = "model",
    baseline_name: str = "baseline",
) -> TaskReport:
    """The scores of all tasks in ``prepared``, and of their groups, from each task's result."""
    folder = prepared.config.data
    return TaskReport(
        model=name,
        baseline=None if baseline is None else baseline_name,
        lm_eval=prepared.version,
        data="hub" if folder is None else folder.resolve().name,
        limit=prepared.config.limit,
        scores=tuple(score for root in prepared.roots for score in _scores(root, 0, results, baseline)),
        left_out=dict(prepared.left_out),
        truncated={task: result.truncated for task, result in results.items() if result.truncated},
    )


def _scores(item: Any, level: int, results: Results, baseline: Results | None) -> Iterator[TaskScore]:
    group = hasattr(item, "get_all_tasks")
    members = [task.task_name for task in item.get_all_tasks()] if group else [item.task_name]
    own = {member: results[member] for member in members}
    theirs = None if baseline is None else {member: baseline[member] for member in members}
    ours = _combined(item, own) if group else own[members[0]].metrics
    dense = None if theirs is None else _combined(item, theirs) if group else theirs[members[0]].metrics
    chance = _combined(item, own, chance=True) if group else own[members[0]].chance
    shots = sorted({result.few_shot for result in own.values()})
    for key, score in ours.items():
        metric, _, chain = key.partition(",")
        if score is None or metric.endswith("_stderr"):
            continue
        difference = None if dense is None or dense.get(key) is None else score - dense[key]  # type: ignore[operator]
        yield TaskScore(
            task=item.name if group else item.task_name,
            level=level,
            group=group,
            questions=sum(result.questions for result in own.values()),
            few_shot=shots[0] if len(shots) == 1 else None,
            metric=metric if chain == "none" else f"{metric} ({chain})",
            score=score,
            standard_error=ours.get(f"{metric}_stderr,{chain}"),
            chance=chance.get(key),
            baseline=None if dense is None else dense.get(key),
            baseline_standard_error=None if dense is None else dense.get(f"{metric}_stderr,{chain}"),
            difference=difference,
            difference_standard_error=None if theirs is None else _paired_error(item, key, own, theirs),
        )
    if group:
        for child in item:
            yield from _scores(child, level + 1, results, baseline)


def _combined(group: Any, results: Results, chance: bool = False) -> dict[str, float | None]:
    """The group's metrics by lm-eval's own rule, or what guessing would reach in it."""
    tasks: dict[str, Any] = {}
    for name, result in results.items():
        values = {key: "N/A" if value is None else value for key, value in result.metrics.items()}
        if chance:
            if not any(each.chance for each in results.values()):
                return {}
            values = {key: result.chance.get(key, 0.0) for key in values if "_stderr," not in key}
        tasks[name] = {**values, "sample_len": result.questions}
    from prunekit.evaluation.tasks.harness import silent

    with silent():
        combined = group.aggregate(tasks)
    return {key: value if isinstance(value, float) else None for key, value in combined.items() if "," in key}


def _paired_error(item: Any, key: str, ours: Results, dense: Results) -> float | None:
    """The standard error of the difference, from the differences of single questions; tasks of a group are independent
    and weigh as lm-eval weighs them."""
    errors: list[tuple[int, float]] = []
    for name, result in ours.items():
        if key not in result.metrics:
            continue
        mine, theirs = result.values.get(key), dense[name].values.get(key)
        if mine is None or theirs is None or len(mine) != len(theirs) or len(mine) < 2:
            return None
        steps = [a - b for a, b in zip(mine, theirs, strict=True)]
        mean = math.fsum(steps) / len(steps)
        variance = math.fsum((step - mean) ** 2 for step in steps) / (len(steps) - 1)
        errors.append((len(steps), math.sqrt(variance / len(steps))))
    by_size = True
    for rule in getattr(item, "aggregate_metric_list", None) or ():
        if rule.metric == key.partition(",")[0]:
            by_size = bool(rule.weight_by_size)
    total = sum(size for size, _ in errors) if by_size else len(errors)
    return math.sqrt(math.fsum(((size if by_size else 1) / total * error) ** 2 for size, error in errors))
