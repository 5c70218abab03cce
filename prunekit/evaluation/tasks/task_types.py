"""Which tasks are asked, and what models reached in them: what asks, what scores and what reports share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError

_SHOWN_TASKS = 30


@dataclass(frozen=True)
class TasksConfig:
    """``tasks`` are lm-eval's tasks, groups or tags, such as mmlu, truthfulqa and agieval.

    ``data`` is a folder of JSONL files (:mod:`prunekit.evaluation.tasks.task_data`); None takes the data from the hub.
    ``few_shot`` is the number of examples before each question (None: 5 for MMLU, else as lm-eval publishes the task),
    ``limit`` the number of questions of each task (None: all).
    """

    tasks: tuple[str, ...]
    data: Path | None = None
    few_shot: int | None = None
    limit: int | None = None
    batch_size: int = 4

    def __post_init__(self) -> None:
        if not self.tasks or not all(self.tasks):
            raise PrunekitError("--tasks takes names such as mmlu,truthfulqa,agieval, separated by commas.")
        for name, least in (("few_shot", 0), ("limit", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is None and name != "batch_size":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise PrunekitError(
                    f"{name.replace('_', ' ').capitalize()} must be a whole number of at least {least}, got {value!r}."
                )


@dataclass(frozen=True)
class PreparedTasks:
    """lm-eval's task and group objects, with their data read and their few-shot numbers set.

    ``roots`` are what was asked for, in that order; ``tasks`` the single tasks below them by name. ``left_out`` says
    why tasks that belong to them are not there.
    """

    config: TasksConfig
    version: str
    roots: tuple[Any, ...]
    tasks: dict[str, Any]
    left_out: dict[str, str] = field(default_factory=dict)

    def questions(self, task: str) -> int:
        """How many questions of ``task`` are asked."""
        there = len(self.tasks[task].eval_docs)
        return there if self.config.limit is None else min(there, self.config.limit)


@dataclass(frozen=True)
class TaskResult:
    """What one model reached in one task.

    ``metrics`` are lm-eval's own by "metric,filter" and "metric_stderr,filter" (None where it has no number),
    ``values`` each question's by "metric,filter" where the metric is their mean, ``chance`` what guessing would reach.
    ``truncated`` counts the requests whose beginning did not fit into the model's positions.
    """

    questions: int
    few_shot: int
    metrics: dict[str, float | None]
    chance: dict[str, float]
    values: dict[str, list[float]]
    truncated: int


@dataclass(frozen=True)
class TaskScore:
    """One metric of a task, or of a group of tasks; ``level`` is how deep it lies in the groups asked for.

    ``few_shot`` is None where the tasks of a group differ. ``chance`` is what picking choices at random scores, None
    where there are no choices (in a group such tasks count as 0). ``difference`` is the model's score minus the
    baseline's, its standard error that of the difference question by question.
    """

    task: str
    level: int
    group: bool
    questions: int
    few_shot: int | None
    metric: str
    score: float
    standard_error: float | None
    chance: float | None
    baseline: float | None = None
    baseline_standard_error: float | None = None
    difference: float | None = None
    difference_standard_error: float | None = None


@dataclass(frozen=True)
class TaskReport:
    """Scores of one model, in the order of lm-eval's groups. ``data`` is "hub", or the name of the local folder.

    ``truncated`` names the tasks in which requests were longer than the model's positions, and how many.
    """

    model: str
    baseline: str | None
    lm_eval: str
    data: str
    limit: int | None
    scores: tuple[TaskScore, ...]
    left_out: dict[str, str]
    truncated: dict[str, int]

    @property
    def shown(self) -> tuple[TaskScore, ...]:
        """The scores that fit into a table: where groups have many tasks together, without them."""
        singles = sum(not score.group for score in self.scores if score.level)
        return tuple(each for each in self.scores if each.group or not each.level or singles <= _SHOWN_TASKS)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {**asdict(self), "scores": [asdict(score) for score in self.scores]}


Results = Mapping[str, TaskResult]
